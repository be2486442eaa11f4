"""Thumbs of users: each becomes a row that `prepare` takes as a rating."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.serving.errors import RequestError
from flows.serving.requests import Feedback
from tasks.common.files import KEEP_SURROGATES, read_jsonl, write_jsonl
from tasks.data.records import Message
from tasks.registry.serving.versions import ServedVersion

MOST_ANSWERED, MOST_CHARACTERS = 10_000, 50_000_000  # of the newest answers, which thumbs may be given to
RATED = "ratings-{}.jsonl"  # a file a day, by UTC


class Answered(NamedTuple):
    """An answer that a thumb may be given to."""

    version: ServedVersion
    owner: str | None  # of the API key
    messages: Sequence[Message]
    answers: Sequence[str]  # one a choice, as the model wrote it

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.answers)) + sum(len(message["content"]) for message in self.messages)


class Given(NamedTuple):
    """A thumb that was written."""

    version: ServedVersion
    before: str | None  # the one that it replaces


class Thumbs:
    """Remembers the newest answers, and writes the thumbs that they are given."""

    def __init__(self, folder: Path) -> None:
        """Write into a folder, which is made when it is needed."""
        self._folder = folder
        self._answered: OrderedDict[str, Answered] = OrderedDict()
        self._given: dict[tuple[str, int], tuple[str, Path]] = {}
        self._size = 0
        self._lock = threading.Lock()

    def remember(self, response_id: str, answered: Answered) -> None:
        """Remember an answer, and forget the oldest where there is no room."""
        with self._lock:
            self._answered[response_id] = answered
            self._size += answered.size
            while len(self._answered) > MOST_ANSWERED or self._size > MOST_CHARACTERS:
                forgotten_id, forgotten = self._answered.popitem(last=False)
                self._size -= forgotten.size
                for choice in range(len(forgotten.answers)):
                    self._given.pop((forgotten_id, choice), None)

    def give(self, feedback: Feedback, owner: str | None) -> Given:
        """Write a thumb, in place of an earlier one to the same answer.

        Args:
            feedback: the thumb.
            owner: of the API key: others cannot rate its answers.

        Raises:
            RequestError: the answer is not remembered here.
            OSError: the folder cannot be written.
        """
        with self._lock:
            answered = self._answered.get(feedback.response_id)
            if answered is None or answered.owner != owner or feedback.choice >= len(answered.answers):
                raise RequestError(
                    404,
                    f"there is no answer {feedback.response_id} with choice {feedback.choice}: the newest "
                    f"{MOST_ANSWERED} since the server's start can be rated",
                    param="response_id",
                )
            key = (feedback.response_id, feedback.choice)
            today = self._folder / RATED.format(time.strftime("%Y-%m-%d", time.gmtime()))
            before, file = self._given.get(key, (None, today))
            rows = list(read_jsonl(file)) if before else []
            others = [row for row in rows if (row.get("response_id"), row.get("choice")) != key]
            row = _row(feedback, answered)
            if before:
                write_jsonl(file, [*others, row])
            else:
                _append(file, row)
            self._given[key] = (feedback.thumb, file)
            return Given(answered.version, before)


def _append(file: Path, row: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", errors=KEEP_SURROGATES) as opened:
        opened.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(feedback: Feedback, answered: Answered) -> dict[str, Any]:
    return {
        "prompt": list(answered.messages),
        "completion": answered.answers[feedback.choice],
        "label": feedback.thumb == "up",
        "comment": feedback.comment,
        "version": answered.version.name,
        "response_id": feedback.response_id,
        "choice": feedback.choice,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
