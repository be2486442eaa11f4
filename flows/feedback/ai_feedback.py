"""AI feedback: a policy's answers to prompts, and pairs of them that a reward or a judge has ordered."""

from pathlib import Path
from typing import Any, NamedTuple

from flows.chat import STAGES, stage_folder, version_folder
from flows.processes.locks import one_flow_at_a_time
from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.feedback.collect import Policy, Sampling, collect
from tasks.feedback.label import Thresholds, label
from tasks.feedback.labellers import ByJudge, ByReward, Labeller
from tasks.registry.dvc_outputs.contents import recorded_output
from tasks.settings.params import Params


class Named(NamedTuple):
    """What orders the answers: a reward, the first of rewards.training unless one is named, or a judge."""

    reward: str | None = None  # a name in rewards.training
    judge: str | None = None  # address of a server
    model: str | None = None  # of the judge there


class Wanted(NamedTuple):
    """Whose answers are collected, and how many."""

    policy: str = "champion"  # a version, an alias, or a stage
    prompts: int | None = None  # None: all
    answers: int = 4  # a prompt
    temperature: float = 1.0
    seed: int | None = None  # None: that of the settings


def collect_answers(params: Params, folder: Path, wanted: Wanted) -> dict[str, Any]:
    """Have a version, an alias or a stage's model answer prompts of the training split; give the manifest.

    Raises:
        InputError: there is no such policy, its files are damaged, the folder holds something else, or a flow runs.
    """
    seed = params.seed if wanted.seed is None else wanted.seed
    sampling = Sampling(wanted.answers, wanted.temperature, params.validate_.max_new_tokens, seed)
    with one_flow_at_a_time():  # it would replace models and prompts
        manifest = collect(folder, _policy(wanted.policy, params), sampling, wanted.prompts, params)
    return {"folder": str(folder), **manifest}


def label_folder(params: Params, folder: Path, by: Named, thresholds: Thresholds) -> dict[str, Any]:
    """Have a reward or a judge order collected answers into pairs; give what labels.json says.

    Raises:
        InputError: both or half a judge are named, the labeller fails or agrees too little, or a flow runs.
    """
    with one_flow_at_a_time():
        return {"folder": str(folder), **label(folder, _labeller(params, by), thresholds, params)}


def _policy(name: str, params: Params) -> Policy:
    if name not in STAGES:
        from tasks.registry.lineage.explain import why

        known = why(params, name)
        return Policy(name, known["version"], known["policy"]["md5"], version_folder(name, params))
    folder = stage_folder(name)
    return Policy(name, None, recorded_output(name, folder), folder)


def _labeller(params: Params, by: Named) -> Labeller:
    if by.judge and by.reward:
        raise InputError("--reward and --judge both order the answers: give one of them")
    if bool(by.judge) != bool(by.model):
        raise InputError("a judge needs an address and a name: give --judge URL and --model NAME")
    if by.judge and by.model:
        return ByJudge(by.judge, by.model, params.base.reasoning)
    for stage in ("sft", "reward") if params.rewards.use_model else ("sft",):
        recorded_output(stage, MODELS / stage)
    return ByReward(by.reward, params)
