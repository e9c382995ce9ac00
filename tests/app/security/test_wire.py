"""Bytes that two readers could read in two ways: the service reads them in one, or not at all.

A proxy in front that saw one request where the service sees two would hand one caller's answer to another. So what is
told here is that nothing after the doubtful request is ever answered.
"""

from __future__ import annotations

import pytest

from tests.app.factories import Service
from tests.app.security.wire import answers, connect, exchange

SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/checkpoints HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /v1/healthz/live HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"

TWO_READINGS = {
    "both lengths": POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(SMUGGLED)),
    "both lengths, the other first": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}",
    "a list of lengths": POST + b"Content-Length: 2, 60\r\n\r\n{}",
    "a signed length": POST + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length in other digits": POST + b"Content-Length: \xd9\xa2\r\n\r\n{}",
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n{}",
    "an encoding that is none": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two encodings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in the end not": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "a tab before the colon": POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "a vertical tab in the encoding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a size of a chunk with a sign": POST + b"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a size of a chunk in C's way": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "an endless size of a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "a return in the middle of a value": GET + HOST + b"X: a\rContent-Length: 5\r\n\r\n",
    "a NUL in a value": GET + HOST + b"X: a\x00b\r\n\r\n",
    "a name with a space": GET + HOST + b"X Y: a\r\n\r\n",
    "no name": GET + HOST + b": a\r\n\r\n",
    "no host": GET + b"\r\n",
    "two hosts": GET + HOST + b"Host: evil.example\r\n\r\n",
    "a folded first line": b" GET /v1/healthz/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version that is none": b"GET /v1/healthz/live HTTP/9.9\r\n" + HOST + b"\r\n",
    "the old version, chunked": b"POST /v1/checkpoints HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "the next version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the first version": b"GET /v1/healthz/live\r\n\r\n",
    "a control character in the target": b"GET /v1/healthz/live\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", TWO_READINGS)
def test_what_can_be_read_in_two_ways_is_refused_with_all_that_follows(sqlite_service: Service, name: str) -> None:
    found = exchange(sqlite_service, TWO_READINGS[name] + SMUGGLED)
    assert [answer.status for answer in found] == [400], found
    assert found[0].headers["connection"] == "close"
    assert found[0].headers["content-type"] == "application/problem+json"
    assert b"smuggled" not in found[0].body


def test_a_folded_header_is_one_header(sqlite_service: Service) -> None:
    (found,) = exchange(
        sqlite_service, GET + HOST + b"X-Request-ID: a\r\n Content-Length: 5\r\nConnection: close\r\n\r\n"
    )
    assert (found.status, found.body) == (200, b'{"status":"ok"}')
    assert found.headers["x-request-id"].startswith("req_")  # what is folded is no plain id


def test_requests_in_a_row_are_answered_in_their_order(sqlite_service: Service) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\nX-Trailer: GET /\r\n\r\n"
    sized = POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n[]"
    found = exchange(sqlite_service, GET + HOST + b"\r\n" + chunked + sized + SMUGGLED)
    assert [answer.status for answer in found] == [200, 422, 422, 404]


@pytest.mark.parametrize(
    "target", [b"http://evil.example/v1/healthz/live", b"//evil.example/v1/healthz/live", b"*", b"evil:1"]
)
def test_only_a_path_is_a_target(sqlite_service: Service, target: bytes) -> None:
    for method in (b"GET", b"OPTIONS", b"CONNECT"):
        found = exchange(
            sqlite_service, method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        )
        assert [answer.status // 100 for answer in found] == [4], (method, found)
        assert "location" not in found[0].headers


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Upgrade: TLS/1.3\r\n",
    ],
)
def test_no_other_protocol_is_spoken(sqlite_service: Service, upgrade: bytes) -> None:
    found = exchange(sqlite_service, GET + HOST + b"Connection: Upgrade\r\n" + upgrade + b"\r\n" + SMUGGLED)
    assert [answer.status for answer in found] == [200, 404]


def test_the_old_version_gets_one_answer(sqlite_service: Service) -> None:
    request = b"GET /v1/healthz/live HTTP/1.0\r\n" + HOST + b"\r\n"
    assert [answer.status for answer in exchange(sqlite_service, request + SMUGGLED)] == [200]


def test_hundreds_of_slow_senders_leave_room_for_others(sqlite_service: Service) -> None:
    """Idle, in the middle of a head, of a document, of an upload, and not taking an answer: all at once."""
    upload = b"PUT /v1/checkpoints/slow/files/x HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n"
    beginnings = [b"", GET + b"Host: lo", POST + b"Content-Length: 100\r\n\r\n{", upload + b"x" * 100]
    held = [connect(sqlite_service) for _ in range(240)]
    try:
        for place, connection in enumerate(held):
            connection.sendall(beginnings[place % len(beginnings)])
        for _ in range(5):
            for connection in held[1::4]:  # drops, so that they are alive
                connection.sendall(b"c")
            assert sqlite_service.http.get("/v1/healthz/live").status_code == 200
            sqlite_service.checkpoint("quick")
        assert len(sqlite_service.http.get("/v1/checkpoints?name=quick").json()["items"]) == 5
    finally:
        for connection in held:
            connection.close()
    leaving = [connect(sqlite_service) for _ in range(40)]
    for connection in leaving:  # gone in the middle of the answer
        connection.sendall(b"GET /v1/methods HTTP/1.1\r\n" + HOST + b"\r\n")
        connection.close()
    assert sqlite_service.http.get("/v1/healthz/live").status_code == 200


def test_answers_can_be_told_apart() -> None:
    """The reader of this file's answers can see a second one."""
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2
    assert [answer.body for answer in answers(wire)] == [b"ok", b"ok"]
