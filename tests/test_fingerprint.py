"""What a checkpoint is compared by, and how the difference is worded."""

from pathlib import Path

import pytest

from tasks.settings.fingerprint import Fingerprint, content_fingerprint
from tests.conftest import MakeParams

BEFORE = Fingerprint(
    {"seed": 7, "sft.learning_rate": 0.004, "sft.schedule": "cosine"}, {"data/validate": "a", "b.py": "1"}
)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (BEFORE, ""),
        (BEFORE._replace(contents={"b.py": "1", "data/validate": "a"}), ""),  # in any order
        (
            BEFORE._replace(settings={**BEFORE.settings, "sft.learning_rate": 0.002}),
            "sft.learning_rate was 0.004 and is 0.002",
        ),
        (BEFORE._replace(settings={**BEFORE.settings, "lora.rank": None}), "lora.rank was not set and is None"),
        (BEFORE._replace(contents={"data/validate": "b", "b.py": "1"}), "data/validate has changed"),
        (BEFORE._replace(contents={"data/validate": "a"}), "b.py has changed"),
        (
            Fingerprint({"seed": 8, "sft.learning_rate": 0.004}, {"data/validate": "b", "c.py": "1"}),
            "seed was 7 and is 8; sft.schedule was cosine and is not set; data/validate has changed (and 2 more)",
        ),
    ],
)
def test_differences_are_in_the_users_words(now: Fingerprint, message: str):
    assert now.differences(BEFORE) == message


def test_outside_dvc_it_follows_settings_and_bytes(tmp_path: Path, monkeypatch, make_params: MakeParams):
    monkeypatch.chdir(tmp_path)
    data = Path("data")
    data.mkdir()
    (data / "rows.jsonl").write_text("a")
    before = content_fingerprint("sft", make_params(), [data])

    def differences(**sections):
        return content_fingerprint("sft", make_params(**sections), [data]).differences(before)

    assert before.contents.keys() == {"data"}
    assert differences() == ""
    assert differences(gate={"max_kl": 1.0}) == ""  # sft does not read it
    assert differences(seed=8) == "seed was 7 and is 8"
    assert differences(lora={"rank": 2}) == "lora.rank was 0 and is 2"
    assert differences(runtime={"threads": 2}) == "runtime.threads was 1 and is 2"
    # Checkpoints move between process counts, and may be saved as often as one likes.
    assert differences(runtime={"launcher": "torchrun", "checkpoint_every": 9, "max_checkpoints": 1}) == ""
    (data / "rows.jsonl").write_text("b")
    assert differences() == "data has changed"
    (data / "rows.jsonl").rename(data / "others.jsonl")
    assert content_fingerprint("sft", make_params(), [data / "others.jsonl"]).contents.keys() == {"data/others.jsonl"}
