"""The pipeline's stages, one file each, and the packages they stand on."""

import importlib.util
import os
import sys

# Where DVC was called without the project's environment, `python` is another.
if importlib.util.find_spec("torch") is None:
    sys.stderr.write(
        f"{sys.executable} is not the Python that Trueline is installed in: run `. .venv/bin/activate`, then "
        "`dvc checkout` for outputs that DVC has deleted, then again\n"
    )
    sys.exit(2)

# Read by the libraries when they are imported, so set before anything here can import them.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What runs beside us, such as Prefect's server, MLflow's or a judge's, is never reached through a proxy.
_listed = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
_hosts = ["*"] if "*" in _listed else [host for host in _listed if host] + ["localhost", "127.0.0.1", "::1"]
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(_hosts))
# Who started this process, asked before the seconds of imports in which it may die.
STARTED_BY = os.getppid()
