"""The validate stage: planted faults land in quarantine with their reason, warnings keep rows, thresholds stop."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import read_jsonl, write_jsonl
from tasks.data.records import TYPES, read_prompts
from tasks.settings.params import Params, load_params
from tasks.validate import longest_rows, validate
from tests.pages import SHOWN, Elements, assert_harmless
from tests.rows_to_validate import LONG, PLANTED, SIDES, byte_level_tokenizer, clean, record

ROOT = Path(__file__).parents[1]
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] == 'refuse me' %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with a byte-level tokenizer (one token a byte) and a configuration with a context of 512 tokens."""
    folder = tmp_path_factory.mktemp("base")
    byte_level_tokenizer(TEMPLATE).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(base)
    return tmp_path


def prepare(**extra: list[dict[str, Any]]) -> None:
    for kind in SIDES:
        write_jsonl(Path(f"data/prepare/{kind}.jsonl"), clean(kind) + extra.get(kind, []))
    write_jsonl(Path("data/prepare/ai_preferences.jsonl"), extra.get("ai_preferences", []))


def settings(**changes: object) -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"validate_": params.validate_.model_copy(update=changes)})


def quarantine(path: Path = Path("data/validate/quarantine.jsonl")) -> dict[tuple[str, int], list[str]]:
    return {(line["file"].removesuffix(".jsonl"), line["row"]): line["reasons"] for line in read_jsonl(path)}


def figures() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path("metrics/validate.json").read_text())
    return loaded


@pytest.fixture(scope="session")
def planted(base, tmp_path_factory):
    """One run of the stage over every kind of fault; the folder it ran in."""
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("models").mkdir()
        Path("models/base").symlink_to(base)
        extra = {kind: [row for (at, _), (rows, _) in PLANTED.items() if at == kind for row in rows] for kind in SIDES}
        prepare(**extra)
        validate(settings(max_quarantined=0.9))
    return folder


@pytest.mark.parametrize("key", PLANTED, ids=lambda key: f"{key[0]}-{key[1]}-{'+'.join(PLANTED[key][1])}")
def test_a_planted_fault_lands_in_quarantine_with_its_reason(planted, key):
    assert quarantine(planted / "data/validate/quarantine.jsonl")[key] == PLANTED[key][1]


def test_nothing_else_is_quarantined(planted):
    # A contradiction condemns both rows: number 3 of the clean pairs goes with 109, number 4 of the ratings with 123.
    condemned = {*PLANTED, ("preferences", 3), ("ratings", 4)}
    assert set(quarantine(planted / "data/validate/quarantine.jsonl")) == condemned
    valid = [row["row"] for row in read_jsonl(planted / "data/validate/preferences.jsonl")]
    assert valid == [1, 2, *range(4, 31)]


def test_extra_columns_pass_as_they_are(place):
    columns = {"answer": "4", "rule": {"words": ["é"], "most": 3}}
    prepare(prompts=[record("prompts", 31, "train", columns=columns)])
    validate(settings())
    assert [row.columns for row in read_prompts(Path("data/validate"))] == [{}] * 30 + [columns]


def test_counts_by_file_split_and_check_are_in_the_metrics(planted):
    metrics = json.loads((planted / "metrics/validate.json").read_text())["demonstrations"]
    assert metrics["rows"] == metrics["valid"] + metrics["quarantined"] == 30 + 14
    assert metrics["findings"]["encoding"] == {"train": 4}
    assert metrics["splits"] == {"train": 20, "validation": 5, "test": 5}


def test_data_docs_tell_what_was_found(planted):
    page = Elements((planted / ".trueline/data_docs/index.html").read_text(encoding="utf-8"))
    lines = [" ".join(line.split()) for line in page.text.splitlines() if line.strip()]
    assert "duplicateNo row repeats an earlier one✘ quarantined1 rows (0.023)" in lines  # of 44
    assert "raw-demonstrations.jsonl:108trainraw-demonstrations.jsonl:3" in lines
    # 6 + 46 + 2 + 11 + 400 + 1 tokens, counted as in the test below.
    assert "raw-demonstrations.jsonl:112traintokens: 466" in lines
    assert "min_rowsEnough rows are left for training✔ met20" in lines


def test_a_row_in_the_data_docs_is_shown_and_does_nothing(planted):
    assert [path.name for path in (planted / ".trueline/data_docs").rglob("*")] == ["index.html"]
    page = Elements((planted / ".trueline/data_docs/index.html").read_text(encoding="utf-8"))
    assert SHOWN in page.text
    assert_harmless(page, {f"#{kind}" for kind in TYPES})


