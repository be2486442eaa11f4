import pytest

from flows.deployment.deploy import check_cron, check_timezone, schedule
from tasks.common.errors import InputError


@pytest.mark.parametrize("cron", ["", "0 3 * *", "61 3 * * 1", "every monday", "@weekly", "0 0 3 * * 1"])
def test_a_schedule_that_is_none(cron: str) -> None:
    with pytest.raises(InputError, match="is no cron schedule: give five fields"):
        check_cron(cron)


def test_schedules_and_zones_that_hold() -> None:
    check_cron("0 3 * * 1")
    check_cron("*/15 8-18 * * MON-FRI")
    check_timezone("Europe/Zurich")


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd"])
def test_a_zone_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match="is no time zone"):
        check_timezone(name)


def test_no_server() -> None:
    with pytest.raises(InputError, match="make server"):
        schedule("0 3 * * 1", "UTC", "http://127.0.0.1:9/api")
