"""The gate's decision as one HTML page for people: no script, nothing loaded, the same facts give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.common.escapes import into_html
from tasks.common.rounding import ABSENT, chance, digits_of, number
from tasks.evaluation.gate.checks import Check, Decision, figure, lookup
from tasks.evaluation.gate.plots import (
    JUDGES,
    CurveRows,
    frontier,
    learning_curves,
    length_scatter,
    margins,
    reliability,
)
from tasks.evaluation.opponent import Opponent

TEMPLATE = "report.html.j2"
MODELS = ("candidate", "sft", "opponent")
# Figures a person compares: key, name, what is good.
FIGURES = (
    ("reward", "Reward", "higher"),
    ("length", "Length, tokens", ""),
    ("eos_rate", "Ended by itself", "higher"),
    ("repetition", "Repeated 4-grams", "lower"),
    ("refusals", "Begins as a refusal", "lower"),
    ("distinct_1", "Distinct-1", ""),
    ("distinct_2", "Distinct-2", ""),
    ("bleu", "BLEU", "higher"),
    ("chrf", "chrF", "higher"),
    ("rouge_1", "ROUGE-1", "higher"),
    ("rouge_2", "ROUGE-2", "higher"),
    ("rouge_l", "ROUGE-L", "higher"),
    ("meteor", "METEOR", "higher"),
)
# Where metrics/evaluate.json has the win rates by each who judged, and who that is.
WINS = (
    ("win_rate", "the reward model"),
    ("length_controlled_win_rate", "the reward model at equal length"),
    ("held_out", "the held-out judge"),
    ("references", "the references"),
    ("ground_truth", "the known rule"),
)
# By what the reward model's accuracy is told apart.
PROVENANCE = {"accuracy_by_source": "Source", "accuracy_by_annotator": "Annotator"}
SAMPLES = 5  # of each kind: candidate far ahead, candidate far behind


class Judgement(NamedTuple):
    """What the gate decided, and why."""

    decision: Decision
    reasons: list[str]
    warnings: list[str]
    checks: list[Check]
    opponent: Opponent


class Background(NamedTuple):
    """What came before the comparison, as the other stages wrote it."""

    reward: Mapping[str, Any]  # metrics/reward.json
    validation: Mapping[str, Any]  # metrics/validate.json
    curves: Mapping[str, CurveRows]  # by trainer, in the order in which they ran


class DataRow(NamedTuple):
    """One file of the data, as text."""

    name: str
    numbers: list[str]  # rows, kept, in quarantine, train, validation, test, mean tokens, longest
    findings: str


class FigureRow(NamedTuple):
    """One figure of the models, as text."""

    name: str
    good: str
    values: list[str]  # candidate, SFT, opponent
    difference: str  # candidate minus opponent, with its interval where there is one


class FrontierRow(NamedTuple):
    """A policy on its way, or the best of n of SFT, as text."""

    name: str
    kl: str
    win_rates: list[str]  # over SFT, by each who judged
    last_over_this: list[str]


class CategoryRow(NamedTuple):
    """One category of prompts, as text."""

    name: str
    prompts: str
    values: list[str]  # reward of candidate and opponent, the difference and the win rate with their intervals
    verdict: str


class WinRow(NamedTuple):
    """One win rate as text, and as places from 0 to 100 on a scale."""

    name: str
    text: str
    ties: str
    sign_test: str
    verdict: str
    needed: str  # prompts that would settle it
    place: tuple[float, float, float] | None  # value, low, high in percent


class Said(NamedTuple):
    """One model's answer and its scores, as text."""

    name: str
    answer: str
    scores: str


class Sample(NamedTuple):
    """One prompt with two answers to it."""

    prompt: str
    references: list[str]
    said: tuple[Said, Said]  # candidate, opponent
    gap: float  # reward of the candidate's answer minus the opponent's


