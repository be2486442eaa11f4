"""What a version did: requests, errors, latencies, lengths, refusals, thumbs."""

import math
import re
import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

REMEMBERED = 10_000  # latencies and lengths, the newest, of which quantiles and means are taken
QUANTILES = (0.5, 0.95, 0.99)
LOOKED_AT = 200  # characters at an answer's beginning
# A rule that anybody can check, of English answers alone: it compares versions, it does not judge one.
REFUSAL = re.compile(
    r"\b(i can'?t|i cannot|i am (sorry|unable)|i'm (sorry|unable)|i won'?t|i am not able|i'm not able|"
    r"as an ai|sorry, but)\b",
    re.IGNORECASE,
)


def is_refusal(answer: str) -> bool:
    """Tell whether an answer is empty, or says in its first 200 characters that it cannot or will not."""
    return not answer.strip() or REFUSAL.search(answer[:LOOKED_AT].replace("\u2019", "'")) is not None


class Figures:
    """The figures of one version, since the server was started."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._first: deque[float] = deque(maxlen=REMEMBERED)
        self._tokens: deque[int] = deque(maxlen=REMEMBERED)

    def add_request(self, seconds: float, first: float | None, answers: Sequence[tuple[str, int]]) -> None:
        """Count a request that was answered.

        Args:
            seconds: from its arrival to its end.
            first: the same to its first token.
            answers: the text and the tokens of each.
        """
        with self._lock:
            self._counts["requests"] += 1
            self._counts["answers"] += len(answers)
            self._counts["refusals"] += sum(is_refusal(text) for text, _ in answers)
            self._seconds.append(seconds)
            self._tokens.extend(tokens for _, tokens in answers)
            if first is not None:
                self._first.append(first)

    def add_error(self) -> None:
        """Count a request that failed on our side."""
        with self._lock:
            self._counts["errors"] += 1

    def add_thumb(self, thumb: str, before: str | None) -> None:
        """Count a thumb, in place of the same user's earlier one."""
        with self._lock:
            self._counts[f"thumbs_{thumb}"] += 1
            if before:
                self._counts[f"thumbs_{before}"] -= 1

    def summary(self) -> dict[str, Any]:
        """Give the figures, flat; what nothing is known of is not there."""
        with self._lock:
            counts, seconds, first, tokens = (
                self._counts.copy(),
                sorted(self._seconds),
                sorted(self._first),
                list(self._tokens),
            )
        names = ("requests", "errors", "thumbs_up", "thumbs_down")
        found: dict[str, Any] = {name: counts[name] for name in names}
        for share in QUANTILES if seconds else ():
            found[f"seconds_p{share * 100:g}"] = quantile(seconds, share)
        if first:
            found["first_token_seconds_p50"] = quantile(first, 0.5)
        if counts["answers"]:
            found["answer_tokens"] = sum(tokens) / len(tokens)
            found["refusals"] = counts["refusals"] / counts["answers"]
        return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Give the least of some ordered numbers that so large a share of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
