"""Sheets for people: blind, harmless, whole; what comes back is counted, and agreement is as published."""

import csv
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.common.errors import InputError
from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.people.annotation_sheets import (
    COLUMNS,
    Choice,
    Vote,
    pairs,
    read_votes,
    summarise_votes,
    vote_rows,
    write_annotation_sheet,
)
from tasks.evaluation.schema import Turn
from tests.calls import ASKED, CALLED, RESULT, TOOL

RESAMPLING = Resampling(resamples=500, confidence=0.95, seed=1)
AWKWARD = [
    ("=HYPERLINK(1)", "-1; -2"),
    ('she wrote "no", twice', "two\nlines\r\nand a\ttab"),
    ("ünïcode 日本語 🙂", " @spaces around "),
    ("a, b; c", "'quoted'"),
    ("1/2", "007"),
]


def response(name, ours, theirs, prompt="How late is it?"):
    turns = [{"role": "user", "content": prompt}]
    return {"id": name, "prompt": turns, "candidate": {"answer": ours}, "opponent": {"answer": theirs}}


def responses(count):
    return [response(f"{number:04}", f"ours {number}", f"theirs {number}") for number in range(count)]


def read_sheet(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path, filled, separator=",", encoding="utf-8-sig"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=separator)
        writer.writeheader()
        writer.writerows(filled)
    return path


@pytest.fixture
def shown():
    """Ten pairs of long answers, in the order of an annotation sheet."""
    words = "Thank you for writing to us. We will send the tracking link for order"
    return pairs([response(f"{number:04}", f"{words} #{number}.", f"Sorry! {words} #1.") for number in range(10)], 7)


@pytest.fixture
def filled(shown, tmp_path):
    """Their annotation sheet, filled by somebody who always prefers the candidate."""
    write_annotation_sheet(tmp_path / "empty.csv", shown)
    sides = {pair.id: pair.candidate for pair in shown}
    return [row | {"choice": sides[row["id"]]} for row in read_sheet(tmp_path / "empty.csv")]


def sentence(paths, shown):
    with pytest.raises(InputError) as error:
        read_votes(paths, shown)
    return str(error.value)


# --- Sheets


def test_sides_and_order_follow_from_seed_and_prompt_alone():
    every = pairs(responses(400), seed=7)
    assert every == pairs(responses(400)[::-1], seed=7)
    few = {pair.prompt for pair in pairs(responses(40), seed=7)}
    assert pairs(responses(40), seed=7) == [pair for pair in every if pair.prompt in few]
    # 400 fair coins: 200 heads, give or take 3 deviations of sqrt(400) / 2 = 10
    assert 170 <= sum(pair.candidate == "left" for pair in every) <= 230
    assert [pair.prompt for pair in every] != sorted(pair.prompt for pair in every)
    other = {pair.prompt: pair.candidate for pair in pairs(responses(400), seed=8)}
    assert 170 <= sum(pair.candidate == other[pair.prompt] for pair in every) <= 230


def test_the_order_does_not_tell_the_side():
    every = pairs(responses(400), 7)
    for half in (every[:200], every[200:]):  # 100 give or take 3 deviations of sqrt(200) / 2 = 7
        assert 79 <= sum(pair.candidate == "left" for pair in half) <= 121


def test_a_pair_shows_both_answers_on_their_sides():
    for pair in pairs(responses(20), 7):
        number = int(pair.prompt)
        ours, theirs = (pair.left, pair.right) if pair.candidate == "left" else (pair.right, pair.left)
        assert (ours, theirs) == (f"ours {number}", f"theirs {number}")


