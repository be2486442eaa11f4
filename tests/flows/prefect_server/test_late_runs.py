from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows.prefect_server.late_runs import MESSAGE, cancel_late_runs

NOW = datetime.now(UTC)


class Client:
    """Stands in for the server: it has these runs, and remembers which are cancelled."""

    def __init__(self, *ages: float, by_hand: tuple[float, ...] = ()) -> None:
        self.runs = [
            SimpleNamespace(id=age, auto_scheduled=age not in by_hand, expected_start_time=NOW - timedelta(minutes=age))
            for age in sorted(ages, reverse=True)
        ]
        self.cancelled: dict[float, Any] = {}

    def read_flow_runs(self, **_asked: object) -> list[Any]:
        return self.runs

    def set_flow_run_state(self, run_id: float, state: Any) -> None:
        self.cancelled[run_id] = state.message


@pytest.mark.parametrize(
    ("ages", "by_hand", "cancelled"),
    [
        ((), (), []),
        ((30, 20, 11), (), [11, 20, 30]),  # before it began: it reads what they would have read
        ((8, 5, 2), (), [5, 8]),  # since: only the newest has something to do
        ((30, 8, 5), (), [8, 30]),
        ((30, 8, 5, 2), (30, 5), [8]),  # a person wants those
        ((20,), (), [20]),
        ((2,), (), []),
    ],
)
def test_at_most_one_run_catches_up(
    ages: tuple[float, ...], by_hand: tuple[float, ...], cancelled: list[float]
) -> None:
    client: Any = Client(*ages, by_hand=by_hand)

    cancel_late_runs(client, uuid4(), NOW - timedelta(minutes=10))

    assert sorted(client.cancelled) == cancelled
    assert set(client.cancelled.values()) <= {MESSAGE}
