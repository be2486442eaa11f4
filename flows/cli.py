"""The command line: `trueline …`. Every import that costs time is made by the command that needs it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tasks.common.errors import InputError
from tasks.common.escapes import safe_json, visible
from tasks.common.safe_text import clean_logs, clean_traceback

if TYPE_CHECKING:
    from flows.pipeline import Result
    from tasks.data.exclusions import What
    from tasks.settings.params import Params

Content = TypeVar("Content")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Held = Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="Such as 3 or challenger.")]
By = Annotated[str, typer.Option(help="Who says so; kept in the record.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the record.")]


app = typer.Typer(
    help="From a base model and preference data to an aligned model that can be defended.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run a command; what a user must mend is one sentence and exit code 2, without a traceback."""
    clean_logs()
    try:
        app()
    except Exception as error:
        from tasks.stage import classify

        kind, sentence = classify(error)
        if kind == "bug":
            clean_traceback()
            raise
        print(f"trueline: {sentence}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(as_json: AsJson = False) -> None:
    """Run the pipeline: every stage that has changed, then the gate, and promotion if it says so."""
    from flows.interrupts import interruption_told
    from flows.locks import refuse_a_second
    from flows.preflight import preflight
    from flows.reproduce import StageError
    from flows.server import local_server

    refuse_a_second()
    preflight()
    with interruption_told(), local_server():
        from flows.pipeline import pipeline

        try:
            result = pipeline()
        except StageError as error:
            print(f"trueline: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
    from flows.display import show_result

    _report(_result_data(result), as_json, show_result)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show which stages are up to date, champion and challenger, who runs the flow, what failed last."""
    from flows.display import show_status
    from flows.status import status as gather

    _report(gather(_params()), as_json, show_status)


@app.command()
def promote(as_json: AsJson = False) -> None:
    """Make the candidate in dvc.lock champion, if its gate says so; where registry.approval is on, hold it."""
    from flows.display import show_verdict
    from tasks.registry.promotion import champion

    verdict = champion.promote(_params())
    _report(dict(verdict), as_json, show_verdict)
    if not verdict["promoted"] and verdict["champion"] != verdict["version"]:
        raise typer.Exit(1)


@app.command()
def approve(version: Held, by: By, reason: Reason, as_json: AsJson = False) -> None:
    """Make a version that awaits approval champion (registry.approval in params.yaml)."""
    from flows.display import show_verdict
    from tasks.registry.promotion import champion

    _report(dict(champion.approve(_params(), version, by, reason)), as_json, show_verdict)


@app.command()
def reject(version: Held, by: By, reason: Reason, as_json: AsJson = False) -> None:
    """Refuse a version that awaits approval; no later run promotes it."""
    from flows.display import show_verdict
    from tasks.registry.promotion import champion

    _report(dict(champion.reject(_params(), version, by, reason)), as_json, show_verdict)


@app.command()
def rollback(reason: Reason, as_json: AsJson = False) -> None:
    """Make the previous champion champion again."""
    from flows.display import show_verdict
    from tasks.registry.promotion import champion

    _report(dict(champion.rollback(_params(), reason)), as_json, show_verdict)


@app.command()
def why(
    version: Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="Such as 3, champion, previous.")],
    as_json: AsJson = False,
) -> None:
    """Explain a policy: its data, reward model, base, gate, opponent, parameters, commit."""
    from flows.display import show_tree
    from tasks.registry.lineage import queries

    _report(queries.why(_params(), version), as_json, show_tree)


@app.command()
def trace(
    row: Annotated[str | None, typer.Option(metavar="ID", help="A row's id, as in data/prepare.")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME", help="A source, or a folder of some.")] = None,
    annotator: Annotated[str | None, typer.Option(metavar="NAME", help="An annotator, as rows name them.")] = None,
    exclude: Annotated[bool, typer.Option("--exclude", help="Have prepare leave it out from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell which versions were trained on a row, source or annotator, promoted or not."""
    from flows.display import show_trace
    from tasks.registry.lineage import trace as tracing

    asked: dict[What, str | None] = {"row": row, "source": source, "annotator": annotator}
    named = [(what, name) for what, name in asked.items() if name]
    if len(named) != 1:
        raise InputError("a trace starts from one thing: give --row ID, --source NAME or --annotator NAME")
    params, [(what, name)] = _params(), named
    traced = tracing.trace(params, what, name)
    excluded = tracing.exclude(params, what, name) if exclude else None
    _report({**traced, "excluded": excluded}, as_json, show_trace)


@app.command()
def export(
    version: Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="Such as 3, champion, challenger.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="A LoRA adapter on the SFT model.")] = False,
    reward: Annotated[bool, typer.Option("--reward", help="The reward model of that version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a policy as a folder that transformers and vLLM load, or its reward model, with the model card."""
    from flows.display import show_exported
    from tasks.registry.export import folders as exporting

    if adapter and reward:
        raise InputError("reward models are exported whole: give --adapter or --reward, not both")
    if reward:
        exported = exporting.export_reward(_params(), version, folder)
    else:
        exported = exporting.export(_params(), version, folder, as_adapter=adapter)
    _report(dict(exported), as_json, show_exported)


@app.command()
def history(as_json: AsJson = False) -> None:
    """List every decision: promotions, rollbacks, refusals, what awaited approval; oldest first."""
    from flows.display import show_history
    from tasks.registry.lineage import queries

    _report(queries.history(), as_json, show_history)


@app.command()
def sync(as_json: AsJson = False) -> None:
    """Bring MLflow up to what dvc.lock and the record say, as after a plain dvc repro."""
    from flows.display import show_synced
    from tasks.registry.lineage import queries

    synced = queries.sync(_params())
    _report(dict(synced), as_json, show_synced)
    if synced["alarms"]:
        raise typer.Exit(1)


@app.command()
def report(as_json: AsJson = False) -> None:
    """Write the report of the result in dvc.lock, with lineage and cost, as after a plain dvc repro."""
    from flows.display import show_report
    from tasks.registry.lineage.report import write_report

    _report(dict(write_report(_params())), as_json, show_report)


@app.command()
def sheet(
    file: Annotated[Path, typer.Argument(help="A new CSV file.")],
    prompts: Annotated[int | None, typer.Option(min=1, help="So many of the prompts, at random; else all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a sheet for people to compare the candidate's and the opponent's answers, blind."""
    from flows.display import show_sheet
    from flows.people import write_sheet

    _report(dict(write_sheet(file, prompts)), as_json, show_sheet)


@app.command()
def votes(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Filled sheets.")], as_json: AsJson = False
) -> None:
    """Count the votes on filled sheets, and keep them in MLflow with the run of evaluate, in place of earlier ones."""
    from flows.display import show_votes
    from flows.people import hear
    from tasks.registry.promotion.human_evaluation import keep

    params, heard = _params(), hear(files)
    run_id = None
    try:
        run_id = keep(params, *heard)
    finally:  # what people said is worth showing where MLflow is away
        _report({**heard.figures, "run_id": run_id}, as_json, show_votes)


@app.command()
def schedule(
    cron: Annotated[str, typer.Option(help="Five fields, as in '0 3 * * 1': Mondays at 3:00.")],
    timezone: Annotated[str, typer.Option(help="Whose clock counts.")] = "UTC",
) -> None:
    """Serve the flow to a Prefect server (PREFECT_API_URL; see make server), so that it runs by the clock."""
    import os

    from flows.deploy import schedule as serve
    from flows.server import API_URL

    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # here Prefect's lines are what one waits for
    serve(cron, timezone, os.environ.setdefault("PREFECT_API_URL", API_URL))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Examine machine and checkout, and say how to mend what is wrong."""
    from flows.display import show_findings
    from flows.doctor import examine

    findings = examine()
    _report([finding._asdict() for finding in findings], as_json, show_findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="One message; without it, a conversation.")] = None,
    stage: Annotated[str | None, typer.Option(help="Talk to this stage's model: base, sft, dpo or ppo.")] = None,
    version: Annotated[str | None, typer.Option(help="Talk to this version or alias; champion if neither.")] = None,
) -> None:
    """Talk to the champion, or to any stage's model."""
    from flows.chat import begin, stage_folder, talk, version_folder

    if stage and version:
        raise InputError("--stage and --version name two models: give one of them")
    params = _params()
    folder = stage_folder(stage) if stage else version_folder(version or "champion", params)
    conversation = begin(folder, params)
    if message is None:
        talk(conversation)
    else:
        print(visible(conversation.ask(message)))


@app.command()
def configure(
    overlays: Annotated[list[str], typer.Argument(metavar="FILE|KEY=VALUE...", help="Later ones win.")],
    as_json: AsJson = False,
) -> None:
    """Change params.yaml by a named setting or single keys; comments stay, and nothing invalid is written."""
    from flows.display import show_changes
    from flows.settings import configure as change

    _report([item._asdict() for item in change(overlays)], as_json, show_changes)


def _params() -> "Params":
    from tasks.settings.params import load_params

    return load_params()


def _result_data(result: "Result") -> dict[str, Any]:
    return {
        "stages": [{**row._asdict(), "seconds": round(row.seconds, 2)} for row in result.stages],
        "registered": result.registered,
        "verdict": result.verdict,
        "alarms": result.alarms,
        "places": {name: str(path) for name, path in PLACES.items() if path.exists()},
    }


PLACES = {"report": Path(".trueline/report.html"), "data docs": Path(".trueline/data_docs/index.html")}


def _report(content: Content, as_json: bool, show: Callable[[Content], None]) -> None:
    if as_json:
        print(safe_json(json.dumps(content, indent=2, ensure_ascii=False)))
    else:
        show(content)


if __name__ == "__main__":
    main()
