"""The layout of metrics/evaluate.json and of the answers beside it.

They are written and read through these classes. A figure that one side names differently is an error with the
figure's name; it is never taken for a figure that could not be computed. Those are null.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tasks.common.files import METRICS, REPORTS, damaged_row, read_jsonl
from tasks.common.record import Number, Record, Text

Conclusion = Literal["better", "worse", "inconclusive"]  # of a comparison of two models
EVALUATION = METRICS / "evaluate.json"
RESPONSES = REPORTS / "evaluate" / "responses.jsonl"


class IntervalFigure(Record):
    """A mean and its interval."""

    value: Number
    low: Number
    high: Number


class WinRateFigure(IntervalFigure):
    """A win rate, its interval and the sign test."""

    ties: Number
    wins: int
    losses: int
    sign_test: Number
    conclusion: Conclusion
    prompts_needed: int | None


class MeanFigure(Record):
    """A mean and its standard error."""

    mean: Number
    standard_error: Number


class ModelFigures(Record):
    """What the answers of one model are like."""

    reward: Number
    length: Number
    eos_rate: Number
    distinct_1: Number
    distinct_2: Number
    repetition: Number
    refusals: Number
    bleu: Number
    chrf: Number
    rouge_1: Number
    rouge_2: Number
    rouge_l: Number
    meteor: Number


class OpponentFigures(ModelFigures):
    """The same of the opponent, and which model it is."""

    name: Literal["sft", "champion"]
    version: int | None


class OverOpponent(Record):
    """Win rates of the candidate over the opponent."""

    vs_opponent: WinRateFigure


class OverBoth(OverOpponent):
    """Win rates of the candidate over SFT and over the opponent."""

    vs_sft: WinRateFigure


class RewardOverOpponent(OverOpponent):
    """Mean scores by one reward, and win rates by it."""

    candidate: Number
    sft: Number
    opponent: Number


class RewardOverBoth(RewardOverOpponent, OverBoth):
    """The same with the win rate over SFT."""


class EqualLength(Record):
    """Length-controlled win rates."""

    vs_sft: IntervalFigure
    vs_opponent: IntervalFigure


class Difference(Record):
    """Candidate minus another model, by prompt."""

    reward: IntervalFigure
    held_out: IntervalFigure | None
    length: IntervalFigure
    eos_rate: IntervalFigure
    repetition: IntervalFigure
    rouge_l: IntervalFigure | None
    ground_truth: dict[str, IntervalFigure]  # by the name of the reward


class Differences(Record):
    """Candidate minus SFT, and minus the opponent."""

    vs_sft: Difference
    vs_opponent: Difference


class Perplexity(Record):
    """Perplexity of the demonstrated answers."""

    candidate: Number
    sft: Number


class CurveFigures(Record):
    """Scores and win rates over SFT by the name of the reward: `reward` is what is trained on."""

    scores: dict[str, IntervalFigure]
    win_rate: dict[str, IntervalFigure]


class BestOfFigures(CurveFigures):
    """The best of n answers of SFT."""

    n: int
    kl: float


class PointFigures(CurveFigures):
    """The policy at an evaluation point of its training."""

    step: int
    kl: MeanFigure
    last_over_this: dict[str, WinRateFigure] | None  # None: it is the last


class RewardDifference(Record):
    """The difference of the training reward."""

    reward: IntervalFigure


class CategoryDifferences(Record):
    """Candidate minus opponent."""

    vs_opponent: RewardDifference


class CategoryFigures(Record):
    """One category of prompts."""

    prompts: int
    enough_prompts: bool  # for any conclusion
    candidate: ModelFigures
    sft: ModelFigures
    opponent: ModelFigures
    win_rate: OverOpponent
    training: dict[str, RewardOverOpponent]
    held_out: RewardOverOpponent | None
    ground_truth: dict[str, RewardOverOpponent]
    references: OverOpponent | None
    difference: CategoryDifferences


class LlmJudgeFigures(Record):
    """What an LLM judge made of candidate and opponent."""

    model: Text
    prompts: int
    same_answers: int
    without_verdict: int
    asked_again: int
    agreement: Number
    first_preferred: Number
    vs_opponent: WinRateFigure | None  # None: too few replies had a verdict


class CutAnswersFigures(Record):
    """How the training reward scores SFT's answers that the limit cuts."""

    share: float
    gap: float  # mean of those that end minus that of cut ones, in standard deviations of all
    low: float
    high: float


class Methods(Record):
    """How figures that depend on a library's version were computed."""

    bleu: str | None
    chrf: str | None
    rouge: str
    meteor: str


class Evaluation(Record):
    """metrics/evaluate.json."""

    prompts: int
    conversations: int = 0  # not set: each prompt is its own
    with_references: int
    candidate: ModelFigures
    sft: ModelFigures
    opponent: OpponentFigures
    win_rate: OverBoth  # by the training reward
    training: dict[str, RewardOverBoth]  # by each reward of which the training reward is the weighted sum
    held_out: RewardOverBoth | None  # None: there is no held-out reward model
    ground_truth: dict[str, RewardOverBoth]
    references: OverBoth | None  # None: no prompt has a reference
    length_controlled_win_rate: EqualLength
    difference: Differences
    kl: MeanFigure
    perplexity: Perplexity
    best_of_sft: list[BestOfFigures]
    over_optimisation: list[PointFigures]
    categories: dict[Text, CategoryFigures]
    confidence: float
    methods: Methods
    llm_judge: LlmJudgeFigures | None = None
    sft_cut_answers: CutAnswersFigures | None = None  # not set: few are cut, or nearly all


class Turn(Record):
    """A message of a conversation."""

    role: str
    content: Text
    tool_calls: list[dict[str, Any]] | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tools: list[dict[str, Any]] | None = None  # of the first message: the functions that may be called


class ResponseFigures(Record):
    """One model's answer to a prompt, with its figures."""

    answer: Text
    reward: Number
    length: int
    held_out: Number = None  # not set: there is no held-out reward model
    ended: bool
    repetition: Number
    rouge_1: Number = None  # not set: the prompt has no reference
    rouge_2: Number = None
    rouge_l: Number = None
    meteor: Number = None
    training: dict[str, Number]
    ground_truth: dict[str, Number]
    kl: Number = None  # not set: of the candidate alone, and not of greedy answers


class Response(Record):
    """A row of reports/evaluate/responses.jsonl: a prompt and what each model answered."""

    id: str
    category: Text | None
    prompt: list[Turn]
    references: list[Text]
    candidate: ResponseFigures
    sft: ResponseFigures
    opponent: ResponseFigures


def read_responses(path: Path = RESPONSES) -> Iterator[Response]:
    """Read what the models answered, a prompt at a time.

    Raises:
        InputError: the file is missing, or a row is damaged.
    """
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            yield Response.model_validate(row)
        except ValidationError:
            raise damaged_row(path, number) from None
