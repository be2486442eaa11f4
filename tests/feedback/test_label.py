"""Collected answers become pairs, best against worst, where the labeller agrees with people."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import MODELS, PREPARED, VALIDATED, read_json, read_jsonl, write_json, write_jsonl
from tasks.data.records import Preference, read_records, write_records
from tasks.feedback.label import Thresholds, agreement_with_people, label
from tasks.feedback.labellers import ByJudge, ByReward, Group
from tasks.prepare import prepare
from tasks.rewards.copies import TRAINING
from tasks.rewards.sources import write_copies
from tasks.settings.params import Params
from tests.chat_server import chat_server, prefers
from tests.conftest import EXAMPLE, ROOT, MakeParams, records_of, rows_from

ANY = Thresholds(gap=0.0, agreement=0.0)


class Lengths:
    """Scores an answer by its words."""

    annotator = "reward:words"

    def identity(self) -> dict[str, Any]:
        return {"source": "words"}

    def can_score(self, _group: Group) -> bool:
        return True

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[float(len(answer.split())) for answer in group.answers] for group in groups]


def collected(*answers: list[str], cut: Sequence[str] = ()) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"order {number}"}],
            "answers": [{"text": text, "ended": text not in cut} for text in texts],
        }
        for number, texts in enumerate(answers)
    ]
    write_jsonl(Path("round/answers.jsonl"), rows)
    write_json(Path("round/manifest.json"), {"policy": {"name": "champion", "version": 3, "md5": "abc.dir"}})
    return Path("round")


@pytest.fixture(autouse=True)
def _workspace(workspace: Path) -> None:
    """The models and records of the workspace."""


def test_best_against_worst_and_what_is_dropped_is_counted(params: Params) -> None:
    folder = collected(
        ["one", "one two three", "one two"],
        ["one", "two"],  # a tie
        ["one", "one two"],  # a small gap
        ["one", " one ", "one"],  # the same
        ["", "one", "one two three"],  # the longest did not end
        cut=["", "nobody"],
    )
    labels = label(folder, Lengths(), Thresholds(gap=1.5, agreement=0.0), params)

    pairs = list(read_jsonl(folder / "pairs.jsonl"))
    first = {"prompt": [{"role": "user", "content": "order 0"}], "chosen": "one two three", "rejected": "one"}
    assert pairs[0] == {**first, "annotator": "reward:words"}
    assert labels["counts"] == {"prompts": 5, "unusable": 1, "single": 1, "ties": 1, "small_gaps": 1, "pairs": 2}
    assert labels["policy"]["version"] == 3
    assert labels == read_json(folder / "labels.json")


def test_answers_without_an_end_and_too_long_ones_teach_nothing(make_params: MakeParams) -> None:
    folder = collected(["one", "one two", "one two three four", " ".join(["one"] * 60)], cut=["one two three four"])
    labels = label(folder, Lengths(), ANY, make_params(validate={"max_tokens": 40}))

    assert [pair["chosen"] for pair in read_jsonl(folder / "pairs.jsonl")] == ["one two"]
    assert labels["counts"]["unusable"] == 2


@pytest.mark.slow
def test_pairs_of_training_prompts_are_a_source_beside_those_of_people(make_params: MakeParams) -> None:
    Path("exclude.txt").touch()
    Path(EXAMPLE).parent.mkdir(parents=True)
    shutil.copy(ROOT / EXAMPLE, EXAMPLE)
    prepare(make_params())  # the example's prompts and pairs
    prompts = records_of(PREPARED, "prompts", "train")[:40]
    people = records_of(PREPARED, "preferences")
    rows = [{**each._asdict(), "answers": [{"text": t, "ended": True} for t in ("a", "a b")]} for each in prompts]
    folder = collected()
    write_jsonl(folder / "answers.jsonl", rows)
    label(folder, Lengths(), ANY, make_params())
    with pytest.raises(InputError, match="its 40 preferences leave nothing for validation and test"):
        prepare(make_params(prepare={"preferences": pairs_of(folder / "pairs.jsonl")}))

    names = ("prompt", "chosen", "rejected")
    write_jsonl(Path("pairs/people.jsonl"), ({name: getattr(each, name) for name in names} for each in people))
    shutil.copy(folder / "pairs.jsonl", "pairs/round.jsonl")
    prepare(make_params(prepare={"preferences": pairs_of(Path("pairs"))}))

    found = [each for each in records_of(PREPARED, "preferences") if each.annotator]
    assert [(each.split, each.annotator) for each in found] == [("train", "reward:words")] * 40
    assert read_json(Path("metrics/prepare.json"))["preferences"]["unused"] == {}


def pairs_of(source: Path) -> dict[str, Any]:
    return rows_from("preferences", str(source)) | {"options": {}}


def test_a_labeller_that_disagrees_with_people_is_refused_and_writes_nothing(params: Params) -> None:
    people = [record for record in read_records(VALIDATED, "preferences") if isinstance(record, Preference)]
    worse = [record._replace(chosen="one", rejected="one two") for record in people[:13]]
    by_machine = people[13]._replace(chosen="one two", rejected="one", annotator="judge:other")
    write_records(VALIDATED, "preferences", [*worse, by_machine])
    folder = collected(["one", "one two"])

    assert agreement_with_people(Lengths()) == {"pairs": 3, "share": 0.0}
    with pytest.raises(InputError, match=r"reward:words orders 0.000 of 3 validation pairs as people do, less than"):
        label(folder, Lengths(), Thresholds(gap=0.0, agreement=0.5), params)
    assert not (folder / "pairs.jsonl").exists()


def test_pairs_never_lie_beside_the_labels_of_others(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = collected(["one", "one two"])
    label(folder, Lengths(), ANY, params)

    def killed(_path: Path, _content: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.feedback.label.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        label(folder, Lengths(), ANY, params)
    assert not (folder / "labels.json").exists()


def test_without_two_answers_that_differ_there_are_no_pairs(params: Params) -> None:
    with pytest.raises(InputError, match=r"no prompt has two answers that reward:words tells apart .*single 1"):
        label(collected(["one", "one"]), Lengths(), ANY, params)
    with pytest.raises(InputError, match=r"nothing has no manifest.json: trueline collect nothing writes it"):
        label(Path("nothing"), Lengths(), ANY, params)


@pytest.mark.parametrize("row", [{}, {"prompt": [], "answers": [{"text": "a"}]}, {"prompt": [], "answers": [7]}])
def test_damaged_answers_are_named_with_their_row(params: Params, row: dict[str, Any]) -> None:
    folder = collected(["one", "one two"])
    write_jsonl(folder / "answers.jsonl", [*read_jsonl(folder / "answers.jsonl"), row])
    with pytest.raises(InputError, match=r"round/answers\.jsonl row 2 is damaged: delete round and run trueline"):
        label(folder, Lengths(), ANY, params)
    write_json(folder / "manifest.json", {})
    with pytest.raises(InputError, match=r"round/manifest\.json is damaged: delete round and run trueline collect"):
        label(folder, Lengths(), ANY, params)


@pytest.mark.usefixtures("tiny_reward_model")
def test_the_reward_model_gives_the_same_pairs_again(params: Params) -> None:
    folder = collected(["one", "one two", "three"], ["four five", "six"])
    labels = label(folder, ByReward(None, params), ANY, params)
    first = (folder / "pairs.jsonl").read_bytes()

    assert labels["annotator"] == "reward:reward_model"
    assert labels["agreement"]["pairs"] == 4
    assert len(labels["labeller"]["sha256"]) == 64
    label(folder, ByReward("reward_model", params), ANY, params)
    assert (folder / "pairs.jsonl").read_bytes() == first
    with pytest.raises(InputError, match=r"--reward order_rule is not in rewards.training: choose one of reward_model"):
        ByReward("order_rule", params)  # nothing may learn from a ground-truth reward


@pytest.fixture
def tiny_reward_model(params: Params) -> None:
    from tasks.data.encoding.tokens import load_tokenizer
    from tasks.learning.models.loading import new_reward_model
    from tasks.learning.models.saving import save_model

    save_model(new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft"), MODELS / "reward")


def judged(params: Params, say: Callable[[str], str]) -> tuple[dict[str, Any], int]:
    with chat_server(say) as server:
        folder = collected(["good a", "bad a", "fair a"], ["bad b", "bad c"])
        write_records(VALIDATED, "preferences", [])
        return label(folder, ByJudge(server.url, "judge-7b"), ANY, params), len(server.requests)


def test_a_judge_compares_each_with_each_in_both_orders(params: Params) -> None:
    labels, asked = judged(params, prefers("good", "Four."))

    [pair] = read_jsonl(Path("round/pairs.jsonl"))
    assert (pair["chosen"], pair["rejected"], pair["annotator"]) == ("good a", "bad a", "judge:judge-7b")
    assert (labels["counts"]["ties"], labels["agreement"]) == (1, {"pairs": 0, "share": None})
    assert asked == 1 + 2 * (3 + 1)  # the easy question has one order


def test_a_threshold_that_cannot_be_measured_is_said_to_be(params: Params, caplog: pytest.LogCaptureFixture) -> None:
    folder = collected(["a", "a b c"])
    write_records(VALIDATED, "preferences", [])
    label(folder, Lengths(), Thresholds(gap=0.0, agreement=0.5), params)
    [warning] = caplog.messages
    assert "whether it agrees with people in 0.5 of them is unknown (--min-agreement)" in warning


def test_a_judge_that_prefers_the_first_place_tells_nothing_apart(params: Params) -> None:
    with pytest.raises(InputError, match=r"tells apart .*ties 2"):
        judged(params, lambda _question: "[[A]]")


THOUGHTFUL = ["<think>long and good</think>no", "yes", "<think>a</think>yes"]


def test_a_judge_is_not_shown_reasoning_and_the_pairs_keep_it(params: Params) -> None:
    with chat_server(prefers("yes", "Four.")) as server:
        judge = ByJudge(server.url, "judge-7b", params.base.reasoning)
        [scores] = judge.score([Group([{"role": "user", "content": "u"}], THOUGHTFUL)])
        questions = [request["messages"][-1]["content"] for request in server.requests]
    assert scores == [0.0, 0.75, 0.75]
    assert not any("think" in question for question in questions)


def test_a_reward_function_is_not_given_reasoning(make_params: MakeParams) -> None:
    Path("mine.py").write_text("def length(answers, references):\n    return [float(len(text)) for text in answers]\n")
    reward = {"name": "brief", "source": "mine.py:length", "weight": 1.0}
    params = make_params(rewards={"code": "mine.py", "training": [reward], "ground_truth": []})
    write_copies(TRAINING, params.rewards.training)
    assert ByReward(None, params).score([Group([{"role": "user", "content": "u"}], THOUGHTFUL)]) == [[2.0, 3.0, 3.0]]
    folder = collected(THOUGHTFUL)
    write_records(VALIDATED, "preferences", [])
    label(folder, ByReward(None, params), ANY, params)
    [pair] = read_jsonl(folder / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == ("yes", "<think>long and good</think>no")
