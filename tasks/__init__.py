"""The pipeline's stages, one file each, and the packages they stand on."""

import importlib.util
import os
import re
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
# What runs beside us, such as Prefect's server, MLflow's or a judge's, is never reached through a proxy. Clients know
# ranges or only names, so what is named in the environment is listed by itself. httpx refuses brackets and IPv6 ranges.
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8", "0.0.0.0")
_named = re.findall(r"://(?:[^\s/@]*@)?(127\.\d+\.\d+\.\d+)(?=[:/\s]|$)", " ".join(os.environ.values()))
_listed = [host.strip(" []") for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
_kept = [host for host in _listed if host and not (host.count(":") > 1 and "/" in host)]
_hosts = ["*"] if "*" in _listed else [*_kept, *_LOOPBACK, *_named]
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(_hosts))
# Who started this process, asked before the seconds of imports in which it may die.
STARTED_BY = os.getppid()
