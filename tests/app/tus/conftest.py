"""A plain tus client of the empty service."""

from __future__ import annotations

import pytest

from tests.app.factories import Service
from tests.app.tus.speaking import Tus


@pytest.fixture
def tus(service: Service) -> Tus:
    """On each kind of database."""
    return Tus(service)


@pytest.fixture
def sqlite_tus(sqlite_service: Service) -> Tus:
    """For what never comes to a database."""
    return Tus(sqlite_service)
