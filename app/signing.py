"""Secrets and signatures of webhooks, as the Standard Webhooks specification has them (symmetric, version v1)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
_FEWEST_BYTES, _MOST_BYTES = 24, 64
_NEW_BYTES = 32


def new_secret() -> str:
    """A fresh ``whsec_…``."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_NEW_BYTES)).decode()


def fault_of(secret: str) -> str | None:
    """What is wrong with a secret that a caller chose; None if it can be used."""
    if not secret.startswith(PREFIX):
        return f"must begin with {PREFIX}; leave it out to be given one"
    try:
        size = len(_key(secret))
    except (binascii.Error, ValueError):
        return f"must be {PREFIX} and base64 with its padding; leave it out to be given one"
    if not _FEWEST_BYTES <= size <= _MOST_BYTES:
        return (
            f"must hold {_FEWEST_BYTES} to {_MOST_BYTES} random bytes, and holds {size}; leave it out to be given one"
        )
    return None


def sign(signing_secrets: tuple[str, ...], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: one signature for each secret that is valid now."""
    content = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    digests = (hmac.digest(_key(secret), content, hashlib.sha256) for secret in signing_secrets)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
