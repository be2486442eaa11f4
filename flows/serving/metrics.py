"""What Prometheus reads of the server."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.serving.versions import Versions

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NO_VERSION = "none"  # of a request that was refused before a version was chosen


class Metrics:
    """The counters, and what is read from the versions when somebody asks."""

    def __init__(self, versions: Versions) -> None:
        """Begin at nothing."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "trueline_serving_requests",
            "Requests for chat completions; status 499: the client went away.",
            ["status", "version"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "trueline_serving_request_seconds",
            "Seconds from a request's arrival to its end.",
            ["version"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "trueline_serving_tokens", "Tokens read and answered.", ["kind", "version"], registry=self._registry
        )
        self.thumbs = Counter(
            "trueline_serving_thumbs", "Thumbs given; a changed one counts again.", ["thumb", "version"],
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(_State(lambda: gauges(versions)))

    def exposition(self) -> bytes:
        """Give all of them as Prometheus reads them."""
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, read: Callable[[], Iterable[GaugeMetricFamily]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._read()


def gauges(versions: Versions) -> Iterable[GaugeMetricFamily]:
    """Read what the versions do now."""
    answers = GaugeMetricFamily(
        "trueline_serving_answers", "Answers under way and waiting.", labels=["state", "version"]
    )
    for loaded in versions.alive():
        for state, number in zip(("running", "waiting"), loaded.backend.load, strict=True):
            answers.add_metric([state, loaded.version.name], number)
    served = GaugeMetricFamily(
        "trueline_serving_version", "1 for the version that answers for an alias.", labels=["alias", "version"]
    )
    failed = GaugeMetricFamily(
        "trueline_serving_version_failed",
        "1 where an alias leads to a version that cannot be loaded, and another answers.",
        labels=["alias"],
    )
    current, failures = versions.current(), versions.failures()
    for alias in versions.aliases:
        failed.add_metric([alias], float(alias in failures))
        if alias in current:
            served.add_metric([alias, current[alias].version.name], 1.0)
    registry = GaugeMetricFamily(
        "trueline_serving_registry_up",
        "1 where MLflow answered when it was asked last.",
        float(versions.registry_answers),
    )
    return answers, served, failed, registry
