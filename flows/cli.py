"""The command line: `trueline …`. Every import that costs time is made by the command that needs it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import MODELS, OPERATIONS, PANELS, PEOPLE, PIPELINE, AsJson, print_result, settings
from flows.commands.events import notify, watch
from flows.commands.feedback import collect, import_annotation_sheets, label, rounds, write_annotation_sheet
from flows.commands.keeping import backup, gc, restore
from flows.commands.metrics import metrics
from flows.commands.schedule import deploy, schedule
from flows.commands.serving import serve
from flows.commands.sharing import merge, publish
from tasks.common.errors import InputError
from tasks.common.escapes import visible
from tasks.common.safe_text import clean_logs, clean_traceback
from tasks.methods import STAGES

if TYPE_CHECKING:
    from flows.pipeline.steps import Result
    from tasks.data.exclusions import What

__all__ = ["PANELS", "app", "main"]
PLACES = {"report": Path(".trueline/report.html"), "data docs": Path(".trueline/data_docs/index.html")}
Version = Annotated[str, typer.Argument(metavar="VERSION|ALIAS", help="Such as 3, champion or challenger.")]
By = Annotated[str, typer.Option(help="Who decides; recorded with the decision.")]
Reason = Annotated[str, typer.Option(help="Why; recorded with the decision.")]

app = typer.Typer(
    help="Train a language model on feedback, evaluate it, and promote it with its reasons on record.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(label, name="label", rich_help_panel=PEOPLE)
for name, moved in (("sheet", write_annotation_sheet), ("votes", import_annotation_sheets)):  # before the group label
    app.command(name, hidden=True)(moved)


def main() -> None:
    """Run a command; an error that the user can fix is one sentence and exit code 2, without a traceback."""
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


@app.command(rich_help_panel=PIPELINE)
def run(
    pull: Annotated[
        bool | None,
        typer.Option(
            "--pull/--no-pull",
            help="Demand DVC's default remote, or compute here. Without either, a run fetches where it answers.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run what has changed, and promote the model if the gate says so."""
    from flows.display.results import show_result
    from flows.pipeline.run import run_flow
    from flows.processes.locks import refuse_a_second
    from tasks.registry.dvc_outputs.remote import check_default_remote

    refuse_a_second()
    if pull:
        check_default_remote()
    print_result(_result_data(run_flow(pull)), as_json, show_result)


app.command(rich_help_panel=PIPELINE)(rounds)