def test_sides_go_with_the_model_and_not_with_the_answer(tmp_path):
    """Where the models exchange their answers, the sides are exchanged too."""
    asked, exchanged = responses(20), [response(f"{n:04}", f"theirs {n}", f"ours {n}") for n in range(20)]
    sheets = []
    for name, each in (("a.csv", asked), ("b.csv", exchanged)):
        write_annotation_sheet(tmp_path / name, pairs(each, 7))
        sheets.append(read_sheet(tmp_path / name))
    assert len(sheets[0]) == 20
    for one, other in zip(*sheets, strict=True):
        assert (one["left"], one["right"]) == (other["right"], other["left"])
        assert one["id"] != other["id"]
        assert one["id"].split("-")[0] == other["id"].split("-")[0]


def test_the_same_answer_twice_is_not_asked_about():
    found = pairs([response("a", "yes", "yes"), response("b", "yes", "no")], 7)
    assert [pair.prompt for pair in found] == ["b"]


def test_a_conversation_can_be_read(tmp_path):
    row = response("a", "yes", "no") | {
        "prompt": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    }
    write_annotation_sheet(tmp_path / "s.csv", pairs([row, response("b", "yes", "no", prompt="One turn?")], 7))
    assert {row["prompt"] for row in read_sheet(tmp_path / "s.csv")} == {
        "user: Hi.\n\nassistant: Hello.",
        "One turn?",
    }


def test_tools_calls_and_results_can_be_read(tmp_path):
    row = response("a", "yes", "no") | {"prompt": [{**ASKED, "tools": [TOOL]}, CALLED, RESULT]}
    write_annotation_sheet(tmp_path / "s.csv", pairs([row], 7))
    [found] = read_sheet(tmp_path / "s.csv")
    assert found["prompt"] == (
        'user: <tools>\n{"type": "function", "function": {"name": "track"}}\n</tools>\nWhere is it?\n\n'
        'assistant: <tool_call>\n{"name": "track", "arguments": {"order": 7}}\n</tool_call>\n\ntool: on its way'
    )
    turns = [Turn.model_validate(turn) for turn in row["prompt"]]
    assert [turn.as_json() for turn in turns] == row["prompt"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", " =1", "\t=1", "\r=1", "\n-1", "\uff1d1"])
def test_no_cell_is_a_formula(text, tmp_path):
    write_annotation_sheet(tmp_path / "s.csv", pairs([response("a", text, f"{text}2", prompt=text)], 7))
    [row] = read_sheet(tmp_path / "s.csv")
    assert [row[name].lstrip()[0] for name in ("prompt", "left", "right")] == ["'", "'", "'"]
    assert row["prompt"].replace("'", "") == text


def test_a_sheet_is_never_written_over(shown, tmp_path):
    write_annotation_sheet(tmp_path / "s.csv", shown)
    before = (tmp_path / "s.csv").read_bytes()
    with pytest.raises(InputError, match=r"s\.csv exists and may hold votes: name a new file"):
        write_annotation_sheet(tmp_path / "s.csv", shown[:1])
    assert (tmp_path / "s.csv").read_bytes() == before
    write_annotation_sheet(tmp_path / "t.csv", shown)
    assert (tmp_path / "t.csv").read_bytes() == before
    assert before.startswith(b"\xef\xbb\xbfid,prompt,left,right,choice,annotator\r\n")


# --- Filled sheets


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")]
)
def test_awkward_texts_come_back_from_every_spreadsheet(separator, encoding, tmp_path):
    shown = pairs([response(f"{number}", *texts, prompt=texts[0]) for number, texts in enumerate(AWKWARD)], 7)
    write_annotation_sheet(tmp_path / "s.csv", shown)
    filled = [row | {"choice": " Same "} for row in read_sheet(tmp_path / "s.csv")]
    votes = read_votes([save(tmp_path / "ann.csv", filled, separator, encoding)], shown)
    assert votes == [
        Vote(pair.prompt, "ann", "same", pair.candidate) for pair in sorted(shown, key=lambda pair: pair.prompt)
    ]


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab\"',;\t\r\n\x00\x0b\u2028=+-@ ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=4), st.sampled_from(",;\t"))
def test_any_text_goes_there_and_back(texts, separator):
    asked = [response(f"{number}", ours, theirs, prompt) for number, (ours, theirs, prompt) in enumerate(texts)]
    shown = [*pairs(asked, 7), *pairs([response("last", "yes", "no")], 7)]
    with tempfile.TemporaryDirectory() as folder:
        write_annotation_sheet(Path(folder, "s.csv"), shown)
        filled = [row | {"choice": "left"} for row in read_sheet(Path(folder, "s.csv"))]
        assert len(read_votes([save(Path(folder, "ann.csv"), filled, separator)], shown)) == len(shown)
    for row, pair in zip(filled, shown, strict=True):
        cells, texts = [row["prompt"], row["left"], row["right"]], [pair.conversation, pair.left, pair.right]
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells)
        assert [cell.replace("'", "") for cell in cells] == [text.replace("'", "") for text in texts]


