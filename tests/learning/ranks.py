"""Starts the processes of one training, forked from one that has imported everything: a launcher takes ten seconds.

Their environment is what `accelerate launch` gives for a file in infra/accelerate.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch.distributed.checkpoint.hf_storage
import torch.distributed.fsdp
import torch.distributed.tensor  # noqa: F401 imported for those who are forked
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.conftest import ROOT
from tests.learning.interrupted import TRAINERS  # noqa: F401 so are they

SECONDS = 240


def run_ranks(config: str, module: str, *arguments: str, count: int) -> None:
    """Run the `main` of a module in so many processes, in this folder, and wait for them.

    Raises:
        AssertionError: one failed, or did not end; with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    environment = launched(config, count)
    ranks = [
        context.Process(target=run, args=(Path.cwd(), environment | {"RANK": str(rank)}, module, arguments))
        for rank in range(count)
    ]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(SECONDS)
    failed = [number for number, each in enumerate(ranks) if each.exitcode != 0]
    for each in ranks:
        each.kill()
    assert not failed, "\n".join(log_of(number).read_text(encoding="utf-8") for number in failed)


def launched(config: str, count: int) -> dict[str, str]:
    """What a launcher sets in the environment of its processes, but for their ranks."""
    file = f"{ROOT}/infra/accelerate/{config}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", file, "--num_processes", str(count), "module"])
    found, _, _ = _validate_launch_command(arguments)
    settings = prepare_multi_gpu_env(found)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {name: value for name, value in settings.items() if os.environ.get(name) != value}
    return own | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def log_of(rank: int | str) -> Path:
    return Path(f"rank-{rank}.log")


def run(folder: Path, environment: Mapping[str, str], module: str, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    with log_of(environment["RANK"]).open("w", encoding="utf-8", buffering=1) as sys.stderr:
        try:
            import_module(module).main(*arguments)
        except BaseException:
            traceback.print_exc()
            raise
