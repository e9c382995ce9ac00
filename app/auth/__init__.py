"""Who calls, and what they may do: API keys, tokens of an identity provider, or the one local caller.

``middleware`` asks ``Gate`` who calls before anything of a request is read; endpoints name the scope that they need by
one of the aliases here; every query takes the caller's tenant. Nothing here knows what a checkpoint or a fusion is.
"""

from app.auth.callers import Caller, Scope
from app.auth.dependencies import Fuser, Reader, StillGood, Subscriber, Uploader

__all__ = ["Caller", "Fuser", "Reader", "Scope", "StillGood", "Subscriber", "Uploader"]
