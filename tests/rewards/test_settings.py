"""The section `rewards` of params.yaml: whatever is wrong in it is told before anything runs."""

from typing import Any

import pytest

from tasks.common.errors import InputError
from tests.conftest import MakeParams

MODEL = {"name": "reward_model", "source": "model", "weight": 1.0}
RULE = {"name": "rule", "source": "mine/rules.py:score"}


def section(**changes: Any) -> dict[str, Any]:
    return {"code": "mine", "training": [MODEL], "ground_truth": [RULE]} | changes


@pytest.mark.parametrize("code", ["mine", "./mine/", "mine/rules.py", "."])
def test_a_function_lies_in_what_dvc_follows(make_params: MakeParams, code: str):
    rewards = make_params(rewards=section(code=code)).rewards
    [rule] = rewards.ground_truth
    assert (rule.file, rule.function, rule.is_model, rewards.use_model) == ("mine/rules.py", "score", False, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": "other"}, "mine/rules.py does not lie in other, which DVC follows: move it, or change code"),
        ({"code": "mine/other.py"}, "mine/rules.py does not lie in mine/other.py"),
        ({"ground_truth": [RULE | {"source": "mine/../rules.py:score"}]}, "does not lie in mine"),
        ({"training": []}, "rewards.training is []"),
        ({"training": [MODEL | {"weight": 0.0}]}, "a reward of weight 0 is not learned from"),
        ({"training": [MODEL, MODEL | {"name": "again"}]}, "model is the one reward model"),
        ({"ground_truth": [RULE | {"source": "model"}]}, "model is the one reward model"),
        ({"ground_truth": [RULE | {"name": "reward_model"}]}, "two rewards are called reward_model: rename one"),
        ({"ground_truth": [RULE | {"name": "kl"}]}, "kl already names another figure"),
        ({"ground_truth": [RULE | {"name": "My rule"}]}, "rewards.ground_truth.0.name is 'My rule'"),
        ({"ground_truth": [RULE | {"source": "mine/rules.py"}]}, "is neither model nor path.py:function"),
        ({"ground_truth": [RULE | {"source": "mine/rules.txt:score"}]}, "is neither model nor path.py:function"),
        ({"ground_truth": [RULE | {"weight": 1.0}]}, "rewards.ground_truth.0.weight is not a setting"),
    ],
)
def test_what_is_wrong_is_told(make_params: MakeParams, changes: dict[str, Any], said: str):
    with pytest.raises(InputError) as refused:
        make_params(rewards=section(**changes))
    assert said in str(refused.value)
