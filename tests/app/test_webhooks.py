"""Webhooks over HTTP: registered, changed, looked at; what is due is written with the event it tells of."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.context import Context
from app.signing import new_secret
from app.store import deliveries
from app.store.deliveries import Miss, Patience
from app.store.models import Delivery, Webhook
from app.store.ownership import Owner
from app.webhooks import service as webhooks
from app.webhooks.errors import TooManyWebhooks
from app.webhooks.schemas import WebhookIn
from tests.app.factories import Service

EVENTS = ["fusion.started", "fusion.succeeded"]
PATIENCE = Patience((60.0,), timedelta(days=5))
LEASE = timedelta(seconds=60)


def _created(service: Service, **changes: Any) -> dict[str, Any]:
    document = {"url": "https://example.com/hooks", "events": EVENTS} | changes
    answer = service.http.post("/v1/webhooks", json=document)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/v1/webhooks/{made['id']}"
    return made


def _shown(created: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in created.items() if key != "secret"}


def _deliveries(service: Service, webhook_id: str, **query: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = service.http.get(f"/v1/webhooks/{webhook_id}/deliveries", params=query).json()[
        "items"
    ]
    return items


def _sent(context: Context, delivery_id: str, outcome: int | Miss) -> None:
    """What a worker does: one try with this outcome."""
    with context.database.transaction() as session:
        claim = deliveries.claim(session, delivery_id, LEASE, PATIENCE)
    assert claim is not None
    with context.database.transaction() as session:
        if isinstance(outcome, Miss):
            assert deliveries.missed(session, claim, outcome, PATIENCE)
        else:
            assert deliveries.delivered(session, claim, outcome)


def _codes(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(error["location"], error["code"]) for error in answer.json()["errors"]]


@pytest.fixture
def foreign(service: Service) -> tuple[str, str]:
    """The ids of another tenant's webhook and its delivery."""
    with service.context.database.transaction() as session:
        theirs = {"tenant": "others", "owner": "key_others", "url": "https://example.com/theirs", "events": EVENTS}
        webhook = Webhook(id="hook_" + "0" * 26, secret=new_secret(), **theirs)
        session.add(webhook)
        session.flush()
        delivery = deliveries.ping(session, webhook)
    return webhook.id, delivery.id


def test_a_webhook_shows_its_secret_once(service: Service) -> None:
    made = _created(service)
    assert made["secret"].startswith("whsec_")
    assert (made["enabled"], made["events"], made["url"]) == (True, EVENTS, "https://example.com/hooks")
    assert service.http.get(f"/v1/webhooks/{made['id']}").json() == _shown(made)
    assert service.http.get("/v1/webhooks").json() == {"items": [_shown(made)], "next_page_token": None}
    assert made["secret"] not in service.http.patch(f"/v1/webhooks/{made['id']}", json={"enabled": False}).text


def test_a_caller_may_bring_a_secret(service: Service) -> None:
    secret = new_secret()
    assert _created(service, secret=secret)["secret"] == secret


def test_everything_that_is_wrong_is_told_at_once(service: Service) -> None:
    wrong = {"url": "http://user:word@10.0.0.1:0/#part", "events": ["fusion.start", "fusion.failed", "fusion.failed"]}
    answer = service.http.post("/v1/webhooks", json=wrong | {"secret": "hunter2"})
    assert answer.json()["code"] == "webhook.invalid"
    assert _codes(answer) == [
        ("url", "url.scheme"),
        ("url", "url.credentials"),
        ("url", "url.fragment"),
        ("url", "url.port"),
        ("url", "url.private"),
        ("events.0", "events.unknown"),
        ("events.2", "events.repeated"),
        ("secret", "secret.unusable"),
    ]
    assert "did you mean 'fusion.started'?" in answer.text
    assert service.http.get("/v1/webhooks").json()["items"] == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://１２７.0.0.1/",
            "https://[::1]:8443/",
        ),
        *("https://[::ffff:10.0.0.1]/", "https://169.254.169.254/latest", "https://localhost/", "https://LOCALHOST./"),
        *("https://db.internal/", "https://printer.local/", "https://x.localhost/", "https://0/", "https://10.1/"),
    ],
)
def test_an_address_that_is_private_on_its_face_is_refused(sqlite_service: Service, url: str) -> None:
    answer = sqlite_service.http.post("/v1/webhooks", json={"url": url, "events": EVENTS})
    assert _codes(answer) == [("url", "url.private")]


@pytest.mark.parametrize("url", ["", "example.com", "https://", "https://[::1", "mailto:x", "\u0000", "https://a b/"])
def test_what_is_no_address_is_refused(sqlite_service: Service, url: str) -> None:
    answer = sqlite_service.http.post("/v1/webhooks", json={"url": url, "events": EVENTS})
    assert _codes(answer) == [("url", "url.unreadable")]