def test_clean_rows_are_all_valid_and_a_second_run_gives_the_same_bytes(place):
    prepare()
    outputs = [*(Path(f"data/validate/{kind}.jsonl") for kind in SIDES), Path("data/validate/quarantine.jsonl")]
    outputs.append(Path("metrics/validate.json"))
    validate(settings())
    first = [path.read_bytes() for path in outputs]
    assert quarantine() == {}
    assert first[:4] == [Path(f"data/prepare/{kind}.jsonl").read_bytes() for kind in SIDES]
    assert figures()["warnings"] == []
    # demonstrations 1-9: <|im_start|> user \n (1+4+1), the question (44 bytes, one digit), <|im_end|> \n (1+1),
    # <|im_start|> assistant \n (1+9+1), "Answer number 1." (16), EOS (1); two digits make both texts one byte longer.
    assert figures()["demonstrations"]["tokens"]["p50"] == len("demonstrations question 10 of the train split") + 36 + 1
    validate(settings())
    assert [path.read_bytes() for path in outputs] == first


@pytest.mark.slow
def test_a_check_that_only_warns_removes_no_row(place):
    prepare(demonstrations=[record("demonstrations", 50, "train", response=LONG)])
    validate(settings(warn=["length", "length_bias", "personal_data"]))
    assert quarantine() == {}
    assert figures()["demonstrations"]["findings"] == {"length": {"train": 1}}
    assert figures()["warnings"] == ["demonstrations: 1 rows stay although the check length found something"]


def test_personal_data_over_its_share_warns_and_as_an_error_is_quarantined(place):
    prepare(prompts=[record("prompts", 50, "train", prompt="Write to ann@mail.org")])
    validate(settings())
    assert quarantine() == {}
    assert figures()["warnings"] == [
        "prompts: 0.032 of the rows look like personal data, over validate.max_personal_data 0.01"  # 1 of 31
    ]
    validate(settings(warn=[]))
    assert quarantine() == {("prompts", 50): ["personal_data"]}


def long_winded() -> list[dict[str, Any]]:
    return [
        record("preferences", number, "train", chosen=f"Much longer {number}.", rejected="No.")
        for number in range(50, 90)
    ]


def test_length_bias_warns_or_stops(place):
    prepare(preferences=long_winded())
    validate(settings())
    # 40 long-winded pairs and the 15 odd ones of 30: 55 of 70.
    assert figures()["preferences"]["longer_chosen"] == round(55 / 70, 4)
    assert "longer answer was chosen in 0.786 of the pairs" in figures()["warnings"][0]
    with pytest.raises(InputError, match="max_length_bias"):
        validate(settings(warn=["personal_data"]))


def test_too_many_quarantined_rows_stop_and_leave_earlier_outputs_and_something_to_look_at(place):
    prepare()
    validate(settings())
    before = Path("data/validate/demonstrations.jsonl").read_bytes()
    empty = [record("demonstrations", number, "train", response="") for number in range(50, 60)]
    prepare(demonstrations=empty)
    with pytest.raises(InputError) as caught:
        validate(settings())
    sentence = str(caught.value)
    assert "10 of 40 rows" in sentence
    assert "empty 10" in sentence
    assert "duplicate" not in sentence
    assert "raw-demonstrations.jsonl:50" in sentence
    assert ".trueline/quarantine.jsonl" in sentence
    assert len(quarantine(Path(".trueline/quarantine.jsonl"))) == 10
    assert Path(".trueline/data_docs/index.html").exists()
    assert Path("data/validate/demonstrations.jsonl").read_bytes() == before


def test_exactly_the_allowed_share_passes(place):
    # 10 of 40 rows are bad: a share of 0.25.
    prepare(demonstrations=[record("demonstrations", number, "train", response="") for number in range(50, 60)])
    validate(settings(max_quarantined=0.25))
    assert len(quarantine()) == 10


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("demonstrations", [], "0 training rows are left of 0 rows"),
        ("preferences", [record("preferences", 1, "train")], "1 training rows are left of 1 rows"),
        ("preferences", [row for row in clean("preferences") if row["split"] != "validation"], "split validation"),
        ("prompts", [row for row in clean("prompts") if row["split"] != "test"], "split test"),
        ("prompts", [{"nonsense": 1}] * 3, "3 of 3 rows are bad"),
    ],
)
def test_too_few_rows_stop(place, kind, rows, message):
    prepare()
    write_jsonl(Path(f"data/prepare/{kind}.jsonl"), rows)
    with pytest.raises(InputError, match=message):
        validate(settings())


