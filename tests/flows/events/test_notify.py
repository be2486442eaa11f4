import os
from pathlib import Path

import pytest

from flows.events import outbox
from flows.events.addresses import addresses
from flows.events.notify import deliver_waiting, send_test
from tasks.common.errors import InputError
from tasks.common.safe_text import ADDRESSES
from tests.flows.events.conftest import Receiver


def test_a_test_message_says_which_address_failed(
    checkout: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESSES, f"json://127.0.0.1:9/x {receiver.address}")
    notified = send_test()

    assert receiver.titles == [f"Trueline test: {checkout.name} on {os.uname().nodename}"]
    first, second = notified["addresses"]
    assert first["address"] == "address 1 (json)"
    assert first["fault"].startswith("A Connection error occurred")
    assert second == {"address": "address 2 (json)", "fault": None}
    assert notified["waiting"] == []


def test_what_waits_is_delivered_and_the_rest_shown(checkout: Path, receiver: Receiver) -> None:
    receiver.status = 500
    outbox.put("one", "1", addresses())
    [waiting] = deliver_waiting()["waiting"]
    assert waiting["title"] == "one"
    receiver.status = 200
    assert deliver_waiting() == {"addresses": [{"address": "address 1 (json)", "fault": None}], "waiting": []}
    assert receiver.titles == ["one"]


def test_no_address(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESSES)
    with pytest.raises(InputError, match=f"{ADDRESSES} names no address"):
        send_test()
