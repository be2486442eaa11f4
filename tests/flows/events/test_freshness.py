import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from flows.events import freshness as module
from flows.events.freshness import age_of_pairs, check_freshness, lines, staleness
from tasks.common.errors import InputError
from tasks.registry.lineage.freshness import Freshness, Interval
from tasks.settings.params import Params, load_params
from tests.flows.events.conftest import Receiver, configure


def interval(low: float, value: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


def figures(drift: Interval | None = None, agreement: Interval | None = None, key: str = "k") -> Freshness:
    return Freshness(
        key=key,
        drift={"candidate": drift or interval(0.7, 0.75, 0.8), "sft": interval(0.6, 0.65, 0.7)},
        agreement={"candidate": agreement or interval(0.5, 0.6, 0.7), "sft": None},
    )


def with_pairs(path: str = "pairs.jsonl", **limits: Any) -> Params:
    configure(freshness=limits)
    params = load_params()
    source = params.prepare.preferences.model_copy(update={"source": path})
    return params.model_copy(update={"prepare": params.prepare.model_copy(update={"preferences": source})})


def days_ago(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        (figures(), []),
        (figures(drift=interval(0.89, 0.95, 0.97)), []),  # perhaps
        (
            figures(drift=interval(0.91, 0.95, 0.97)),
            ["drift 0.950 [0.910, 0.970] is over freshness.max_drift 0.9"],
        ),
        (
            figures(agreement=interval(-0.1, 0.1, 0.29)),
            ["agreement 0.100 [-0.100, 0.290] is below freshness.min_agreement 0.3"],
        ),
    ],
)
def test_the_interval_decides(checkout: Path, found: Freshness, reasons: list[str]) -> None:
    assert staleness(with_pairs(), found)["reasons"] == reasons


def test_old_pairs(checkout: Path) -> None:
    pairs = Path("pairs.jsonl")
    pairs.touch()
    days_ago(pairs, 40)
    assert staleness(with_pairs(max_age_days=41), figures())["reasons"] == []
    assert staleness(with_pairs(max_age_days=39), figures())["reasons"] == [
        "age of the newest pairs, 40 days, is over freshness.max_age_days 39"
    ]
    assert lines(staleness(with_pairs(), figures())) == [
        "drift 0.750 [0.700, 0.800] (SFT 0.650 [0.600, 0.700])",
        "agreement 0.600 [0.500, 0.700] (SFT —)",
        "newest pairs 40.0 days old",
    ]


def test_the_age_of_a_folder_is_that_of_its_newest_file(checkout: Path) -> None:
    folder = Path("pairs")
    folder.mkdir()
    for name, days in (("a.jsonl", 50), ("b.jsonl", 20)):
        (folder / name).touch()
        days_ago(folder / name, days)

    assert age_of_pairs(with_pairs("pairs")) == pytest.approx(20, abs=0.01)  # a test may take a while


def test_the_age_of_a_committed_file_is_that_of_its_commit(checkout: Path) -> None:
    """A clone gives every file the time of the clone."""
    pairs = Path("pairs.jsonl")
    pairs.touch()
    date = f"{int(time.time()) - 30 * 86_400} +0000"
    environment = os.environ | {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    for command in (
        ["init", "-q"],
        ["add", "pairs.jsonl"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], env=environment, check=True)
    assert age_of_pairs(with_pairs()) == pytest.approx(30, abs=0.01)

    pairs.write_text("more")
    assert age_of_pairs(with_pairs()) == pytest.approx(0, abs=0.01)


def test_no_pairs_and_made_up_ones_have_no_age(checkout: Path) -> None:
    assert age_of_pairs(load_params()) is None  # of the built-in example
    assert age_of_pairs(with_pairs("infra/none.jsonl")) is None
    assert age_of_pairs(with_pairs("missing.jsonl")) is None


def test_a_stale_reward_model_is_reported_once_a_result_and_reason(
    checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moved = interval(0.91, 0.95, 0.97)
    results = [figures(), figures(moved), figures(moved), figures(moved, key="next"), figures(key="fresh")]
    monkeypatch.setattr(module, "freshness", lambda _params: results.pop(0))
    params = with_pairs()
    with caplog.at_level(logging.WARNING, "flows"):
        while results:
            check_freshness(params)

    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline stale"] * 2
    assert receiver.texts[0].startswith(
        "The reward model is stale: drift 0.950 [0.910, 0.970] is over freshness.max_drift 0.9. New pairs are needed: "
        "trueline collect, then label.\n- drift 0.950 [0.910, 0.970] (SFT 0.650 [0.600, 0.700])\n- agreement "
    )
    assert len([record for record in caplog.records if record.name.startswith("flows")]) == 2


def test_figures_that_cannot_be_had_fail_no_run(
    checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_params: Params) -> None:
        raise InputError("MLflow is away")

    monkeypatch.setattr(module, "freshness", fail)
    check_freshness(with_pairs())

    assert [record.getMessage() for record in caplog.records] == [
        "it is not known whether the reward model is stale: MLflow is away"
    ]
    assert receiver.received == []