@app.command(rich_help_panel=PIPELINE)
def plan(
    gpu: Annotated[float | None, typer.Option(help="Memory of a GPU, in GB.", min=1)] = None,
    gpus: Annotated[int, typer.Option(help="How many there are.", min=1)] = 1,
    tflops: Annotated[float | None, typer.Option(help="Of a GPU's matrix products.", min=0.001)] = None,
    shape: Annotated[
        Path | None, typer.Option(help="A model's config.json: its memory alone, without data or weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict rows, steps, time, memory, and what the gate can tell.

    It runs prepare and base where they have changed, and trains nothing.
    """
    from flows.display.memory import show_memory
    from flows.display.results import show_plan
    from flows.inspection.memory import Devices, memory_plan, read_shape
    from flows.inspection.plan import make_plan
    from flows.processes.locks import refuse_a_second

    devices = Devices(gpu, gpus, tflops)
    if shape is not None:
        print_result(memory_plan(settings(), read_shape(shape), devices), as_json, show_memory)
        return
    refuse_a_second()
    print_result(make_plan(settings(), devices), as_json, show_plan)


@app.command(rich_help_panel=PIPELINE)
def status(as_json: AsJson = False) -> None:
    """Show the stages, the champion, what runs and what failed last."""
    from flows.display.results import show_status
    from flows.inspection.status import status as gather

    print_result(gather(settings()), as_json, show_status)


@app.command(rich_help_panel=PIPELINE)
def configure(
    overlays: Annotated[list[str], typer.Argument(metavar="FILE|KEY=VALUE...", help="Settings; a later one wins.")],
    as_json: AsJson = False,
) -> None:
    """Change settings in params.yaml.

    Comments stay, and settings that do not pass the checks are not written.
    """
    from flows.display.results import show_changes
    from flows.settings import configure as change

    print_result([item._asdict() for item in change(overlays)], as_json, show_changes)


@app.command(rich_help_panel=PIPELINE)
def report(as_json: AsJson = False) -> None:
    """Write the report of the current result, as a run does."""
    from flows.display.results import show_report
    from tasks.registry.lineage.report import write_report

    print_result(dict(write_report(settings())), as_json, show_report)


@app.command(rich_help_panel=MODELS)
def why(
    version: Version,
    as_json: AsJson = False,
) -> None:
    """Show the data, models, parameters and commit behind a policy."""
    from flows.display.results import show_tree
    from tasks.registry.lineage import explain

    print_result(explain.why(settings(), version), as_json, show_tree)


@app.command(rich_help_panel=MODELS)
def history(as_json: AsJson = False) -> None:
    """List the decisions with their reasons, the oldest first."""
    from flows.display.results import show_history
    from tasks.registry.lineage import explain

    print_result(explain.history(settings()), as_json, show_history)


@app.command(rich_help_panel=MODELS)
def promote(as_json: AsJson = False) -> None:
    """Promote the current candidate, if its gate says so.

    With registry.approval in params.yaml it waits for approval instead.
    """
    from flows.display.results import show_promotion
    from flows.events.reporting import decisions_reported
    from tasks.registry.promotion import champion

    with decisions_reported():
        promotion = champion.promote(settings())
    print_result(dict(promotion), as_json, show_promotion)
    if not promotion["promoted"] and promotion["champion"] != promotion["version"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=MODELS)
def rollback(reason: Reason, as_json: AsJson = False) -> None:
    """Make the previous champion champion again."""
    from flows.display.results import show_promotion
    from flows.events.reporting import decisions_reported
    from tasks.registry.promotion import champion

    with decisions_reported():
        promotion = champion.rollback(settings(), reason)
    print_result(dict(promotion), as_json, show_promotion)


@app.command(rich_help_panel=MODELS)
def trace(
    row: Annotated[str | None, typer.Option(metavar="ID", help="The id of a row in data/prepare.")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME", help="A source file, or a folder of sources.")] = None,
    annotator: Annotated[str | None, typer.Option(metavar="NAME", help="An annotator, as the rows name them.")] = None,
    exclude: Annotated[bool, typer.Option("--exclude", help="Also leave it out of the data from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the versions trained on a row, a source or an annotator."""
    from flows.display.results import show_trace
    from tasks.registry.lineage import trace as tracing

    asked: dict[What, str | None] = {"row": row, "source": source, "annotator": annotator}
    named = [(what, name) for what, name in asked.items() if name]
    if len(named) != 1:
        raise InputError("a trace starts from one thing: give --row ID, --source NAME or --annotator NAME")
    params, [(what, name)] = settings(), named
    traced = tracing.trace(params, what, name)
    excluded = tracing.exclude(params, what, name) if exclude else None
    print_result({**traced, "excluded": excluded}, as_json, show_trace)


@app.command(rich_help_panel=MODELS)
def export(
    version: Version,
    folder: Annotated[Path, typer.Argument(help="A new or an empty folder.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Write a LoRA adapter on the SFT model.")] = False,
    reward: Annotated[bool, typer.Option("--reward", help="Write the reward model of that version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model with its card, for transformers and vLLM."""
    from flows.display.results import show_exported
    from tasks.registry.export import folders as exporting

    if adapter and reward:
        raise InputError("reward models are exported whole: give --adapter or --reward, not both")
    if reward:
        exported = exporting.export_reward(settings(), version, folder)
    else:
        exported = exporting.export(settings(), version, folder, as_adapter=adapter)
    print_result(dict(exported), as_json, show_exported)


@app.command(rich_help_panel=MODELS)
def chat(
    message: Annotated[str | None, typer.Argument(help="One message. Without it, a conversation starts.")] = None,
    stage: Annotated[str | None, typer.Option(help=f"A stage's model: base, sft, {', '.join(STAGES)}.")] = None,
    version: Annotated[str | None, typer.Option(help="A version or an alias. Default: champion.")] = None,
) -> None:
    """Chat with the champion, another version or a stage's model."""
    from flows.chat import begin, stage_folder, talk, version_folder

    if stage and version:
        raise InputError("--stage and --version name two models: give one of them")
    params = settings()
    folder = stage_folder(stage) if stage else version_folder(version or "champion", params)
    conversation = begin(folder, params)
    if message is None:
        talk(conversation)
    else:
        print(visible(conversation.ask(message)))


app.command(rich_help_panel=MODELS)(serve)


app.command(rich_help_panel=PEOPLE)(collect)


@app.command(rich_help_panel=PEOPLE)
def approve(version: Version, by: By, reason: Reason, as_json: AsJson = False) -> None:
    """Make a version that waits for approval champion."""
    from flows.display.results import show_promotion
    from flows.events.reporting import decisions_reported
    from tasks.registry.promotion import champion

    with decisions_reported():
        promotion = champion.approve(settings(), version, by, reason)
    print_result(dict(promotion), as_json, show_promotion)


@app.command(rich_help_panel=PEOPLE)
def reject(version: Version, by: By, reason: Reason, as_json: AsJson = False) -> None:
    """Refuse a version that waits for approval, for good."""
    from flows.display.results import show_promotion
    from flows.events.reporting import decisions_reported
    from tasks.registry.promotion import champion

    with decisions_reported():
        promotion = champion.reject(settings(), version, by, reason)
    print_result(dict(promotion), as_json, show_promotion)


@app.command(rich_help_panel=OPERATIONS)
def doctor(
    row: Annotated[
        str | None, typer.Option(metavar="ID", help="Show this row as models are given it, instead of the checks.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check machine and checkout, and say how to fix what is wrong."""
    from flows.display.results import show_findings, show_rows
    from flows.inspection.doctor import examine
    from flows.inspection.rows import examine_row

    if row is not None:
        print_result(examine_row(row), as_json, show_rows)
        return
    findings = examine()
    print_result([finding._asdict() for finding in findings], as_json, show_findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


for command in (schedule, deploy):
    app.command(rich_help_panel=OPERATIONS)(command)


for keeping in (gc, backup, restore):
    app.command(rich_help_panel=OPERATIONS)(keeping)


@app.command(rich_help_panel=OPERATIONS)
def sync(as_json: AsJson = False) -> None:
    """Bring MLflow up to date, as after a plain dvc repro."""
    from flows.display.results import show_synced
    from tasks.registry.lineage import sync

    synced = sync.sync(settings())
    print_result(dict(synced), as_json, show_synced)
    if synced["alarms"]:
        raise typer.Exit(1)


app.command(rich_help_panel=OPERATIONS)(metrics)
app.command(rich_help_panel=OPERATIONS)(watch)
app.command(rich_help_panel=OPERATIONS)(notify)
app.command(rich_help_panel=OPERATIONS)(publish)
app.command(rich_help_panel=OPERATIONS)(merge)


def _result_data(result: "Result") -> dict[str, Any]:
    return {
        "stages": [{**row._asdict(), "seconds": round(row.seconds, 2)} for row in result.stages],
        "registered": result.registered,
        "promotion": result.promotion,
        "alarms": result.alarms,
        "places": {name: str(path) for name, path in PLACES.items() if path.exists()},
    }


if __name__ == "__main__":
    main()