LONG_ANSWER = LONG + "good"  # 404 tokens: one a byte
LONG_QUESTION = f"Read {LONG}and say: what is it?"


@pytest.mark.parametrize("how", ["answer_end", "prompt_start"])
def test_long_rows_are_cut_and_counted(place, how):
    prepare(
        demonstrations=[record("demonstrations", 41, "train", response=LONG_ANSWER)],
        preferences=[
            record("preferences", 42, "train", chosen=LONG_ANSWER, rejected="Bad."),
            record("preferences", 43, "train", chosen=LONG_ANSWER, rejected=LONG + "bad"),  # alike until there
        ],
        prompts=[record("prompts", 44, "train", prompt=LONG_QUESTION)],
    )
    validate(settings(max_tokens=256, max_new_tokens=300, truncate=how))

    rows = {(kind, row["row"]): row for kind in SIDES for row in read_jsonl(Path(f"data/validate/{kind}.jsonl"))}
    asked = rows["prompts", 44]
    assert asked["prompt"][0]["content"].endswith("word and say: what is it?")
    lost = len(LONG_QUESTION) - len(asked["prompt"][0]["content"])
    assert asked["truncated"] == {"prompt": lost}
    assert figures()["prompts"]["truncated"] == {"prompt": {"rows": 1, "tokens": lost}}
    assert figures()["ratings"]["truncated"] == {}
    if how == "prompt_start":  # the answers alone are longer than 256 tokens
        assert quarantine() == {
            ("demonstrations", 41): ["length"],
            ("preferences", 42): ["length"],
            ("preferences", 43): ["length", "truncation"],
        }
        return
    assert quarantine() == {("preferences", 43): ["equal", "truncation"]}
    answer = rows["demonstrations", 41]["response"]
    assert LONG.startswith(answer)
    assert answer.endswith("word")
    # The end-of-sequence token went too.
    assert rows["demonstrations", 41]["truncated"] == {"response": len(LONG_ANSWER) + 1 - len(answer)}
    assert rows["preferences", 42]["truncated"].keys() == {"chosen"}
    assert figures()["demonstrations"]["tokens"]["max"] <= 256
    assert [row for row in rows.values() if "truncated" in row] == [
        rows[key] for key in (("demonstrations", 41), ("preferences", 42), ("prompts", 44))
    ]
    assert sorted(Path(".trueline").iterdir()) == [Path(".trueline/data_docs")]


def test_a_missing_file_stops(place):
    with pytest.raises(InputError, match=r"demonstrations\.jsonl does not exist"):
        validate(settings())


@pytest.mark.parametrize("name", ["lenght", "schema"])
def test_a_name_that_cannot_warn_lists_those_that_can(place, name):
    with pytest.raises(InputError, match=r"validate\.warn names .*empty, equal, duplicate.*length_bias"):
        validate(settings(warn=[name]))


def test_more_tokens_than_the_context_stop(place):
    with pytest.raises(InputError, match="context of 512 tokens"):
        validate(settings(max_tokens=513))


@pytest.fixture
def losing(place, base):
    """A template that drops the system text, and thinking, and refuses one text."""
    (place / "models/base").unlink()
    shutil.copytree(base, place / "models/base")
    silent = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
    thoughtless = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    (place / "models/base/chat_template.jinja").write_text(silent + thoughtless)


def with_turns(number: int, *contents: str) -> dict[str, Any]:
    """A demonstration whose prompt begins with these turns: of the system where there is one, else of both sides."""
    roles = ["system"] if len(contents) == 1 else ["user", "assistant"]
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    row = record("demonstrations", number, "train")
    return row | {"prompt": [*turns, *row["prompt"]]}


def test_rows_that_the_template_refuses_or_loses_are_quarantined_with_what_it_says(losing):
    thoughtful = with_turns(202, "earlier", "<think>hm</think>yes")
    refused = record("demonstrations", 203, "test", prompt="refuse me")
    prepare(demonstrations=[with_turns(201, "be kind"), thoughtful, refused, with_turns(204, " \n")])
    validate(settings())

    lines = {line["row"]: line["found"] for line in read_jsonl(Path("data/validate/quarantine.jsonl"))}
    cure = "fix the row or choose another template (base.chat_template)"
    assert lines == {
        201: {"lost_system": "the chat template leaves out the system text"},
        202: {"lost_thinking": "the chat template leaves out the thinking in turn 2 (assistant)"},
        203: {"template": f"the chat template refuses the conversation (no): {cure}"},
    }
    counted = {"template": {"test": 1}, "lost_system": {"train": 1}, "lost_thinking": {"train": 1}}
    assert figures()["demonstrations"]["findings"] == counted


