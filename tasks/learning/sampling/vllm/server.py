"""A vLLM server of this process: on loopback, in a process group of its own, and never left behind."""

import logging
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from transformers import PreTrainedConfig

from tasks.common.children import child, end_group
from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.common.safe_text import sentence
from tasks.settings.params import Runtime

logger = logging.getLogger(__name__)

LOG = STATE / "vllm" / "rollouts.log"
START_SECONDS = 1800.0  # large weights, and kernels that are compiled
# Variables that say how the processes of this training find each other: vLLM would take them for its own.
OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "LOCAL_", "PYTHON")
RANKS = ("RANK", "WORLD_SIZE")
LOG_PREFIX = re.compile(r"^\([^()]* pid=\d+\) (?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^]]*\] ?)?")
ERROR = re.compile(r"\w*(?:Error|Exception|error)\b:? ")
POINTS_ELSEWHERE = "See root cause above"


def program() -> Path:
    """Find vLLM in the environment beside this one.

    Raises:
        InputError: it is not installed.
    """
    found = Path(sys.prefix).with_name(".venv-vllm") / "bin" / "vllm"
    if not found.exists():
        raise InputError(f"ppo.engine is vllm, but {found} does not exist: run make vllm, or set runtime.vllm.url")
    return found


def start(
    folder: Path,
    config: PreTrainedConfig,
    runtime: Runtime,
    *,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
) -> "Server":
    """Start a server, and wait until it answers.

    Args:
        folder: the model's.
        config: the model's.
        runtime: threads, sequences at once, and further options.
        longest: tokens of the longest prompt and answer together.
        dtype: in which it computes.
        device: of the training; the server's is of the same kind.

    Raises:
        InputError: vLLM is not installed, or does not start.
    """
    port = _free_port()
    arguments = _options(port, longest, dtype, device, runtime)
    command = [str(program()), "serve", str(folder), *arguments, *runtime.vllm.options]
    cache = _cache_bytes(config, dtype) * longest * runtime.max_concurrent_sequences
    unset = (f"-u{name}" for name in os.environ if name in RANKS or name.startswith(OF_LAUNCHERS))
    LOG.parent.mkdir(parents=True, exist_ok=True)
    logger.info("vLLM starts, see %s", LOG)
    with ExitStack() as held:
        file = held.enter_context(LOG.open("w", encoding="utf-8"))
        environment = ["env", *unset, *_variables(cache, runtime)]
        process = held.enter_context(child([*environment, *command], stdout=file, stderr=file, is_server=True))
        held.callback(end_group, process)
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, process)
        return Server(url, longest, held.pop_all())


class Server(NamedTuple):
    """A server that answers until it is closed."""

    url: str
    longest: int  # tokens of a prompt and its answer that it has room for
    held: ExitStack

    def close(self) -> None:
        """End it, with all that it has started."""
        self.held.close()


def _wait_until_healthy(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client() as client:
        while not _answers(client, url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"vLLM did not start ({reason()}): {LOG} says more")
            time.sleep(0.2)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def reason() -> str:
    """Why the last server ended, by its log: the first error that it reports, else the last line that names one."""
    lines = [line.strip() for line in LOG.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    bare = [(LOG_PREFIX.match(line), LOG_PREFIX.sub("", line)) for line in lines]
    named = [(prefix, text) for prefix, text in bare if ERROR.match(text) and POINTS_ELSEWHERE not in text]
    reported = [text for prefix, text in named if prefix and "ERROR" in prefix[0]]
    return sentence([*reported[:1], *(text for _, text in (named or bare)[-1:]), "it wrote nothing"][0])


def _options(port: int, longest: int, dtype: torch.dtype, device: torch.device, runtime: Runtime) -> list[str]:
    return [
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", str(dtype).removeprefix("torch.")),
        *("--max-model-len", str(longest), "--max-num-seqs", str(runtime.max_concurrent_sequences)),
        *("--generation-config", "vllm"),  # none of the model's own
        *("--logprobs-mode", "processed_logprobs"),  # at the sampling temperature
        "--enable-scale-out",  # the endpoint that takes and gives tokens
        "--disable-uvicorn-access-log",
        *(("--enforce-eager",) if device.type == "cpu" else ()),
    ]


def _variables(cache_bytes: int, runtime: Runtime) -> list[str]:
    """Give the server's environment, as NAME=VALUE."""
    return [
        "VLLM_SERVER_DEV_MODE=1",  # the endpoints that replace weights
        *("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "HF_HUB_OFFLINE=1"),
        f"VLLM_CPU_KVCACHE_SPACE={-(-cache_bytes // 2**30)}",  # in GiB
        "VLLM_CPU_OMP_THREADS_BIND=nobind",
        f"OMP_NUM_THREADS={runtime.threads}",
    ]


def _cache_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """The bytes of a token's keys and values, at most."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    numbers = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width
    return int(numbers * dtype.itemsize)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
