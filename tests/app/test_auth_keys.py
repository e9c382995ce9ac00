"""API keys: who has none gets nothing, who has one gets what its scopes allow, and a revoked one soon ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import select

from app.auth import Scope
from app.auth.keys import account_of, new_key, secret_hash
from app.main import create_app
from app.settings import Settings
from app.store.models import Account, Blob, UploadedFile
from tests.app.access import Guarded
from tests.app.conftest import guarded_by_keys, running
from tests.app.factories import Service, chain

SCANNED = re.compile(r"\bcgm_[0-9a-hjkmnp-tv-z]{12}_[0-9A-Za-z]{49}\b")


def _problem(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, str] = answer.json()
    return document


def _soon(asked: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if asked():
            return True
        time.sleep(0.05)
    return False


def test_a_key_is_of_one_form_with_a_checksum_and_kept_as_a_hash_only(guarded: Guarded) -> None:
    key = guarded.key()
    assert SCANNED.fullmatch(key.text)
    assert account_of(key.text) == key.account
    for place in (4, 20, len(key.text) - 1):
        other = "x" if key.text[place] != "x" else "y"
        assert account_of(key.text[:place] + other + key.text[place + 1 :]) is None
    assert len({new_key().text for _ in range(100)}) == 100
    with guarded.service.context.database.reading() as session:
        row = session.scalars(select(Account)).one()
        kept = " ".join(str(value) for name, value in vars(row).items() if not name.startswith("_"))
    assert row.secret_hash == secret_hash(key.text)
    assert key.text[17:] not in kept


def test_without_a_good_key_there_is_nothing_but_health_and_the_contract(guarded: Guarded) -> None:
    good = guarded.key()
    forged = new_key().text  # well formed, and nobody's
    stolen = f"cgm_{good.account.removeprefix('key_')}_{forged[17:]}"
    urls = ["/v1/fusions", "/v1/methods", "/v1/checkpoints/x", "/nowhere", "/v1/healthz/live/"]
    with httpx.Client(base_url=guarded.address) as http:
        for url in urls:
            answer = http.get(url)
            _problem(answer, 401, "auth.required")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        bad = [f"Bearer {text}".encode() for text in (forged, stolen, "cgm_x", "e.y.j", "cgm_Ā")]
        for authorization in bad:
            _problem(http.get(urls[0], headers={"Authorization": authorization}), 401, "auth.invalid")
        for authorization in ("Bearer", f"Basic {good.text}", good.text):
            _problem(http.get(urls[0], headers={"Authorization": authorization}), 401, "auth.required")
        for url in ("/healthz/live", "/healthz/ready", "/v1/healthz/live", "/v1/healthz/ready", "/v1/openapi.json"):
            assert http.get(url).status_code == 200
        assert http.get(urls[0], headers={"Authorization": f"bEARER  {good.text}"}).status_code == 200
        assert (
            http.get(urls[0], headers={"Authorization": f"Bearer {good.text}", "Host": "any.name"}).status_code == 200
        )


def test_nothing_of_a_body_is_read_before_the_key(guarded: Guarded) -> None:
    with httpx.Client(base_url=guarded.address) as http:
        for content in (b"{", b"x" * 2_000_000):
            _problem(http.post("/v1/fusions", content=content), 401, "auth.required")
        _problem(http.put("/v1/checkpoints/a/files/b", content=b"x"), 401, "auth.required")
    assert guarded.service.blobs() == []
    with guarded.service.context.database.reading() as session:
        assert session.scalars(select(Blob)).all() == []


def test_revoked_expired_and_unknown_keys_get_one_answer_soon(guarded: Guarded) -> None:
    revoked, expiring = guarded.key(), guarded.key(days=1.0 / 86400)
    with guarded.client(revoked) as first, guarded.client(expiring) as second, guarded.client(new_key()) as third:
        assert first.get("/v1/fusions").status_code == 200
        guarded.revoke(revoked)
        assert _soon(lambda: first.get("/v1/fusions").status_code == 401)
        assert _soon(lambda: second.get("/v1/fusions").status_code == 401)
        answers = [http.get("/v1/fusions") for http in (first, second, third)]
    seen = {
        (answer.status_code, answer.headers["WWW-Authenticate"], answer.json()["code"], answer.json()["detail"])
        for answer in answers
    }
    assert len(seen) == 1


def test_a_stream_of_events_ends_with_its_key(guarded: Guarded) -> None:
    key = guarded.key()
    with guarded.calling(key) as one, guarded.client(key) as follower:
        url = f"/v1/fusions/{one.fusion()}/events"
        with follower.stream("GET", url) as answer:
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith("event: ")) == "event: queued"
            guarded.revoke(key)
            assert [line for line in lines if line.startswith("event: ")] == []  # and it ends
        assert follower.get(url).status_code == 401


def test_every_stream_of_a_revoked_key_ends_however_many_guess_from_its_address(sqlite_settings: Settings) -> None:
    with running(guarded_by_keys(sqlite_settings, auth_failures_per_minute=1)) as started:
        guarded = Guarded(started)
        key = guarded.key()
        with guarded.calling(key) as one, guarded.client(key) as follower, guarded.client(new_key()) as guesser:
            url = f"/v1/fusions/{one.fusion()}/events"
            with follower.stream("GET", url) as first, follower.stream("GET", url) as second:
                assert _soon(lambda: guesser.get("/v1/fusions").status_code == 429)
                guarded.revoke(key)
                for answer in (first, second):
                    assert "event: queued" in list(answer.iter_lines())  # and it ends


def test_many_that_bring_a_key_for_the_first_time_at_once_are_all_let_in(sqlite_settings: Settings) -> None:
    with running(guarded_by_keys(sqlite_settings, auth_failures_per_minute=1)) as started:
        guarded = Guarded(started)
        keys = [guarded.key() for _ in range(20)]

        def ask(number: int) -> int:
            headers = {"Authorization": f"Bearer {keys[number % 20].text}"}
            return started.http.get("/v1/methods", headers=headers).status_code

        with ThreadPoolExecutor(20) as threads:
            assert set(threads.map(ask, range(60))) == {200}


def test_a_scope_that_is_missing_is_named(guarded: Guarded) -> None:
    calls = {
        Scope.READ: ("GET", "/v1/fusions"),
        Scope.UPLOAD: ("PUT", "/v1/checkpoints/a/files/model.safetensors"),
        Scope.FUSE: ("POST", "/v1/fusions/fus_0/cancel"),
    }
    for scope, (method, url) in calls.items():
        others = [other for other in Scope if other is not scope]
        with guarded.client(guarded.key("one", *others)) as http:
            answer = http.request(method, url)
            problem = _problem(answer, 403, "auth.scope")
        assert problem["detail"].startswith(f"This call needs the scope '{scope.value}', and")
        assert f'scope="{scope}"' in answer.headers["WWW-Authenticate"]
        with guarded.client(guarded.key("one", scope)) as http:
            assert http.request(method, url).status_code not in (401, 403)


def test_what_a_caller_makes_is_their_accounts_and_their_tenants(guarded: Guarded) -> None:
    key = guarded.key("one")
    with guarded.calling(key) as one:
        made = one.checkpoint("net")
        one.upload("datasets", "eval", "data.safetensors", chain())
    with guarded.service.context.database.reading() as session:
        file = session.scalars(select(UploadedFile)).one()
        assert (file.owner, file.tenant) == (key.account, "one")
    with guarded.client(guarded.key("one", Scope.READ)) as colleague, guarded.client(guarded.key("two")) as stranger:
        assert colleague.get(f"/v1/checkpoints/{made['id']}").json() == made
        assert stranger.get(f"/v1/checkpoints/{made['id']}").status_code == 404
        assert stranger.get("/v1/checkpoints").json()["items"] == []


def test_a_service_that_needs_no_key_still_looks_at_one(service: Service) -> None:
    guarded = Guarded(service)
    key = guarded.key("one", Scope.READ)
    with guarded.client(key) as http:
        assert http.get("/v1/fusions").status_code == 200
        _problem(http.put("/v1/checkpoints/a/files/b", content=b"x"), 403, "auth.scope")
    with guarded.client(new_key()) as http:
        _problem(http.get("/v1/fusions"), 401, "auth.invalid")
    for of_a_proxy in ("Basic eDp5", "Bearer something.else"):
        assert service.http.get("/v1/fusions", headers={"Authorization": of_a_proxy}).status_code == 200


def test_keys_cant_be_guessed_fast_and_a_good_one_goes_on(sqlite_settings: Settings) -> None:
    with running(guarded_by_keys(sqlite_settings, auth_failures_per_minute=5)) as started:
        guarded = Guarded(started)
        with guarded.client(guarded.key()) as good, guarded.client(new_key()) as guesser:
            assert good.get("/v1/fusions").status_code == 200
            answers = [guesser.get("/v1/fusions") for _ in range(12)]
            assert {answer.status_code for answer in answers} == {401, 429}
            refused = next(answer for answer in answers if answer.status_code == 429)
            _problem(refused, 429, "rate.failures")
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            time.sleep(0.3)  # longer than it is remembered, as it has to be looked up again
            assert good.get("/v1/fusions").status_code == 200
            assert started.http.get("/v1/fusions").status_code == 401  # nothing guessed, nothing counted


@pytest.mark.parametrize("required", [False, True])
def test_the_contract_says_what_needs_a_key(sqlite_settings: Settings, required: bool) -> None:
    document = create_app(sqlite_settings.model_copy(update={"require_keys": required})).openapi()
    assert ("securitySchemes" in document["components"]) is required
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) is (required and "healthz" not in path)
            if "healthz" not in path:
                assert {"401", "403", "429"} <= set(operation["responses"])
