"""Loading a version: into this process, or into a server of vLLM."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flows.serving.backends import Backend
from flows.serving.limits import Limits
from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params

Loader = Callable[[Path, ServedVersion], Backend]


def loader_of(params: Params, limits: Limits, vllm: Sequence[str] | None) -> Loader:
    """Give what loads versions.

    Args:
        params: all settings.
        limits: what may be asked.
        vllm: the program vllm and further options of `vllm serve`; None: our own sampler.

    Raises:
        InputError: the program does not exist, or the device does not.
    """
    if vllm is not None:
        from flows.serving.vllm import check_program, start

        command = [check_program(vllm[0]), *vllm[1:]]
        return lambda folder, version: start(command, folder, version, limits, params.base.reasoning)
    from flows.serving.builtin import BuiltinBackend
    from tasks.learning.models.loading import set_up

    set_up(params)

    def load(folder: Path, _version: ServedVersion) -> Backend:
        return BuiltinBackend(folder, params, limits.concurrent, limits.prompt_tokens)

    return load
