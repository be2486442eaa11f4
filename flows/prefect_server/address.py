"""The Prefect server that the environment names: whether its address can be one, and whether it answers."""

import base64
import os

import httpx

from tasks.common.errors import InputError
from tasks.common.network import by_proxy, check_proxies, fault_of_server
from tasks.common.safe_text import without_secrets

VARIABLE = "PREFECT_API_URL"
ANSWER_SECONDS = 5.0
CURE = f"start one with make server, or correct {VARIABLE}"


def named_server() -> str | None:
    """Give the address of the Prefect server that the environment names; None where it names none."""
    return os.environ.get(VARIABLE, "").strip() or None


def credentials() -> dict[str, str]:
    """Give the header by which Prefect's own client says who it is; none where the environment has no key."""
    if user_and_password := os.environ.get("PREFECT_API_AUTH_STRING"):  # it goes before a key there, too
        return {"Authorization": f"Basic {base64.b64encode(user_and_password.encode()).decode()}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}


def is_healthy(url: str) -> bool:
    """Tell whether a Prefect server answers at this address."""
    try:
        return _is_api(_ask(url))
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def is_ready(url: str) -> bool:
    """Tell whether a Prefect server answers, and its database too, without which it is healthy and keeps nothing."""
    try:
        return _is_api(_ask(url)) and not _ask(url, "ready").is_server_error
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def named_server_answers() -> bool:
    """Tell whether there is a Prefect server that the environment names, and that answers."""
    url = named_server()
    return url is not None and is_ready(url)


def check_reachable(url: str) -> None:
    """Make sure that a Prefect server answers.

    Raises:
        InputError: none does, the address or a proxy cannot be one, or the server wants a key.
    """
    check_proxies()
    if fault := fault_of_server(url, "http://host:4200/api"):
        raise InputError(f"{VARIABLE} is {without_secrets(url)}, {fault}")
    try:
        answer = _ask(url)
        refusal = _ask(url, "admin/version") if answer.is_success else answer  # everybody may ask for the health
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"no Prefect server answers at {url}{by_proxy(url)} ({reason}): {CURE}") from None
    if refusal.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise InputError(
            f"the Prefect server at {url} refuses who asks: set PREFECT_API_KEY (Prefect Cloud) or "
            "PREFECT_API_AUTH_STRING (user:password of a server of your own)"
        )
    if not _is_api(answer):
        raise InputError(
            f"no Prefect server answers at {url} (status {answer.status_code}, {answer.headers.get('Content-Type')}); "
            f"the address of one ends in /api: {CURE}"
        )


def _ask(url: str, what: str = "health") -> httpx.Response:
    return httpx.get(f"{url.rstrip('/')}/{what}", timeout=ANSWER_SECONDS, headers=credentials())


def _is_api(answer: httpx.Response) -> bool:
    """Tell the API from the pages of the same server, which answer at every path."""
    return answer.status_code == httpx.codes.OK and "html" not in answer.headers.get("Content-Type", "")