def test_other_schemes_and_endless_addresses_are_refused(sqlite_service: Service) -> None:
    for url, code in (
        ("ftp://example.com/", "url.scheme"),
        ("file://example.com/etc/passwd", "url.scheme"),
        ("https://example.com/" + "a" * 2048, "url.too_long"),
        ("https://example.com/" + "ä" * 400, "url.too_long"),
    ):
        answer = sqlite_service.http.post("/v1/webhooks", json={"url": url, "events": EVENTS})
        assert _codes(answer) == [("url", code)]
    assert _codes(sqlite_service.http.post("/v1/webhooks", json={"url": "https://a.example/", "events": []})) == [
        ("events", "events.empty")
    ]


def test_an_address_is_kept_in_one_form(service: Service) -> None:
    assert _created(service, url="https://Bücher.Example:443/a b?ä")["url"] == (
        "https://xn--bcher-kva.example/a%20b?%C3%A4"
    )


def test_a_webhook_can_be_changed_disabled_and_enabled(service: Service) -> None:
    made = _created(service)
    path = f"/v1/webhooks/{made['id']}"
    changed = service.http.patch(path, json={"url": "https://example.org/", "events": ["fusion.failed"]}).json()
    assert changed == _shown(made) | {"url": "https://example.org/", "events": ["fusion.failed"]}
    assert _codes(service.http.patch(path, json={"url": "http://x.example/", "events": ["?"]})) == [
        ("url", "url.scheme"),
        ("events.0", "events.unknown"),
    ]
    assert service.http.patch(path, json={}).json() == changed
    disabled = service.http.patch(path, json={"enabled": False}).json()
    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "asked")
    assert service.http.post(f"{path}/test").json()["code"] == "webhook.disabled"
    assert service.http.patch(path, json={"enabled": True}).json() == changed


def test_disabling_gives_up_what_waits_and_it_can_be_sent_again_later(service: Service) -> None:
    path = f"/v1/webhooks/{_created(service)['id']}"
    ping = service.http.post(f"{path}/test").json()
    assert (ping["state"], ping["type"], ping["fusion_id"], ping["attempts"]) == ("pending", "webhook.ping", None, 0)
    service.http.patch(path, json={"enabled": False})
    (given_up,) = service.http.get(f"{path}/deliveries").json()["items"]
    assert (given_up["state"], given_up["last_error"]) == ("failed", "The webhook is disabled.")
    again = f"{path}/deliveries/{ping['id']}/redeliver"
    assert service.http.post(again).json()["code"] == "webhook.disabled"
    service.http.patch(path, json={"enabled": True})
    answer = service.http.post(again)
    assert (answer.status_code, answer.json()["id"], answer.json()["state"]) == (202, ping["id"], "pending")


def test_a_new_secret_signs_together_with_the_one_before(service: Service) -> None:
    made = _created(service)
    path = f"/v1/webhooks/{made['id']}"
    renewed = service.http.post(f"{path}/secret")
    assert renewed.status_code == 200
    assert _shown(renewed.json()) == _shown(made)
    chosen = new_secret()
    assert service.http.post(f"{path}/secret", json={"secret": chosen}).json()["secret"] == chosen
    assert _codes(service.http.post(f"{path}/secret", json={"secret": "whsec_"})) == [("secret", "secret.unusable")]
    ping = service.http.post(f"{path}/test").json()
    with service.context.database.transaction() as session:
        claim = deliveries.claim(session, ping["id"], LEASE, PATIENCE)
    assert claim is not None
    assert claim.secrets == (chosen, renewed.json()["secret"])


def test_a_fusion_tells_its_subscribers_and_no_one_else(service: Service, foreign: tuple[str, str]) -> None:
    told, failures = _created(service), _created(service, events=["fusion.failed"])
    off = _created(service)
    service.http.patch(f"/v1/webhooks/{off['id']}", json={"enabled": False})
    fusion_id = service.fusion()
    service.succeed(fusion_id, {"model.safetensors": b"x"})
    succeeded, started = _deliveries(service, told["id"])
    assert [(each["type"], each["fusion_id"], each["state"]) for each in (started, succeeded)] == [
        ("fusion.started", fusion_id, "pending"),
        ("fusion.succeeded", fusion_id, "pending"),
    ]
    assert _deliveries(service, failures["id"]) == _deliveries(service, off["id"]) == []
    fusion = service.http.get(f"/v1/fusions/{fusion_id}").json()
    with service.context.database.reading() as session:
        body = json.loads(session.get_one(Delivery, succeeded["id"]).body)
        assert [row.id for row in session.query(Delivery).where(Delivery.webhook_id == foreign[0])] == [foreign[1]]
    facts = {"id": fusion_id, "state": "succeeded", "attempt": 1, "error": None}
    assert body == {
        "type": "fusion.succeeded",
        "timestamp": body["timestamp"],
        "data": facts | {key: fusion[key] for key in ("created_at", "started_at", "finished_at")},
    }
    assert datetime.fromisoformat(body["timestamp"]).tzinfo is not None


