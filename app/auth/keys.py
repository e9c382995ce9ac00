"""What an API key looks like: ``cgm_``, the account's id, ``_``, a secret, a checksum.

The prefix and the checksum let scanners find keys that were published by mistake, with hardly a false alarm:
``cgm_[0-9a-hjkmnp-tv-z]{12}_[0-9A-Za-z]{49}``. The id finds the row; it is no secret. The secret has 256 random bits, so
one round of sha256 is hash enough: nobody can try that many, and a slow hash would only slow down every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "cgm_"
_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # as in app.store.ids: no i, l, o, u
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH, _SECRET_LENGTH, _CHECK_LENGTH = 12, 43, 6  # 43 digits of base 62 hold 256 bits, 6 hold 32
_KEY = re.compile(
    rf"{PREFIX}(?P<id>[{_ID_ALPHABET}]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}(?P<check>[0-9A-Za-z]{{{_CHECK_LENGTH}}})"
)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made: the only moment at which its text is known."""

    account: str
    text: str


def new_key() -> NewKey:
    """A fresh key."""
    own = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    body = f"{PREFIX}{own}_{_base62(secrets.randbits(256), _SECRET_LENGTH)}"
    return NewKey(f"key_{own}", body + _checksum(body))


def account_of(text: str) -> str | None:
    """The account that the key would be of; None for what can't be a key of ours."""
    matched = _KEY.fullmatch(text)
    if matched is None or _checksum(text[:-_CHECK_LENGTH]) != matched["check"]:
        return None
    return f"key_{matched['id']}"


def secret_hash(text: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
