"""The addresses that messages go to: from the environment, or from a secret that a Prefect server keeps."""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from flows.prefect_server.address import named_server
from tasks.common.errors import InputError
from tasks.common.safe_text import ADDRESSES, HIDDEN, NAMED_SECRET, SHORTEST_SECRET, secret_parts, without_secrets


class Address(NamedTuple):
    """Where messages go."""

    number: int  # from 1, in the order of the variable
    url: str  # as apprise reads it; it is a secret

    def __str__(self) -> str:
        return f"address {self.number} ({self.url.partition('://')[0]})"

    @property
    def fingerprint(self) -> str:
        """What names the address on disk."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def hidden_in(self, text: str) -> str:
        """Remove every part of the address from a text that a library wrote of it."""
        for part in secret_parts(self.url):
            if len(part) >= SHORTEST_SECRET:
                text = text.replace(part, HIDDEN)
        return without_secrets(text)


def addresses() -> list[Address]:
    """Read the addresses; none where the variable is not set.

    Raises:
        InputError: one is no address, or the secret that is named cannot be read.
    """
    found = [Address(number, url) for number, url in enumerate(dict.fromkeys(_urls()), start=1)]
    for address in found:
        if not re.match(r"^[A-Za-z][\w+.-]*://\S", address.url):
            raise InputError(
                f"{ADDRESSES} has an entry without a scheme, number {address.number}: write addresses such as "
                "ntfys://TOPIC or slack://TOKEN/#CHANNEL, separated by spaces"
            )
    return found


def _urls() -> Iterator[str]:
    for entry in os.environ.get(ADDRESSES, "").split():
        yield from _read_secret(entry.removeprefix(NAMED_SECRET)).split() if entry.startswith(NAMED_SECRET) else [entry]


def _read_secret(name: str) -> str:
    server = named_server()
    if server is None:
        raise InputError(f"{ADDRESSES} names the Prefect secret {name}, but PREFECT_API_URL names no server: set it")
    from prefect.blocks.system import Secret

    try:
        return str(Secret.load(name, _sync=True).get())  # type: ignore[union-attr, call-arg]
    except Exception as error:  # of many kinds: no block, no server, no permission
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{ADDRESSES} names the Prefect secret {name}, which {without_secrets(server)} does not give ({reason}): "
            "create it there as a block of the type Secret"
        ) from None
