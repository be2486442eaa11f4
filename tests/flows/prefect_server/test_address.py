"""What a Prefect server's answers mean."""

import httpx
import pytest

from flows.prefect_server import address


@pytest.mark.parametrize(("status", "ready"), [(200, True), (404, True), (503, False)])
def test_a_server_without_its_database_is_healthy_and_not_ready(
    monkeypatch: pytest.MonkeyPatch, status: int, ready: bool
) -> None:
    """Prefect says 503; another that does not know the question is as ready as it is healthy."""
    answers = {"health": 200, "ready": status}
    monkeypatch.setattr(httpx, "get", lambda url, **_options: httpx.Response(answers[url.rpartition("/")[2]]))
    assert address.is_healthy("http://127.0.0.1:4200/api")
    assert address.is_ready("http://127.0.0.1:4200/api") == ready
