"""The ppo stage on a tiny model: files, columns, the same bytes again, resuming, and what stops it."""

import csv
import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from tasks import ppo as stage
from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.answers import read_answers
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Prompt, read_prompts, write_records
from tasks.learning.models.loading import load_policy, load_reward, new_reward_model, normalise_scores, save_model
from tasks.learning.ppo import trainer
from tasks.learning.ppo.metrics import MLFLOW_NAMES
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.ppo import drawn_prompts, ppo
from tasks.rewards.copies import TRAINING
from tasks.rewards.sources import write_copies
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
ALWAYS = [name for name in MLFLOW_NAMES if name not in OF_GROUPS]
OUTPUTS = ("models/ppo/model.safetensors", "metrics/ppo.json", "curves/ppo.csv", "reports/ppo/answers.jsonl")


@pytest.fixture
def ready(workspace, noted_run, make_params):
    """A working folder with a reward model too, and small settings."""
    params = make_params(ppo=SETTINGS)
    model = new_reward_model(MODELS / "sft", params)
    normalise_scores(model, 0.1, 2.0)
    save_model(model, load_tokenizer(MODELS / "sft"), MODELS / "reward")
    return params


def kill_and_resume(params: Params, monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Interrupt the stage in an iteration, and run it again."""
    learn = PPOTrainer.update

    def killed(self, rollouts, number, *rest):
        if number == iteration:
            raise KeyboardInterrupt
        return learn(self, rollouts, number, *rest)

    monkeypatch.setattr(PPOTrainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo(params)
    monkeypatch.setattr(PPOTrainer, "update", learn)
    ppo(params)


def written():
    return {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in OUTPUTS}


def curve():
    with Path("curves/ppo.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


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
    learn, rounds = PPOTrainer.update, []

    def killed(self, rollouts, iteration, *rest):
        if iteration == 3:
            raise KeyboardInterrupt
        return learn(self, rollouts, iteration, *rest)

    def noted(self, rollouts, iteration, *rest):
        rounds.append(iteration)
        return learn(self, rollouts, iteration, *rest)

    monkeypatch.setattr(PPOTrainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo(params)
    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    assert rounds == [3, 4]
    assert written() == expected


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
    without |= {"prompts_sampled"} if "responses_per_prompt" in settings else OF_GROUPS
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
        InputError, match=r"step 4: .* is nan; the last good checkpoint, of step 2, lies in .*step-00000002.pt"
    ):
        ppo(ready)
    assert list(Path(".trueline/checkpoints/ppo").rglob("*.pt"))
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


RULES = """
def brief(answers):
    return [-float(len(answer)) for answer in answers]

def keyed(answers, references):
    return [
        sum(1 if letter in known[0] else -1 for letter in answer) for answer, known in zip(answers, references)
    ]

def ends_with_a_vowel(answers):
    return [float(answer[-1:] in tuple("aeiou")) for answer in answers]

def fails_on_long(answers):
    return [1 / (len(answer) < 1) for answer in answers]
"""


@pytest.fixture
def by_rules(ready, make_params):
    """Settings that learn from functions of a file, copied as the stage reward_functions does."""
    Path("mine.py").write_text(RULES)

    def settings(*rewards, **ppo):
        params = make_params(
            ppo=SETTINGS | ppo, rewards={"code": "mine.py", "training": list(rewards), "ground_truth": []}
        )
        write_copies(TRAINING, params.rewards.training)
        return params

    return settings


def rule(name, weight=1.0):
    return {"name": name, "source": f"mine.py:{name}", "weight": weight}


LEARNING = {
    "iterations": 10, "rollouts": 24, "critic_warmup": 0, "learning_rate": 1e-2, "kl_coefficient": 0.0,
    "kl_target": None, "missing_eos_penalty": 0.0, "score_clip": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("brief", {"estimator": "gae"}),
        ("brief", {"estimator": "gae", "critic": "shared"}),
        ("brief", {"estimator": "grpo", "responses_per_prompt": 4, "kl_estimator": "k3"}),
        ("brief", {"estimator": "reinforce_plus_plus"}),
        ("keyed", {"estimator": "rloo", "responses_per_prompt": 4}),
    ],
    ids=str,
)
def test_a_rule_of_a_users_file_raises_the_policys_score_by_it(by_rules, noted_run, name, options):
    shutil.rmtree(MODELS / "reward")  # nobody needs it
    ppo(by_rules(rule(name), **LEARNING, **options))
    scores = [row[f"reward/{name}"] for row in curve()]
    assert scores == [row["reward"] for row in curve()]
    first, last = scores[:3], scores[-3:]
    assert min(last) > max(first)
    assert {f"reward/{name}", "objective/reward"} <= noted_run.rows[0][1].keys()
    figures = read_json(Path("metrics/ppo.json"))
    assert figures["last"][f"reward/{name}"] == figures["last"]["reward"] > figures["first"]["reward"]
    shown = noted_run.tables["samples"]
    assert [row["score_after"] for row in shown] == [-len(row["after"]) for row in shown] or name != "brief"


@pytest.mark.slow
def test_the_sum_is_weighted_and_clipped_as_one_and_each_reward_is_a_column(by_rules):
    model = {"name": "reward_model", "source": "model", "weight": 0.5}
    ppo(by_rules(rule("brief", -0.25), model, rule("keyed", 2.0)))
    rows = curve()
    assert list(rows[0])[-3:] == ["reward/brief", "reward/reward_model", "reward/keyed"]
    for row in rows:
        brief, of_model, keyed = (row[f"reward/{name}"] for name in ("brief", "reward_model", "keyed"))
        assert row["reward"] == pytest.approx(-0.25 * brief + 0.5 * of_model + 2.0 * keyed, rel=1e-5)
    first = written()
    ppo(by_rules(rule("brief", -0.25), model, rule("keyed", 2.0)))
    assert written() == first


def test_a_function_that_fails_on_what_the_policy_says_names_the_prompt(by_rules):
    with pytest.raises(InputError, match=r"^mine\.py:fails_on_long raised ZeroDivisionError: .* of prompt train\d+ \("):
        ppo(by_rules(rule("fails_on_long")))
    assert not Path("models/ppo").exists()


GROUPED = {"estimator": "grpo", "responses_per_prompt": 2, "kl_estimator": "k3", "critic_warmup": 0, "kl_target": None}
BARE = {"missing_eos_penalty": 0.0}


def test_prompts_whose_answers_earn_the_same_are_counted(by_rules):
    ppo(by_rules(rule("ends_with_a_vowel"), **GROUPED, **BARE))
    shares = [row["uniform_prompts"] for row in curve()]
    assert {round(3 * share, 6) for share in shares} <= {0, 1, 2, 3}  # of three prompts
    assert max(shares) > 0
    assert read_json(Path("metrics/ppo.json"))["first"]["uniform_prompts"] == shares[0]


def test_dynamic_sampling_draws_further_prompts_and_goes_on_where_a_killed_run_ended(by_rules, monkeypatch):
    params = by_rules(rule("ends_with_a_vowel"), **GROUPED, **BARE, dynamic_sampling=2)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpoint_every": 1})})
    learned, learn = [], PPOTrainer.update

    def noted(self, rollouts, iteration, *rest):
        learned.append(rollouts.learned_scores.view(-1, 2))
        return learn(self, rollouts, iteration, *rest)

    drawn: list[int] = []

    def draw(count, start, number, seed):
        drawn.extend(range(start, start + number))
        return drawn_prompts(count, start, number, seed)

    monkeypatch.setattr(stage, "drawn_prompts", draw)
    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    rows, expected = curve(), written()
    assert drawn == list(range(int(sum(row["prompts_sampled"] for row in rows))))  # no prompt is skipped or met twice
    assert all(3 <= row["prompts_sampled"] <= 9 for row in rows)
    assert rows[0]["prompts_sampled"] > 3
    for row, scores in zip(rows, learned, strict=True):
        varied = int((scores[:, 0] != scores[:, 1]).sum())
        assert len(scores) == 3
        # those that vary are all learned from, and stand first
        assert varied == round(row["prompts_sampled"] * (1 - row["uniform_prompts"]))
        assert bool((scores[:varied, 0] != scores[:varied, 1]).all())

    monkeypatch.setattr(PPOTrainer, "update", learn)
    kill_and_resume(params, monkeypatch, iteration=3)
    assert written() == expected


def test_normalised_rewards_are_learned_from_and_reported_raw(by_rules):
    rewards = [rule("brief", 1.0), rule("ends_with_a_vowel", 2.0)]
    params = by_rules(*rewards, **GROUPED, **BARE)
    params = params.model_copy(update={"rewards": params.rewards.model_copy(update={"combine": "normalise_then_sum"})})
    ppo(params)
    for row in curve():
        assert row["reward"] == pytest.approx(row["reward/brief"] + 2 * row["reward/ends_with_a_vowel"], rel=1e-5)


def test_the_penalty_of_a_missing_end_stays_that_of_the_first_answers_after_a_kill_too(by_rules, monkeypatch):
    params = by_rules(rule("brief"), critic_warmup=0, missing_eos_penalty=2.0)
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpoint_every": 1})})
    # The model of this folder ends no answer: let half of its vocabulary end one.
    monkeypatch.setattr(trainer, "stop_tokens", lambda *_: range(0, 10**6, 2))
    learned, learn = [], PPOTrainer.update

    def noted(self, rollouts, iteration, *rest):
        learned.append(rollouts)
        return learn(self, rollouts, iteration, *rest)

    monkeypatch.setattr(PPOTrainer, "update", noted)
    ppo(params)
    expected = written()
    [penalty] = {row["missing_eos_penalty"] for row in curve()}
    first = learned[0]
    clipped, ended = first.scores.clamp(-10, 10), first.has_ended.float().mean().item()
    assert 0 < ended < 1  # or the share would not be seen
    assert penalty == pytest.approx(2.0 * ended * clipped.std(correction=0).item())
    for rollouts in learned:
        lost = rollouts.scores.clamp(-10, 10) - rollouts.learned_scores
        torch.testing.assert_close(lost, ~rollouts.has_ended * penalty, atol=1e-5, rtol=0)

    monkeypatch.setattr(PPOTrainer, "update", learn)
    kill_and_resume(params, monkeypatch, iteration=2)
    assert written() == expected


def test_a_training_without_evaluation_points(ready, make_params):
    ppo(make_params(ppo=SETTINGS | {"evaluation_points": 0}))
    assert read_answers("ppo") == {}
    assert read_json(Path("metrics/ppo.json"))["iterations"] == 4
