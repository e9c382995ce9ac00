"""Why a caller is turned away."""

from __future__ import annotations

import math
from typing import Self

from app.auth.buckets import Level
from app.errors import Forbidden, TooManyRequests, Unauthorized, Unavailable
from cogram_core.errors import Problem

_CHALLENGE = 'Bearer realm="cogram"'


class CredentialsMissing(Unauthorized):
    """Nothing in the request says who calls."""

    code, title = "auth.required", "Credentials required"

    @classmethod
    def told(cls) -> Self:
        """The error, with how to do better."""
        return cls(
            "Send Authorization: Bearer and an API key; cogram keys create makes one.",
            headers={"WWW-Authenticate": _CHALLENGE},
        )


class CredentialsRefused(Unauthorized):
    """The credentials are not good. One answer for unknown, revoked and expired ones: it tells a guesser nothing."""

    code, title = "auth.invalid", "Credentials not accepted"

    @classmethod
    def told(cls) -> Self:
        """The error, with how to do better."""
        return cls(
            "The key or token is unknown, expired or revoked. Ask whoever runs the service for a new one.",
            headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
        )


class ScopeMissing(Forbidden):
    """The caller has not the scope that the call needs."""

    code, title = "auth.scope", "Scope missing"

    @classmethod
    def of(cls, scope: str) -> Self:
        """The error for one scope, which may be a member of an enumeration: its value is told, not its representation."""
        message = f"this call needs the scope {str(scope)!r}, and the credentials don't have it; use others that do"
        return cls(
            message[0].upper() + message[1:] + ".",
            errors=[Problem("Authorization", cls.code, message)],
            headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
        )


class TenantMissing(Forbidden):
    """A good token that names no tenant."""

    code, title = "auth.tenant", "Tenant missing"


class ForeignOrigin(Forbidden):
    """A web page of another origin sent the request; without keys it would act as whoever looks at the page."""

    code, title = "request.origin", "Foreign origin"


class NotFromOutside(Forbidden):
    """A connection from another machine to a service that asks nobody for credentials."""

    code, title = "auth.local_only", "This machine only"


class IssuerUnreachable(Unavailable):
    """The identity provider's keys can't be had now."""

    code, title = "auth.issuer_unreachable", "Identity provider not reachable"


class TooManyFailures(TooManyRequests):
    """Too many wrong credentials from one address."""

    code, title = "rate.failures", "Too many failed attempts"

    @classmethod
    def until(cls, seconds: float) -> Self:
        """The error, with the time after which it is worth trying again."""
        wait = max(1, math.ceil(seconds))
        return cls(
            f"Too many wrong keys or tokens came from this address (COGRAM_AUTH_FAILURES_PER_MINUTE). Wait {wait} s.",
            headers={"Retry-After": str(wait)},
        )


class RateExceeded(TooManyRequests):
    """More requests than the account may send in this time."""

    code, title = "rate.exceeded", "Too many requests"

    @classmethod
    def at(cls, level: Level, rate: float) -> Self:
        """The error, with the time after which it is worth trying again."""
        wait = max(1, math.ceil(level.wait_seconds))
        return cls(
            f"The account may send {rate:g} requests a second. Wait {wait} s; whoever runs the service can allow more "
            "(cogram keys create --rate, COGRAM_REQUESTS_PER_SECOND).",
            headers={"Retry-After": str(wait), **level.headers},
        )
