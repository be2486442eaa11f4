"""The methods that align a policy, a row each: all that stages, registry, report and flows have to know of one.

What a stage computes is in tasks/<stage>.py and tasks/learning/<stage>; its settings are in
tasks/settings/alignment.py. `align.method` chooses the row. Several methods may be one stage with other settings: their
rows name the same stage, and the settings that make the method what its name says.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

StageName = Literal["dpo", "kto", "ppo"]
MethodName = Literal[StageName, "grpo", "rloo", "reinforce"]
Input = Literal["preferences", "ratings", "prompts", "rewards", "ai_preferences"]
EXTRA_INPUTS: frozenset[Input] = frozenset({"ai_preferences"})  # what a method learns from where there is some


class Panel(NamedTuple):
    """A panel of the report's learning curves."""

    column: str  # of curves/<stage>.csv
    title: str


class HeadlineFigure(NamedTuple):
    """A figure of metrics/<stage>.json that tells how the training went."""

    name: str
    key: str  # dotted
    before: str | None = None  # dotted, of its value at the beginning


class Method(NamedTuple):
    """A method of alignment."""

    title: str
    stage: StageName
    family: str  # of its loss
    learns_from: frozenset[Input]  # the training split of kinds of records, and rewards.training of params.yaml
    panels: tuple[Panel, ...]
    headline_figures: tuple[HeadlineFigure, ...]
    preset: Mapping[str, object] = MappingProxyType({})  # settings of params.yaml by dotted name

    @property
    def made_from(self) -> str:
        """The models that the policy follows from, in words."""
        return "the SFT model and the reward model" if "rewards" in self.learns_from else "the SFT model"

    @property
    def settings(self) -> Mapping[str, object]:
        """The settings of params.yaml that the method's name stands for, by dotted name."""
        return {"align.stage": self.stage, **self.preset}


_PPO = Method(
    title="PPO",
    stage="ppo",
    family="policy gradient",
    learns_from=frozenset({"prompts", "rewards"}),
    panels=(Panel("reward", "PPO: reward"), Panel("kl", "PPO: KL, nats an answer")),
    headline_figures=(HeadlineFigure("reward", "last.reward", before="first.reward"),),
)


def _without_critic(title: str, **settings: object) -> Method:
    """Give the row of a preset: the stage ppo, without a critic, with other settings."""
    return _PPO._replace(
        title=title,
        panels=(Panel("reward", f"{title}: reward"), Panel("kl", f"{title}: KL, nats an answer")),
        preset={f"ppo.{name}": value for name, value in settings.items()}
        | {"ppo.critic": "separate", "ppo.critic_warmup": 0},
    )


METHODS: Mapping[str, Method] = {
    "dpo": Method(
        title="DPO",
        stage="dpo",
        family="preference loss",
        learns_from=frozenset({"preferences", "ai_preferences"}),
        panels=(Panel("loss", "DPO: loss"), Panel("reward", "DPO: reward margin")),
        headline_figures=(
            HeadlineFigure("held-out loss", "validation.after.loss"),
            HeadlineFigure("pairs ordered right", "validation.after.accuracy"),
        ),
    ),
    "kto": Method(
        title="KTO",
        stage="kto",
        family="rated answers",
        learns_from=frozenset({"ratings"}),
        panels=(Panel("loss", "KTO: loss"), Panel("reward", "KTO: reward of good answers over bad ones")),
        headline_figures=(
            HeadlineFigure("held-out loss", "validation.after.loss"),
            HeadlineFigure("answers on their side", "validation.after.accuracy"),
        ),
    ),
    "ppo": _PPO,
    "grpo": _without_critic(  # as Shao et al. 2024 published it
        "GRPO",
        estimator="grpo",
        grpo_divide_by_std=True,
        policy_loss="clip",
        aggregation="sequence",
        kl_estimator="k3",
    ),
    "rloo": _without_critic("RLOO", estimator="rloo", kl_estimator="k1"),
    "reinforce": _without_critic("REINFORCE++", estimator="reinforce_plus_plus", kl_estimator="k1"),
}
STAGES: tuple[StageName, ...] = get_args(StageName)  # each is the name of a method, too


def stages_behind(method: str) -> tuple[str, ...]:
    """Name the stages whose training a method's policy follows from, its own last."""
    return ("sft", *(("reward",) if "rewards" in METHODS[method].learns_from else ()), METHODS[method].stage)


def stages_learning_from(kind: Input) -> tuple[StageName, ...]:
    """Name the stages of alignment that learn from a kind of records."""
    return tuple(stage for stage in STAGES if kind in METHODS[stage].learns_from)