def render(
    judgement: Judgement,
    evaluation: Mapping[str, Any],
    responses: Sequence[Mapping[str, Any]],
    background: Background,
) -> str:
    """Write the page.

    Args:
        judgement: what the gate decided.
        evaluation: metrics/evaluate.json.
        responses: reports/evaluate/responses.jsonl.
        background: what came before.
    """
    # Escaping is on for every value: what a model wrote must never act as HTML.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=into_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    ahead, behind = _samples(responses)
    marks, yardstick = (lookup(evaluation, key) or [] for key in ("frontier", "best_of_sft"))
    weighed = reliability(background.reward), margins(background.reward), length_scatter(responses)
    return environment.get_template(TEMPLATE).render(
        judgement=judgement,
        prompts=_count(evaluation, "prompts"),
        conversations=lookup(evaluation, "conversations"),
        with_references=_count(evaluation, "with_references"),
        confidence=number(figure(evaluation, "confidence"), 2),
        wins=_win_rows(evaluation, judgement.opponent),
        figures=_figure_rows(evaluation),
        kl=(number(figure(evaluation, "kl", "mean")), number(figure(evaluation, "kl", "standard_error"))),
        methods={name: value for name, value in (lookup(evaluation, "methods") or {}).items() if value},
        llm_judge=_llm_judge(lookup(evaluation, "llm_judge") or {}),
        categories=_category_rows(lookup(evaluation, "categories") or {}),
        has_gold="ground_truth" in evaluation,
        learned=learning_curves(background.curves),
        frontier=frontier(marks, yardstick) if marks else None,
        places=_frontier_rows(marks, yardstick),
        judges=[name for name, *_ in JUDGES.values()],
        weighed=[plot for plot in weighed if plot],
        reward_model=_reward_model(background.reward),
        provenance=_provenance(background.reward),
        data=_data_rows(background.validation),
        samples=(("The candidate is far ahead", ahead), ("The candidate is far behind", behind)),
    )


def _figure_rows(evaluation: Mapping[str, Any]) -> list[FigureRow]:
    def judged(name: str, judge: str) -> FigureRow:
        values = [number(figure(evaluation, judge, model)) for model in MODELS]
        return FigureRow(name, "higher", values, _interval(evaluation, ("difference", "vs_opponent", judge), 3))

    rows = [
        FigureRow(
            name,
            good,
            [number(figure(evaluation, model, key), digits_of(key)) for model in MODELS],
            _interval(evaluation, ("difference", "vs_opponent", key), digits_of(key)),
        )
        for key, name, good in FIGURES
    ]
    rows.insert(1, judged("Held-out judge", "held_out"))
    if "ground_truth" in evaluation:
        rows.insert(2, judged("Known rule", "ground_truth"))
    return rows


def _llm_judge(found: Mapping[str, Any]) -> dict[str, str]:
    """How far the LLM judge can be trusted, as text; nothing where none was asked."""
    counts = ("prompts", "same_answers", "without_verdict", "asked_again")
    shares = ("agreement", "first_preferred")
    numbers = {key: _count(found, key) for key in counts} | {key: number(figure(found, key)) for key in shares}
    return {"model": str(found.get("model")), **numbers} if found else {}


def _category_rows(categories: Mapping[str, Any]) -> list[CategoryRow]:
    return [
        CategoryRow(
            name,
            _count(found, "prompts"),
            [
                *(number(figure(found, model, "reward")) for model in ("candidate", "opponent")),
                _interval(found, ("difference", "vs_opponent", "reward")),
                _interval(found, ("win_rate", "vs_opponent"), sign="-"),
            ],
            "too few prompts"
            if lookup(found, "enough_prompts") is False
            else lookup(found, "win_rate", "vs_opponent", "verdict") or ABSENT,
        )
        for name, found in categories.items()
    ]


def _frontier_rows(marks: Sequence[Mapping[str, Any]], yardstick: Sequence[Mapping[str, Any]]) -> list[FrontierRow]:
    named = [(f"step {_count(mark, 'step')}", figure(mark, "kl", "mean"), mark) for mark in marks]
    named += [(f"best of {_count(each, 'n')}", figure(each, "kl"), each) for each in yardstick]
    return [
        FrontierRow(
            name,
            number(kl),
            *(
                [_interval(point, (kind, judge), sign="-") for judge in JUDGES]
                for kind in ("win_rate", "last_over_this")
            ),
        )
        for name, kl, point in named
    ]


