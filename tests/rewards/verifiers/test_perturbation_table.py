"""Each verifier on references and perturbed answers: the share that gets the full score, worked by hand."""

from typing import Any

import pytest

from tasks.data.records import Message, Prompt
from tasks.rewards.answered import answered
from tasks.rewards.perturbations import PERTURBATIONS, REFERENCE
from tasks.settings.rewards import VERIFIERS
from tests.rewards.verifiers.scored import verifier

LISTED = "{}\nA) red\nB) green\nC) blue\nD) white"
SQUARE, DOUBLE = "def f(x):\n    return x ** 2", "def f(x):\n    return 2 * x"
LOWER = {"instruction_id_list": ["change_case:english_lowercase", "keywords:existence"]}


def two(*rows: tuple[str, str, dict[str, Any]]) -> list[Prompt]:
    """Prompts with a reference and extra columns each."""
    return [
        Prompt(f"p{place}", "validation", "raw", place, [Message(role="user", content=asked)], [known], None, columns)
        for place, (asked, known, columns) in enumerate(rows)
    ]


NONE = dict.fromkeys(PERTURBATIONS, 0.0)
# By verifier: prompts, options, and what is not 0 of perturbed answers.
CASES: dict[str, tuple[list[Prompt], dict[str, Any], dict[str, float]]] = {
    "exact_match": (two(("Capital of France?", "Paris", {}), ("Of Italy?", "Rome", {})), {}, {}),
    # Half of "12" is 1. "70 + 2?" ends in another number than its sum.
    "numeric_answer": (two(("3 * 4?", "It is 12", {}), ("70 + 2?", "That makes 72", {})), {}, {}),
    # Half of "(B)" is "(": no letter; a prompt that lists all options states none.
    "multiple_choice": (two((LISTED.format("Grass?"), "(B)", {}), (LISTED.format("Sky?"), "(C)", {})), {}, {}),
    # A form alone does not tell one prompt's answer from another's.
    "regular_expression": (
        two(("When?", "2026-11-30", {}), ("And then?", "2026-12-01", {})),
        {"pattern": r"\d{4}-\d\d-\d\d", "whole": True},
        {"other_reference": 1.0},
    ),
    "json_schema": (
        two(("As JSON: Ann", '{"name": "Ann"}', {}), ("As JSON: Bo", '{"name": "Bo"}', {})),
        {"required": ["name"]},
        {"other_reference": 1.0},
    ),
    # A prompt that states its keyword in lower case follows its own instructions: the second does.
    "instructions": (
        two(
            ("Write of the CAT in lower case.", "there sat the cat.", LOWER | {"kwargs": [{}, {"keywords": ["cat"]}]}),
            ("write of the dog in lower case.", "down sat the dog.", LOWER | {"kwargs": [{}, {"keywords": ["dog"]}]}),
        ),
        {},
        {"prompt": 0.5},
    ),
    "code_tests": (
        two(("Square.", SQUARE, {"tests": "assert f(3) == 9"}), ("Double.", DOUBLE, {"tests": "assert f(3) == 6"})),
        {},
        {},
    ),
    # Alone it is satisfied by anything short: a term to add to another reward.
    "length_limit": (
        two(("Why is it so?", "Because of it all.", {}), ("How is it so?", "By means of it.", {})),
        {"longest": 4},
        dict.fromkeys(PERTURBATIONS, 1.0),
    ),
}


def test_every_verifier_is_in_the_table():
    assert set(CASES) == set(VERIFIERS) - {"judge"}  # what a judge says is its own


@pytest.mark.parametrize("name", CASES)
def test_the_share_of_full_scores_by_perturbation(name: str):
    prompts, options, not_zero = CASES[name]
    reward = verifier(name, **options)

    def share(texts: list[str | None]) -> float:
        given = [(prompt, text) for prompt, text in zip(prompts, texts, strict=True) if text is not None]
        scores = reward(answered([prompt for prompt, _ in given], [text for _, text in given], [[] for _ in given]))
        return sum(scores) / len(scores)

    found = {kind: share(perturb(prompts)) for kind, perturb in PERTURBATIONS.items()}
    assert {REFERENCE: share([prompt.references[0] for prompt in prompts])} | found == {
        REFERENCE: 1.0
    } | NONE | not_zero
