"""The tables of the report, as text: every number has its rounding, and a dash stands where there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tasks.common.rounding import ABSENT, chance, number
from tasks.data.checks.validation import FileFigures, Validation
from tasks.evaluation.figures import FIGURES, MODELS, PAIRED, reward_title, reward_words
from tasks.evaluation.gate.check import bounds
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.reward_check_record import KINDS, RewardCheck
from tasks.evaluation.reward_figures import BASELINES, AccuracyInterval, RewardModelFigures
from tasks.evaluation.schema import (
    BestOfFigures,
    CategoryFigures,
    CurveFigures,
    Evaluation,
    IntervalFigure,
    LlmJudgeFigures,
    PointFigures,
    RewardOverBoth,
    WinRateFigure,
)
from tasks.evaluation.scores import HELD_OUT, TRAINING


class FigureRow(NamedTuple):
    """One figure of the models."""

    name: str
    better: str
    values: list[str]  # candidate, SFT, opponent
    difference: str  # candidate minus opponent, with its interval where there is one


class WinRow(NamedTuple):
    """One win rate, and its places from 0 to 100 on a scale."""

    name: str
    text: str
    ties: str
    sign_test: str
    conclusion: str
    prompts_needed: str
    place: tuple[float, float, float] | None  # value, low, high in percent


class CurveRow(NamedTuple):
    """The policy at an evaluation point, or the best of n of SFT."""

    name: str
    kl: str
    win_rates: list[str]  # over SFT, by each reward
    last_over_this: list[str]


class CategoryRow(NamedTuple):
    """One category of prompts."""

    name: str
    prompts: str
    values: list[str]  # reward of candidate and opponent, the difference and the win rate with their intervals
    conclusion: str


class DataRow(NamedTuple):
    """One file of the data."""

    name: str
    numbers: list[str]  # rows, valid, in quarantine, train, validation, test, mean tokens, longest
    findings: str


def figure_rows(evaluation: Evaluation) -> list[FigureRow]:
    """Every figure of the three models: the rewards first, then the table of figures."""
    models = [evaluation.candidate, evaluation.sft, evaluation.opponent]
    difference = evaluation.difference.vs_opponent
    training = [number(model.reward) for model in models]
    rows = [FigureRow(reward_title(TRAINING), "higher", training, interval(difference.reward))]
    if len(evaluation.training) > 1:
        rows += [
            _reward_row(reward_title(name, evaluation.training), found, None)
            for name, found in evaluation.training.items()
        ]
    if evaluation.held_out:
        rows.append(_reward_row(reward_title(HELD_OUT), evaluation.held_out, difference.held_out))
    rows += [
        _reward_row(reward_title(name), found, difference.ground_truth[name])
        for name, found in evaluation.ground_truth.items()
    ]
    rows += [
        FigureRow(
            figure.words,
            "" if figure.better == "neither" else figure.better,
            [figure.written(getattr(model, figure.name)) for model in models],
            interval(getattr(difference, figure.name), figure.digits) if figure.name in PAIRED else ABSENT,
        )
        for figure in FIGURES
        if figure.group != "language"
    ]
    perplexity = evaluation.perplexity
    shown = [number(perplexity.candidate), number(perplexity.sft), ABSENT]
    return [*rows, *(FigureRow(each.words, each.better, shown, ABSENT) for each in FIGURES if each.group == "language")]


def _reward_row(name: str, found: RewardOverBoth, difference: IntervalFigure | None) -> FigureRow:
    values = [number(getattr(found, model)) for model in MODELS]
    return FigureRow(name, "higher", values, interval(difference))


def win_rows(evaluation: Evaluation, opponent: Opponent) -> list[WinRow]:
    """Every win rate: over SFT, and over the champion where there is one."""
    compared = [("vs_sft", "SFT")] + ([("vs_opponent", str(opponent))] if opponent.name == "champion" else [])
    controlled = evaluation.length_controlled_win_rate
    kinds: list[tuple[str, Any]] = [(reward_words(TRAINING), evaluation.win_rate)]
    if len(evaluation.training) > 1:
        kinds += [(reward_words(name, evaluation.training), each) for name, each in evaluation.training.items()]
    kinds.append((f"{reward_words(TRAINING)} at equal length", controlled))
    kinds += [(reward_words(HELD_OUT), evaluation.held_out)] if evaluation.held_out else []
    kinds += [("the references", evaluation.references)] if evaluation.references else []
    kinds += [(reward_words(name), each) for name, each in evaluation.ground_truth.items()]
    rows = [_win_row(f"{rival}, by {words}", getattr(rates, key)) for words, rates in kinds for key, rival in compared]
    judge = evaluation.llm_judge
    return rows + ([_win_row(f"{opponent}, by the LLM judge {judge.model}", judge.vs_opponent)] if judge else [])


def _win_row(name: str, figure: IntervalFigure | None) -> WinRow:
    rate = bounds(figure)
    place = (rate.value * 100, rate.low * 100, rate.high * 100) if rate else None
    text = interval(figure, sign="-")
    if not isinstance(figure, WinRateFigure):
        return WinRow(name, text, ABSENT, ABSENT, ABSENT, ABSENT, place)
    needed = number(figure.prompts_needed, 0)
    return WinRow(name, text, number(figure.ties), chance(figure.sign_test), figure.conclusion, needed, place)


def llm_judge(found: LlmJudgeFigures | None) -> dict[str, str]:
    """How far the LLM judge can be trusted; nothing where none was asked."""
    if found is None:
        return {}
    counts = ("prompts", "same_answers", "without_verdict", "asked_again")
    shares = {"agreement": found.agreement, "first_preferred": found.first_preferred}
    return {
        "model": found.model,
        **{name: number(getattr(found, name), 0) for name in counts},
        **{name: number(share) for name, share in shares.items()},
    }


def category_rows(categories: Mapping[str, CategoryFigures]) -> list[CategoryRow]:
    """A row a category."""
    return [
        CategoryRow(
            name,
            number(found.prompts, 0),
            [
                number(found.candidate.reward),
                number(found.opponent.reward),
                interval(found.difference.vs_opponent.reward),
                interval(found.win_rate.vs_opponent, sign="-"),
            ],
            found.win_rate.vs_opponent.conclusion if found.enough_prompts else "too few prompts",
        )
        for name, found in categories.items()
    ]


def curve_rewards(evaluation: Evaluation) -> list[str]:
    """Name the rewards of the over-optimisation curve."""
    curve: Sequence[CurveFigures] = evaluation.over_optimisation or evaluation.best_of_sft
    return list(curve[0].win_rate) if curve else []


def curve_rows(points: Sequence[PointFigures], best_of_sft: Sequence[BestOfFigures]) -> list[CurveRow]:
    """A row an evaluation point, then a row a best of n."""
    return [
        *(
            CurveRow(
                f"step {point.step:,}",
                number(point.kl.mean),
                [interval(rate, sign="-") for rate in point.win_rate.values()],
                [
                    interval(point.last_over_this[name] if point.last_over_this else None, sign="-")
                    for name in point.win_rate
                ],
            )
            for point in points
        ),
        *(
            CurveRow(
                f"best of {each.n}",
                number(each.kl),
                [interval(rate, sign="-") for rate in each.win_rate.values()],
                [ABSENT] * len(each.win_rate),
            )
            for each in best_of_sft
        ),
    ]


def reward_model(reward: RewardModelFigures) -> list[tuple[str, str]]:
    """The reward model's figures on held-out pairs, by name."""
    accuracy, by_length = reward.accuracy, reward.accuracy_by_length
    independent = accuracy.effective_pairs
    return [
        ("Accuracy", interval(accuracy, sign="-")),
        ("Pairs", number(accuracy.pairs, 0)),
        *([("Pairs, counted as independent ones", number(independent, 0))] if independent else []),
        ("Expected calibration error", number(reward.calibration_error)),
        ("Correlation of score and length", number(reward.length_correlation)),
        *(
            (f"Accuracy where the {longer} answer is longer", number(by_length[f"{longer}_longer"].value))
            for longer in ("chosen", "rejected")
        ),
        *(
            (
                f"Baseline: {BASELINES[name]}; the model minus it",
                f"{interval(each.accuracy, sign='-')}; {interval(each.difference)}",
            )
            for name, each in reward.baselines.items()
        ),
    ]


