"""Writing the figures of what is served into MLflow, every now and then and at the end."""

import logging
import threading
from typing import Any

from flows.serving.canary import Canary
from flows.serving.service import Service
from tasks.registry.serving.figures import ServingRun
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params
from tasks.stage import classify

logger = logging.getLogger(__name__)


class Reporter:
    """Writes in a thread; a server that does not answer costs a warning, and is asked again the next time."""

    def __init__(self, params: Params, service: Service, canary: Canary | None, seconds: float) -> None:
        """Begin to write every so many seconds."""
        self._params, self._service, self._canary, self._seconds = params, service, canary, seconds
        self._runs: dict[ServedVersion, ServingRun] = {}
        self._written: dict[ServedVersion, dict[str, Any]] = {}
        self._answers = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write for the last time, and end the runs."""
        self._stop.set()
        self._thread.join()
        self.write(is_end=True)

    def write(self, *, is_end: bool = False) -> None:
        """Write what has changed since the last time."""
        for version, figures in self._service.figures().items():
            summary = figures.summary()
            if self._written.get(version) == summary and not is_end:
                continue
            run = self._runs.get(version) or ServingRun(self._params, version, self._role(version))
            try:
                run.write(summary, is_end=is_end)
            except Exception as error:  # figures are worth a warning, no answer
                if self._answers or is_end:
                    logger.warning("the figures of %s are not in MLflow: %s", version.name, classify(error)[1])
                self._answers = False
                continue
            self._answers = True
            self._runs[version], self._written[version] = run, summary

    def _role(self, version: ServedVersion) -> str:
        served = self._service.versions.current()
        alias = next((alias for alias, loaded in served.items() if loaded.version == version), "")
        is_canary = self._canary is not None and alias == self._canary.alias
        return f"{alias}, {self._canary.percent:g} %" if self._canary and is_canary else alias

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self.write()
