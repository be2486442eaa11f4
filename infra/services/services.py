"""The four servers together: their order, their addresses, and what a checkout needs to use them."""

import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from flows.prefect_server.address import is_ready
from infra.services import postgres, s3, upgrades
from infra.services.server import MARK, Server, answers, end_leftovers
from infra.services.upgrades import Database
from tasks.common.errors import InputError

SETTINGS = Path(__file__).with_name("servers.env")
PORTS = {"postgres": 5432, "s3": 9000, "mlflow": 5000, "prefect": 4200}
DVC_REMOTE = """[core]
    remote = services
['remote "services"']
    url = s3://{bucket}
    endpointurl = http://127.0.0.1:{port}
    region = us-east-1
    credentialpath = {keys}
"""


class Services:
    """PostgreSQL, S3, MLflow and Prefect over one folder; started again, they go on with its data."""

    def __init__(self, folder: Path, ports: Mapping[str, int] | None = None) -> None:
        """Choose the ports and write settings, keys and passwords; nothing is started.

        Args:
            folder: where everything lies.
            ports: by name; others are those of the last time, else usual ones, else free ones.

        Raises:
            InputError: a port is taken, or a server is not installed.
        """
        self.folder = folder.resolve()
        for part in ("logs", "dvc"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        end_leftovers(self.folder)
        self.ports = _settled(self.folder / "ports.json", ports or {})
        self.passwords, self.keys = self.folder / "pgpass", self.folder / "aws"
        postgres.write_passwords(self.passwords, self.ports["postgres"])
        s3.write_keys(self.keys)
        remote = DVC_REMOTE.format(bucket=s3.BUCKETS[0], port=self.ports["s3"], keys=self.keys)
        (self.folder / "dvc/config").write_text(remote, encoding="utf-8")
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment().items())
        (self.folder / "env").write_text(exports, encoding="utf-8")
        common = self._server_environment()
        self.postgres = postgres.server(
            self.folder / "postgres", self.ports["postgres"], self.passwords, common, self._log("postgres")
        )
        self.s3 = s3.server(self.folder / "s3", self.ports["s3"], self.keys, common, self._log("s3"))
        self.mlflow = self._mlflow(common)
        self.prefect = self._prefect(common)
        self.all = (self.postgres, self.s3, self.mlflow, self.prefect)

    def environment(self) -> dict[str, str]:
        """Give the variables by which a checkout uses the servers; none holds a password."""
        return {
            "MLFLOW_TRACKING_URI": self._address("mlflow"),
            "PREFECT_API_URL": f"{self._address('prefect')}/api",
            "DVC_SYSTEM_CONFIG_DIR": str(self.folder / "dvc"),  # it names the default remote
        }

    def database(self, role: str) -> str:
        """Give the address of a role's database; its password is in the file that PGPASSFILE names."""
        return f"127.0.0.1:{self.ports['postgres']}/{role}"

    def start(self, *, upgrade: bool = False) -> list[Path]:
        """Start all servers, each when those that it needs answer.

        Args:
            upgrade: whether tables of an older MLflow or Prefect are dumped and migrated.

        Returns:
            The dumps.

        Raises:
            InputError: one does not start, or tables are those of another MLflow or Prefect.
        """
        for server in (self.postgres, self.s3):
            server.launch()
        self.postgres.wait()
        postgres.create_databases(self.ports["postgres"], self.passwords)
        dumps = self._settle_tables(upgrade)
        self.prefect.launch()
        self.s3.wait()
        s3.create_buckets(self.ports["s3"], self.keys)
        self.mlflow.launch()
        for server in (self.mlflow, self.prefect):
            server.wait()
        return dumps

    def stop(self) -> None:
        """End all servers, each before those that it needs."""
        for server in reversed(self.all):
            server.stop()

    def ended(self) -> Server | None:
        """Give a server that has ended by itself, if there is one."""
        return next((server for server in self.all if not server.is_running()), None)

    def _settle_tables(self, upgrade: bool) -> list[Path]:
        """Check or migrate the tables where the libraries are not those of the last time; gives the dumps."""
        file, installed = self.folder / "versions.json", {role: version(role) for role in postgres.ROLES}
        if file.exists() and json.loads(file.read_text(encoding="utf-8")) == installed:
            return []
        dumps = []
        for role, server in (("mlflow", self.mlflow), ("prefect", self.prefect)):
            database = Database(role, role, self.ports["postgres"], self.passwords)
            if upgrade and upgrades.is_older(database):
                dumps.append(upgrades.dump(database, self.folder / "dumps"))
                upgrades.migrate(database, self._mlflow_database(), server.environment)
            upgrades.check(database, "make services SERVICES=--upgrade keeps a dump and migrates them")
        file.write_text(json.dumps(installed), encoding="utf-8")
        return dumps

    def _mlflow_database(self) -> str:
        return f"postgresql://mlflow@{self.database('mlflow')}"

    def _address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def _log(self, name: str) -> Path:
        """Give the file of a server's messages; those of the last time are kept beside it."""
        file = self.folder / "logs" / f"{name}.log"
        if file.exists():
            file.replace(file.with_suffix(".log.1"))
        return file

    def _server_environment(self) -> dict[str, str]:
        lines = SETTINGS.read_text(encoding="utf-8").splitlines()
        settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        # Of the variables of those who start them, none may change what the servers are.
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "AWS_"))
        }
        return own | settings | {"PGPASSFILE": str(self.passwords), MARK: str(self.folder)}

    def _mlflow(self, common: Mapping[str, str]) -> Server:
        options = ["--host", "127.0.0.1", "--port", str(self.ports["mlflow"]), "--workers", "1"]
        metrics = ["--expose-prometheus", str(self.folder / "mlflow-metrics")]
        return Server(
            name="MLflow",
            command=[sys.executable, "-m", "mlflow", "server", *options, *metrics],
            environment={
                **common,
                "MLFLOW_BACKEND_STORE_URI": self._mlflow_database(),
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{s3.BUCKETS[1]}/artifacts",
                "MLFLOW_S3_ENDPOINT_URL": self._address("s3"),
                "AWS_SHARED_CREDENTIALS_FILE": str(self.keys),
            },
            log=self._log("mlflow"),
            is_ready=lambda: answers(f"{self._address('mlflow')}/health"),
        )

    def _prefect(self, common: Mapping[str, str]) -> Server:
        api = f"{self._address('prefect')}/api"
        options = ["--host", "127.0.0.1", "--port", str(self.ports["prefect"])]
        return Server(
            name="Prefect",
            command=[sys.executable, "-m", "prefect", "server", "start", *options],
            environment={
                **common,
                "PREFECT_HOME": str(self.folder / "prefect"),
                "PREFECT_UI_API_URL": api,
                "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@{self.database('prefect')}",
            },
            log=self._log("prefect"),
            is_ready=lambda: is_ready(api),
        )


def _settled(file: Path, asked: Mapping[str, int]) -> dict[str, int]:
    """Choose the port of each server, and remember it: addresses that somebody has copied stay right."""
    known: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    chosen: dict[str, int] = {}
    for name, usual in PORTS.items():
        port = asked.get(name) or known.get(name) or usual
        if not _is_free(port):
            if name in asked or name in known:
                raise InputError(
                    f"port {port} of 127.0.0.1 is taken, which {name} is to have: end what listens there, "
                    f"or name another (make services SERVICES='--port {name}=PORT')"
                )
            port = 0
        chosen[name] = port or _free_port()
    file.write_text(json.dumps(chosen), encoding="utf-8")
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port may have had connections a moment ago
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
