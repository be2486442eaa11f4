"""The methods that align a policy, a row each: all that stages, registry, report and flows have to know of one.

What a method computes is in its stage, tasks/<name>.py, and in tasks/learning/<name>; its settings are in
tasks/settings/alignment.py. `align.method` chooses the row.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

MethodName = Literal["dpo", "kto", "ppo"]
Input = Literal["preferences", "ratings", "prompts", "rewards"]


class Panel(NamedTuple):
    """A panel of the report's learning curves."""

    column: str  # of curves/<method>.csv
    title: str


class HeadlineFigure(NamedTuple):
    """A figure of metrics/<method>.json that tells how the training went."""

    name: str
    key: str  # dotted
    before: str | None = None  # dotted, of its value at the beginning


class Method(NamedTuple):
    """A method of alignment."""

    title: str
    family: str  # of its loss
    learns_from: frozenset[Input]  # the training split of kinds of records, and rewards.training of params.yaml
    panels: tuple[Panel, ...]
    headline_figures: tuple[HeadlineFigure, ...]

    @property
    def made_from(self) -> str:
        """The models that the policy follows from, in words."""
        return "the SFT model and the reward model" if "rewards" in self.learns_from else "the SFT model"


METHODS: Mapping[str, Method] = {
    "dpo": Method(
        title="DPO",
        family="preference loss",
        learns_from=frozenset({"preferences"}),
        panels=(Panel("loss", "DPO: loss"), Panel("reward", "DPO: reward margin")),
        headline_figures=(
            HeadlineFigure("held-out loss", "validation.after.loss"),
            HeadlineFigure("pairs ordered right", "validation.after.accuracy"),
        ),
    ),
    "kto": Method(
        title="KTO",
        family="rated answers",
        learns_from=frozenset({"ratings"}),
        panels=(Panel("loss", "KTO: loss"), Panel("reward", "KTO: reward of good answers over bad ones")),
        headline_figures=(
            HeadlineFigure("held-out loss", "validation.after.loss"),
            HeadlineFigure("answers on their side", "validation.after.accuracy"),
        ),
    ),
    "ppo": Method(
        title="PPO",
        family="policy gradient",
        learns_from=frozenset({"prompts", "rewards"}),
        panels=(Panel("reward", "PPO: reward"), Panel("kl", "PPO: KL, nats an answer")),
        headline_figures=(HeadlineFigure("reward", "last.reward", before="first.reward"),),
    ),
}


def stages_behind(method: str) -> tuple[str, ...]:
    """Name the stages whose training a method's policy follows from, its own last."""
    return ("sft", *(("reward",) if "rewards" in METHODS[method].learns_from else ()), method)
