"""Without keys only this machine is served, and no web page that it happens to look at."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from app.api import run_api
from app.listening import CannotServe, check_access
from app.main import create_app
from app.serve import serve
from app.settings import Settings
from tests.app.conftest import guarded_by_keys, running
from tests.app.factories import Service

FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_origin_changes_nothing(sqlite_service: Service, headers: dict[str, str]) -> None:
    for method, url in (
        ("POST", "/v1/fusions"),
        ("PUT", "/v1/checkpoints/a/files/b.json"),
        ("POST", "/v1/fusions/fus_0/cancel"),
        ("DELETE", "/v1/fusions/fus_0"),
    ):
        answer = sqlite_service.http.request(
            method, url, headers={**headers, "Content-Type": "text/plain"}, content=b"{}"
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "request.origin")
    assert sqlite_service.blobs() == []
    assert (
        sqlite_service.http.get("/v1/fusions", headers=headers).status_code == 200
    )  # reads: no page can see the answer


def test_a_page_of_the_service_itself_may_act(sqlite_service: Service) -> None:
    host = sqlite_service.http.base_url.netloc.decode()
    for headers in ({"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        answer = sqlite_service.http.put("/v1/checkpoints/a/files/b.json", headers=headers, content=b"{}")
        assert answer.status_code == 201


def test_names_of_the_service_are_answered_and_their_pages_may_act(sqlite_settings: Settings) -> None:
    with running(sqlite_settings.model_copy(update={"allowed_hosts": ("fuse.example",)})) as started:
        url = "/v1/checkpoints/a/files/b.json"
        named = {"Host": "fuse.example", "Origin": "https://fuse.example"}
        assert started.http.put(url, headers=named, content=b"{}").status_code == 201
        assert started.http.put(url, content=b"{}").status_code == 201
        assert started.http.get("/v1/fusions", headers={"Host": "other.example"}).status_code == 421
    with running(guarded_by_keys(sqlite_settings, allowed_hosts=("fuse.example",))) as started:
        assert started.http.get("/v1/fusions", headers={"Host": "fuse.example"}).status_code == 401
        assert started.http.get("/v1/fusions", headers={"Host": "other.example"}).status_code == 421


def test_allowed_hosts_come_from_the_environment_parted_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGRAM_ALLOWED_HOSTS", "fuse.example, other.example ,")
    assert Settings().allowed_hosts == ("fuse.example", "other.example")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_can_reach_is_refused_without_keys(host: str, tmp_path: Path) -> None:
    bare = Settings(host=host, port=0, data_dir=tmp_path / "data")
    for start in (run_api, lambda settings: serve(settings, print)):
        with pytest.raises(CannotServe, match="COGRAM_REQUIRE_KEYS=true"):
            start(bare)
    assert not bare.data_dir.exists()
    check_access(bare.model_copy(update={"require_keys": True}))
    check_access(bare.model_copy(update={"oidc_issuer": "https://id.example", "oidc_audience": "cogram"}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_addresses_of_this_machine_need_no_keys(host: str) -> None:
    check_access(Settings(host=host))


def test_an_identity_provider_is_described_in_full_and_asked_over_https() -> None:
    for wrong in (
        {"oidc_issuer": "https://id.example"},
        {"oidc_issuer": "http://id.example", "oidc_audience": "cogram"},
        {"oidc_issuer": "https://id.example", "oidc_audience": "cogram", "oidc_jwks_url": "http://id.example/keys"},
        {"oidc_issuer": "id.example", "oidc_audience": "cogram"},
    ):
        with pytest.raises(CannotServe, match="COGRAM_OIDC"):
            check_access(Settings(**wrong))  # type: ignore[arg-type]
    check_access(Settings(oidc_issuer="http://127.0.0.1:9", oidc_audience="cogram"))


@pytest.mark.parametrize(
    ("address", "status"), [("192.0.2.1", 403), ("[2001:db8::1]", 403), ("127.0.0.1", 200), ("[::1]", 200)]
)
def test_a_connection_from_elsewhere_is_refused_however_the_service_was_started(
    sqlite_settings: Settings, address: str, status: int
) -> None:
    """As under ``uvicorn --factory app.main:create_app --host 0.0.0.0``, where nothing checks the address."""
    app = create_app(sqlite_settings)

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8765") as client:
            return await client.get("/v1/fusions", headers={"Host": "127.0.0.1"})

    answer = asyncio.run(asked())
    app.state.context.database.close()
    assert answer.status_code == status
    assert status == 200 or answer.json()["code"] == "auth.local_only"


def test_with_keys_any_address_is_served(sqlite_settings: Settings) -> None:
    with running(guarded_by_keys(sqlite_settings), host="0.0.0.0") as started:
        assert started.http.get("/v1/fusions", headers={"Host": "192.0.2.1"}).status_code == 401
        assert started.http.get("/healthz/live", headers={"Host": "192.0.2.1"}).status_code == 200
