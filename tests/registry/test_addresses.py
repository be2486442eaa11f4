"""Any address of MLflow: what cannot be used is one sentence with a cure, and a password goes beside the address."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NoReturn

import pytest

from tasks.common.errors import InputError
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs import addresses, store
from tasks.registry.mlflow_runs.addresses import REGISTRY, TRACKING, separate_passwords
from tasks.registry.mlflow_runs.store import open_store

SECRET = "hush-hush/4711"
DATABASE = "postgresql://me:hush-hush%2F4711@127.0.0.1:9/db"


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test or the code sets outlasts the test."""
    for name in (TRACKING, REGISTRY, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def refused() -> str:
    with pytest.raises(InputError) as error:
        open_store("trueline")
    return str(error.value)


@pytest.mark.parametrize("variable", [TRACKING, REGISTRY])
@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("htp://127.0.0.1:5000", "a scheme that MLflow does not know: it knows http, https, sqlite, "),
        ("postgres://me:hush-hush@host/db", "so write postgresql://"),
        ("127.0.0.1:5000", "no scheme: write http://127.0.0.1:5000"),
        ("http:/127.0.0.1:5000", "no // after the scheme"),
        ("http://", "names no host"),
        ("http://h ost:5000", "names no host"),
        ("http://127.0.0.1:99999", "is no address (Port out of range 0-65535)"),
        ("http://[::1:5000", "is no address (Invalid IPv6 URL)"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("file:/home/me/mlruns", "a folder of files"),
        ("./mlruns", "a folder of files"),
    ],
)
def test_an_address_that_nothing_can_be_at(monkeypatch, variable: str, uri: str, fault: str) -> None:
    monkeypatch.setenv(variable, uri)
    sentence = refused()
    assert sentence.startswith(f"{variable} is {without_secrets(uri)}, which ")
    assert fault in sentence
    assert "hush" not in sentence


def test_a_blank_address_is_none(tracked, monkeypatch) -> None:
    monkeypatch.setenv(TRACKING, "  ")
    assert open_store("trueline").uri == f"sqlite:///{tracked}/mlflow.db"


