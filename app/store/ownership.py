"""Whose a thing is: the tenant beyond which nobody sees it, and the account whose quotas it counts towards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The account and its tenant."""

    account: str
    tenant: str


LOCAL = Owner("local", "default")
