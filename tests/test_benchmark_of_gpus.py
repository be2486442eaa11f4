"""`make gpu` without a GPU: its parts, its limits, and the table that it writes."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import BEST, COMPILED, LIMITS, SECONDS, Part, ended, parts, run_parts
from benchmarks.gpu_checks import Check
from benchmarks.gpu_report import BEGIN, END, PAGE, data_sheet_peak, row_lines, section, written
from benchmarks.rounds import KINDS, OURS, variants

# As a run of size XS on a CPU gave them.
ROW = {"kind": "sft", "size": "XS", "seconds_a_token": 1 / 3338, "of_peak": 0.0152, "memory": 1024.0}
SAMPLED = {"kind": "ppo", "size": "XS", "seconds": 1 / 731, "memory": 1536.0, "length": 60.0}
MACHINE: dict[str, Any] = {
    "date": "2026-11-30",
    "device": "x86_64",
    "commit": "38184e9",
    "versions": {"Python": "3.11.7", "torch": "2.13.0+cpu"},
    "peak": 2.02e11,
    "peak_from": "(measured)",
    "measured_peak": 2.02e11,
    "seconds": 592.0,
}


def test_the_parts_are_those_there_are_variants_for_and_have_limits():
    wanted = parts(["1.5B", "0.5B"])
    assert [part.name for part in wanted[:3]] == ["checks 0.5B", "sft 1.5B", "reward 1.5B"]
    assert wanted[-1] == Part(COMPILED, "1.5B")
    assert {part.kind for part in wanted} == set(LIMITS)
    assert len(wanted) == 3 + 2 * len(BEST)
    for kind, name in BEST.items():
        assert kind in KINDS
        assert {name, OURS} <= set(variants(kind))


def test_parts_without_time_are_named_and_so_are_those_that_failed_or_took_too_long(monkeypatch, tmp_path):
    codes = iter([0, None, 3])
    monkeypatch.setattr(gpu, "ended", lambda _command, _limit: next(codes))
    (tmp_path / "found.jsonl").touch()
    wanted = [Part("sft", "XS"), Part("dpo", "XS"), Part("ppo", "XS")]
    found, left_out, failed = run_parts(wanted, tmp_path, SECONDS)
    assert (found, failed) == ([], ["ppo XS (failed, exit code 3)"])
    assert left_out == ["dpo XS (ended after 75 s)"]
    assert run_parts(wanted[:1], tmp_path, 5.0)[1] == ["sft XS (no time left)"]


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    started = tmp_path / "started"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {slow(started)!r}])"
    assert ended([sys.executable, "-c", code], 3.0) is None
    time.sleep(1.5)
    assert started.read_text() == "begun"  # its child did not come to its end
    assert ended([sys.executable, "-c", "raise SystemExit(4)"], 30.0) == 4


def slow(place: Path) -> str:
    lines = [f"import pathlib, time; place = pathlib.Path({str(place)!r})", "place.write_text('begun')"]
    return "; ".join([*lines, "time.sleep(4)", "place.write_text('done')"])


def test_rows_stand_beside_the_other_and_say_how_much_faster_ours_are():
    other = ROW | {"variant": "TRL padding-free", "seconds_a_token": 1 / 2467, "of_peak": 0.0112, "difference": 5.6e-5}
    first, ours = row_lines([other, ROW | {"variant": OURS, "difference": 0.0}])
    assert first == "| sft XS: TRL padding-free | 2,467 |  | 1% | 1.0 | 5.6e-05 |"
    assert ours == "| **sft XS: Trueline** | 3,338 | 1.35 | 2% | 1.0 |  |"
    [sampled] = row_lines([SAMPLED | {"variant": OURS}])
    assert sampled == "| **ppo XS: Trueline** | 731 |  |  | 1.5 |  |"


def test_the_section_names_checks_and_what_was_left_out_and_fills_its_tables():
    checks = [Check("one", 0.5, 1.0), Check("two", 2.0, 1.0), Check("three", None, 0.0, "no kernel")]
    checks.append(Check("four", float("nan"), 1.0))
    text = section(MACHINE, checks, [ROW | {"variant": OURS}], ["dpo XS (no time left)"])
    lines = text.splitlines()
    assert lines[3:8] == [
        "|---|---|---|---|",
        "| one | 0.5 | 1 | holds |",
        "| two | 2 | 1 | **fails** |",
        "| three | not run: no kernel | 0 | |",
        "| four | nan | 1 | **fails** |",
    ]
    assert lines[-1] == "**Left out**: dpo XS (no time left)."
    columns = [line.count("|") for line in lines if line.startswith("| **sft") or line.startswith("| | tokens")]
    assert len({*columns}) == 1


def test_the_section_takes_the_place_between_the_markers_of_the_page():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    again = written(written(page, "first"), "second")
    assert f"{BEGIN}\n\nsecond\n\n{END}" in again
    assert again.partition(BEGIN)[0] == page.partition(BEGIN)[0]
    assert again.partition(END)[2] == page.partition(END)[2]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet(device, expected):
    assert data_sheet_peak(device) == expected
