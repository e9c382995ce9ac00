"""Page tokens: opaque to callers, so that what is in them may change."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated

from fastapi import Query

from app.errors import Unprocessable
from app.store.ids import is_id

Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most")]
PageToken = Annotated[str | None, Query(max_length=512, description="next_page_token of the page before")]


class BadPageToken(Unprocessable):
    """A page token that this service did not give."""

    code, title = "page.token", "Unusable page token"


def encode_token(position: str | int) -> str:
    """A token for the page that begins after ``position``."""
    return base64.urlsafe_b64encode(json.dumps([position]).encode()).decode().rstrip("=")


def decode_id(token: str | None) -> str | None:
    """The position in a token of ids; None without a token."""
    position = None if token is None else _decode(token)
    if position is None:
        return None
    if not isinstance(position, str) or not is_id(position):
        raise _bad()
    return position


def decode_number(token: str | None) -> int:
    """The position in a token of rows; 0 without a token."""
    position = 0 if token is None else _decode(token)
    if type(position) is not int or position < 0:
        raise _bad()
    return position


def _decode(token: str) -> object:
    try:
        [position] = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise _bad() from error
    return position


def _bad() -> BadPageToken:
    return BadPageToken.single("page_token", "pass next_page_token of an earlier answer, unchanged")