def provenance(reward: RewardModelFigures) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The reward model's accuracy by source and by annotator: a title, and rows of name, pairs and accuracy."""
    kinds = (("Source", reward.accuracy_by_source), ("Annotator", reward.accuracy_by_annotator))
    return [
        (title, [(name, number(found.pairs, 0), interval(found, sign="-")) for name, found in by_source.items()])
        for title, by_source in kinds
        if by_source
    ]


def data_rows(validation: Validation) -> list[DataRow]:
    """A row a file of metrics/validate.json."""
    return [DataRow(name, _counts(file), _findings(file)) for name, file in validation.by_kind.items()]


def _findings(file: FileFigures) -> str:
    found = [f"{check} {sum(by_split.values())}" for check, by_split in file.findings.items()]
    return ", ".join([*found, *(f"{field} truncated {cut.rows}" for field, cut in (file.truncated or {}).items())])


def _counts(file: FileFigures) -> list[str]:
    splits, tokens = file.splits, file.tokens
    counts = (file.rows, file.valid, file.quarantined, splits.train, splits.validation, splits.test)
    return [*(number(count, 0) for count in counts), number(tokens.mean, 1), number(tokens.max, 0)]


def interval(figure: IntervalFigure | AccuracyInterval | None, digits: int = 3, sign: str = "+") -> str:
    """Write a mean with its interval."""
    if figure is None or figure.value is None or figure.low is None or figure.high is None:
        return ABSENT
    value, low, high = (number(each, digits, sign) for each in (figure.value, figure.low, figure.high))
    return f"{value} ({low} to {high})"


def perturbation_rows(check: RewardCheck) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What rewards gave to references and perturbed answers before PPO: their titles, and a row for each kind."""
    rewards = {reward_title(name, check.rewards): found for name, found in check.rewards.items()}
    if len(rewards) > 1 and check.weighted_sum:
        rewards = {reward_title(TRAINING): check.weighted_sum} | rewards
    rows = [("References", [number(found.mean) for found in rewards.values()])]
    for kind, words in KINDS.items():
        perturbed = [found.perturbations.get(kind) for found in rewards.values()]
        cells = [f"{number(each.mean)}; {interval(each.difference)}" if each else ABSENT for each in perturbed]
        rows.append((words[0].upper() + words[1:], cells))
    return list(rewards), rows
