"""What the server knows, and how a request becomes a question to a version."""

import secrets
import threading
from collections.abc import Sequence

from flows.serving.backends import Question
from flows.serving.canary import Canary, identity
from flows.serving.errors import RequestError
from flows.serving.feedback import Thumbs
from flows.serving.figures import Figures
from flows.serving.limits import Keys, Limits, Places, Rate
from flows.serving.metrics import Metrics
from flows.serving.requests import ChatRequest
from flows.serving.versions import Versions
from tasks.data.records import Message
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params

WAIT_SECONDS = 30  # for a champion


class Service:
    """Versions, limits, and what is counted."""

    def __init__(
        self,
        params: Params,
        versions: Versions,
        *,
        limits: Limits,
        keys: Keys,
        canary: Canary | None,
        thumbs: Thumbs,
    ) -> None:
        """Put them together."""
        self.policy, self.versions, self.limits, self.keys, self.thumbs = (
            params.registry.policy,
            versions,
            limits,
            keys,
            thumbs,
        )
        self.rate = Rate(limits.requests_per_minute)
        self.places = Places(limits.concurrent + limits.waiting)
        self.metrics = Metrics(versions)
        self.is_stopping = False
        self._canary, self._settings = canary, params.evaluate
        self._figures: dict[ServedVersion, Figures] = {}
        self._lock = threading.Lock()

    def figures(self) -> dict[ServedVersion, Figures]:
        """Give the figures of every version that has answered."""
        with self._lock:
            return dict(self._figures)

    def figures_of(self, version: ServedVersion) -> Figures:
        """Give the figures of a version to add to."""
        with self._lock:
            return self._figures.setdefault(version, Figures())

    def route(self, request: ChatRequest, owner: str | None, messages: Sequence[Message]) -> list[str]:
        """Choose who answers: aliases in the order in which they are tried, or the version that the request names.

        Raises:
            RequestError: it names what does not answer here.
        """
        champion, current = self.versions.aliases[0], self.versions.current()
        if champion not in current:
            raise RequestError(503, "there is no champion yet: try again later", retry_after=WAIT_SECONDS)
        if request.model in (None, "", self.policy, champion):
            # The canary may be gone when it is tried: a promotion takes its alias away.
            is_canary = self._canary and self._canary.takes(identity(request, owner, messages))
            return [self._canary.alias, champion] if self._canary and is_canary else [champion]
        names = [*current, *dict.fromkeys(loaded.version.name for loaded in current.values())]
        if request.model not in names:
            raise RequestError(
                404,
                f"the model {request.model} does not answer here: name {self.policy}, or one of {', '.join(names)}",
                code="model_not_found",
                param="model",
            )
        return [str(request.model)]

    def question(self, request: ChatRequest, messages: Sequence[Message]) -> Question:
        """Fill in what a request leaves open: answers are sampled as they are evaluated, by the section evaluate.

        Raises:
            RequestError: it asks for more than is given here.
        """
        given, settings = request.wanted_tokens, self._settings
        if given is not None and given > self.limits.answer_tokens:
            raise RequestError(
                400,
                f"max_tokens is {given}, and the limit here is {self.limits.answer_tokens}: lower it",
                code="invalid_value",
                param="max_tokens",
            )
        return Question(
            messages=messages,
            answers=request.n or 1,
            max_tokens=given or min(settings.max_new_tokens, self.limits.answer_tokens),
            is_max_tokens_given=given is not None,
            temperature=settings.temperature if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else max(request.top_p, 1e-9),  # at 0 the likeliest token is left
            seed=secrets.randbits(62) if request.seed is None else request.seed,
            stops=request.stops,
            log_probs=(request.top_logprobs or 0) if request.logprobs else None,
        )