def _reward_model(reward: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The reward model's figures on held-out pairs, by name."""
    return [
        ("Accuracy", _interval(reward, ("accuracy",), sign="-")),
        ("Pairs", _count({"pairs": lookup(reward, "accuracy", "pairs")}, "pairs")),
        *(
            [("Pairs that share no prompt and would tell as much", number(independent, 0))]
            if (independent := figure(reward, "accuracy", "effective_pairs"))
            else []
        ),
        ("Expected calibration error", number(figure(reward, "calibration_error"))),
        ("Correlation of score and length", number(figure(reward, "length_correlation"))),
        *(
            (f"Accuracy where the {name} answer is longer", number(figure(reward, *path, "value")))
            for name, path in (
                ("chosen", ("accuracy_by_length", "chosen_longer")),
                ("rejected", ("accuracy_by_length", "rejected_longer")),
            )
        ),
    ]


def _provenance(reward: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Tables of the reward model's accuracy by where pairs come from: a title, and rows of name, pairs and accuracy."""
    known = [(title, found) for key, title in PROVENANCE.items() if (found := lookup(reward, key))]
    return [
        (title, [(name, _count(found[name], "pairs"), _interval(found, (name,), sign="-")) for name in found])
        for title, found in known
    ]


def _data_rows(validation: Mapping[str, Any]) -> list[DataRow]:
    return [
        DataRow(
            name,
            [
                *(_count(kind, key) for key in ("rows", "kept", "quarantined")),
                *(_count(kind.get("splits") or {}, split) for split in ("train", "validation", "test")),
                number(figure(kind, "tokens", "mean"), 1),
                number(figure(kind, "tokens", "max"), 0),
            ],
            ", ".join(
                f"{finding} {sum(by_split.values())}"
                for finding, by_split in (kind.get("findings") or {}).items()
                if isinstance(by_split, Mapping)
            ),
        )
        for name, kind in validation.items()
        if isinstance(kind, Mapping)
    ]


def _win_rows(evaluation: Mapping[str, Any], opponent: Opponent) -> list[WinRow]:
    rivals = [("vs_sft", "SFT")] + ([("vs_opponent", str(opponent))] if opponent.name == "champion" else [])
    rows = [
        _win_row(evaluation, (judge, key), f"{name}, by {words}")
        for judge, words in WINS
        if lookup(evaluation, judge)
        for key, name in rivals
    ]
    if "llm_judge" in evaluation:
        name = f"{opponent}, by {lookup(evaluation, 'llm_judge', 'model') or ABSENT}"
        rows.append(_win_row(evaluation, ("llm_judge", "vs_opponent"), name))
    return rows


def _win_row(evaluation: Mapping[str, Any], path: tuple[str, str], name: str) -> WinRow:
    value, low, high = (figure(evaluation, *path, end) for end in ("value", "low", "high"))
    needed = figure(evaluation, *path, "prompts_to_settle")
    return WinRow(
        name,
        _interval(evaluation, path, sign="-"),
        number(figure(evaluation, *path, "ties")),
        chance(figure(evaluation, *path, "sign_test")),
        lookup(evaluation, *path, "verdict") or ABSENT,
        number(needed, 0),
        None if value is None or low is None or high is None else (value * 100, low * 100, high * 100),
    )


def _samples(responses: Sequence[Mapping[str, Any]]) -> tuple[list[Sample], list[Sample]]:
    """Those in which candidate and opponent differ most by reward: the best for the candidate, and the worst."""
    samples = [_sample(row) for row in responses]
    ordered = sorted(samples, key=lambda sample: -sample.gap)
    ahead = [sample for sample in ordered[:SAMPLES] if sample.gap > 0]
    behind = [sample for sample in ordered[::-1][:SAMPLES] if sample.gap < 0]
    return ahead, behind


def _sample(row: Mapping[str, Any]) -> Sample:
    prompt = "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in row["prompt"])
    ours, theirs = (figure(row, model, "reward") or 0.0 for model in ("candidate", "opponent"))
    said = _said("Candidate", row["candidate"]), _said("Opponent", row["opponent"])
    return Sample(prompt, row["references"], said, ours - theirs)


def _said(name: str, answer: Mapping[str, Any]) -> Said:
    scores = f"reward {number(figure(answer, 'reward'))}"
    gold = f", known rule {number(figure(answer, 'ground_truth'))}" if "ground_truth" in answer else ""
    return Said(name, answer["answer"], scores + gold)


def _interval(content: Mapping[str, Any], path: tuple[str, ...], digits: int = 3, sign: str = "+") -> str:
    found = [figure(content, *path, end) for end in ("value", "low", "high")]
    value, low, high = (number(each, digits, sign) for each in found)
    return ABSENT if None in found else f"{value} ({low} to {high})"


def _count(content: Mapping[str, Any], key: str) -> str:
    return number(figure(content, key), 0)
