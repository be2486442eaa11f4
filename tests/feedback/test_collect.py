"""A policy answers prompts of the training split: the same command, the same bytes, even after a kill."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import MODELS, STATE, VALIDATED, read_json, read_jsonl
from tasks.data.records import read_prompts
from tasks.feedback import collect as module
from tasks.feedback.collect import Policy, Sampling, collect
from tasks.settings.params import Params

SFT = Policy("sft", None, "abc.dir", MODELS / "sft")
TWO_EACH = Sampling(answers=2, temperature=1.0, max_new_tokens=4, seed=7)


@pytest.fixture(autouse=True)
def in_small_shares(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPTS_AT_ONCE", 4)


def test_every_prompt_of_the_training_split_is_answered_and_the_manifest_says_by_whom(params: Params) -> None:
    manifest = collect(Path("round"), SFT, TWO_EACH, None, params)

    rows = list(read_jsonl(Path("round/answers.jsonl")))
    assert [row["id"] for row in rows] == sorted(prompt.id for prompt in read_prompts(VALIDATED, "train"))
    assert all(len(row["answers"]) == 2 for row in rows)
    assert len({each["text"] for row in rows for each in row["answers"]}) > 10  # every answer has its own numbers
    assert manifest == read_json(Path("round/manifest.json"))
    assert manifest["policy"] == {"name": "sft", "version": None, "md5": "abc.dir"}
    assert (manifest["prompts"]["count"], manifest["sampling"]) == (10, TWO_EACH._asdict())
    assert not any((STATE / "collect").iterdir())


def test_after_a_kill_what_was_answered_is_not_asked_again(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(Path("whole"), SFT, TWO_EACH, None, params)
    asked: list[int] = []
    answer = module._answer

    def killed(prompts: Any, *others: Any) -> Any:
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(prompts, *others)

    monkeypatch.setattr(module, "_answer", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(Path("round"), SFT, TWO_EACH, None, params)
    assert not Path("round").exists()
    collect(Path("round"), SFT, TWO_EACH, None, params)

    assert asked == [4, 4, 2, 2]
    for name in ("answers.jsonl", "manifest.json"):
        assert Path("round", name).read_bytes() == Path("whole", name).read_bytes()
    collect(Path("round"), SFT, TWO_EACH, None, params)
    assert len(asked) == 4  # a finished one asks nothing


def test_a_folder_of_something_else_stays(params: Params) -> None:
    collect(Path("round"), SFT, TWO_EACH, 3, params)
    with pytest.raises(InputError, match="round exists, and holds no answers of these settings: name a new folder"):
        collect(Path("round"), SFT, TWO_EACH._replace(seed=8), 3, params)


def test_another_seed_gives_other_answers(params: Params) -> None:
    for seed in (7, 8):
        collect(Path(f"seed{seed}"), SFT, TWO_EACH._replace(seed=seed), None, params)
    assert Path("seed7/answers.jsonl").read_bytes() != Path("seed8/answers.jsonl").read_bytes()
