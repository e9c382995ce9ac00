"""HTTP/1.1 on one connection: how long a head and the taking of an answer may take, how many connections there may be, and
answers without a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.context import Context
from app.errors import ApiError, BadRequest, RequestTimeout, Unavailable, answer_to
from app.settings import Settings
from app.uploads.tus.envelope import ALWAYS, PREFIX, is_below


class Protocol(H11Protocol):
    """HTTP/1.1, which tells even of a request that is no HTTP in the service's own way."""

    _head_timer: asyncio.TimerHandle | None = None
    _taking_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more; beyond the limit it is told to come later, before anything is read of it."""
        super().connection_made(transport)
        limit = self._settings.max_connections
        if len(self.connections) > limit:
            detail = f"{limit} connections are open, and no more are taken (COGRAM_MAX_CONNECTIONS). Come again later."
            self._end_with(Unavailable(detail, headers={"Retry-After": "5"}))
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """What came may be the rest of a head, or the beginning of the next."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_watching()
        self._stop_waiting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Much of the answer waits to be taken: the caller has so long to take most of that, or the connection ends."""
        super().pause_writing()
        if self._taking_timer is None:
            # No mere close, which would wait for what is left to be taken.
            self._taking_timer = self.loop.call_later(self._settings.body_idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It was taken. Of an answer that was given up, the rest has to be taken in the same time."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._taking_timer is not None:
            self._taking_timer.cancel()
            self._taking_timer = None

    def _watch_head(self) -> None:
        """A head that has begun, or a connection that is new, has so long until the head is whole.

        Only uvicorn's own timer ends what is idle between two requests; it stops at the first byte, so that a sender of
        one byte now and then would hold a connection for ever.
        """
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._settings.head_seconds, self._give_up_on_head)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up_on_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        began, _ = self.conn.trailing_data
        if self.conn.our_state is h11.IDLE and began:
            seconds = self._settings.head_seconds
            self._end_with(
                RequestTimeout(f"The head of a request did not come within {seconds:g} seconds (COGRAM_HEAD_SECONDS).")
            )
        else:
            self.transport.close()

    @property
    def _settings(self) -> Settings:
        context = self.config.app.state.context  # type: ignore[union-attr]
        assert isinstance(context, Context)
        return context.settings

    def eof_received(self) -> None:
        """A sender that ends in the middle of a body may still listen: it is told, before the connection closes."""
        if self.cycle is None or self.conn.their_state is not h11.SEND_BODY:
            return
        if self.conn.our_state is h11.SEND_RESPONSE:
            self.cycle.disconnected = True  # the endpoint's own answer would be a second one
            path = "" if self.scope is None else self.scope["path"]
            outcome = "nothing was stored. Send it again"
            if is_below(path) and path != PREFIX:  # there, an upload was only about to begin
                outcome = "what had come of a chunk without a checksum is kept. HEAD and go on"
            self._refuse(f"The body ended before it was complete; {outcome}.", ALWAYS if is_below(path) else {})

    def send_400_response(self, msg: str) -> None:
        """Answers and closes."""
        self._refuse(msg, {})

    def _refuse(self, detail: str, headers: Mapping[str, str]) -> None:
        self._end_with(BadRequest(detail, headers=headers))

    def _end_with(self, error: ApiError) -> None:
        answer = answer_to(error, "")
        closing = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=closing, reason=HTTPStatus(error.status).phrase.encode()),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
