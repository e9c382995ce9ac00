"""What can be wrong with an Idempotency-Key."""

from __future__ import annotations

from app.errors import Unprocessable


class KeyReused(Unprocessable):
    """The key stands for another call."""

    code, title = "idempotency.reused", "Idempotency-Key used for another call"
