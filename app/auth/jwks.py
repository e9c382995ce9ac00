"""An identity provider's public keys: fetched when first needed, kept for a while, asked for again when one is new.

Used in threads only, as it waits for the network.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from app.auth.errors import IssuerUnreachable

if TYPE_CHECKING:
    from jwt import PyJWK

_FRESH_SECONDS = 300.0  # after that they are fetched again, so that a key that was withdrawn is soon no longer taken
_USABLE_SECONDS = 3600.0  # while the provider doesn't answer
_PAUSE_SECONDS = 5.0  # between two fetches, whatever tokens come: they can't be used to flood the provider
_TIMEOUT_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_log = structlog.get_logger(__name__)


class KeyNotThere(Exception):
    """The provider has no such key."""


class KeySet:
    """The keys of one provider."""

    def __init__(self, issuer: str, url: str | None, pause_seconds: float = _PAUSE_SECONDS) -> None:
        self._issuer = issuer
        self._url = url
        self._pause = pause_seconds
        self._lock = threading.Lock()
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched: float | None = None
        self._tried: float | None = None

    def find(self, key_id: object) -> PyJWK:
        """The key of this id; a token without one means the only key that there is.

        Raises:
            KeyNotThere: when the provider doesn't have it, as far as is known.
            IssuerUnreachable: when there are no keys at all.
        """
        with self._lock:  # the others that wait here would all ask the same
            if self._age() > _FRESH_SECONDS or self._among(key_id) is None:
                self._fetch_if_allowed()
            if self._age() > _USABLE_SECONDS:
                raise IssuerUnreachable(
                    "The keys of the identity provider can't be had (COGRAM_OIDC_ISSUER, COGRAM_OIDC_JWKS_URL), so no token "
                    "of it can be checked. Try again.",
                    headers={"Retry-After": str(round(self._pause) or 1)},
                )
            found = self._among(key_id)
        if found is None:
            raise KeyNotThere(repr(key_id))
        return found

    def _among(self, key_id: object) -> PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _age(self) -> float:
        return float("inf") if self._fetched is None else time.monotonic() - self._fetched

    def _fetch_if_allowed(self) -> None:
        now = time.monotonic()
        if self._tried is not None and now - self._tried < self._pause:
            return
        self._tried = now
        try:
            self._keys = self._fetch()
        except Exception as error:  # whatever it was, those from before are still there
            _log.warning("auth.keys_not_fetched", issuer=self._issuer, error=repr(error))
        else:
            self._fetched = time.monotonic()

    def _fetch(self) -> dict[str | None, PyJWK]:
        from jwt import PyJWK, PyJWTError

        url = self._url or self._discover()
        found: dict[str | None, PyJWK] = {}
        for entry in _get(url)["keys"]:
            if entry.get("use", "sig") != "sig":
                continue
            try:
                found[entry.get("kid")] = PyJWK(entry)
            except PyJWTError:  # of a type that came after this service; the others are still good
                continue
        return found

    def _discover(self) -> str:
        document = _get(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self._issuer:
            raise ValueError(f"the document says that the issuer is {document.get('issuer')!r}")
        return str(document["jwks_uri"])


def _get(url: str) -> Mapping[str, Any]:
    import httpx

    with httpx.Client(timeout=_TIMEOUT_SECONDS) as client, client.stream("GET", url) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"{url} answered {answer.status_code}")
        body = bytearray()
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _MOST_BYTES:
                raise ValueError(f"{url} has more than {_MOST_BYTES} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise TypeError(f"{url} is no object")
    return document
