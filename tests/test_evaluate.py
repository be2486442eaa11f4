import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tasks import evaluate as stage
from tasks.common import progress
from tasks.common.chat_endpoint import KEY_VARIABLE
from tasks.common.errors import InputError
from tasks.common.files import VALIDATED
from tasks.data.base_model.from_scratch import make_scratch
from tasks.data.encoding.tokens import Encoded, encode, encode_prompt, load_tokenizer
from tasks.data.records import write_records
from tasks.evaluate import evaluate
from tasks.evaluation.prompts import choose_prompts
from tasks.gate import gate
from tasks.learning.answering import compared
from tasks.learning.answering.sampled import Sampled, answer, in_tokens_of
from tasks.learning.models.loading import load_policy
from tasks.settings.params import LlmJudge, load_params
from tests.chat_server import chat_server, prefers
from tests.conftest import EXAMPLE, ROOT, records_of
from tests.evaluated_checkout import (
    COUNT,
    LLM_JUDGE,
    METRICS,
    POINTS,
    figures,
    make_models,
    responses,
    rewarded,
    set_out,
    write_opponent,
    write_prompts,
    write_rewards,
)
from tests.evaluated_together import bring_champion
from tests.evaluation.evaluations import NO_REWARD_CHECK, reward_model
from tests.evaluation.test_report import VALIDATION
from tests.learning.ranks import run_ranks
from tests.test_reward import flat


@pytest.fixture(scope="module")
def params():
    loaded = load_params(ROOT / "params.yaml")
    shape = loaded.base.scratch.model_copy(update={"vocabulary": 300, "hidden_size": 16, "layers": 1, "heads": 2})
    sections = {
        "base": loaded.base.model_copy(update={"scratch": shape}),
        "runtime": loaded.runtime.model_copy(update={"device": "cpu", "threads": 1}),
    }
    return changed(loaded.model_copy(update=sections), max_new_tokens=12, bootstrap=200)


def changed(params, **settings):
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=settings)})


@pytest.fixture(scope="module")
def made(params, tmp_path_factory):
    """PPOModels of random weights: a reward model, an SFT model, and a policy a little way off it."""
    return make_models(params, tmp_path_factory.mktemp("made") / "models")


