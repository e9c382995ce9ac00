"""A call that is sent again under its Idempotency-Key is not done again; two at once are done once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.store.models import Checkpoint, Event, Fusion, IdempotentCall, OutboxMessage
from tests.app.access import Guarded
from tests.app.factories import Service, chain, examples

AT_ONCE = 16
KEY = {"Idempotency-Key": "a key"}


def _rows(service: Service, table: Any) -> int:
    with service.context.database.reading() as session:
        return int(session.scalars(select(func.count()).select_from(table)).one())


def _check_replay(first: httpx.Response, again: httpx.Response) -> None:
    assert (again.status_code, again.content) == (first.status_code, first.content)
    for header in ("Location", "Retry-After", "Content-Type"):
        assert again.headers.get(header) == first.headers.get(header)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"


def test_the_same_call_gets_the_same_answer_and_is_done_once(service: Service) -> None:
    recipe = service.recipe()
    first = service.http.post("/v1/fusions", json=recipe, headers=KEY)
    assert first.status_code == 202
    service.succeed(first.json()["id"], {})
    _check_replay(first, service.http.post("/v1/fusions", json=recipe, headers=KEY))
    assert _rows(service, Fusion) == 1
    assert service.http.post("/v1/fusions", json=recipe, headers={"Idempotency-Key": "b"}).status_code == 202
    assert service.http.post("/v1/fusions", json=recipe).status_code == 202
    assert _rows(service, Fusion) == 3


def test_an_answer_with_a_key_is_the_answer_without_one(service: Service) -> None:
    recipe = service.recipe()
    plain = service.http.post("/v1/fusions", json=recipe)
    keyed = service.http.post("/v1/fusions", json=recipe, headers=KEY)
    assert plain.headers.keys() == keyed.headers.keys()
    assert plain.json().keys() == keyed.json().keys()
    assert service.http.get(keyed.headers["Location"]).json() == keyed.json()


def test_a_key_that_stands_for_another_call_is_refused(service: Service) -> None:
    recipe = service.recipe()
    service.upload("checkpoints", "net", "model.safetensors", chain())
    assert service.http.post("/v1/fusions", json=recipe, headers=KEY).status_code == 202
    for url, document in (
        ("/v1/fusions", recipe | {"seed": 1}),
        ("/v1/checkpoints", {"name": "net"}),
    ):
        answer = service.http.post(url, json=document, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency.reused")
        assert answer.json()["errors"][0]["location"] == "Idempotency-Key"
    assert _rows(service, Fusion) == 1


def test_what_was_refused_may_be_asked_for_again(service: Service) -> None:
    recipe = service.recipe()
    wrong = recipe | {"seed": "x"}
    for _ in range(2):
        assert service.http.post("/v1/fusions", json=wrong, headers=KEY).status_code == 422
    assert service.http.post("/v1/fusions", json=recipe, headers=KEY).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, b"\xc3\xa9", "a\tb"])
def test_a_key_is_printable_ascii_and_not_too_long(sqlite_service: Service, key: str | bytes) -> None:
    answer = sqlite_service.http.post("/v1/fusions", json={}, headers={"Idempotency-Key": key})  # type: ignore[dict-item]
    assert answer.status_code == 422
    assert [entry["location"] for entry in answer.json()["errors"]] == ["Idempotency-Key"]


def test_calls_at_once_under_one_key_make_one_fusion(service: Service) -> None:
    recipe = service.recipe()

    def submit(_: int) -> httpx.Response:
        return service.http.post("/v1/fusions", json=recipe, headers=KEY)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(submit, range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    assert Counter("Idempotency-Replayed" in answer.headers for answer in answers) == {True: AT_ONCE - 1, False: 1}
    assert [_rows(service, table) for table in (Fusion, OutboxMessage, Event, IdempotentCall)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "content"), [("checkpoints", chain()), ("datasets", examples())])
def test_things_made_of_uploaded_files_are_made_once_though_the_files_are_used_up(
    service: Service, kind: str, content: bytes
) -> None:
    service.upload(kind, "x", "x.safetensors", content)

    def make(_: int) -> httpx.Response:
        return service.http.post(f"/v1/{kind}", json={"name": "x"}, headers=KEY)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(make, range(8)))
    assert {answer.status_code for answer in answers} == {201}
    first = next(answer for answer in answers if "Idempotency-Replayed" not in answer.headers)
    _check_replay(first, make(0))
    assert service.http.get(f"/v1/{kind}").json()["items"] == [first.json()]


def test_a_key_is_its_accounts_own(guarded: Guarded) -> None:
    with guarded.calling(guarded.key("one")) as one, guarded.calling(guarded.key("two")) as two:
        made = []
        for caller in (one, two):
            caller.upload("checkpoints", "net", "model.safetensors", chain())
            answer = caller.http.post("/v1/checkpoints", json={"name": "net"}, headers=KEY)
            assert "Idempotency-Replayed" not in answer.headers
            made.append(answer.json()["id"])
    assert len(set(made)) == 2
    assert _rows(guarded.service, Checkpoint) == 2


def test_what_a_quota_refused_leaves_no_answer_behind(guarded: Guarded) -> None:
    with guarded.calling(guarded.key("one")) as plenty:
        recipe = plenty.recipe()
    key = guarded.key("one", concurrent=1)
    with guarded.calling(key) as one:
        first = one.http.post("/v1/fusions", json=recipe, headers=KEY)
        other = {"Idempotency-Key": "other"}
        assert one.http.post("/v1/fusions", json=recipe, headers=other).json()["code"] == "quota.concurrent"
        _check_replay(first, one.http.post("/v1/fusions", json=recipe, headers=KEY))  # is done, so it needs no place
        one.succeed(first.json()["id"], {})
        assert one.http.post("/v1/fusions", json=recipe, headers=other).status_code == 202
