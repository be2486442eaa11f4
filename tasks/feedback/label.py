"""Pairs from collected answers: of each prompt the best answer against the worst."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import (
    MODELS,
    VALIDATED,
    hash_files,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from tasks.data.checks.patterns import encoding_damage
from tasks.data.encoding.tokens import Text, encode_texts, load_tokenizer
from tasks.data.records import Preference, read_records, tidy
from tasks.data.sources.feedback import ANSWERS, LABELS, MANIFEST, PAIRS
from tasks.data.tool_calls import answer_as_text
from tasks.feedback.labellers import BY_JUDGE, BY_REWARD, Group, Labeller
from tasks.settings.params import Params

PAIRS_OF_PEOPLE = 128  # of the validation split, on which agreement is measured
SAME = 1e-9  # sums of outcomes round
logger = logging.getLogger(__name__)


class Thresholds(NamedTuple):
    """What a pair and its labeller must reach."""

    gap: float  # between the scores of best and worst; a smaller one is no pair, nor is a tie
    agreement: float  # with people


def label(folder: Path, labeller: Labeller, thresholds: Thresholds, params: Params) -> dict[str, Any]:
    """Order the answers that `collect` wrote into a folder; write pairs.jsonl and labels.json beside them.

    Before, the labeller orders pairs of the validation split that people have labelled.

    Returns:
        labels.json: the annotator and what it is, thresholds, counts, and the agreement with people.

    Raises:
        InputError: the folder has no answers, the labeller fails or agrees too little with people, or no pair is left.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} has no {MANIFEST}: trueline collect {folder} writes it")
    policy = read_json(folder / MANIFEST).get("policy")
    if policy is None:
        raise _damaged(f"{folder / MANIFEST}", folder)
    agreement = agreement_with_people(labeller)
    if agreement["share"] is None and thresholds.agreement:
        logger.warning(
            "no validation pair of people's can be ordered by %s: whether it agrees with people in %g of them is "
            "unknown (--min-agreement)",
            labeller.annotator,
            thresholds.agreement,
        )
    elif agreement["share"] is not None and agreement["share"] < thresholds.agreement:
        raise InputError(
            f"{labeller.annotator} orders {agreement['share']:.3f} of {agreement['pairs']} validation pairs as people "
            f"do, less than --min-agreement {thresholds.agreement:g}: label with another reward, or lower it"
        )
    counts = Counter[str](dict.fromkeys(("prompts", "unusable", "single", "ties", "small_gaps", "pairs"), 0))
    groups = list(_groups(folder / ANSWERS, params, counts))
    pairs = [
        pair
        for group, scores in zip(groups, labeller.score(groups), strict=True)
        if (pair := _pair(group, scores, thresholds.gap, counts))
    ]
    if not pairs:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{folder}: no prompt has two answers that {labeller.annotator} tells apart ({listed})")
    (folder / LABELS).unlink(missing_ok=True)  # after a kill here it would speak of other pairs
    write_jsonl(folder / PAIRS, ({**pair, "annotator": labeller.annotator} for pair in pairs))
    labels = {
        "annotator": labeller.annotator,
        "labeller": dict(labeller.identity()),
        "policy": policy,
        "answers_sha256": hash_files(folder / ANSWERS),
        "min_gap": thresholds.gap,
        "min_agreement": thresholds.agreement,
        "agreement": agreement,
        "counts": dict(counts),
    }
    write_json(folder / LABELS, labels)
    return labels


def agreement_with_people(labeller: Labeller) -> dict[str, Any]:
    """Give the share of validation pairs that the labeller orders as people do; a tie counts half.

    Truncated pairs are left out: people saw them whole.

    Returns:
        pairs: how many, at most 128, the first by id; share: None where there are none.
    """
    records = (each for each in read_records(VALIDATED, "preferences", "validation") if isinstance(each, Preference))
    ordered = sorted(
        (each for each in records if _is_of_people(each) and not each.truncated), key=lambda record: record.id
    )
    groups = [Group(each.prompt, (answer_as_text(each.chosen), answer_as_text(each.rejected))) for each in ordered]
    chosen = [group for group in groups if labeller.can_score(group)][:PAIRS_OF_PEOPLE]
    if not chosen:
        return {"pairs": 0, "share": None}
    outcomes = [1.0 if ours > theirs else 0.5 * (ours == theirs) for ours, theirs in labeller.score(chosen)]
    return {"pairs": len(outcomes), "share": sum(outcomes) / len(outcomes)}


def _is_of_people(record: Preference) -> bool:
    names = [vote["annotator"] for vote in record.votes or []] or [record.annotator or ""]
    return not any(name.startswith((BY_REWARD, BY_JUDGE)) for name in names)


def _groups(file: Path, params: Params, counts: Counter[str]) -> Iterator[Group]:
    """Give each prompt with its different answers that can be learned from: they ended, and are no longer than rows."""
    tokenizer, longest = load_tokenizer(MODELS / "sft"), params.validate_.max_tokens
    for number, row in enumerate(read_jsonl(file), start=1):
        try:
            prompt, answers = row["prompt"], [(tidy(each["text"]), bool(each["ended"])) for each in row["answers"]]
        except (KeyError, TypeError):
            raise _damaged(f"{file} row {number}", file.parent) from None
        texts = list(dict.fromkeys(text for text, ended in answers if ended))
        encoded = encode_texts(tokenizer, [Text(prompt, [text]) for text in texts])
        usable = [
            text
            for text, parts in zip(texts, encoded, strict=True)
            if text
            and not encoding_damage(text)  # of bytes that are no character
            and not isinstance(parts, InputError)
            and sum(map(len, parts)) <= longest
        ]
        counts["prompts"] += 1
        counts["unusable"] += sum(not ended for _, ended in answers) + len(texts) - len(usable)
        if len(usable) < 2:
            counts["single"] += 1
        else:
            yield Group(prompt, usable)


def _damaged(what: str, folder: Path) -> InputError:
    return InputError(f"{what} is damaged: delete {folder} and run trueline collect {folder} again")


def _pair(group: Group, scores: Sequence[float], least: float, counts: Counter[str]) -> dict[str, Any] | None:
    """Give the best answer against the worst; of equal ones the first."""
    best, worst = max(scores), min(scores)
    gap = best - worst
    kind = "ties" if gap <= SAME else "small_gaps" if gap < least else "pairs"
    counts[kind] += 1
    if kind != "pairs":
        return None
    chosen, rejected = (group.answers[scores.index(score)] for score in (best, worst))
    return {"prompt": group.prompt, "chosen": chosen, "rejected": rejected}
