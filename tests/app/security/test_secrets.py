"""Keys, passwords and webhooks' secrets are in no answer and no line of a log, also where something breaks."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from sqlalchemy import make_url

from app.auth import Scope
from app.auth import service as accounts
from app.settings import Settings
from app.signing import new_secret
from app.store.database import Database
from tests.app.tus.processes import api_process
from tests.services import PostgreSQL

PASSWORD, BROKER_PASSWORD = "hunter2-of-the-database", "hunter2-of-the-broker"


def _key(url: str) -> str:
    database = Database(url)
    with database.transaction() as session:
        key = accounts.create(session, "one", "caller", tuple(Scope), accounts.Allowance(), None)
    database.close()
    return key.text


def _changed(key: str) -> str:
    return key[:-10] + ("0" if key[-10] != "0" else "1") + key[-9:]


def test_no_secret_is_told_or_logged(
    tmp_path: Path, postgresql_server: PostgreSQL, postgresql_url: str, free_port: int
) -> None:
    url = make_url(postgresql_url).set(password=PASSWORD).render_as_string(hide_password=False)
    broker = f"redis://:{BROKER_PASSWORD}@127.0.0.1:{free_port}/0"  # where nobody is
    key, secret = _key(url), new_secret()
    wrong = _changed(key)
    settings = Settings(data_dir=tmp_path / "data", database_url=url, broker_url=broker)
    with api_process(settings, tmp_path) as api:
        answers = _answers(api.url, key, wrong, secret)
        with postgresql_server.out_of_reach(postgresql_url):
            answers += _answers(api.url, key, wrong, secret)
            answers.append(httpx.get(f"{api.url}/v1/healthz/ready", timeout=60))
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422, 503}
    told = "\n".join(f"{answer.headers} {answer.text}" for answer in answers)
    log = (tmp_path / "api.log").read_text()
    assert "request" in log
    for secret_part in (PASSWORD, BROKER_PASSWORD, key[-30:], wrong[-30:], secret[-30:]):
        assert secret_part not in told
        assert secret_part not in log
    assert re.search(r"psycopg|Traceback|File \"", told) is None


def _answers(url: str, key: str, wrong: str, secret: str) -> list[httpx.Response]:
    """What is answered to all kinds of calls that bring a secret; without the one that is meant to show it."""
    with httpx.Client(base_url=url, timeout=60) as http:
        good = {"Authorization": f"Bearer {key}"}
        made = http.post("/v1/webhooks", headers=good, json=_webhook(secret))
        webhook = made.json()["id"] if made.status_code == 201 else "none"
        http.get("/v1/fusions", headers=good | {"X-Request-ID": key})  # told back to its caller, as they wished
        return [
            http.get("/v1/fusions", headers=good),
            http.get("/v1/fusions", headers={"Authorization": f"Bearer {wrong}"}),
            http.get("/v1/fusions", headers={"Authorization": f"Basic {key}"}),
            http.get("/v1/fusions", headers=good, params={"api_key": key, "page_token": "x"}),
            http.get("/v1/fusions", headers=good | {"Cookie": f"session={key}"}),
            http.put(
                "/v1/checkpoints/a/files/x", headers=good | {"Content-Length": "1", "X-Api-Key": key}, content=b"x"
            ),
            http.get(f"/v1/webhooks/{webhook}", headers=good),
            http.get("/v1/webhooks", headers=good),
            http.post(f"/v1/webhooks/{webhook}/test", headers=good),
            http.get(f"/v1/webhooks/{webhook}/deliveries", headers=good),
            http.patch(f"/v1/webhooks/{webhook}", headers=good, json={"events": ["none"]}),
            http.post("/v1/webhooks", headers=good, json=_webhook(secret + "=")),
            http.post("/v1/webhooks", headers=good, json=_webhook(secret) | {"events": []}),
            http.post("/v1/webhooks", headers=good, json={"url": 1, "secret": secret}),
            http.post(
                "/v1/webhooks", headers=good | {"Content-Type": "application/json"}, content=f'{{"secret":"{secret}"'
            ),
            http.post("/v1/fusions", headers=good, json={"sources": []}),
        ]


def _webhook(secret: str) -> dict[str, object]:
    return {"url": "https://example.org/", "events": ["fusion.failed"], "secret": secret}