def test_what_spreadsheets_make_of_short_texts_does_no_harm(tmp_path):
    shown = pairs([response("a", "1/2", "007"), response("b", "TRUE", "May 5")], 7)
    write_annotation_sheet(tmp_path / "s.csv", shown)
    changes = {"1/2": "01. Jan", "007": "7", "TRUE": "WAHR", "May 5": "2026-05-05"}
    filled = [
        row | {"left": changes[row["left"]], "right": changes[row["right"]], "choice": "left"}
        for row in read_sheet(tmp_path / "s.csv")
    ]
    assert len(read_votes([save(tmp_path / "ann.csv", filled)], shown)) == 2


def test_white_space_apostrophes_and_empty_rows_do_no_harm(shown, filled, tmp_path):
    filled = [row | {"left": f"'{row['left']}\r\n", "right": row["right"].replace(" ", "\u00a0")} for row in filled]
    path = save(tmp_path / "ann.csv", [*filled[:1], dict.fromkeys(COLUMNS, ""), *filled[1:]])
    path.write_bytes(path.read_bytes() + b",,,,,\r\n\r\n")
    assert len(read_votes([path], shown)) == 10


def test_rows_may_be_sorted_left_out_and_not_rated(shown, filled, tmp_path):
    filled = [row | {"choice": "" if place == 3 else row["choice"]} for place, row in enumerate(filled[::-1][:6])]
    votes = read_votes([save(tmp_path / "ann.csv", filled)], shown)
    assert len(votes) == 5
    assert all(vote.points == 1 for vote in votes)


def test_annotators_are_named_by_column_or_by_file(shown, filled, tmp_path):
    half = [row | {"annotator": "cleo" if place < 4 else "dan"} for place, row in enumerate(filled)]
    paths = [save(tmp_path / "ann.csv", filled[:2]), save(tmp_path / "b.csv", half)]
    names = [vote.annotator for vote in read_votes(paths, shown)]
    assert {name: names.count(name) for name in names} == {"ann": 2, "cleo": 4, "dan": 6}
    assert read_votes(paths[::-1], shown) == read_votes(paths, shown)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"id": "0001-00000000"},
            r"row 2: 0001-00000000 is not of the evaluation in dvc\.lock: bring back the dvc\.lock",
        ),
        ({"id": ""}, "row 2: no id is not of the evaluation"),
        ({"choice": "lft"}, "row 2: the choice lft is none of left, right and same: correct or empty it"),
        ({"annotator": ""}, "row 2 names no annotator, where other rows of the file do: write who has rated it"),
        (
            {"left": "Another long answer that nobody gave"},
            "row 2 has not the answers of its id: fill in the annotation sheet",
        ),
    ],
)
def test_a_row_that_cannot_be_counted_is_named_with_the_cure(change, words, shown, filled, tmp_path):
    filled = [row | {"annotator": "ann"} for row in filled]
    good = save(tmp_path / "good.csv", filled)
    bad = save(tmp_path / "bad.csv", [filled[0] | change, *filled[1:]])
    with pytest.raises(InputError, match=words):
        read_votes([good, bad], shown)


