"""Encoded rows on disk: the ids of `encode`, cached by content, written once by processes that come together."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED
from tasks.data.encoding import encoded
from tasks.data.encoding.encoded import (
    ENCODED,
    MAX_ENTRIES,
    encoded_demonstrations,
    encoded_preferences,
    encoded_prompts,
)
from tasks.data.encoding.tokens import EncodedPair, encode, encode_prompt
from tasks.data.records import read_prompts, write_records
from tests.conftest import CHATML, make_tokenizer, records_of, write_workspace_records


@pytest.fixture(autouse=True)
def _records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_workspace_records()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def contents(place: str) -> set[Path]:
    return set((ENCODED / place).iterdir())


def test_rows_are_those_that_encode_gives(tokenizer: Any):
    for _ in range(2):  # written, and found again
        rows = encoded_demonstrations(VALIDATED, "train", tokenizer, None)
        assert list(rows) == [
            encode(tokenizer, record.prompt, record.response)
            for record in records_of(VALIDATED, "demonstrations", "train")
        ]
        assert rows.lengths.tolist() == [row.length for row in rows]
        assert rows.counts.tolist() == [[len(row.prompt), len(row.completion)] for row in rows]
        pairs = encoded_preferences(VALIDATED, "train", tokenizer, None)
        assert list(pairs) == [
            EncodedPair(*(encode(tokenizer, record.prompt, answer) for answer in (record.chosen, record.rejected)))
            for record in records_of(VALIDATED, "preferences", "train")
        ]
        assert pairs.lengths.tolist() == [pair.length for pair in pairs]
        asked = encoded_prompts(VALIDATED, "train", tokenizer, None, 5)
        assert list(asked) == [encode_prompt(tokenizer, record.prompt) for record in read_prompts(VALIDATED, "train")]
        assert asked.lengths.tolist() == [len(prompt) for prompt in asked]
    assert (pairs[-1], pairs[2:4][0]) == (list(pairs)[9], list(pairs)[2])
    with pytest.raises(IndexError):
        pairs[10]


def test_what_was_encoded_once_is_not_encoded_again(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    rows = list(encoded_preferences(VALIDATED, "train", tokenizer, None))
    monkeypatch.setattr(encoded, "encode_records", None)
    assert list(encoded_preferences(VALIDATED, "train", make_tokenizer(), 100)) == rows


@pytest.mark.parametrize("name", ["ids", "counts.npy", "seal"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999, "cut", "empty", "gone"])
def test_a_damaged_entry_is_encoded_again(
    name: str, share: float | str, tokenizer: Any, caplog: pytest.LogCaptureFixture
):
    rows = list(encoded_preferences(VALIDATED, "train", tokenizer, None))
    [file] = (ENCODED / "preferences-train").glob(f"*/{name}")
    whole = bytearray(file.read_bytes())
    match share:
        case "cut":
            file.write_bytes(whole[:-2])
        case "empty":
            file.write_bytes(b"")
        case "gone":
            file.unlink()
        case _:
            whole[int(float(share) * len(whole))] ^= 2
            file.write_bytes(whole)
    assert list(encoded_preferences(VALIDATED, "train", tokenizer, None)) == rows
    assert caplog.messages == [f"{file.parent} is damaged: its rows are encoded again"]


@pytest.mark.parametrize("names", [["ids"], ["ids", "counts.npy", "seal"]])
def test_a_whole_entry_of_other_rows_is_not_taken_for_these(names: list[str], tokenizer: Any):
    """The answers change places: as many rows and tokens, other ids."""
    rows = list(encoded_preferences(VALIDATED, "train", tokenizer, None))
    [entry] = contents("preferences-train")
    records = records_of(VALIDATED, "preferences")
    swapped = [record._replace(chosen=record.rejected, rejected=record.chosen) for record in records]
    write_records(VALIDATED, "preferences", swapped)
    encoded_preferences(VALIDATED, "train", tokenizer, None)
    [other] = contents("preferences-train") - {entry}
    for name in names:
        (entry / name).write_bytes((other / name).read_bytes())
    write_records(VALIDATED, "preferences", records)
    assert list(encoded_preferences(VALIDATED, "train", tokenizer, None)) == rows


def test_other_rows_another_split_template_or_code_is_other_content(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    def key(split: Any = "train", of: Any = tokenizer) -> str:
        return encoded._key(VALIDATED / "preferences.jsonl", split, of)

    keys = [key(), key("test"), key(of=make_tokenizer(CHATML + " "))]
    write_records(VALIDATED, "preferences", records_of(VALIDATED, "preferences")[1:])
    keys.append(key())
    monkeypatch.setattr(encoded, "CODE", encoded.CODE[1:])
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]


@pytest.mark.parametrize(("vocabulary", "width"), [(300, 2), (70_000, 4)])
def test_ids_take_the_smallest_type_that_holds_the_vocabulary(vocabulary: int, width: int):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(vocabulary - len(tokenizer))])
    [first, *others] = records_of(VALIDATED, "demonstrations")
    write_records(
        VALIDATED, "demonstrations", [first._replace(response=f"yes <{vocabulary - len(tokenizer)}>"), *others]
    )
    rows = encoded_demonstrations(VALIDATED, "train", tokenizer, None)
    [ids] = (ENCODED / "demonstrations-train").glob("*/ids")
    assert ids.stat().st_size == width * rows.counts.sum()
    assert rows[0] == encode(tokenizer, first.prompt, f"yes <{vocabulary - len(tokenizer)}>")


def test_a_row_that_does_not_fit_is_named_whether_or_not_it_was_encoded_before(tokenizer: Any):
    lengths = encoded_preferences(VALIDATED, "validation", tokenizer, None).lengths
    longest, row = int(lengths.max()), int(lengths.argmax()) + 11  # ten training rows come before
    assert len(encoded_preferences(VALIDATED, "validation", tokenizer, longest)) == 4
    with pytest.raises(
        InputError, match=rf"raw.jsonl row {row}: .* need {longest} tokens, .* context is {longest - 1}"
    ):
        encoded_preferences(VALIDATED, "validation", tokenizer, longest - 1)
    prompt = int(encoded_prompts(VALIDATED, "test", tokenizer, None, 0).lengths.max())
    assert len(encoded_prompts(VALIDATED, "test", tokenizer, prompt + 5, 5)) == 4
    with pytest.raises(InputError, match=rf"raw.jsonl row 1[5-8]: .* need {prompt + 6} tokens"):
        encoded_prompts(VALIDATED, "test", tokenizer, prompt + 5, 6)


def test_a_row_that_cannot_be_encoded_leaves_nothing(tokenizer: Any):
    [first, *others] = records_of(VALIDATED, "demonstrations")
    write_records(VALIDATED, "demonstrations", [*others, first._replace(response="yes<|im_end|>no")])
    for _ in range(2):
        with pytest.raises(InputError, match=r"raw.jsonl row 1: the answer holds the control token"):
            encoded_demonstrations(VALIDATED, "train", tokenizer, None)
        assert contents("demonstrations-train") == set()


def test_a_file_that_is_not_there_is_named(tokenizer: Any):
    (VALIDATED / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match=r"prompts\.jsonl does not exist: run the stage that writes it"):
        encoded_prompts(VALIDATED, "train", tokenizer, None, 1)


def test_a_split_without_rows_is_empty(tokenizer: Any):
    write_records(VALIDATED, "demonstrations", records_of(VALIDATED, "demonstrations", "test"))
    rows = encoded_demonstrations(VALIDATED, "train", tokenizer, 10)
    assert (list(rows), rows.lengths.tolist()) == ([], [])


def test_contents_used_last_stay_and_those_that_are_open_stay_readable(tokenizer: Any):
    records, opened = records_of(VALIDATED, "preferences"), []
    for dropped in range(MAX_ENTRIES + 1):
        write_records(VALIDATED, "preferences", records[dropped:])
        opened.append(encoded_preferences(VALIDATED, "train", tokenizer, None))
        for age, entry in enumerate(contents("preferences-train")):
            os.utime(entry, (entry.stat().st_mtime - 100 - age,) * 2)
        if dropped == 0:
            [first] = contents("preferences-train")
            (ENCODED / "preferences-train" / ".killed.abc").mkdir()
    remaining = contents("preferences-train")
    assert len(remaining) == MAX_ENTRIES
    assert first not in remaining
    assert [len(list(rows)) for rows in opened] == [10, 9, 8]


def encode_for_training(_: int) -> list[EncodedPair]:
    return list(encoded_preferences(VALIDATED, "train", make_tokenizer(), None))


def test_processes_that_come_together_all_get_the_rows(tokenizer: Any):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(encode_for_training, range(8), chunksize=1)
    assert found == [encode_for_training(0)] * 8
    assert len(contents("preferences-train")) == 1
