"""Rules between settings in params.yaml: what contradicts each other, and what holds at the edge."""

import pytest

from tasks.settings.params import NO_ROWS, Params, parse_params
from tests.test_params import by, changed, complaint


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prepare__demonstrations__source": NO_ROWS}, "infra/none.jsonl, which has no rows, but sft learns from them"),
        ({"prepare__prompts__source": NO_ROWS, "align": by("dpo")}, "but evaluate answers them: name a source"),
        ({"prepare__preferences__source": NO_ROWS}, "but the reward model of rewards.training learns from them"),
        ({"prepare__ratings__source": NO_ROWS, "align": by("kto")}, "but align.method kto learns from them"),
    ],
)  # fmt: skip
def test_what_is_learned_from_cannot_be_without_rows(changes: dict[str, object], sentence: str):
    assert sentence in complaint(changed(**changes))


def test_data_that_no_source_reads_are_refused_and_those_that_one_reads_hold():
    message = "no option of a source names data, raw, or a path in it: name it, or infra/none.jsonl"
    assert message in complaint(changed(prepare__data="raw"))
    parse_params(changed(prepare__data="raw", prepare__prompts__options={"rows": "raw/a.txt"}))


def test_what_nothing_learns_from_may_be_without_rows():
    parse_params(changed(prepare__ratings__source=NO_ROWS))
    function = {"name": "rule", "source": "infra/example/rewards.py:score", "weight": 1.0}
    parse_params(changed(prepare__preferences__source=NO_ROWS, rewards__training=[function], rewards__ground_truth=[]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        *(
            (
                {"dpo__loss": loss, "dpo__label_smoothing": 0.1},
                f"dpo: label_smoothing would be ignored by the loss {loss}: set it to 0",
            )
            for loss in ("hinge", "ipo", "sigmoid_norm", "simpo")
        ),
        ({"ppo__num_minibatches": 9, "ppo__rollouts": 8}, "ppo: num_minibatches must not exceed rollouts"),
        (
            {"ppo__responses_per_prompt": 3},
            "ppo: rollouts must be a multiple of responses_per_prompt: whole groups of answers to one prompt",
        ),
        (
            {"ppo__estimator": "rloo", "ppo__critic_warmup": 0},
            "ppo: the estimator rloo compares answers to one prompt: raise responses_per_prompt to 2",
        ),
        (
            {"ppo__estimator": "reinforce_plus_plus"},
            "ppo: the estimator reinforce_plus_plus has no critic to warm up: set critic_warmup to 0",
        ),
        (
            {"ppo__estimator": "reinforce_plus_plus", "ppo__critic_warmup": 0, "ppo__critic": "shared"},
            "ppo: the estimator reinforce_plus_plus has no critic that could share a backbone: set critic to separate",
        ),
        (
            {"ppo__estimator": "rloo", "ppo__critic_warmup": 0, "ppo__responses_per_prompt": 2, "ppo__gamma": 0.9},
            "ppo: the estimator rloo takes an answer's reward as a whole: "
            "set gamma and reward_smoothing to 1 and whiten_rewards to false",
        ),
        (
            {"ppo__estimator": "grpo", "ppo__critic_warmup": 0, "ppo__responses_per_prompt": 2},
            "ppo: k1 has no gradient in the loss, where grpo has its KL: set kl_estimator to k2 or k3",
        ),
        (
            {"ppo__dynamic_sampling": 2},
            "ppo: dynamic_sampling drops prompts whose answers all earn the same, but the estimator gae "
            "learns from them, too: set it to null",
        ),
        (
            {"rewards__combine": "normalise_then_sum"},
            "rewards.combine: normalise_then_sum compares the answers to one prompt, but the estimator gae does not: "
            "set ppo.estimator to grpo, rloo or reinforce_plus_plus_baseline",
        ),
        (
            {
                "rewards__combine": "normalise_then_sum",
                "ppo__estimator": "grpo",
                "ppo__kl_estimator": "k2",
                "ppo__responses_per_prompt": 2,
                "ppo__critic_warmup": 0,
                "ppo__grpo_divide_by_std": False,
            },
            "rewards.combine: normalise_then_sum divides by each reward's deviation: "
            "set ppo.grpo_divide_by_std to true",
        ),
        (
            {"ppo__grpo_divide_by_std": False},
            "ppo: the estimator gae does not divide by a group's deviation: set grpo_divide_by_std to true",
        ),
        (
            {"ppo__policy_loss": "gspo"},
            "ppo: gspo has one ratio for an answer and needs one advantage for it, but the estimator gae "
            "has one for each token: set estimator to grpo, rloo or reinforce_plus_plus_baseline",
        ),
        (
            {
                "ppo__policy_loss": "gspo",
                "ppo__estimator": "rloo",
                "ppo__responses_per_prompt": 2,
                "ppo__critic_warmup": 0,
            },
            "ppo: the loss gspo is a mean over answers: set aggregation to sequence",
        ),
        (
            {"ppo__policy_loss": "cispo", "ppo__dual_clip": 3.0},
            "ppo: the loss cispo bounds every ratio and would ignore dual_clip: set it to null",
        ),
        (
            {"ppo__overlong": "mask"},
            "ppo: overlong: mask leaves answers without an end out of the update: set missing_eos_penalty to 0",
        ),
        (
            {"ppo__overlong_buffer": 65},
            "ppo: overlong_buffer must not exceed max_new_tokens, of which it is the end",
        ),
        (
            {"runtime__compile": True, "runtime__gradient_checkpointing": True},
            "runtime: layers that compute activations again are not compiled: set one of the two to false",
        ),
        ({"base__scratch__heads": 3}, "base.scratch: hidden_size must be an even multiple of heads"),
        # 12 / 4 = 3 numbers a head cannot be rotated in pairs.
        ({"base__scratch__hidden_size": 12}, "base.scratch: hidden_size must be an even multiple of heads"),
        (
            {"prepare__split__validation": 0.5, "prepare__split__test": 0.5},
            "prepare.split: validation and test together must leave a share for training",
        ),
        *(
            (
                {f"{section}__max_new_tokens": 65},
                f"{section}.max_new_tokens is 65, but the checked prompts leave room for 64 tokens only: "
                "raise validate.max_new_tokens, or lower it",
            )
            for section in ("dpo", "ppo", "evaluate")
        ),
    ],
)
def test_settings_that_contradict_each_other(change, sentence):
    assert complaint(changed(**change)) == f"params.yaml: {sentence}"


@pytest.mark.parametrize(
    "change",
    [
        {"dpo__loss": "robust", "dpo__label_smoothing": 0.1},
        {"dpo__loss": "sigmoid", "dpo__label_smoothing": 0.1},
        {"dpo__loss": "hinge", "dpo__label_smoothing": 0.0},
        {"ppo__num_minibatches": 8, "ppo__rollouts": 8},
        {"base__scratch__hidden_size": 24, "base__scratch__heads": 4},
        {"prepare__split__validation": 0.5, "prepare__split__test": 0.4},
    ],
)
def test_settings_at_the_edge_of_a_rule_hold(change):
    assert isinstance(parse_params(changed(**change)), Params)
