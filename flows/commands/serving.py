"""The command `trueline serve`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.common import settings


def serve(
    *,
    host: Annotated[str, typer.Option(help="The address; others than loopback need API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    engine: Annotated[Literal["builtin", "vllm"], typer.Option(help="Our sampler, or vLLM in a process.")] = "builtin",
    vllm: Annotated[
        str, typer.Option(metavar="PROGRAM", help="The program vllm, in an environment of its own.")
    ] = "vllm",
    vllm_option: Annotated[
        list[str] | None, typer.Option(help="A further option of vllm serve; may be repeated.")
    ] = None,
    canary: Annotated[str | None, typer.Option(metavar="ALIAS:PERCENT", help="Such as challenger:10.")] = None,
    api_keys: Annotated[Path | None, typer.Option(metavar="FILE", help="name:key, one a line.")] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the aliases.")] = 5.0,
    wait: Annotated[bool, typer.Option("--wait", help="Begin without a champion, and wait for one.")] = False,
    figures_every: Annotated[float, typer.Option(min=1.0, help="Seconds between two writes to MLflow.")] = 60.0,
    feedback_folder: Annotated[Path, typer.Option(help="Where thumbs are written.")] = Path(".trueline/feedback"),
    max_concurrent: Annotated[int, typer.Option(min=1, help="Answers sampled side by side.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers beside them that wait.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 2048,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Default: as the context allows.")] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 2**20,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Requests a minute of a key. Default: any.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.")] = 120.0,
) -> None:
    """Serve the champion to OpenAI's clients, and follow it."""
    from flows.serving.canary import parse_canary
    from flows.serving.limits import Limits, read_keys
    from flows.serving.server import Serving
    from flows.serving.server import serve as serve_champion
    from tasks.registry.promotion.versions import CHAMPION

    params = settings()
    limits = Limits(
        body_bytes=max_body,
        prompt_tokens=max_prompt_tokens,
        answer_tokens=max_tokens,
        concurrent=max_concurrent,
        waiting=max_waiting,
        requests_per_minute=rate,
        seconds=timeout,
    )
    serving = Serving(
        host=host,
        port=port,
        keys=read_keys(api_keys),
        limits=limits,
        canary=parse_canary(canary, CHAMPION) if canary else None,
        poll_seconds=poll,
        wait=wait,
        figures_seconds=figures_every,
        feedback_folder=feedback_folder,
    )
    program = [vllm, *(vllm_option or [])] if engine == "vllm" else None
    serve_champion(params, serving, program)