@pytest.mark.parametrize("variable", [TRACKING, REGISTRY])
@pytest.mark.parametrize(
    ("uri", "module", "cure"),
    [
        (DATABASE, "psycopg2", "make production"),
        (DATABASE.replace("://", "+psycopg://"), "psycopg", ".venv/bin/pip install 'psycopg[binary]'"),
        ("mysql://me:hush-hush@127.0.0.1:9/db", "MySQLdb", ".venv/bin/pip install mysqlclient"),
        ("mssql+pyodbc://me:hush-hush@127.0.0.1:9/db", "pyodbc", ".venv/bin/pip install pyodbc"),
    ],
)
def test_a_driver_that_is_missing(tracked, monkeypatch, variable: str, uri: str, module: str, cure: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv(variable, uri)
    sentence = refused()
    assert sentence.endswith(f" needs {module}, which is not installed: {cure}, or fix {variable}")
    assert "hush" not in sentence


def test_a_registry_of_its_own_in_the_checkout(tracked, monkeypatch) -> None:
    shutil.copy(tracked / "mlflow.db", tracked / "registry.db")  # whose lock is the same
    monkeypatch.setenv(REGISTRY, f"sqlite:///{tracked}/registry.db")
    assert open_store("trueline").client.search_registered_models() == []


def test_a_registry_that_is_down_is_found_before_a_decision(tracked, monkeypatch) -> None:
    monkeypatch.setenv(REGISTRY, "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9 cannot be used (Failed to establish a new connection: [Errno 111]" in (
        sentence := refused()
    )
    assert "fix MLFLOW_REGISTRY_URI" in sentence


@pytest.mark.parametrize(
    ("reason", "tries"),
    [
        ('FATAL:  password authentication failed for user "me"', 1),
        ('FATAL:  database "db" does not exist', 1),
        ("Connection refused", 3),
    ],
)
def test_a_database_that_refuses_is_asked_once_and_one_that_starts_again(monkeypatch, reason: str, tries: int) -> None:
    """MLflow asks for minutes, and the reason would be lost."""
    import sqlalchemy

    asked, clock = [], iter(range(0, 1000, 4))  # each look at the clock is four seconds later

    class Engine:
        def connect(self) -> NoReturn:
            asked.append(1)
            raise sqlalchemy.exc.OperationalError("", None, Exception(f"{reason} (hush-hush/4711)"))

        def dispose(self) -> None:
            asked.append(0)

    monkeypatch.setattr(sqlalchemy, "create_engine", lambda uri: Engine())
    monkeypatch.setattr(addresses, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    monkeypatch.setenv(TRACKING, DATABASE)
    assert f"MLflow at postgresql://127.0.0.1:9/db cannot be used ((builtins.Exception) {reason} (…)" in refused()
    assert asked == [1] * tries + [0]


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_libpq_gets_the_password_beside_the_address(monkeypatch, scheme: str) -> None:
    monkeypatch.setenv(TRACKING, f"{scheme}://me%40home:hush%2F@hush@host:5432/db?sslmode=require")
    separate_passwords()
    assert os.environ[TRACKING] == f"{scheme}://me%40home@host:5432/db?sslmode=require"
    assert os.environ["PGPASSWORD"] == "hush/@hush"
    assert without_secrets('FATAL: no "hush/@hush" or hush%2F%40hush') == 'FATAL: no "…" or …'


def test_another_password_stays_in_its_address_and_is_masked(monkeypatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "something-else")
    monkeypatch.setenv(TRACKING, DATABASE)
    separate_passwords()
    assert (os.environ["PGPASSWORD"], os.environ[TRACKING]) == ("something-else", DATABASE)
    assert without_secrets(f"{DATABASE} {SECRET} something-else") == "postgresql://127.0.0.1:9/db … …"


@pytest.mark.parametrize("scheme", ["postgresql+pg8000", "mysql+pymysql", "mssql+pyodbc"])
def test_a_driver_without_such_a_variable_keeps_its_address(monkeypatch, scheme: str) -> None:
    monkeypatch.setenv(TRACKING, address := f"{scheme}://me:hush-hush@host/db")
    separate_passwords()
    assert os.environ[TRACKING] == address
    assert "PGPASSWORD" not in os.environ


@pytest.fixture
def silent() -> Iterator[str]:
    """A proxy that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://me:hush-hush@127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "all_proxy"])
def test_a_proxy_that_does_not_answer_is_named(monkeypatch, silent: str, variable: str) -> None:
    monkeypatch.setattr(store, "ANSWER_SECONDS", 0.5)
    for name in ("HTTP_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, silent)
    monkeypatch.setenv(TRACKING, "http://mlflow.example.org:5000")
    shown, started = without_secrets(silent), time.monotonic()
    assert refused() == (
        f"MLflow at http://mlflow.example.org:5000 has not answered through the proxy {shown} of {variable} for 0 "
        "seconds: fix the proxy, or name the server's host in NO_PROXY, or unset MLFLOW_TRACKING_URI to use mlflow.db "
        "in this folder"
    )
    assert time.monotonic() - started < 20


def test_a_proxy_that_cannot_be_reached_is_named(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hush-hush@127.0.0.1:9")
    monkeypatch.setenv(TRACKING, "https://mlflow.example.org")
    assert refused().startswith(
        "MLflow at https://mlflow.example.org cannot be used through the proxy http://127.0.0.1:9 of HTTPS_PROXY "
        "(Unable to connect to proxy): fix the proxy, or name the server's host in NO_PROXY, fix MLFLOW_TRACKING_URI"
    )


def test_a_server_that_answers_through_no_proxy_is_not_said_to(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(TRACKING, "http://127.0.0.1:9")
    assert "proxy" not in refused()
