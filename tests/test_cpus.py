"""How many CPUs there are for this process, and when its threads wait for one another."""

import os

import pytest

from flows.inspection import doctor
from flows.inspection.threads import Rates, better, measured
from tasks.common import cpus
from tasks.common.cpus import too_many_threads, usable_cpus
from tasks.learning.models.loading import set_up
from tasks.settings.params import Params


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 2, 5, 6})
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 9.0, 9.0))
    monkeypatch.setattr(cpus, "_quota", lambda: None)


@pytest.mark.parametrize(
    ("version", "content", "expected"),
    [(2, "max 100000", 4), (2, "250000 100000", 2), (2, "50000 100000", 1), (1, "-1", 4), (1, "300000", 3)],
)
@pytest.mark.usefixtures("four_cpus")
def test_a_container_may_allow_fewer(version, content, expected, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 2, 5, 6})
    files = [tmp_path / name for name in ("quota", "period")]
    monkeypatch.setattr(cpus, "CGROUP_V2", files[0] if version == 2 else tmp_path / "none")
    monkeypatch.setattr(cpus, "CGROUP_V1", files)
    files[0].write_text(content + "\n")
    files[1].write_text("100000\n")
    assert usable_cpus() == expected


@pytest.mark.usefixtures("four_cpus")
def test_threads_wait_where_they_are_more_than_the_cpus_or_the_machine_is_busy(monkeypatch):
    assert usable_cpus() == 4
    assert too_many_threads(4) is None
    assert too_many_threads(5) == "5 threads on 4 CPUs wait for one another"
    assert too_many_threads(3, processes=2) == "6 threads on 4 CPUs wait for one another"
    monkeypatch.setattr(os, "getloadavg", lambda: (4.5, 0.0, 0.0))
    assert too_many_threads(2) == "2 threads on 4 CPUs with a load of 4.5 wait for one another"
    assert too_many_threads(1, processes=8) is None


@pytest.mark.usefixtures("four_cpus")
def test_a_stage_logs_it_as_it_begins(params: Params, caplog, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda _count: None)
    set_up(params)
    assert caplog.messages == []
    set_up(params.model_copy(update={"runtime": params.runtime.model_copy(update={"threads": 5, "device": "cpu"})}))
    assert caplog.messages == [
        "5 threads on 4 CPUs wait for one another: fewer may be several times faster "
        "(runtime.threads; results differ by rounding)"
    ]


def test_another_number_is_named_only_where_it_is_clearly_faster():
    now = Rates(sampling=100.0, training=10.0)
    # The geometric means are (1.5 * 1.1)^.5 = 1.28 and (6 * .9)^.5 = 2.3
    assert better(2, {2: now, 1: Rates(150.0, 11.0)}) is None
    assert better(2, {2: now, 1: Rates(600.0, 9.0), 4: Rates(150.0, 11.0)}) == (
        1,
        "1 in place of 2: sampling would be 6.0 and training 0.9 times as fast",
    )


def test_numbers_of_threads_are_measured_and_torch_has_the_one_it_had(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    found = measured([1, 2], width=64)
    assert asked == [1, 1, 2, 2, 3]
    assert all(min(rates) > 0 for rates in found.values())


@pytest.mark.parametrize("best", [1, 2])
@pytest.mark.usefixtures("four_cpus")
def test_doctor_says_which_number_is_faster(best, params: Params, monkeypatch):
    rates = {1: Rates(10.0, 10.0), 2: Rates(10.0, 10.0), 4: Rates(1.0, 1.0)} | {best: Rates(50.0, 20.0)}
    monkeypatch.setattr(
        "flows.inspection.threads.measured", lambda counts, _width: {each: rates[each] for each in counts}
    )
    runtime = params.runtime.model_copy(update={"threads": 2})
    [finding] = doctor.check_threads(params.model_copy(update={"runtime": runtime}))
    assert finding.check == "threads"
    if best == 2:
        assert (finding.level, finding.found, finding.cure) == ("ok", "2 of 4 CPUs", "")
    else:
        assert finding.found == "1 in place of 2: sampling would be 5.0 and training 2.0 times as fast"
        assert finding.cure == "trueline configure runtime.threads=1 (results differ by rounding)"
