"""Takes secrets out of what is about to be logged, wherever in a line they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_GONE = "[redacted]"
_SECRET_NAMES = re.compile(r"authorization|secret|password|passwd|token|cookie|api_?key|credential", re.IGNORECASE)
_NO_SECRETS = re.compile(r"page_token|token_m(in|ax)")
_SECRETS = (
    # Our own keys, but for the part that names the account; the secrets that sign webhooks.
    (re.compile(r"(cgm_[0-9a-z]{12}_)[0-9A-Za-z]+"), rf"\1{_GONE}"),
    (re.compile(r"(whsec_)[0-9A-Za-z+/=_-]+"), rf"\1{_GONE}"),
    # Any header that tells who somebody is, and tokens of identity providers.
    (re.compile(r"\b(bearer|basic|digest)(\\?['\"]?\s+)[0-9A-Za-z._~+/=-]{8,}", re.IGNORECASE), rf"\1\2{_GONE}"),
    (re.compile(r"\beyJ[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]*"), _GONE),
    # The password in the address of a database or broker.
    (re.compile(r"(://[^/\s:@'\"]*:)[^/\s@'\"]+@"), rf"\1{_GONE}@"),
    # What signs an address of object storage.
    (re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s'\"]+", re.IGNORECASE), rf"\1{_GONE}"),
)
# What each of those begins with, or nearly: most of what is logged has none of it, and one look is cheaper than six.
_MAYBE_SECRET = re.compile(r"cgm_|whsec_|eyJ|://|bearer|basic|digest|x-amz-", re.IGNORECASE)


def redact(_logger: Any, _method: str, line: Any) -> Any:
    """A structlog processor."""
    return {key: _without_secrets(key, value) for key, value in line.items()}


def _without_secrets(name: str, value: Any) -> Any:
    if _names_a_secret(name):
        return _GONE
    if isinstance(value, str):
        return _cleaned(value)
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets("", item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cleaned(repr(value))  # as the JSON renderer would write it


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None and _NO_SECRETS.fullmatch(name) is None


def _cleaned(text: str) -> str:
    if _MAYBE_SECRET.search(text) is None:
        return text
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