def test_rows_with_tools_that_the_template_cannot_show_are_quarantined_with_the_cure(place):
    call = {"type": "function", "function": {"name": "track", "arguments": {"order": 7}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    asked, called, answered = (record("demonstrations", number, "train") for number in (201, 202, 203))
    asked["prompt"][0]["tools"] = [{"type": "function", "function": {"name": "track", "parameters": {}}}]
    called["response"] = calling
    answered["prompt"] += [calling, {"role": "tool", "content": "on its way"}]
    prepare(demonstrations=[asked, called, answered])
    validate(settings())

    lines = {line["row"]: line["found"] for line in read_jsonl(Path("data/validate/quarantine.jsonl"))}
    lost = {201: "the tools", 202: "the call in the answer", 203: "the call in turn 2"}
    cure = "choose one that writes it (base.chat_template)"
    assert lines == {row: {"lost_tools": f"the chat template leaves out {what}: {cure}"} for row, what in lost.items()}
    with pytest.raises(InputError, match=r"validate\.warn names 'lost_tools', but may name only"):
        validate(settings(warn=["lost_tools"]))


def test_a_template_that_loses_what_no_row_has_is_fine(losing):
    prepare()
    validate(settings())
    assert quarantine() == {}


def test_lost_thinking_may_only_warn_but_not_a_row_that_cannot_be_written(losing):
    prepare(demonstrations=[with_turns(202, "earlier", "<think>hm</think>yes")])
    validate(settings(warn=["lost_thinking"]))
    assert quarantine() == {}
    with pytest.raises(InputError, match=r"validate\.warn names 'template', but may name only"):
        validate(settings(warn=["template"]))


def test_a_prompt_must_leave_room_for_the_longest_answer(base):
    def longest(new_tokens, max_tokens=512):
        return longest_rows(settings(max_tokens=max_tokens, max_new_tokens=new_tokens).validate_, base)

    # A context of 512 less 200 new tokens.
    assert longest(200) == {**dict.fromkeys(TYPES, 512), "prompts": 312}
    assert longest(10)["prompts"] == 512 - 10
    assert longest(10, max_tokens=100)["prompts"] == 99
    with pytest.raises(
        InputError, match=r"answers of 512 new tokens \(validate\.max_new_tokens\) fill the context .*: lower it"
    ):
        longest(512)


def test_lengths_are_measured_without_torch(tiny_model: Path):
    code = (
        "import sys; from pathlib import Path; from tasks.data.encoding.tokens import load_tokenizer; "
        "from tasks.data.encoding.context import context_of; import tasks.validate; folder = Path(sys.argv[1]); "
        "print(type(load_tokenizer(folder)).__name__, context_of(folder), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_model], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["TokenizersBackend", "128", "False"]


def test_ai_pairs_are_checked_and_change_nothing_of_what_people_gave(place):
    # A phrase of a test prompt, in a row of people: contamination. AI pairs on thirty prompts hold it, too, which would
    # make it a common phrase.
    phrase = "the quick brown fox jumps over the lazy dog and runs away from everyone"
    given = {
        "prompts": [record("prompts", 60, "test", prompt=f"{phrase} today")],
        "demonstrations": [record("demonstrations", 60, "train", response=f"So {phrase} again")],
    }
    prepare(**given)
    validate(settings(max_tokens=256))
    alone = {path.name: path.read_bytes() for path in Path("data/validate").iterdir()}
    assert quarantine() == {("demonstrations", 60): ["contamination"]}

    pairs = [record("ai_preferences", number, "train", chosen=f"{number} {phrase}") for number in range(1, 31)]
    sound = [record("ai_preferences", number, "train") for number in range(31, 61)]
    prepare(**given, ai_preferences=[*pairs, *sound, sound[0] | {"row": 61}])
    validate(settings(max_tokens=256))

    assert {path.name: path.read_bytes() for path in Path("data/validate").iterdir()} == alone
    assert [row["row"] for row in read_jsonl(Path("data/ai_preferences/ai_preferences.jsonl"))] == [
        *range(1, 31),  # the phrase is common among them
        *range(31, 61),
    ]
    assert quarantine(Path("data/ai_preferences/quarantine.jsonl")) == {("ai_preferences", 61): ["duplicate"]}
