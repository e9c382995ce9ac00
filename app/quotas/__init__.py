"""How much of the service each account may use, and when the disk is too full for anybody.

Knows what counts, and nothing of how it comes in.
"""

from app.quotas.service import Limits, Quotas

__all__ = ["Limits", "Quotas"]
