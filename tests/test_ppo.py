"""The ppo stage on a tiny model: files, columns, the same bytes again, resuming, and what stops it."""

import csv
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.answers import read_answers
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Prompt, read_prompts, write_records
from tasks.learning.models.loading import load_policy, load_reward, new_reward_model, normalise_scores
from tasks.learning.models.saving import save_model
from tasks.learning.ppo.metrics import MLFLOW_NAMES
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.ppo import drawn_prompts, ppo
from tasks.reward import reward
from tasks.settings.params import Params

SETTINGS = {
    "iterations": 4,
    "rollouts": 6,
    "num_minibatches": 2,
    "max_new_tokens": 8,
    "critic_warmup": 1,
    "learning_rate": 1e-3,
    "kl_coefficient": 0.05,
    "kl_target": 0.05,
    "kl_horizon": 50,
}
OF_GROUPS = {"uniform_prompts", "prompts_sampled"}
OF_MISMATCH = {"rollout_kl", "rollout_ratio_mean", "rollout_ratio_outside"}
ALWAYS = [name for name in MLFLOW_NAMES if name not in OF_GROUPS | OF_MISMATCH]
OUTPUTS = ("models/ppo/model.safetensors", "metrics/ppo.json", "curves/ppo.csv", "reports/ppo/answers.jsonl")


@pytest.fixture
def ready(workspace, noted_run, make_params):
    """A working folder with a reward model too, and small settings."""
    params = make_params(ppo=SETTINGS)
    write_reward_model(params)
    return params


def write_reward_model(params: Params) -> None:
    """What the stage reward leaves."""
    model = new_reward_model(MODELS / "sft", params)
    normalise_scores(model, 0.1, 2.0)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")


def kill_and_resume(params: Params, monkeypatch: pytest.MonkeyPatch, iteration: int) -> list[int]:
    """Interrupt the stage in an iteration, and run it again; give the iterations of the second run."""
    learn, rounds = PPOTrainer.update, []

    def killed(self, rollouts, number, *rest):
        if number == iteration:
            raise KeyboardInterrupt
        return learn(self, rollouts, number, *rest)

    def noted(self, rollouts, number, *rest):
        rounds.append(number)
        return learn(self, rollouts, number, *rest)

    monkeypatch.setattr(PPOTrainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo(params)
    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    return rounds


def written():
    return {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in OUTPUTS}


def curve():
    with Path("curves/ppo.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_in_bf16_the_mismatch_of_sampler_and_trainer_is_in_the_curve(workspace, noted_run, make_params):
    params = make_params(ppo={**SETTINGS, "iterations": 2, "max_rollout_kl": 0.01}, runtime={"precision": "bf16"})
    write_reward_model(params)
    ppo(params)
    rows = curve()
    assert set(rows[0]) == {"step", *ALWAYS, *OF_MISMATCH, "reward/reward_model"}
    for row in rows:
        assert 0 <= row["rollout_kl"] < 1e-3
        assert row["rollout_ratio_mean"] == pytest.approx(1, abs=0.02)
        assert row["ratio_mean"] == pytest.approx(1, abs=0.02)
    assert rows[0]["kl"] == 0  # policy and reference are one, to the bit


def test_a_sampler_too_far_from_the_policy_stops_the_run(ready, monkeypatch):
    sample = PPOTrainer.sample

    def another(self, *rest):
        return [each._replace(log_probs=each.log_probs - 1.0, entropies=None) for each in sample(self, *rest)]

    monkeypatch.setattr(PPOTrainer, "sample", another)
    with pytest.raises(InputError, match=r"iteration 1: the sampler is 0\.718 nats a token .* of 0\.1;"):
        ppo(ready)
    assert not Path("models/ppo").exists()


def test_files_columns_and_figures(ready, noted_run):
    ppo(ready)
    rows = curve()
    assert list(rows[0]) == ["step", *ALWAYS, "reward/reward_model"]
    assert all(row["reward/reward_model"] == row["reward"] for row in rows)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # the first round learns nothing but the critic
    assert [rows[0]["kl"], rows[1]["kl"]] == pytest.approx([0, 0], abs=1e-6)
    assert rows[-1]["kl"] != 0
    assert all(row["rlhf_reward"] == pytest.approx(row["reward"] - row["kl_coefficient"] * row["kl"]) for row in rows)
    # KL 0 is 100 % below its target, cut to 20 %: .05 (1 - .2 * 6 / 50)
    assert rows[1]["kl_coefficient"] == pytest.approx(0.05 * (1 - 0.2 * 6 / 50))
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    metrics = read_json(Path("metrics/ppo.json"))
    assert metrics["episodes"] == 24
    assert metrics["tokens"] == pytest.approx(sum(row["response_length"] for row in rows) * 6)
    assert metrics["last"]["reward"] == rows[-1]["reward"]
    policy, sft = (load_policy(MODELS / name, ready, trainable=False) for name in ("ppo", "sft"))
    assert all(not torch.equal(a, b) for a, b in zip(policy.parameters(), sft.parameters(), strict=True))
    assert load_tokenizer(MODELS / "ppo").chat_template
    assert not Path(".trueline/checkpoints/ppo").exists()
    # eight evaluation points of four rounds are all of them, and the beginning; four validation prompts at each
    answers = read_answers("ppo")
    assert {step: len(given) for step, given in answers.items()} == dict.fromkeys(range(5), 4)
    given = [[(answer.tokens, answer.logp) for answer in answers[step]] for step in range(5)]
    assert given[0] == given[1] != given[4]  # the first round learns nothing but the critic
    logged = {name for _, metrics in noted_run.rows for name in metrics}
    assert {*map(MLFLOW_NAMES.get, ALWAYS), "speed/generate_tokens_per_second"} <= logged
    assert [row["prompt"] for row in noted_run.tables["samples"]] == [
        record.prompt[-1]["content"] for record in read_prompts(VALIDATED, "validation")
    ]


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(ready):
    ppo(ready)
    first = written()
    shutil.rmtree("models/ppo")
    ppo(ready)
    assert written() == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "options"), [(0, {}), (2, {}), (0, {"engine": "continuous"}), (0, {"critic": "shared"})]
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(ready, make_params, monkeypatch, rank, options):
    params = make_params(ppo=SETTINGS | options, runtime={"checkpoint_every": 1}, lora={"rank": rank})
    ppo(params)
    expected = written()
    assert kill_and_resume(params, monkeypatch, iteration=3) == [3, 4]
    assert written() == expected


@pytest.mark.slow
def test_on_one_base_a_killed_run_goes_on_and_ends_with_the_same_bytes(ready, make_params, monkeypatch, caplog):
    params = make_params(
        ppo=SETTINGS, runtime={"checkpoint_every": 1, "precision": "bf16"}, lora={"rank": 2, "quantize": "int8"}
    )
    reward(params)
    ppo(params)
    assert "is loaded whole" not in caplog.text
    expected = written()
    assert kill_and_resume(params, monkeypatch, iteration=3) == [3, 4]
    assert written() == expected
    assert curve()[-1]["grad_norm_critic"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "rloo", "responses_per_prompt": 3},
        {"estimator": "grpo", "responses_per_prompt": 2, "kl_estimator": "k3"},
        {"estimator": "reinforce_plus_plus"},
        {"estimator": "reinforce_plus_plus_baseline", "responses_per_prompt": 2},
    ],
    ids=lambda settings: settings["estimator"],
)
def test_estimators_without_a_critic(ready, make_params, noted_run, settings):
    ppo(make_params(ppo=SETTINGS | {"critic_warmup": 0} | settings))
    rows = curve()
    without = {"value_loss", "value_clip_fraction", "explained_variance", "grad_norm_critic"}
    without |= OF_MISMATCH | ({"prompts_sampled"} if "responses_per_prompt" in settings else OF_GROUPS)
    names = [name for name in MLFLOW_NAMES if name not in without]
    assert list(rows[0]) == ["step", *names, "reward/reward_model"]
    assert rows[-1]["kl"] != 0
    first = written()
    ppo(make_params(ppo=SETTINGS | {"critic_warmup": 0} | settings))
    assert written() == first


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_adapters_learn_and_the_reference_is_the_model_without_them(ready, make_params, critic):
    ppo(make_params(ppo=SETTINGS | {"critic": critic}, lora={"rank": 2}))
    rows = curve()
    assert [rows[0]["kl"], rows[1]["kl"]] == pytest.approx([0, 0], abs=1e-6)
    assert rows[-1]["kl"] != 0
    assert not list(Path("models/ppo").glob("adapter*"))  # merged: evaluate loads a plain folder


