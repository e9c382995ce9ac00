"""Secrets and signatures, against the Standard's own library."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.signing import fault_of, new_secret, sign


def _secret(size: int) -> str:
    return "whsec_" + base64.b64encode(b"\xfb" * size).decode()


@given(st.binary(min_size=24, max_size=64), st.text(alphabet="abc_019", min_size=1), st.integers(0, 2**33), st.text())
def test_a_signature_is_that_of_the_reference_library(key: bytes, message_id: str, timestamp: int, body: str) -> None:
    body = body.encode("utf-8", "replace").decode()
    secret = "whsec_" + base64.b64encode(key).decode()
    reference = Webhook(secret).sign(message_id, datetime.fromtimestamp(timestamp, UTC), body)
    assert sign((secret,), message_id, timestamp, body.encode()) == reference


def test_the_example_of_the_specification() -> None:
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    signature = sign((secret,), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_under_two_secrets_is_good_for_either_and_no_third() -> None:
    old, new = new_secret(), new_secret()
    now = int(time.time())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": sign((new, old), "msg_1", now, b"{}"),
    }
    assert Webhook(new).verify(b"{}", headers) == Webhook(old).verify(b"{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(b"{ }", headers)


def test_new_secrets_are_good_and_differ() -> None:
    secrets = {new_secret() for _ in range(20)}
    assert len(secrets) == 20
    assert [fault_of(secret) for secret in secrets] == [None] * 20


@pytest.mark.parametrize("secret", [_secret(24), _secret(64)])
def test_a_secret_of_24_to_64_bytes_can_be_used(secret: str) -> None:
    assert fault_of(secret) is None


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        _secret(23),
        _secret(65),
        _secret(32)[6:],
        _secret(32).rstrip("="),
        _secret(32) + "\n",
        "whsec_é" * 9,
        "whsec_" + base64.urlsafe_b64encode(b"\xfb" * 32).decode(),
    ],
)
def test_any_other_secret_is_refused_with_the_remedy(secret: str) -> None:
    assert "leave it out" in str(fault_of(secret))
