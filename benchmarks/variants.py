"""The variants that benchmarks.methods compares: methods, losses and combinations of rewards, with their settings.

Settings of preference and rating losses, and rate and KL coefficient of GRPO with its division by the deviation, are
those of the highest mean ground truth on the validation prompts of seeds 3 and 7.
"""

from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType

Settings = Mapping[str, object]  # by dotted name, as in params.yaml

GROUPED: Settings = MappingProxyType({"ppo.responses_per_prompt": 4})
GRPO: Settings = MappingProxyType(
    {**GROUPED, "align.method": "ppo", "ppo.estimator": "grpo", "ppo.kl_estimator": "k3", "ppo.critic_warmup": 0}
)
# Divided by a prompt's deviation, small differences between answers count as much as large ones.
GRPO_STEPS: Settings = MappingProxyType({"ppo.learning_rate": 2.0e-4, "ppo.kl_coefficient": 0.5})

# In the folder of the example's rewards: the answer has the number of the order, which the reward model cannot read.
ORDER_NUMBER = "infra/example/order_number.py:right_number"
REWARD_MODEL = {"name": "reward_model", "source": "model", "options": {}, "weight": 1.0}


def _dpo(loss: str, beta: float, **others: object) -> Settings:
    return {"align.method": "dpo", "dpo.loss": loss, "dpo.beta": beta} | {
        f"dpo.{name}": value for name, value in others.items()
    }


def _kto(loss: str, beta: float) -> Settings:
    return {"align.method": "kto", "kto.loss": loss, "kto.beta": beta}


def _rloo(*rewards: Mapping[str, object], combine: str = "sum") -> Settings:
    return {
        **GROUPED,
        "align.method": "rloo",
        "rewards.training": list(rewards),
        "rewards.combine": combine,
    }


def _order_number(weight: float) -> Mapping[str, object]:
    return {"name": "order_number", "source": ORDER_NUMBER, "options": {}, "weight": weight}


PREFERENCES: Mapping[str, Settings] = {
    "DPO sigmoid": _dpo("sigmoid", 0.3),
    "DPO hinge": _dpo("hinge", 0.3),
    "DPO ipo": _dpo("ipo", 3.0),
    "DPO robust": _dpo("robust", 1.0, label_smoothing=0.1),
    "DPO sigmoid_norm": _dpo("sigmoid_norm", 10.0),
    "DPO simpo": _dpo("simpo", 5.0, learning_rate=3.0e-5),
}
RATINGS: Mapping[str, Settings] = {"KTO": _kto("kto", 1.0), "KTO apo_zero": _kto("apo_zero", 1.0)}
POLICY_GRADIENTS: Mapping[str, Settings] = {
    "PPO": {"align.method": "ppo"},
    "PPO shared critic": {"align.method": "ppo", "ppo.critic": "shared"},
    "PPO dual_clip": {"align.method": "ppo", "ppo.dual_clip": 3.0},
    # Mean over answers of the mean over tokens: Shao et al. 2024.
    "GRPO": {**GROUPED, **GRPO_STEPS, "align.method": "grpo"},
    "Dr. GRPO": {**GRPO, "ppo.grpo_divide_by_std": False, "ppo.aggregation": "constant"},
    "GRPO clip_high": {**GRPO, **GRPO_STEPS, "ppo.clip_high": 0.28},  # mean over tokens, as in DAPO
    "GSPO": {
        **GRPO,
        "ppo.policy_loss": "gspo",
        "ppo.aggregation": "sequence",
        "ppo.clip": 3.0e-4,
        "ppo.clip_high": 4.0e-4,
    },
    "CISPO": {**GRPO, **GRPO_STEPS, "ppo.policy_loss": "cispo", "ppo.clip": 1.0, "ppo.clip_high": 0.28},
    "REINFORCE++": {"align.method": "reinforce"},
    "REINFORCE++ baseline": {
        **GROUPED,
        "align.method": "ppo",
        "ppo.estimator": "reinforce_plus_plus_baseline",
        "ppo.critic_warmup": 0,
    },
}
ALONE: Mapping[str, Settings] = {
    "RLOO": _rloo(REWARD_MODEL),
    "RLOO order number": _rloo(_order_number(1.0)),
}
TOGETHER: Mapping[str, Settings] = {
    "RLOO both, sum": _rloo(REWARD_MODEL, _order_number(3.0)),
    "RLOO both, normalise_then_sum": _rloo(REWARD_MODEL, _order_number(1.0), combine="normalise_then_sum"),
}
VARIANTS: Mapping[str, Settings] = dict(
    chain.from_iterable(group.items() for group in (PREFERENCES, RATINGS, POLICY_GRADIENTS, ALONE, TOGETHER))
)
