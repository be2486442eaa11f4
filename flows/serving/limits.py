"""Who may ask, how often, and how much at once."""

import hashlib
import hmac
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from flows.serving.errors import RequestError
from tasks.common.errors import InputError

KEYS_VARIABLE = "TRUELINE_API_KEYS"
SHORTEST_KEY = 16  # characters
MOST_CLIENTS = 10_000  # whose rate is remembered
RETRY_SECONDS = 1  # when the server is full


class Limits(NamedTuple):
    """What a request, a client and all of them together may take."""

    body_bytes: int = 2**20
    prompt_tokens: int | None = None  # None: as the model's context allows
    answer_tokens: int = 2048
    concurrent: int = 8  # answers sampled side by side, of one version
    waiting: int = 64  # answers beside them that wait
    requests_per_minute: float | None = None  # of one key, or without keys of one address
    seconds: float = 120.0  # for one request, waiting included


class Keys:
    """API keys by their hashes; no message, log or metric has a key."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Take keys by the names of their owners."""
        self._hashes = {name: _hashed(key) for name, key in keys.items()}

    def __bool__(self) -> bool:
        """Tell whether a key is asked for."""
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str | None:
        """Give the name of a key's owner, from the header of a request; None where no key is asked for.

        Raises:
            RequestError: a key is asked for, and the request has none that is known.
        """
        if not self._hashes:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        given = _hashed(key.strip())
        # All are compared, and in constant time each: how long it takes says nothing of any key.
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(known, given)]
        if scheme.lower() != "bearer" or not found:
            raise RequestError(
                401, "the API key is missing or not known here: send Authorization: Bearer KEY", code="invalid_api_key"
            )
        return found[0]


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def read_keys(file: Path | None) -> Keys:
    """Read keys from a file, or else from TRUELINE_API_KEYS: `name:key`, one a line; # begins a comment line.

    Raises:
        InputError: the file does not exist, a line is none, a key is short or stands there twice.
    """
    place = str(file) if file else KEYS_VARIABLE
    try:
        text = file.read_text(encoding="utf-8") if file else os.environ.get(KEYS_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place} cannot be read ({type(error).__name__}): correct --api-keys") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not (name and colon and key):
            raise InputError(f"{place} line {number} is not name:key: correct it")
        if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(
                f"{place} line {number}: the key of {name} is shorter than {SHORTEST_KEY} characters, or has others "
                "than visible ASCII: make one with openssl rand -hex 24"
            )
        if name in keys or key in keys.values():
            raise InputError(f"{place} line {number} has a name or a key a second time: remove it")
        keys[name] = key
    if file and not keys:
        raise InputError(f"{file} has no keys: write name:key, one a line")
    return Keys(keys)


def check_host(host: str, keys: Keys) -> None:
    """Refuse to be reached from other machines without keys.

    Raises:
        InputError: the host is not loopback, and there are no keys.
    """
    if not keys and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines, and there are no API keys: give --api-keys FILE or "
            f"{KEYS_VARIABLE}, or leave --host out"
        )


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Rate:
    """A bucket of tokens for each client: it holds a minute's requests, and fills up evenly."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the limit; None: there is none."""
        self._most, self._clock = per_minute and max(1.0, per_minute), clock
        self._per_second = (per_minute or 0.0) / 60
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when

    def take(self, client: str) -> None:
        """Count a request.

        Raises:
            RequestError: the client has had its share.
        """
        if self._most is None:
            return
        now = self._clock()
        left, then = self._buckets.pop(client, (self._most, now))
        left = min(self._most, left + (now - then) * self._per_second)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise RequestError(
                429,
                f"more than {self._per_second * 60:g} requests a minute: try again later",
                code="rate_limit_exceeded",
                retry_after=math.ceil((1 - left) / self._per_second),
            )


class Places:
    """Room for so many answers at once, under way and waiting."""

    def __init__(self, most: int) -> None:
        """Begin empty."""
        self._most, self.taken = most, 0

    @contextmanager
    def take(self, answers: int) -> Iterator[None]:
        """Hold the places of a request's answers.

        Raises:
            RequestError: the server is full.
        """
        if self.taken + answers > self._most:
            raise RequestError(
                429,
                f"{self.taken} answers are under way or wait, and {self._most} is the limit here: try again later",
                code="server_full",
                retry_after=RETRY_SECONDS,
            )
        self.taken += answers
        try:
            yield
        finally:
            self.taken -= answers
