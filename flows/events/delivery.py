"""One message to one address, by apprise."""

import logging
import threading
from typing import Any

from flows.events.addresses import Address
from tasks.common.safe_text import sentence

CONNECT_SECONDS, READ_SECONDS = 3.0, 4.0


class _Faults(logging.Handler):
    """Collects what apprise logs in this thread: it returns no more than False."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread, self.found = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.found.append(record.getMessage())


def deliver(address: Address, title: str, body: str) -> str | None:
    """Send a message; give the reason, without the address's secrets, where it is not taken."""
    import apprise

    logger, faults = logging.getLogger("apprise"), _Faults()
    logger.propagate = False  # it quotes parts of addresses
    logger.addHandler(faults)
    try:
        service: Any = apprise.Apprise.instantiate(address.url)
        if service is None:
            return "apprise knows no such address: apprise's documentation lists the forms"
        service.socket_connect_timeout, service.socket_read_timeout = CONNECT_SECONDS, READ_SECONDS
        taken = service.notify(body=body, title=title)
    except Exception as error:  # of whatever library the service needs
        return sentence(address.hidden_in(f"{type(error).__name__}: {error}"))
    finally:
        logger.removeHandler(faults)
    return None if taken else sentence(address.hidden_in(" ".join(faults.found) or "it was not taken"))
