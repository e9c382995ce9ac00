"""Bearer tokens of an identity provider (OpenID Connect): whose they are, once signature and claims are found good."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import anyio
import structlog

from app.auth.callers import Scope
from app.auth.errors import CredentialsRefused, TenantMissing
from app.auth.jwks import KeyNotThere, KeySet
from app.auth.service import TENANT
from app.settings import Settings
from app.store.models import utc_now

# The algorithm follows from the type of the key, never from the token: so no public key is ever used as a secret,
# and "none" is no algorithm at all.
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
_LONGEST_SECONDS = 86_400  # after that it is looked at again, whatever it says
_AT_ONCE = 4  # threads that may wait for the identity provider; the others of the process stay free
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Subject:
    """Whom a good token stands for."""

    account: str
    tenant: str
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime


class Issuer:
    """The one identity provider whose tokens are taken."""

    def __init__(self, settings: Settings) -> None:
        assert settings.oidc_issuer is not None
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._keys = KeySet(settings.oidc_issuer, settings.oidc_jwks_url)
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def subject(self, token: str) -> Subject:
        """Whom the token stands for.

        Raises:
            CredentialsRefused: for a token that isn't good.
            TenantMissing: for a good one that names no tenant.
            IssuerUnreachable: when the keys to check it can't be had.
        """
        claims = await anyio.to_thread.run_sync(self._claims, token, limiter=self._limiter)
        return self._from_claims(claims)

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a good token; in a thread, as it may have to ask the identity provider for its keys."""
        import jwt  # brings a library of cryptography, which a service without an identity provider needn't load

        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.find(header.get("kid"))
            algorithm = _ALGORITHMS.get(str(key.key_type))
            if algorithm is None or header.get("alg") != algorithm:
                raise jwt.InvalidAlgorithmError(f"alg {header.get('alg')!r} with a key of type {key.key_type!r}")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._settings.oidc_audience,
                issuer=self._issuer,
                leeway=self._settings.oidc_leeway_seconds,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, KeyNotThere) as error:
            _log.info(
                "auth.token_refused", reason=repr(error)[:200]
            )  # for whoever runs the service; callers get one answer
            raise CredentialsRefused.told() from error
        return claims

    def _from_claims(self, claims: Mapping[str, Any]) -> Subject:
        settings = self._settings
        tenant = claims.get(settings.oidc_tenant_claim)
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise TenantMissing(
                f"The token is good, and its claim {settings.oidc_tenant_claim!r} names no tenant (1 to 64 characters out "
                "of A-Z a-z 0-9 . _ -). Have the identity provider add it, or set COGRAM_OIDC_TENANT_CLAIM."
            )
        subject = str(claims["sub"])
        # 61 characters: the column has 64.
        account = (
            "oidc:" + hashlib.sha256(f"{self._issuer}\n{subject}".encode("utf-8", "surrogatepass")).hexdigest()[:56]
        )
        left = min(int(claims["exp"]) - time.time() + settings.oidc_leeway_seconds, _LONGEST_SECONDS)
        expires_at = utc_now() + timedelta(seconds=left)
        scopes = _scopes(claims.get(settings.oidc_scope_claim), settings.oidc_scope_prefix)
        return Subject(account, tenant, subject, scopes, expires_at)


def _scopes(claim: object, prefix: str) -> frozenset[Scope]:
    """Those of ours in the claim: words in a text (RFC 8693), or a list of words as some providers have it."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(scope for scope in Scope if prefix + scope in words)
