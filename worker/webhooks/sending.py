"""One POST to an address that a caller chose: no proxy, no redirect, and an answer of which only the status counts."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import httpcore
import structlog

from app.peers import Peers
from app.settings import Settings
from app.signing import sign
from app.store.deliveries import Claim, Miss
from worker.webhooks.connecting import Connector, Deadline, NoPeer, Resolve, resolve

log = structlog.get_logger("worker.webhooks")

_MOST_ANSWER_BYTES = 4096
_NO_PEER = "The host has no address that may be called: there is no such name, or it leads to a private network."


class Sender:
    """Sends messages, each over a connection of its own."""

    def __init__(self, settings: Settings, resolve: Resolve = resolve, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._peers = Peers(allow_private=settings.webhook_allow_private, refused=settings.webhook_refused_networks)
        self._trust = _trust(settings.webhook_ca_file)
        self._resolve = resolve
        self._clock = clock

    def send(self, message: Claim) -> int | Miss:
        """The status of an answer that took the message, or why it is not delivered."""
        if not self._peers.allow_private and not message.url.startswith("https://"):
            return Miss("Only https:// addresses are called.")
        try:
            status = self._post(message)
        except NoPeer as error:  # what was found is for the operator alone
            log.warning("no peer that may be called", delivery_id=message.id, host=_host(message), addresses=error.args)
            return Miss(_NO_PEER)
        except httpcore.ConnectTimeout:
            return Miss(f"No connection within {self._settings.webhook_connect_seconds:g} seconds.")
        except httpcore.TimeoutException:
            return Miss(f"No answer within {self._settings.webhook_seconds:g} seconds.")
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return Miss(_in_words(error))
        except Exception:  # one more try that failed, and no message that is claimed for ever
            log.exception("sending failed", delivery_id=message.id, host=_host(message))
            return Miss("The address can't be called.")
        return status if 200 <= status < 300 else Miss(_meaning(status), status)

    def _post(self, message: Claim) -> int:
        body = message.body.encode()
        timestamp = int(self._clock())
        headers = {
            "Host": urlsplit(message.url).netloc,
            "Content-Type": "application/json",
            "User-Agent": "cogram-fusion",
            "Connection": "close",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(message.secrets, message.id, timestamp, body),
        }
        settings = self._settings
        deadline = Deadline(settings.webhook_seconds)
        connector = Connector(self._peers, deadline, settings.webhook_connect_seconds, self._resolve)
        with (
            httpcore.ConnectionPool(self._trust, network_backend=connector) as pool,
            pool.stream("POST", message.url, headers=list(headers.items()), content=body) as answer,
        ):
            with contextlib.suppress(httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
                _discard(answer)
            return answer.status


@cache
def _trust(ca_file: Path | None) -> ssl.SSLContext:
    """The system's certificate authorities, the usual ones where it has none, and the operator's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def _host(message: Claim) -> str | None:
    return urlsplit(message.url).hostname


def _discard(answer: httpcore.Response) -> None:
    """Some receivers mind when nobody reads their answer; a long one is cut off."""
    received = 0
    for chunk in answer.iter_stream():
        received += len(chunk)
        if received > _MOST_ANSWER_BYTES:
            return


def _meaning(status: int) -> str:
    if status == 410:
        return "Answered 410: the receiver asks not to be called again."
    if 300 <= status < 400:
        return f"Answered {status}: redirects are not followed. Register the address that it leads to."
    return f"Answered {status}."


def _in_words(error: Exception) -> str:
    """Fixed words only: what a receiver sends instead of an answer is never repeated."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"The certificate is not trusted: {cause.verify_message}."
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason}."
    if isinstance(error, httpcore.ConnectError):
        return f"No connection: {getattr(cause, 'strerror', None) or 'refused'}."
    if isinstance(error, httpcore.ProtocolError):
        return "What came back was no answer in HTTP."
    return "The connection broke before there was an answer."
