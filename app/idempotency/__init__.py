"""Calls that may be sent twice and happen once: ``Idempotency-Key``.

The answer is written in the transaction that does the work, so neither is ever there without the other. Only answers to
work that was done are kept: what was refused may be asked for again, and be done then.
"""

from app.idempotency.once import AnsweredBefore, Once

__all__ = ["AnsweredBefore", "Once"]
