"""Commands in which people, a reward or a judge say what is better."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.common import AsJson, print_result, settings

label = typer.Typer(help="Have people, a reward or a judge compare answers.", no_args_is_help=True)


def collect(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    *,
    policy: Annotated[str, typer.Option(help="champion, another version, or sft or another stage.")] = "champion",
    answers: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 4,
    prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts, the first by id. Default: all.")] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampling. Default: that of params.yaml.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have a policy answer prompts of the training split."""
    from flows.display.results import show_collected
    from flows.feedback.ai_feedback import Wanted, collect_answers

    wanted = Wanted(policy, prompts, answers, temperature, seed)
    print_result(collect_answers(settings(), folder, wanted), as_json, show_collected)


@label.command("sheet")
def write_annotation_sheet(
    file: Annotated[Path, typer.Argument(help="A new CSV file.")],
    prompts: Annotated[int | None, typer.Option(min=1, help="How many prompts, drawn at random. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write an annotation sheet: answers to compare, without their models' names."""
    from flows.display.results import show_annotation_sheet
    from flows.feedback.people import write_annotation_sheet as write

    print_result(dict(write(file, prompts)), as_json, show_annotation_sheet)


@label.command("import")
def import_annotation_sheets(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Filled annotation sheets.")],
    as_json: AsJson = False,
) -> None:
    """Import filled annotation sheets and count the votes.

    They replace the votes that MLflow has for this evaluation.
    """
    from flows.display.results import show_votes
    from flows.feedback.people import read_annotation_sheets
    from tasks.registry.promotion.human_evaluation import save_votes

    params, imported = settings(), read_annotation_sheets(files)
    run_id = None
    try:
        run_id = save_votes(params, *imported)
    finally:  # the figures are worth showing even where MLflow cannot be reached
        print_result({**imported.figures, "run_id": run_id}, as_json, show_votes)


@label.command("answers")
def label_answers(
    folder: Annotated[Path, typer.Argument(help="A folder that trueline collect wrote.")],
    *,
    reward: Annotated[str | None, typer.Option(help="A name in rewards.training. Default: the first.")] = None,
    judge: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server instead.")] = None,
    model: Annotated[str | None, typer.Option(help="The name of the judge's model there.")] = None,
    min_gap: Annotated[float, typer.Option(min=0.0, help="Least gap between the scores of a pair.")] = 0.0,
    min_agreement: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least agreement with people.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Have a reward or a judge make pairs of collected answers."""
    from flows.display.results import show_labels
    from flows.feedback.ai_feedback import Named, label_folder
    from tasks.feedback.label import Thresholds

    by, thresholds = Named(reward, judge, model), Thresholds(min_gap, min_agreement)
    print_result(label_folder(settings(), folder, by, thresholds), as_json, show_labels)


def rounds(
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="Rounds in all, those of earlier calls included.")],
    *,
    folder: Annotated[Path, typer.Option(help="Of the rounds' answers and pairs.")] = Path("feedback"),
    policy: Annotated[str, typer.Option(help="Who answers in the first round, as in collect.")] = "champion",
    answers: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 4,
    reward: Annotated[str | None, typer.Option(help="A name in rewards.training. Default: the first.")] = None,
    judge: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server instead.")] = None,
    model: Annotated[str | None, typer.Option(help="The name of the judge's model there.")] = None,
    min_agreement: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least agreement with people.")] = 0.5,
    on_reject: Annotated[
        Literal["stop", "continue"], typer.Option(help="What to do after a version that is not promoted.")
    ] = "stop",
    as_json: AsJson = False,
) -> None:
    """Do iterative DPO: collect, label and run, N times.

    After a kill the same command continues.
    """
    from flows.display.rounds import show_rounds
    from flows.feedback.ai_feedback import Named
    from flows.feedback.rounds import Asked, run_rounds
    from flows.pipeline.run import run_flow
    from flows.prefect_server.temporary_server import local_server
    from flows.processes.locks import refuse_a_second
    from tasks.feedback.label import Thresholds

    refuse_a_second()
    by, thresholds = Named(reward, judge, model), Thresholds(0.0, min_agreement)
    with local_server():  # one for all flows: Prefect asks for its address once
        done = run_rounds(Asked(number, folder, policy, answers, by, thresholds, on_reject), run_flow)
    print_result(done, as_json, show_rounds)
    if not done["finished"]:
        raise typer.Exit(1)