def test_a_reward_model_that_gives_no_number_stops_at_once_and_leaves_earlier_outputs(ready):
    ppo(ready)
    before = written()
    broken = load_reward(MODELS / "reward", ready)
    with torch.no_grad():
        broken.get_parameter("score.weight").fill_(float("nan"))
    save_model(broken, load_tokenizer(MODELS / "reward"), MODELS / "reward")
    with pytest.raises(InputError, match="step 1: the mean score is nan; no checkpoint had been saved yet"):
        ppo(ready)
    assert written() == before


def test_a_loss_that_turns_to_nan_keeps_the_last_good_checkpoint(ready, monkeypatch):
    score = PPOTrainer.score

    def sick(self, *given):
        rollouts = score(self, *given)
        self.rounds = getattr(self, "rounds", 0) + 1
        return rollouts._replace(returns=rollouts.returns * float("nan")) if self.rounds == 4 else rollouts

    monkeypatch.setattr(PPOTrainer, "score", sick)
    with pytest.raises(
        InputError, match=r"step 4: .* is nan; the last good checkpoint, of step 2, lies in .*step-00000002"
    ):
        ppo(ready)
    assert list(Path(".trueline/checkpoints/ppo").glob("step-*"))
    assert not Path("models/ppo").exists()


def test_no_prompts_to_train_on(ready):
    write_records(VALIDATED, "prompts", read_prompts(VALIDATED, "test"))
    with pytest.raises(InputError, match=r"prompts.jsonl has no row in the train split"):
        ppo(ready)


def test_a_prompt_that_leaves_no_room_is_named(ready):
    long = Prompt("id", "train", "raw.jsonl", 7, [{"role": "user", "content": "refund " * 120}], [])
    write_records(VALIDATED, "prompts", [long])
    with pytest.raises(InputError, match=r"raw.jsonl row 7: .*context is 128"):
        ppo(ready)


def test_prompts_are_drawn_in_epochs():
    rounds = [drawn_prompts(10, start, 4, seed=3) for start in range(0, 20, 4)]
    flat = [index for indices in rounds for index in indices]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert drawn_prompts(10, 4, 4, seed=3) == rounds[1]
    assert sorted(drawn_prompts(3, 0, 6, seed=3)) == [0, 0, 1, 1, 2, 2]  # fewer prompts than a round takes


def test_a_training_without_evaluation_points(ready, make_params):
    ppo(make_params(ppo=SETTINGS | {"evaluation_points": 0}))
    assert read_answers("ppo") == {}
    assert read_json(Path("metrics/ppo.json"))["iterations"] == 4
