"""The gate's decision as one HTML page for people: no script, nothing loaded, the same facts give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.common.html_templates import html_templates
from tasks.common.rounding import number
from tasks.data.checks.validation import Validation
from tasks.data.tool_calls import message_as_text
from tasks.evaluation.figures import reward_title
from tasks.evaluation.gate import tables
from tasks.evaluation.gate.plots import (
    CurveRows,
    learning_curves,
    length_scatter,
    margins,
    over_optimisation,
    reliability,
)
from tasks.evaluation.gate.result import GateResult
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.reward_check_record import RewardCheck
from tasks.evaluation.reward_figures import RewardModelFigures
from tasks.evaluation.schema import Evaluation, Response, ResponseFigures

TEMPLATE = "report.html.j2"
SAMPLES = 5  # of each kind: candidate far ahead, candidate far behind


class Background(NamedTuple):
    """What came before the comparison, as the other stages wrote it."""

    reward: RewardModelFigures | None  # None: no reward model was trained
    validation: Validation
    curves: Mapping[str, CurveRows]  # by trainer, in the order in which they ran
    reward_check: RewardCheck


class SampleAnswer(NamedTuple):
    """One model's answer and its scores, as text."""

    name: str
    answer: str
    scores: str


class Sample(NamedTuple):
    """One prompt with two answers to it."""

    prompt: str
    references: list[str]
    answers: tuple[SampleAnswer, SampleAnswer]  # candidate, opponent
    gap: float  # reward of the candidate's answer minus the opponent's


def render(
    result: GateResult,
    opponent: Opponent,
    evaluation: Evaluation,
    responses: Sequence[Response],
    background: Background,
) -> str:
    """Write the page.

    Args:
        result: what the gate decided.
        opponent: the model that the candidate was compared with.
        evaluation: metrics/evaluate.json.
        responses: reports/evaluate/responses.jsonl.
        background: what came before.
    """
    # Escaping is on for every value: what a model wrote must never act as HTML.
    environment = html_templates(Path(__file__).parent)
    environment.filters["number"] = number
    ahead, behind = _samples(responses)
    points, best_of_sft, reward = evaluation.over_optimisation, evaluation.best_of_sft, background.reward
    plots = [*([reliability(reward), margins(reward)] if reward else []), length_scatter(responses)]
    return environment.get_template(TEMPLATE).render(
        result=result,
        opponent=opponent,
        evaluation=evaluation,
        wins=tables.win_rows(evaluation, opponent),
        figures=tables.figure_rows(evaluation),
        methods={name: value for name, value in evaluation.methods.as_json().items() if value},
        llm_judge=tables.llm_judge(evaluation.llm_judge),
        categories=tables.category_rows(evaluation.categories),
        learning_curves=learning_curves(background.curves),
        over_optimisation=over_optimisation(points, best_of_sft) if points else None,
        curve=tables.curve_rows(points, best_of_sft),
        rewards=[reward_title(name) for name in tables.curve_rewards(evaluation)],
        plots=[plot for plot in plots if plot],
        reward_model=tables.reward_model(reward) if reward else [],
        provenance=tables.provenance(reward) if reward else [],
        reward_check=background.reward_check,
        perturbations=tables.perturbation_rows(background.reward_check),
        data=tables.data_rows(background.validation),
        samples=(("The candidate is far ahead", ahead), ("The candidate is far behind", behind)),
    )


def _samples(responses: Sequence[Response]) -> tuple[list[Sample], list[Sample]]:
    """Those in which candidate and opponent differ most by reward: the best for the candidate, and the worst."""
    ordered = sorted(map(_sample, responses), key=lambda sample: -sample.gap)
    ahead = [sample for sample in ordered[:SAMPLES] if sample.gap > 0]
    behind = [sample for sample in ordered[::-1][:SAMPLES] if sample.gap < 0]
    return ahead, behind


def _sample(row: Response) -> Sample:
    prompt = "\n".join(f"{turn.role}: {message_as_text(turn.as_json())}" for turn in row.prompt)
    answers = _answer("Candidate", row.candidate), _answer("Opponent", row.opponent)
    return Sample(prompt, row.references, answers, (row.candidate.reward or 0.0) - (row.opponent.reward or 0.0))


def _answer(name: str, found: ResponseFigures) -> SampleAnswer:
    scores = [f"{reward} {number(value)}" for reward, value in {"reward": found.reward, **found.ground_truth}.items()]
    return SampleAnswer(name, found.answer, ", ".join(scores))
