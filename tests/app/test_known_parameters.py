"""No call takes a query parameter that it doesn't have: who mistypes a filter would believe its answer."""

from __future__ import annotations

import pytest

from tests.app.factories import Service
from tests.app.test_tenants import EXTRAS, never_given


def test_every_operation_refuses_what_it_does_not_know(sqlite_service: Service) -> None:
    values = {**never_given(), "name": "net"}
    contract = sqlite_service.http.get("/v1/openapi.json").json()["paths"]
    calls = [(method, path) for path, methods in contract.items() for method in methods if "healthz" not in path]
    assert len(calls) > 30
    for method, path in calls:
        url = path.format(**values)
        answer = sqlite_service.http.request(
            method, url, params={"nonsense": 1, "Wait": 2}, **EXTRAS.get((method, path), {})
        )
        assert answer.status_code == 422, (method, path)
        if method != "head":
            found = [(error["location"], error["code"]) for error in answer.json()["errors"]]
            assert found == [("Wait", "query.unknown"), ("nonsense", "query.unknown")], (method, path)


@pytest.mark.parametrize(
    ("url", "given", "meant"),
    [
        ("/v1/fusions", "stat", "state"),
        ("/v1/fusions/fus_x/trace", "layers", "layer"),
        ("/v1/fusions", "Limit", "limit"),
    ],
)
def test_the_one_that_was_meant_is_named(sqlite_service: Service, url: str, given: str, meant: str) -> None:
    problem = sqlite_service.http.get(url, params={given: "1"}).json()
    assert problem["detail"] == f"{given}: is no parameter of this call; did you mean {meant!r}?"


def test_a_probe_may_ask_as_it_likes(sqlite_service: Service) -> None:
    for prefix in ("", "/v1"):
        assert sqlite_service.http.get(f"{prefix}/healthz/live", params={"x": 1}).status_code == 200


def test_many_and_long_ones_are_told_in_short(sqlite_service: Service) -> None:
    query = "&".join(f"{'x' * 100}{number}" for number in range(60))
    problem = sqlite_service.http.get(f"/v1/fusions?{query}&limit=3").json()
    assert len(problem["errors"]) == 20
    assert max(len(error["location"]) for error in problem["errors"]) == 64
