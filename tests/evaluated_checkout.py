"""A checkout as the stage evaluate finds it, for its tests, and what the stage leaves there."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch

from tasks.common.python_files import load_function
from tasks.data.answers import write_answers
from tasks.data.base_model.from_scratch import make_scratch
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Demonstration, Message, Prompt, read_prompts, write_records
from tasks.learning.evaluation_points import EvaluationPoints
from tasks.learning.models.loading import load_policy, new_reward_model
from tasks.learning.models.saving import save_model
from tasks.registry.mlflow_runs import tracking
from tasks.rewards.copies import GROUND_TRUTH, TRAINING
from tasks.rewards.sources import write_copies
from tasks.settings.params import Rewards
from tests.conftest import EXAMPLE, ROOT

METRICS, RESPONSES = Path("metrics/evaluate.json"), Path("reports/evaluate/responses.jsonl")
POINTS, LLM_JUDGE = Path("reports/evaluate/evaluation_points.jsonl"), Path("reports/evaluate/llm_judge.jsonl")
COUNT = 10


class RecordingRun:
    """Stands in for MLflow, which has tests of its own and takes seconds to open."""

    def __init__(self):
        self.figures, self.tables = {}, {}

    def summary(self, figures):
        self.figures = figures

    def table(self, name, rows):
        self.tables[name] = rows


def write_points(params):
    """SFT and the candidate, at the beginning and at the end of a training of nine steps."""
    asked = [prompt for prompt in read_prompts(Path("data/validate")) if prompt.split == "validation"]
    answers = []
    for step, name in ((0, "sft"), (9, "ppo")):
        policy = load_policy(Path("models") / name, params, trainable=False)
        along = EvaluationPoints(policy, load_tokenizer(Path("models/sft")), asked, params.ppo, params, temperature=1.0)
        along.at_step(step, 9)
        answers += along.answers
    write_answers("ppo", answers)


def make_models(params, models):
    """A reward model, a held-out one and an SFT model of random weights, and a policy a little way off it."""
    make_scratch(ROOT / EXAMPLE, params.base.scratch, 7, models / "sft")
    tokenizer = load_tokenizer(models / "sft")
    for name, seed in (("reward", 7), ("held_out_reward", 8)):
        seeded = params.model_copy(update={"seed": seed})
        save_model(new_reward_model(models / "sft", seeded), tokenizer, models / name)
    policy = load_policy(models / "sft", params, trainable=False)
    generator = torch.Generator().manual_seed(1)
    for weights in policy.parameters():
        weights.data += 0.05 * torch.randn(weights.shape, generator=generator)
    save_model(policy, tokenizer, models / "ppo")
    return models


def set_out(made, params, folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copytree(made, folder / "models")
    write_prompts(params)
    write_points(params)
    shutil.copytree(ROOT / "infra", folder / "infra")
    write_rewards(params)
    write_opponent("sft", None, None)
    recorded = RecordingRun()

    @contextmanager
    def record(name, _params, inputs):
        assert name == "evaluate"
        assert all(path.exists() for path in inputs)
        yield recorded

    monkeypatch.setattr(tracking, "run", record)
    return recorded


def write_prompts(params, source=EXAMPLE, references=True):
    records = [
        Prompt(
            id=f"{COUNT + 2 - number:04}",
            split="test" if number < COUNT else "validation",
            source=source,
            row=number + 1,
            prompt=[Message(role="user", content=row["prompt"])],
            references=row["references"] if references else [],
            category=row["category"],
        )
        for number, row in enumerate(load_function(ROOT / EXAMPLE, "prompts")(3, {"rows": COUNT + 2}))
    ]
    write_records(Path("data/validate"), "prompts", records)
    answered = [
        Demonstration(*record[:5], "We are sorry for the trouble.") for record in records if record.split == "test"
    ]
    write_records(Path("data/validate"), "demonstrations", answered)


def write_rewards(params):
    """What the stage reward_functions leaves."""
    write_copies(TRAINING, params.rewards.training)
    write_copies(GROUND_TRUTH, params.rewards.ground_truth)


def rewarded(params, training, ground_truth, code="mine.py"):
    rewards = Rewards(code=code, data=params.rewards.data, training=training, combine="sum", ground_truth=ground_truth)
    return params.model_copy(update={"rewards": rewards})


def write_opponent(name, version, policy):
    Path("opponent.json").write_text(json.dumps({"name": name, "version": version, "policy": policy}))


def figures():
    return json.loads(METRICS.read_text())


def responses():
    return [json.loads(line) for line in RESPONSES.read_text(encoding="utf-8").splitlines()]
