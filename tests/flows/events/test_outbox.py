import json
import logging
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.events import outbox
from flows.events.addresses import addresses
from tasks.common.errors import InputError
from tasks.common.safe_text import ADDRESSES, without_secrets
from tests.flows.events.conftest import Receiver


def test_a_message_arrives_and_leaves_nothing_on_disk(checkout: Path, receiver: Receiver) -> None:
    outbox.put("a title", "a text", addresses())

    assert outbox.send(addresses()) == []
    assert (receiver.titles, receiver.texts) == (["a title"], ["a text"])
    assert outbox.waiting() == []


def test_a_receiver_that_is_down_gets_the_messages_in_order_once_it_is_up(
    checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.port
    receiver.close()
    outbox.put("first", "1", addresses())
    outbox.put("second", "2", addresses())
    [(address, reason)] = outbox.send(addresses())

    assert str(address) == "address 1 (json)"
    assert reason.startswith("A Connection error occurred sending JSON")
    assert [message.title for message in outbox.waiting()] == ["first", "second"]
    back = Receiver(port)
    try:
        assert outbox.send(addresses()) == []
        assert back.titles == ["first", "second"]
    finally:
        back.close()


def test_each_address_gets_a_message_once(checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Receiver()
    other.status = 500
    monkeypatch.setenv(ADDRESSES, f"{receiver.address} {other.address}")
    outbox.put("one", "1", addresses())
    [(address, _reason)] = outbox.send(addresses())
    assert str(address) == "address 2 (json)"
    other.status = 200
    outbox.send(addresses())
    other.close()

    assert receiver.titles == other.titles == ["one"]


def test_a_receiver_that_hangs_delays_nobody(checkout: Path, receiver: Receiver) -> None:
    receiver.delay = 1.5
    outbox.put("slow", "1", addresses())
    started = time.monotonic()
    [(_address, reason)] = outbox.send(addresses(), seconds=0.2)

    assert time.monotonic() - started < 1
    assert reason == "no answer in 0.2 seconds"
    assert [message.title for message in outbox.waiting()] == ["slow"]


def test_news_of_last_week_and_of_nobody_are_dropped(
    checkout: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.put("old", "1", addresses())
    [path] = outbox.OUTBOX.glob("*.json")
    old = (datetime.now(UTC) - timedelta(days=8)).isoformat(timespec="seconds")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": old}))
    outbox.put("of nobody", "1", [address._replace(url="json://localhost/other") for address in addresses()])
    (outbox.OUTBOX / "00.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert outbox.send(addresses()) == []

    assert (receiver.received, outbox.waiting()) == ([], [])
    assert [re.sub(r" of \S+ ", " ", record.getMessage()) for record in caplog.records] == [
        "a notification is damaged and not delivered: see .trueline/notifications/00.damaged",
        "a notification (old) is older than 7 days: it is dropped",
        "a notification (of nobody) was for an address that is named no more: it is dropped",
    ]


def test_a_late_message_says_when_it_was(checkout: Path, receiver: Receiver) -> None:
    outbox.put("late", "text", addresses())
    [path] = outbox.OUTBOX.glob("*.json")
    earlier = (datetime.now(UTC) - timedelta(hours=2)).isoformat(timespec="seconds")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time": earlier}))
    outbox.send(addresses())

    assert receiver.texts == [f"text\n(of {earlier}, delivered late)"]


def test_no_part_of_an_address_is_shown_or_saved(
    checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "jsons://somebody:wordofpass@127.0.0.1:9/path-of-secret-words?+X-Token=abcdefghijkl"
    monkeypatch.setenv(ADDRESSES, secret)
    outbox.put("one", "1", addresses())
    [(address, reason)] = outbox.send(addresses())
    saved = "".join(path.read_text() for path in outbox.OUTBOX.glob("*.json"))

    for part in ("somebody", "wordofpass", "path-of-secret-words", "abcdefghijkl"):
        assert part not in f"{address} {reason} {saved}"
    assert without_secrets("the words path-of-secret-words in a log") == "the words … in a log"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mail.example.com", "entry without a scheme, number 1"),
        ("json://localhost prefect-secret://pager", "names the Prefect secret pager, but PREFECT_API_URL names no"),
    ],
)
def test_addresses_that_are_none(checkout: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv(ADDRESSES, value)
    with pytest.raises(InputError, match=message):
        addresses()


def test_an_address_that_apprise_does_not_know(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESSES, "pigeon://coop")
    outbox.put("one", "1", addresses())
    [(_address, reason)] = outbox.send(addresses())

    assert reason.startswith("apprise knows no such address")
