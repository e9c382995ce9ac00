"""Tokens of an identity provider: checked against keys that are really fetched; nothing forged is taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jwt
import pytest
from sqlalchemy import select

from app.auth import jwks
from app.auth import service as accounts
from app.auth.errors import IssuerUnreachable
from app.auth.jwks import KeyNotThere, KeySet
from app.settings import Settings
from app.store.models import Account
from tests.app.access import Guarded
from tests.app.conftest import guarded_by_keys, running
from tests.app.factories import Service
from tests.app.issuer import AUDIENCE, Provider, new_key, provider, public_pem


@pytest.fixture
def issuer() -> Iterator[Provider]:
    with provider() as started:
        yield started


def trusting(settings: Settings, issuer: Provider, **changes: Any) -> Settings:
    """Settings of a service that takes the provider's tokens."""
    oidc = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE, "oidc_leeway_seconds": 5}
    return guarded_by_keys(settings, require_keys=False, **{**oidc, **changes})


def ask(service: Service, token: str, method: str = "GET", url: str = "/v1/checkpoints") -> httpx.Response:
    return service.http.request(method, url, headers={"Authorization": f"Bearer {token}"})


def _unsigned(issuer: Provider, header: dict[str, str], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(issuer.claims()).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def _signed_with_public_key(issuer: Provider, key_id: str) -> str:
    """HS256, with what is public as the secret: taken by whoever believes the token's own header."""
    start = _unsigned(issuer, {"alg": "HS256", "kid": key_id}).rpartition(".")[0]
    signature = hmac.digest(public_pem(issuer.keys[key_id][1]), start.encode(), hashlib.sha256)
    return f"{start}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def test_tokens_of_each_kind_of_key_are_taken_and_their_account_is_made_once(
    settings: Settings, issuer: Provider
) -> None:
    with running(trusting(settings, issuer)) as service:
        for key_id in issuer.keys:
            assert ask(service, issuer.token(key_id)).status_code == 200
            assert ask(service, issuer.token(key_id, aud=["other", AUDIENCE])).status_code == 200
        assert ask(service, issuer.token(key_id, sub="another")).status_code == 200
        with service.context.database.reading() as session:
            rows = session.scalars(select(Account).order_by(Account.name)).all()
        assert [(row.tenant, row.name, row.secret_hash) for row in rows] == [
            ("one", "another", None),
            ("one", "someone", None),
        ]
        assert all(row.id.startswith("oidc:") and len(row.id) <= 64 for row in rows)
        assert sorted(set(issuer.asked)) == ["/.well-known/openid-configuration", "/keys"]
        assert len(issuer.asked) == 2  # and then remembered
        key = Guarded(service).key("one")
        with Guarded(service).client(key) as http:  # keys go on beside tokens
            assert http.get("/v1/checkpoints").status_code == 200