def test_deliveries_tell_what_became_of_them(service: Service) -> None:
    path = f"/v1/webhooks/{_created(service)['id']}"
    first, second, third = (service.http.post(f"{path}/test").json()["id"] for _ in range(3))
    _sent(service.context, first, 204)
    _sent(service.context, second, Miss("Answered 500.", 500))
    listed = service.http.get(f"{path}/deliveries", params={"limit": 2}).json()
    rest = service.http.get(f"{path}/deliveries", params={"page_token": listed["next_page_token"]}).json()
    newest, failed, delivered = [*listed["items"], *rest["items"]]
    assert [each["id"] for each in (newest, failed, delivered)] == [third, second, first]
    assert (delivered["state"], delivered["attempts"], delivered["last_error"]) == ("delivered", 1, None)
    assert delivered["last_status"] == 204
    assert delivered["next_attempt_at"] is None
    assert delivered["delivered_at"] is not None
    assert (failed["state"], failed["attempts"], failed["last_status"]) == ("pending", 1, 500)
    assert failed["last_error"] == "Answered 500."
    assert failed["next_attempt_at"] > newest["next_attempt_at"]
    assert service.http.get(path).json()["failing_since"] is not None


def test_a_delivery_that_is_being_sent_is_not_sent_again(service: Service) -> None:
    path = f"/v1/webhooks/{_created(service)['id']}"
    ping = service.http.post(f"{path}/test").json()["id"]
    with service.context.database.transaction() as session:
        assert deliveries.claim(session, ping, LEASE, PATIENCE) is not None
    answer = service.http.post(f"{path}/deliveries/{ping}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (409, "delivery.under_way")


def test_a_deleted_webhook_is_gone_with_its_deliveries(service: Service) -> None:
    path = f"/v1/webhooks/{_created(service)['id']}"
    service.http.post(f"{path}/test")
    assert service.http.delete(path).status_code == 204
    assert service.http.get(path).json()["code"] == "webhook.not_found"
    with service.context.database.reading() as session:
        assert session.query(Delivery).count() == 0


def test_another_tenants_webhook_is_not_there(service: Service, foreign: tuple[str, str]) -> None:
    webhook_id, delivery_id = foreign
    path = f"/v1/webhooks/{webhook_id}"
    mine = f"/v1/webhooks/{_created(service)['id']}"
    for method, target, code in (
        ("GET", path, "webhook.not_found"),
        ("PATCH", path, "webhook.not_found"),
        ("DELETE", path, "webhook.not_found"),
        ("POST", f"{path}/secret", "webhook.not_found"),
        ("POST", f"{path}/test", "webhook.not_found"),
        ("GET", f"{path}/deliveries", "webhook.not_found"),
        ("POST", f"{path}/deliveries/{delivery_id}/redeliver", "webhook.not_found"),
        ("POST", f"{mine}/deliveries/{delivery_id}/redeliver", "delivery.not_found"),
        ("GET", "/v1/webhooks/%00", "webhook.not_found"),
    ):
        answer = service.http.request(method, target, json={} if method == "PATCH" else None)
        assert (answer.status_code, answer.json()["code"]) == (404, code), target
    assert webhook_id not in service.http.get("/v1/webhooks").text
    with service.context.database.reading() as session:
        assert session.get_one(Webhook, webhook_id).disabled_at is None
        assert session.get_one(Delivery, delivery_id).state == "pending"


def test_a_tenant_has_only_so_many(sqlite_service: Service) -> None:
    most = sqlite_service.context.settings.webhooks_per_tenant
    for _ in range(most):
        _created(sqlite_service)
    answer = sqlite_service.http.post("/v1/webhooks", json={"url": "https://example.com/", "events": EVENTS})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhook.too_many")


def test_a_tenants_last_webhook_is_made_once_however_many_make_one_at_once(service: Service) -> None:
    wanted = WebhookIn(url="https://example.com/", events=EVENTS)
    settings = service.context.settings.model_copy(update={"webhooks_per_tenant": 1})

    def create(tenant: str) -> None:
        with service.context.database.transaction() as session:
            webhooks.create(session, Owner("key_x", tenant), wanted, settings)

    with ThreadPoolExecutor(1) as threads:
        with service.context.database.transaction() as session:
            webhooks.create(session, Owner("key_one", "one"), wanted, settings)
            meanwhile = threads.submit(create, "one")
            with pytest.raises(TimeoutError):
                meanwhile.result(0.3)
        with pytest.raises(TooManyWebhooks):
            meanwhile.result(30)
    create("two")


def test_pings_that_never_arrive_dont_pile_up(service: Service) -> None:
    path = f"/v1/webhooks/{_created(service)['id']}"
    pings = [service.http.post(f"{path}/test") for _ in range(25)]
    assert [answer.status_code for answer in pings] == [202] * 20 + [429] * 5
    assert (pings[-1].json()["code"], pings[-1].headers["Retry-After"]) == ("delivery.too_many", "60")
    _sent(service.context, pings[0].json()["id"], 200)
    assert [service.http.post(f"{path}/test").status_code for _ in range(2)] == [202, 429]
