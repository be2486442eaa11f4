"""Addresses of servers, and the proxies on the way to them, as the environment names them."""

import importlib.util
import os
from urllib.parse import quote, urlsplit

from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets

WEB = ("http", "https")
SOCKS = ("socks5", "socks5h")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # in capitals too
# How S3 servers say that they delete no more than one object a request: the first miss a header which clients have
# ceased to send (boto3 1.36).
S3_BULK_REFUSALS = ("MissingContentMD5", "NotImplemented")


def fault_of_server(uri: str, example: str) -> str | None:
    """Say what is wrong with the address of a server, and the cure; None where nothing is.

    Args:
        uri: the address.
        example: a right one.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as error:
        return f"which is no address ({error}): write it as in {example}"
    if parts.scheme not in WEB or not uri.startswith(f"{parts.scheme}://"):
        return f"which does not begin with http:// or https://: write it as in {example}"
    if not parts.hostname or quote(parts.hostname, safe=":.%-_~") != parts.hostname:
        return f"which names no host: write it as in {example}"
    return None


def by_proxy(uri: str) -> str:
    """Return the words for the proxy that requests to a server go through; empty where they go straight there."""
    scheme = uri.partition("://")[0]
    if scheme not in WEB:
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(uri, get_environ_proxies(uri))
    except ValueError:  # an address that cannot be read
        return ""
    if not proxy:
        return ""
    names = [name for name, value in os.environ.items() if name.lower() in PROXIES and value == proxy]
    own = [name for name in names if name.lower().startswith(scheme)] or names
    return f" through the proxy {without_secrets(proxy)}" + (f" of {own[0]}" if own else "")


def check_proxies() -> None:
    """Check that the clients of Prefect and of judges can be made: a proxy that they do not know ends all requests.

    Raises:
        InputError: a variable holds no address of a proxy, or one that needs a library that is not installed.
    """
    for name in sorted({*os.environ}):
        if name.lower() not in PROXIES or not (proxy := os.environ[name]):
            continue
        scheme, separator, _ = proxy.partition("://")
        shown = f"{name} is {without_secrets(proxy)}"
        if scheme in SOCKS:
            if not all(map(importlib.util.find_spec, ("socksio", "socks"))):
                raise InputError(
                    f"{shown}, a proxy that needs socksio and PySocks, which are not installed: .venv/bin/pip install "
                    f"socksio PySocks, or unset {name}"
                )
            continue
        if fault := fault_of_server(proxy if separator else f"http://{proxy}", "http://host:3128"):
            raise InputError(f"{shown}, {fault}, or unset {name}")
