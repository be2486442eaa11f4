"""The section `rewards` of params.yaml: whatever is wrong in it is refused before anything runs."""

import ast
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.rewards.functions import FunctionReward
from tasks.rewards.sources import VERIFIERS_FOLDER, source_of
from tasks.settings.rewards import VERIFIERS
from tests.conftest import MakeParams

MODEL = {"name": "reward_model", "source": "model", "weight": 1.0}
RULE = {"name": "rule", "source": "mine/rules.py:score"}
OF_EVERY_STAGE = {
    "tasks.common.chat_endpoint",
    "tasks.common.errors",
    "tasks.data.records",
    "tasks.data.tool_calls",
    "tasks.rewards.answered",
}
JUDGE = {"url": "http://localhost:1/v1", "model": "m", "rubric": "r"}
NEEDED: dict[str, dict[str, Any]] = {
    "length_limit": {"longest": 9},
    "judge": JUDGE,
}  # options without which a verifier says nothing


def section(**changes: Any) -> dict[str, Any]:
    return {"code": "mine", "training": [MODEL], "ground_truth": [RULE]} | changes


@pytest.mark.parametrize("code", ["mine", "./mine/", "mine/rules.py", "."])
def test_a_function_lies_in_what_dvc_follows(make_params: MakeParams, code: str):
    rewards = make_params(rewards=section(code=code)).rewards
    [rule] = rewards.ground_truth
    assert (source_of(rule), rule.is_model, rewards.use_model) == ((Path("mine/rules.py"), "score"), False, True)
    assert rule.options == {}  # an entry may leave them out


def test_a_verifier_is_a_function_of_its_name_and_lies_in_no_code_of_the_user(make_params: MakeParams):
    verifier = {"name": "right", "source": "exact_match", "options": {"partial": True}}
    [found] = make_params(rewards=section(ground_truth=[verifier])).rewards.ground_truth
    assert source_of(found) == (VERIFIERS_FOLDER / "exact_match.py", "exact_match")
    assert found.options == {"partial": True}


def test_every_verifier_is_a_file_and_can_be_loaded():
    files = {path.stem for path in VERIFIERS_FOLDER.glob("*.py")} - {"__init__"}
    assert files == set(VERIFIERS)
    for name in VERIFIERS:
        assert (
            "answers" in FunctionReward(name, VERIFIERS_FOLDER / f"{name}.py", name, name, NEEDED.get(name)).arguments
        )


def test_a_verifier_stands_alone():
    """DVC follows the copy of a verifier, and no module that it imports: but for what each stage lists already."""
    for path in VERIFIERS_FOLDER.glob("*.py"):
        of_project = {name for name in modules_imported(path) if name.split(".")[0] == "tasks"}
        assert of_project <= OF_EVERY_STAGE, path


def modules_imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return named | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "other"}, "mine/rules.py does not lie in other, which DVC follows: move it, or change code"),
        ({"code": "mine/other.py"}, "mine/rules.py does not lie in mine/other.py"),
        ({"ground_truth": [RULE | {"source": "mine/../rules.py:score"}]}, "does not lie in mine"),
        ({"data": "words"}, "no option of a reward names data, words, or a path in it: name it, or infra/none.jsonl"),
        ({"training": []}, "rewards.training is []"),
        ({"training": [MODEL | {"weight": 0.0}]}, "a reward of weight 0 is not learned from"),
        ({"training": [MODEL, MODEL | {"name": "again"}]}, "model is the one reward model"),
        ({"ground_truth": [RULE | {"source": "model"}]}, "model is the one reward model"),
        ({"ground_truth": [RULE | {"name": "reward_model"}]}, "two rewards are called reward_model: rename one"),
        ({"ground_truth": [RULE | {"name": "kl"}]}, "kl already names another figure"),
        ({"ground_truth": [RULE | {"name": "My rule"}]}, "rewards.ground_truth.0.name is 'My rule'"),
        ({"ground_truth": [RULE | {"source": "mine/rules.py"}]}, "is none of model, "),
        ({"ground_truth": [RULE | {"source": "mine/rules.txt:score"}]}, "nor path.py:function: change source"),
        ({"ground_truth": [RULE | {"source": "right_answer"}]}, "'right_answer' is none of model, "),
        ({"training": [MODEL | {"options": {"a": 1}}]}, "model has no options, only functions do: remove them"),
        ({"ground_truth": [RULE | {"options": {1: 1}}]}, "rewards.ground_truth.0.options.1.[key] is 1, but"),
        ({"ground_truth": [RULE | {"options": [1]}]}, "rewards.ground_truth.0.options is [1]"),
        ({"ground_truth": [RULE | {"weight": 1.0}]}, "rewards.ground_truth.0.weight is not a setting"),
    ],
)
def test_what_is_wrong_is_refused(make_params: MakeParams, changes: dict[str, Any], message: str):
    with pytest.raises(InputError) as refused:
        make_params(rewards=section(**changes))
    assert message in str(refused.value)