def test_a_sheet_sorted_by_one_column_alone_is_refused(shown, filled, tmp_path):
    lefts = sorted(row["left"] for row in filled)
    mixed = [row | {"left": left} for row, left in zip(filled, lefts, strict=True)]
    assert "has not the answers of its id" in sentence([save(tmp_path / "ann.csv", mixed)], shown)


def test_a_sheet_of_another_evaluation_is_refused(filled, tmp_path):
    assert "is not of the evaluation in dvc.lock" in sentence(
        [save(tmp_path / "a.csv", filled)], pairs(responses(10), 7)
    )


def test_an_annotator_has_one_name_however_it_is_spelt(shown, filled, tmp_path):
    paths = [
        save(tmp_path / f"{place}.csv", [filled[place] | {"annotator": name}])
        for place, name in enumerate(("3", "3.0", " Ju\u0308rgen  B.", "J\u00fcrgen B."))
    ]
    assert {vote.annotator for vote in read_votes(paths, shown)} == {"3", "j\u00fcrgen b."}


SPELLINGS = ("Ann", "ANN", "A\u200bnn", "\u202eAnn\u202c", "\uff21\uff4e\uff4e")


def test_one_person_under_five_spellings_votes_once(shown, filled, tmp_path):
    paths = [
        save(tmp_path / f"{place}.csv", [filled[place] | {"annotator": name}]) for place, name in enumerate(SPELLINGS)
    ]
    assert {vote.annotator for vote in read_votes(paths, shown)} == {"ann"}
    again = save(tmp_path / "again.csv", [filled[0] | {"annotator": SPELLINGS[-1]}])
    assert f"row 2: ann has already rated this prompt in {paths[0]} row 2" in sentence([*paths, again], shown)
    named = [save(tmp_path / f"{name}.csv", filled[:1]) for name in SPELLINGS[:2]]  # files without names are theirs
    assert "ann has already rated this prompt in" in sentence(named, shown)


def test_nobody_judges_a_prompt_twice(shown, filled, tmp_path):
    one, two = (save(tmp_path / name, [row | {"annotator": "ann"} for row in filled]) for name in ("a.csv", "b.csv"))
    assert sentence([one, two], shown) == (
        f"{two} row 2: ann has already rated this prompt in {one} row 2: empty one choice"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column id"),
        (b"id,left,right,choice\r\n", "has no column annotator: fill in a file that trueline label sheet wrote"),
        (b"PK\x03\x04\xff", "is not CSV in UTF-8: save it so (in Excel as CSV UTF-8)"),
        ("id;annotator\r\n1;Jürgen\r\n".encode("cp1252"), "is not CSV in UTF-8"),
        ("id\tannotator\r\n".encode("utf-16"), "is not CSV in UTF-8"),
        (b'id,left,right,choice,annotator\r\n"1,2', "line 2 is not valid CSV (unexpected end of data)"),
        (b"id,left,right,choice,annotator\r\n", "no row has a choice: write left, right or same into some"),
    ],
)
def test_a_file_that_is_no_filled_sheet_is_named_with_the_cure(content, words, shown, tmp_path):
    (tmp_path / "ann.csv").write_bytes(content)
    message = sentence([tmp_path / "ann.csv"], shown)
    assert message.startswith(str(tmp_path / "ann.csv"))
    assert words in message


def test_a_file_that_is_not_there(shown, tmp_path):
    assert (
        sentence([tmp_path / "gone.csv"], shown) == f"{tmp_path / 'gone.csv'} is no file: name filled annotation sheets"
    )


# --- Figures