@pytest.fixture
def run(made, params, tmp_path, monkeypatch):
    """A checkout with models and prompts; gives the run that would go to MLflow."""
    return set_out(made, params, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def evaluated(made, params, tmp_path_factory):
    """What one evaluation leaves, with SFT as the opponent: the run, the figures, the rows."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorded = set_out(made, params, tmp_path_factory.mktemp("evaluated"), monkeypatch)
        evaluate(params)
        for name in ("reward", "held_out_reward"):
            Path(f"metrics/{name}.json").write_text(json.dumps(reward_model()))
        Path("metrics/reward_check.json").write_text(json.dumps(NO_REWARD_CHECK))
        Path("metrics/validate.json").write_text(json.dumps(VALIDATION.as_json()))
        Path("curves").mkdir()
        for trainer in ("sft", "reward", "ppo"):
            Path(f"curves/{trainer}.csv").write_text("step,loss,reward,kl\n1,0.7,0.1,0.0\n")
        gate(params)
        return recorded, figures(), responses(), json.loads(Path("metrics/gate.json").read_text())


@pytest.mark.slow
def test_every_model_answers_every_prompt_of_the_test_split(evaluated):
    _, found, rows, _ = evaluated
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert len(rows) == found["prompts"] == COUNT
    assert all(len(row["references"]) == 3 for row in rows)
    for name in ("candidate", "sft", "opponent"):
        lengths = [row[name]["length"] for row in rows]
        assert found[name]["length"] == pytest.approx(sum(lengths) / COUNT, abs=1e-6)
        assert all(1 <= length <= 12 for length in lengths)
        assert all(row[name]["ended"] or row[name]["length"] == 12 for row in rows)
        assert 0 <= found[name]["meteor"] <= 1
    rule = [row["candidate"]["ground_truth"]["order_rule"] for row in rows]
    assert found["ground_truth"]["order_rule"]["candidate"] == pytest.approx(sum(rule) / COUNT)
    won = sum(row["candidate"]["rouge_l"] > row["sft"]["rouge_l"] for row in rows)
    assert found["references"]["vs_sft"]["wins"] == won
    won = sum(ours > row["sft"]["ground_truth"]["order_rule"] for ours, row in zip(rule, rows, strict=True))
    assert found["ground_truth"]["order_rule"]["vs_sft"]["wins"] == won


def test_kl_is_the_mean_of_the_rows(evaluated):
    _, found, rows, _ = evaluated
    kl = [row["candidate"]["kl"] for row in rows]
    assert found["kl"]["mean"] == pytest.approx(sum(kl) / COUNT, abs=1e-5)  # rows are rounded
    assert found["kl"]["mean"] > 0
    assert found["kl"]["standard_error"] > 0


def test_mlflow_gets_the_figures_and_samples(evaluated):
    recorded, found, rows, _ = evaluated
    assert json.loads(json.dumps(recorded.figures)) == found
    assert len(recorded.tables["samples"]) == COUNT
    assert recorded.tables["samples"][0]["candidate"] == rows[0]["candidate"]["answer"]


def test_without_a_champion_sft_is_the_opponent(evaluated):
    _, found, rows, _ = evaluated
    assert found["opponent"] == {"name": "sft", "version": None} | found["sft"]
    assert found["win_rate"]["vs_opponent"] == found["win_rate"]["vs_sft"]
    assert all(row["opponent"] == row["sft"] for row in rows)


def test_every_category_of_the_prompts_is_compared(evaluated):
    _, found, rows, decided = evaluated
    categories = found["categories"]
    assert set(categories) == {row["category"] for row in rows}
    assert sum(each["prompts"] for each in categories.values()) == COUNT
    assert not any(each["enough_prompts"] for each in categories.values())  # six at least, of ten
    [check] = [check for check in decided["checks"] if check["name"] == "category_regressions"]
    assert check["verdict"] == "passed"
    assert all(name in check["sentence"] for name in categories)


def test_a_language_model_is_asked_where_one_is_set(run, params, monkeypatch, capfd, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    caplog.set_level("DEBUG")
    with chat_server(prefers("e")) as server:
        asking = changed(params, llm_judge=LlmJudge(url=server.url, model="judge-7b", prompts=4))
        evaluate(asking)
        first, count = METRICS.read_bytes(), len(server.requests)
        rows = LLM_JUDGE.read_bytes()
        evaluate(asking)
        assert len(server.requests) == count <= 1 + 2 * 4  # once at the start
    assert set(server.keys) == {"Bearer sk-very-secret"}
    assert (METRICS.read_bytes(), LLM_JUDGE.read_bytes()) == (first, rows)
    found = figures()["llm_judge"]
    assert (found["model"], found["prompts"], found["without_verdict"]) == ("judge-7b", 4, 0)
    comparisons = [json.loads(line) for line in rows.decode().splitlines()]
    assert [row["id"] for row in comparisons] == [row["id"] for row in responses()[:4]]
    # The judge that likes an e in an answer is fair, so the outcomes are known.
    liked = [["e" in row[name]["answer"] for name in ("candidate", "opponent")] for row in responses()[:4]]
    assert [row["outcome"] for row in comparisons] == [(1 + ours - theirs) / 2 for ours, theirs in liked]
    assert found["vs_opponent"]["value"] == sum(row["outcome"] for row in comparisons) / 4
    texts = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    assert not any(b"very-secret" in text for text in texts)
    assert "very-secret" not in "".join([*capfd.readouterr(), caplog.text])


def test_a_language_model_that_refuses_ends_the_stage_before_its_work(run, params, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(stage, "_answers", None)
    with chat_server(prefers("e"), [401]) as server, pytest.raises(InputError, match=f"set {KEY_VARIABLE}"):
        evaluate(changed(params, llm_judge=LlmJudge(url=server.url, model="judge-7b", prompts=4)))
    assert not METRICS.exists()


def test_the_gate_can_read_what_was_written(evaluated):
    *_, decided = evaluated
    assert all(check["figure"] is not None for check in decided["checks"])


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_a_policy_equal_to_sft_is_no_different(run, params, temperature):
    shutil.rmtree("models/ppo")
    shutil.copytree("models/sft", "models/ppo")
    evaluate(changed(params, temperature=temperature))
    found = figures()
    assert found["win_rate"]["vs_sft"]["value"] == 0.5
    assert found["win_rate"]["vs_sft"]["ties"] == 1
    assert found["win_rate"]["vs_sft"]["conclusion"] == "inconclusive"
    assert found["kl"] == {"mean": 0, "standard_error": 0}
    assert found["difference"]["vs_sft"]["ground_truth"]["order_rule"]["value"] == 0
    rates = [found["held_out"], found["references"], found["ground_truth"]["order_rule"]]
    assert all(rate["vs_sft"]["ties"] == 1 for rate in rates)
    assert found["perplexity"]["candidate"] == found["perplexity"]["sft"] > 1
    # greedy answers are no sample of the policy: its KL comes from others, which are not in the rows
    assert ("kl" in responses()[0]["candidate"]) == (temperature > 0)


def test_the_champion_is_brought_back_by_its_hash(run, params, monkeypatch):
    def restore(md5, folder, what):
        assert md5 == "ab.dir"
        shutil.copytree("models/ppo", folder)

    monkeypatch.setattr(stage, "materialise", restore)  # DVC's cache has tests of its own
    write_opponent("champion", 3, "ab.dir")
    evaluate(params)
    found = figures()
    assert found["opponent"] == {"name": "champion", "version": 3} | found["candidate"]
    assert found["win_rate"]["vs_opponent"]["ties"] == 1  # here the candidate is the champion's equal
    assert [path.name for path in Path(".trueline").iterdir()] == ["encoded"]  # the champion is not left there


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(run, params, monkeypatch):
    Path("mine.py").write_text("def few(answers):\n    return [-float(len(answer)) for answer in answers]\n")
    training = [
        {"name": "reward_model", "source": "model", "weight": 1.0},
        {"name": "few", "source": "mine.py:few", "weight": 1.0},
    ]
    mixed = rewarded(params, training, [])
    write_rewards(mixed)
    write_opponent("champion", 3, "ab.dir")
    monkeypatch.setattr(stage, "materialise", bring_champion)
    evaluate(mixed)
    expected, rows = figures(), responses()
    Path("settings.yaml").write_text(yaml.safe_dump(mixed.model_dump(by_alias=True)), encoding="utf-8")
    METRICS.unlink()
    POINTS.unlink()
    run_ranks("ddp", "tests.evaluated_together", "settings.yaml", count=2)
    for model in ("candidate", "sft", "opponent"):
        assert [row[model]["answer"] for row in responses()] == [row[model]["answer"] for row in rows]
    found, known = flat(figures()), flat(expected)
    names = [name for name, value in known.items() if isinstance(value, str)]
    assert [found.pop(name) for name in names] == [known.pop(name) for name in names]
    assert found == pytest.approx(known, rel=1e-4, abs=1e-4)
    assert POINTS.exists()
    assert not Path(".trueline/opponent").exists()


def test_a_champion_of_another_base_is_scored_in_the_reward_models_tokens(run, params, monkeypatch):
    def restore(_md5, folder, what):
        make_scratch(ROOT / EXAMPLE, params.base.scratch.model_copy(update={"vocabulary": 320}), 7, folder)

    monkeypatch.setattr(stage, "materialise", restore)
    write_opponent("champion", 3, "ab.dir")
    evaluate(params)
    tokenizer = load_tokenizer(Path("models/sft"))
    for row in responses():
        counted = len(tokenizer(row["opponent"]["answer"])["input_ids"]) + row["opponent"]["ended"]
        assert row["opponent"]["length"] == counted


def test_prompts_too_long_for_the_champion_alone_are_its_limit(run, params, monkeypatch):
    def restore(_md5, folder, what):
        make_scratch(ROOT / EXAMPLE, params.base.scratch.model_copy(update={"context": 16}), 7, folder)

    monkeypatch.setattr(stage, "materialise", restore)
    write_opponent("champion", 3, "ab.dir")
    with pytest.raises(InputError, match=r"^the champion, which the candidate is compared with: .* context is 16: "):
        evaluate(params)


def test_translated_answers_end_only_if_they_did(run, params):
    tokenizer = load_tokenizer(Path("models/sft"))
    prompts = choose_prompts(params)[:2]
    sampled = Sampled([Encoded([1], [2])] * 2, ["sorry"] * 2, ["We are sorry."] * 2, [True, False])
    ended, cut = in_tokens_of(tokenizer, sampled, prompts).encoded
    assert ended == encode(tokenizer, prompts[0].prompt, "We are sorry.")
    assert cut.prompt == encode_prompt(tokenizer, prompts[1].prompt)
    assert cut.completion == ended.completion[:-1]


def test_prompts_without_references_have_no_overlap(run, params):
    write_prompts(params, source="rows.jsonl", references=False)
    evaluate(params)
    assert figures()["candidate"]["bleu"] is None
    assert figures()["references"] is None


def test_perplexity_is_that_of_the_answers_tokens(run, params):
    evaluate(params)
    model, tokenizer = load_policy(Path("models/ppo"), params, trainable=False), load_tokenizer(Path("models/ppo"))
    nats, count = 0.0, 0
    for record in records_of(VALIDATED, "demonstrations", "test"):
        row = encode(tokenizer, record.prompt, record.response)
        with torch.no_grad():
            log_probs = model(torch.tensor([row.prompt + row.completion])).logits[0].log_softmax(dim=-1)
        answer = range(len(row.prompt), row.length)
        nats -= sum(log_probs[place - 1, (row.prompt + row.completion)[place]].item() for place in answer)
        count += len(answer)
    assert figures()["perplexity"]["candidate"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_best_of_n_is_no_worse_the_more_there_are(evaluated):
    _, found, _, _ = evaluated
    yardstick = found["best_of_sft"]
    assert [each["n"] for each in yardstick] == [1, 2, 4, 8]
    rewards = [each["scores"]["reward"]["value"] for each in yardstick]
    assert sorted(rewards) == rewards
    assert all(0 <= each["scores"]["order_rule"]["value"] <= 1 for each in yardstick)
    wins = [each["win_rate"]["reward"]["value"] for each in yardstick]
    assert sorted(wins) == wins


@pytest.mark.slow
def test_best_of_one_samples_nothing(run, params, monkeypatch):
    titles = []

    def noting(title, *given, **options):
        titles.append(title)
        return answer(title, *given, **options)

    monkeypatch.setattr(compared, "answer", noting)
    evaluate(changed(params, best_of=1))
    assert titles == ["candidate", "sft"]
    assert figures()["best_of_sft"] == []


def test_the_evaluation_points_are_scored_by_every_reward(run, params):
    evaluate(params)
    first, last = figures()["over_optimisation"]
    assert (first["step"], last["step"]) == (0, 9)
    assert first["kl"]["mean"] == pytest.approx(0, abs=1e-5)  # SFT itself, read by the forward pass of either
    assert last["kl"]["mean"] > 0.1
    rows = [json.loads(line) for line in POINTS.read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 9, 9]
    assert rows[0]["id"] == rows[2]["id"]
    for name in ("reward", "held_out", "order_rule"):
        of_last = [row["scores"][name] for row in rows[2:]]
        assert last["scores"][name]["value"] == pytest.approx(sum(of_last) / 2, abs=1e-5)
        assert first["last_over_this"][name]["value"] == last["win_rate"][name]["value"]


def test_code_alone_may_be_the_reward(run, params):
    Path("mine.py").write_text(
        "def many(answers):\n    return [float(len(answer)) for answer in answers]\n\n"
        "def few(answers, columns, references):\n    return [-float(len(answer)) for answer in answers]\n"
    )
    training = [
        {"name": "many", "source": "mine.py:many", "weight": 2.0},
        {"name": "few", "source": "mine.py:few", "weight": 0.5},
    ]
    coded = rewarded(params, training, [{"name": "brevity", "source": "mine.py:few"}])
    for name in ("reward", "held_out_reward"):
        shutil.rmtree(f"models/{name}")
    write_rewards(coded)
    evaluate(coded)
    found = figures()
    assert found["held_out"] is None
    assert set(found["training"]) == {"many", "few"}
    for row in responses():
        characters = len(row["candidate"]["answer"])
        assert row["candidate"]["reward"] == 1.5 * characters  # 2 n - n / 2
        assert row["candidate"]["training"] == {"many": characters, "few": -characters}
        assert row["candidate"]["ground_truth"] == {"brevity": -characters}
        assert "held_out" not in row["candidate"]
    won = found["win_rate"]["vs_sft"]["value"]
    assert found["ground_truth"]["brevity"]["vs_sft"]["value"] == pytest.approx(1 - won, abs=1e-6)
    assert set(found["over_optimisation"][0]["last_over_this"]) == {"reward", "brevity"}


def test_the_weighted_sum_is_what_chooses_and_wins(run, params):
    Path("mine.py").write_text("def few(answers):\n    return [-float(len(answer)) for answer in answers]\n")
    training = [
        {"name": "reward_model", "source": "model", "weight": 1.0},
        {"name": "few", "source": "mine.py:few", "weight": 1000.0},
    ]
    mixed = rewarded(params, training, [])
    write_rewards(mixed)
    evaluate(mixed)
    for row in responses():
        parts = row["sft"]["training"]
        assert row["sft"]["reward"] == pytest.approx(parts["reward_model"] + 1000 * parts["few"], rel=1e-6)
    assert figures()["ground_truth"] == {}


def test_answers_to_unknown_prompts_are_named_with_their_cure(run, params):
    answers = Path("reports/ppo/answers.jsonl")
    answers.write_text(answers.read_text().replace('"id": "', '"id": "another '))
    with pytest.raises(InputError, match=r"answers.jsonl answers prompts that are not in data/validate: run dvc repro"):
        evaluate(params)


def test_without_demonstrations_there_is_no_perplexity(run, params):
    write_records(Path("data/validate"), "demonstrations", [])
    evaluate(params)
    assert figures()["perplexity"] == {"candidate": None, "sft": None}


def test_reruns_give_the_same_bytes_and_show_how_far_they_are(evaluated, run, params, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_HIDDEN", 0.0)
    _, found, rows, _ = evaluated
    evaluate(params)
    assert (figures(), responses()) == (found, rows)
    shown = capsys.readouterr().err
    for doing in ("candidate", "sft", "log-probabilities", "scores"):
        assert f"evaluate: {doing}: 100%" in shown


def test_fewer_prompts_are_the_first_by_id(run, params):
    chosen = choose_prompts(changed(params, prompts=3))
    assert [prompt.id for prompt in chosen] == ["0003", "0004", "0005"]


def test_an_empty_test_split_is_named_with_its_cure(run, params):
    write_records(Path("data/validate"), "prompts", [])
    with pytest.raises(InputError, match=r"prompts.jsonl has no prompt in the test split: raise prepare.split.test"):
        evaluate(params)


def test_a_prompt_without_room_for_an_answer_is_named_by_row(run, params):
    with pytest.raises(InputError, match=rf"{EXAMPLE} row \d+: prompt and answer need \d+ tokens"):
        evaluate(changed(params, max_new_tokens=250))


@pytest.mark.parametrize("name", ["ppo", "reward", "held_out_reward", "sft"])
def test_a_missing_model_is_named(run, params, name):
    shutil.rmtree(Path("models") / name)
    with pytest.raises(InputError, match=f"models/{name} does not exist: run the stage that writes it"):
        evaluate(params)
    assert not METRICS.exists()


def test_a_missing_opponent_is_named(run, params):
    Path("opponent.json").unlink()
    with pytest.raises(InputError, match=r"opponent.json is missing"):
        evaluate(params)
