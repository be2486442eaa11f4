"""Who is asked, and when; the form itself is filled in by tests/registry/test_approval.py, on a server."""

from typing import Any

import pytest

from flows.pipeline import approval as module
from flows.pipeline import flow as pipeline
from tasks.registry.promotion import champion
from tasks.registry.promotion.champion import Promotion

HELD = Promotion(promoted=False, held=True, version=3, champion=2, reasons=[])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    asked: list[Any] = []
    monkeypatch.setattr(module, "run_deployment", lambda name, **options: asked.append((name, options)))
    return asked


def test_a_scheduled_run_has_a_person_asked_once(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "an id")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__NAME", "scheduled")

    module.ask(HELD)

    ((name, options),) = asked
    assert (name, options["parameters"]) == ("trueline-approval/asked", {"version": 3})
    assert (options["timeout"], options["idempotency_key"]) == (0, "version 3 after 2")


def test_a_run_of_the_command_line_asks_there(asked: list[Any]) -> None:
    module.ask(HELD)

    assert asked == []


@pytest.mark.parametrize("held", [True, False])
def test_the_flow_asks_where_a_version_is_held(monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    asked: list[Any] = []
    verdict = Promotion(**{**HELD, "held": held})
    monkeypatch.setattr(champion, "promote", lambda _params: verdict)
    monkeypatch.setattr(pipeline, "ask", asked.append)

    assert pipeline.promote.fn(None) == verdict  # type: ignore[arg-type]
    assert asked == ([verdict] if held else [])


@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_what_the_form_says_is_done(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    calls: list[Any] = []
    form = module.Form(answer=answer, by="Ada", reason="Good.")
    monkeypatch.setattr(module, "suspend_flow_run", lambda wait_for_input: form)
    monkeypatch.setattr(module, "load_params", lambda: "params")

    def publish(params: Any) -> list[str]:
        calls.append(("publish", params))
        return []

    monkeypatch.setattr(module, "publish_after_run", publish)
    for act in ("approve", "reject"):
        monkeypatch.setattr(champion, act, lambda *given, act=act: calls.append((act, *given)))

    module.approval.fn(3)

    assert calls == [(answer, "params", "3", "Ada", "Good."), ("publish", "params")]