def test_a_token_that_is_not_good_is_refused(sqlite_settings: Settings, issuer: Provider) -> None:
    now = int(time.time())
    rsa, ec, ed = issuer.keys
    stranger = new_key("RS256")
    good = issuer.token(rsa)
    tampered = good.split(".")
    tampered[1] = _unsigned(issuer, {}).split(".")[1] + "A"
    wrong = {
        "expired": issuer.token(rsa, exp=now - 6),
        "no expiry": issuer.token(rsa, exp=None),
        "not yet": issuer.token(rsa, nbf=now + 60),
        "another audience": issuer.token(rsa, aud="other"),
        "no audience": issuer.token(rsa, aud=None),
        "another issuer": issuer.token(rsa, iss="https://evil.example"),
        "no issuer": issuer.token(rsa, iss=None),
        "no subject": issuer.token(rsa, sub=None),
        "a stranger's key": jwt.encode(issuer.claims(), stranger, algorithm="RS256", headers={"kid": rsa}),
        "another kind of key": jwt.encode(issuer.claims(), issuer.keys[ec][1], algorithm="ES256", headers={"kid": rsa}),
        "another algorithm of the key": jwt.encode(issuer.claims(), issuer.keys[rsa][1], "RS512", {"kid": rsa}),
        "no key named": jwt.encode(issuer.claims(), issuer.keys[ed][1], algorithm="EdDSA"),
        "none": _unsigned(issuer, {"alg": "none", "kid": rsa}),
        "None": _unsigned(issuer, {"alg": "None", "kid": rsa}),
        "the public key as a secret": _signed_with_public_key(issuer, rsa),
        "a shared secret that was published": jwt.encode(issuer.claims(), b"x" * 32, "HS256", {"kid": "shared"}),
        "tampered": ".".join(tampered),
        "cut": good.rpartition(".")[0],
        "no token": "abc",
    }
    issuer.extra = [{"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(b"x" * 32).decode()}, {"kty": "new"}]
    with running(trusting(sqlite_settings, issuer)) as service:
        for name, token in wrong.items():
            answer = ask(service, token)
            assert (answer.status_code, answer.json()["code"]) == (401, "auth.invalid"), name
            assert "invalid_token" in answer.headers["WWW-Authenticate"]
        assert ask(service, good).status_code == 200
        leeway = issuer.token(rsa, exp=now + 2, nbf=now + 2)
        assert ask(service, leeway).status_code == 200
        with service.context.database.reading() as session:
            assert len(session.scalars(select(Account)).all()) == 1
        odd = issuer.token(rsa, sub="a\x00b\ud800" + "x" * 300, exp=10**15)
        assert ask(service, odd).status_code == 200


def test_tenant_and_scopes_are_the_tokens(sqlite_settings: Settings, issuer: Provider) -> None:
    key_id = next(iter(issuer.keys))
    with running(trusting(sqlite_settings, issuer, oidc_tenant_claim="org", oidc_scope_claim="scp")) as service:
        upload = ("PUT", "/v1/checkpoints/a/files/b.json")
        token = issuer.token(key_id, org="two", scp=["cogram:read", "cogram:fuse"])
        assert ask(service, token).status_code == 200
        assert ask(service, token, *upload).json()["code"] == "auth.scope"
        assert ask(service, issuer.token(key_id, org="two", scp="upload read")).json()["code"] == "auth.scope"
        assert ask(service, issuer.token(key_id, org="two", scp=7)).json()["code"] == "auth.scope"
        assert ask(service, issuer.token(key_id, org="two", scp="cogram:upload"), *upload).status_code == 201
        for tenant in (None, "", "a b", ["two"], 3):
            answer = ask(service, issuer.token(key_id, org=tenant, scp="cogram:read"))
            assert (answer.status_code, answer.json()["code"]) == (403, "auth.tenant")
            assert "COGRAM_OIDC_TENANT_CLAIM" in answer.json()["detail"]
        moved = issuer.token(key_id, org="three", scp="cogram:read")
        assert ask(service, moved).status_code == 200
        with service.context.database.reading() as session:
            assert session.scalars(select(Account.tenant)).all() == ["three"]


def test_a_subject_can_be_revoked_and_has_the_quotas_of_the_settings(
    sqlite_settings: Settings, issuer: Provider
) -> None:
    key_id = next(iter(issuer.keys))
    with running(trusting(sqlite_settings, issuer, quota_bytes=10, key_cache_seconds=0)) as service:
        token = issuer.token(key_id)
        with httpx.Client(base_url=service.http.base_url, headers={"Authorization": f"Bearer {token}"}) as http:
            assert http.put("/v1/checkpoints/a/files/a", content=b"x" * 10).status_code == 201
            assert http.put("/v1/checkpoints/a/files/b", content=b"x").json()["code"] == "quota.bytes"
            with service.context.database.transaction() as session:
                accounts.revoke(session, session.scalars(select(Account.id)).one())
            assert http.get("/v1/checkpoints").json()["code"] == "auth.invalid"


def test_a_new_key_is_asked_for_but_not_for_every_unknown_one(issuer: Provider) -> None:
    known = next(iter(issuer.keys))
    eager = KeySet(issuer.url, f"{issuer.url}/keys", pause_seconds=0)
    assert eager.find(known).key_id == known
    assert eager.find(issuer.add("ES256")).key_type == "EC"
    assert issuer.asked == ["/keys"] * 2
    patient = KeySet(issuer.url, f"{issuer.url}/keys", pause_seconds=3600)
    for _ in range(5):
        with pytest.raises(KeyNotThere):
            patient.find("nobody's")
    assert patient.find(known).key_id == known
    assert issuer.asked == ["/keys"] * 3


def test_keys_are_used_on_for_a_while_when_the_provider_is_away(
    issuer: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(iter(issuer.keys))
    keys = KeySet(issuer.url, None, pause_seconds=0)
    keys.find(known)
    issuer.broken = True
    monkeypatch.setattr(jwks, "_FRESH_SECONDS", 0.0)
    assert keys.find(known).key_id == known
    assert len(issuer.asked) == 3  # it was asked again, in vain
    monkeypatch.setattr(jwks, "_USABLE_SECONDS", 0.0)
    with pytest.raises(IssuerUnreachable):
        keys.find(known)


@pytest.mark.parametrize("fault", ["broken", "another issuer", "no list", "too long", "nobody there"])
def test_a_provider_that_gives_no_keys_is_told_as_such(
    sqlite_settings: Settings, issuer: Provider, free_port: int, fault: str
) -> None:
    issuer.broken = fault == "broken"
    if fault == "another issuer":
        issuer.says_it_is = "https://evil.example"
    if fault == "too long":
        issuer.extra = [{"kty": "x" * (1 << 20)}]
    url = {"no list": f"{issuer.url}/.well-known/openid-configuration", "nobody there": f"http://127.0.0.1:{free_port}"}
    with running(
        trusting(sqlite_settings, issuer, oidc_jwks_url=url.get(fault), auth_failures_per_minute=1)
    ) as service:
        for _ in range(3):  # no fault of the caller's, so it counts against nobody
            answer = ask(service, issuer.token(next(iter(issuer.keys))))
            assert (answer.status_code, answer.json()["code"]) == (503, "auth.issuer_unreachable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert service.http.get("/healthz/live").status_code == 200


def test_a_slow_provider_holds_nobody_up_but_who_needs_it(sqlite_settings: Settings, issuer: Provider) -> None:
    issuer.gate.clear()
    with running(trusting(sqlite_settings, issuer)) as service, ThreadPoolExecutor(20) as threads:
        key = Guarded(service).key("one")
        tokens = [issuer.token(next(iter(issuer.keys)), sub=str(number)) for number in range(20)]
        waiting = [threads.submit(ask, service, token) for token in tokens]
        try:
            assert issuer.reached.wait(20)
            assert service.http.get("/healthz/live").status_code == 200
            with Guarded(service).client(key) as http:
                assert http.get("/v1/checkpoints").status_code == 200
            assert not any(answer.done() for answer in waiting)
        finally:
            issuer.gate.set()
        assert {answer.result().status_code for answer in waiting} == {200}
    assert len(issuer.asked) == 2


def test_without_a_provider_its_libraries_are_not_loaded() -> None:
    code = "import sys\nfrom app.main import create_app\ncreate_app().openapi()\n"
    code += "print(*{'jwt', 'cryptography'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
