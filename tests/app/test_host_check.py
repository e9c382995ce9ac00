"""A web page that points a name of its own at this machine (DNS rebinding) gets no answer."""

from __future__ import annotations

import pytest

from tests.app.factories import Service


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost:8765", "LocalHost", "[::1]", "[::1]:8765"])
def test_names_of_this_machine_are_answered(sqlite_service: Service, host: str) -> None:
    assert sqlite_service.http.get("/v1/fusions", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.", "127.0.0.1:8765@evil", "::1", ""],
)
def test_any_other_name_is_refused_with_the_remedy(sqlite_service: Service, host: str) -> None:
    for method, url in (("GET", "/v1/fusions"), ("PUT", "/v1/checkpoints/a/files/b.json"), ("GET", "/healthz/live")):
        answer = sqlite_service.http.request(method, url, headers={"Host": host}, content=b"{}")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (421, "request.host")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "call it by one of them" in problem["detail"]
        assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert sqlite_service.blobs() == []
