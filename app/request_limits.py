"""What a head may look like and how large it may be; how many requests are answered at once: of all, and of one address."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ApiError, BadRequest, TooManyRequests, Unavailable, answer_to
from app.settings import Settings

_ALWAYS = frozenset({"/healthz/live", "/v1/healthz/live"})  # a busy process is alive
_SOON = {"Retry-After": "2"}


class TargetTooLong(ApiError):
    """The path and query of a request are longer than any that this service gives or needs."""

    status, code, title = 414, "request.target_too_long", "Address too long"


class HeadTooLarge(ApiError):
    """Too many headers, or too long ones."""

    status, code, title = 431, "request.head_too_large", "Headers too large"


class TooManyOpen(TooManyRequests):
    """One address has too many requests under way."""

    code, title = "request.too_many_open", "Too many requests at once"


class TooBusy(Unavailable):
    """Too many requests are under way."""

    code, title = "service.busy", "Too many requests at once"


class RequestLimits:
    """Answers what is beyond a limit before anything else looks at it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._open: Counter[str] = Counter()  # requests of each address; only those that have any
        self._all = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through, or answers it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = (scope.get("client") or ("",))[0]
        fault = _fault_of_framing(scope) or self._fault_of_head(scope) or self._fault_of_number(scope["path"], peer)
        if fault is not None:
            await answer_to(fault, scope["path"])(scope, receive, send)
            return
        self._all += 1
        self._open[peer] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._all -= 1
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    def _fault_of_head(self, scope: Scope) -> ApiError | None:
        settings, headers = self._settings, scope["headers"]
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if target > settings.max_target_bytes:
            return TargetTooLong(
                f"The path and query have {target} bytes; at most {settings.max_target_bytes} are taken "
                "(COGRAM_MAX_TARGET_BYTES)."
            )
        if len(headers) > settings.max_headers:
            return HeadTooLarge(
                f"There are {len(headers)} headers; at most {settings.max_headers} are taken (COGRAM_MAX_HEADERS)."
            )
        size = sum(len(name) + len(value) for name, value in headers)
        if size > settings.max_head_bytes:
            return HeadTooLarge(
                f"The headers have {size} bytes; at most {settings.max_head_bytes} are taken (COGRAM_MAX_HEAD_BYTES)."
            )
        return None

    def _fault_of_number(self, path: str, peer: str) -> ApiError | None:
        if path in _ALWAYS:
            return None
        if self._open.get(peer, 0) >= (most := self._settings.max_requests_per_peer):
            return TooManyOpen(
                f"{most} requests of this address are being answered (COGRAM_MAX_REQUESTS_PER_PEER); wait for one to end.",
                headers=_SOON,
            )
        if self._all >= (most := self._settings.max_requests):
            return TooBusy(
                f"{most} requests are being answered (COGRAM_MAX_REQUESTS). Come again in a moment.", headers=_SOON
            )
        return None


def _fault_of_framing(scope: Scope) -> ApiError | None:
    """Whether a proxy in front may have seen another end of this request than we do, and so another beginning of the next.

    The parser lets some of that pass (RFC 9112, sections 2.3 and 6.1), so it is refused here, and the connection ended.
    """
    names = {name for name, _ in scope["headers"]}
    chunked = b"transfer-encoding" in names
    if scope["http_version"] not in {"1.0", "1.1"}:
        message = f"HTTP/{scope['http_version']} is not spoken here; speak HTTP/1.1."
    elif chunked and b"content-length" in names:
        message = "Content-Length and Transfer-Encoding contradict each other; send one of them."
    elif chunked and scope["http_version"] == "1.0":
        message = "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or speak HTTP/1.1."
    else:
        return None
    return BadRequest(message, headers={"Connection": "close"})