def votes_of(letters_of):
    """Votes as {annotator: letters}, a letter a prompt; the candidate stands on the left, "-" is no vote."""
    choices: dict[str, Choice] = {"l": "left", "r": "right", "s": "same"}
    return [
        Vote(f"{prompt:02}", name, choices[letter], "left")
        for name, letters in letters_of.items()
        for prompt, letter in enumerate(letters)
        if letter != "-"
    ]


OWN = {f"{prompt:02}": f"{prompt}" for prompt in range(40)}  # each prompt is a conversation


def test_summary_of_a_small_panel():
    votes = votes_of({"ann": "lllrs-", "ben": "llrr--", "cleo": "lr--rr"})
    found = summarise_votes(votes, 3, RESAMPLING, OWN)
    # points by prompt: (1+1+1)/3 won, (1+1+0)/3 won, (1+0)/2 a tie, (0+0)/2 lost, (.5+0)/2 lost, 0/1 lost
    expected = win_rate([1, 1, 0.5, 0, 0, 0], [0.5] * 6, RESAMPLING)
    assert expected.value == pytest.approx(2.5 / 6)
    assert (expected.wins, expected.losses) == (2, 3)
    # ann mostly finds the candidate better, cleo worse: three such people say nothing of others.
    assert found["vs_opponent"] == pytest.approx(expected._asdict() | {"low": 0.0, "high": 1.0}, abs=1e-6)
    assert found["annotators"] == {"ann": 5, "ben": 4, "cleo": 4}
    assert (found["prompts"], found["votes"], found["same_answers"]) == (6, 13, 3)
    assert found["left_preferred"] == 0.5  # six of the twelve votes that are not "same"
    assert found["kappa"] is None  # three people
    assert found["confidence"] == 0.95
    random.Random(3).shuffle(votes)
    assert summarise_votes(votes, 3, RESAMPLING, OWN) == found


def test_turns_of_a_conversation_do_not_pass_for_many():
    votes = votes_of({"ann": "l" * 12 + "r" * 4})
    alone, together = (summarise_votes(votes, 0, RESAMPLING, names) for names in (OWN, {name: name[0] for name in OWN}))
    assert alone["vs_opponent"]["value"] == together["vs_opponent"]["value"] == 0.75
    assert together["vs_opponent"]["sign_test"] == 1  # two conversations, one for each


def test_many_items_of_one_person_do_not_pass_for_many_people():
    # ann and ben always say left, cleo and dan always right, but for six prompts on which all say left.
    letters_of = {"ann": "l" * 36, "ben": "l" * 36, "cleo": "r" * 30 + "l" * 6, "dan": "r" * 30 + "l" * 6}
    found = summarise_votes(votes_of(letters_of), 0, RESAMPLING, OWN)["vs_opponent"]
    by_prompt = win_rate([0.5] * 30 + [1.0] * 6, [0.5] * 36, RESAMPLING)
    assert (found["value"], by_prompt.conclusion) == (pytest.approx(by_prompt.value, abs=1e-6), "better")
    assert (found["low"], found["high"], found["conclusion"]) == (0.0, 1.0, "inconclusive")


def test_a_vote_counts_for_the_side_of_the_candidate():
    points = {
        (choice, side): Vote("1", "ann", choice, side).points
        for choice in ("left", "right", "same")
        for side in ("left", "right")
    }
    assert points == {
        ("left", "left"): 1, ("right", "right"): 1, ("left", "right"): 0, ("right", "left"): 0,
        ("same", "left"): 0.5, ("same", "right"): 0.5,
    }  # fmt: skip


def test_one_person_alone_has_nobody_to_agree_with():
    found = summarise_votes(votes_of({"ann": "lrs"}), 0, RESAMPLING, OWN)
    assert (found["alpha"], found["kappa"]) == (None, None)


def test_vote_rows_hold_annotator_and_choice():
    assert list(vote_rows([Vote("a1", "=ann", "left", "right")])) == [
        {"prompt": "a1", "annotator": "'=ann", "choice": "left", "candidate": "right"}
    ]
