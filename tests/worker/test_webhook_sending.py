"""One message to a real receiver: what is sent, what counts as delivered, and where it never goes."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme

from app.peers import Peers
from app.settings import Settings
from app.signing import new_secret
from app.store.deliveries import Claim, Miss
from app.store.ids import DeliveryId, WebhookId
from tests.receivers import Receiver, receiver
from tests.worker.rig import ROOT
from worker.webhooks.connecting import Connector, Deadline, NoPeer
from worker.webhooks.sending import Sender

SECRET = new_secret()
BODY = json.dumps({"type": "webhook.ping", "data": {"ä": "€"}}, ensure_ascii=False)
NO_PEER = "no address that may be called"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """As an operator develops with; ``strict`` is what is shipped."""
    return Settings(data_dir=tmp_path, webhook_allow_private=True, webhook_seconds=20)


@pytest.fixture
def strict(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_private": False})


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def plain() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


@contextlib.contextmanager
def _secure(authority: trustme.CA, *names: str) -> Iterator[Receiver]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(tls)
    with receiver(tls) as started:
        yield started


def _trusting(settings: Settings, authority: trustme.CA) -> Settings:
    path = settings.data_dir / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return settings.model_copy(update={"webhook_ca_file": path})


def _refusing(settings: Settings, network: str) -> Settings:
    return settings.model_copy(update={"webhook_refused_networks": (ipaddress.ip_network(network),)})


def _claim(url: str) -> Claim:
    return Claim(DeliveryId("msg_1"), WebhookId("hook_1"), 1, url, (SECRET,), BODY)


def _miss(settings: Settings, url: str, **parts: Any) -> Miss:
    outcome = Sender(settings, **parts).send(_claim(url))
    assert isinstance(outcome, Miss)
    return outcome


def _to(*addresses: str) -> Callable[[str, int], list[str]]:
    return lambda _host, _port: [*addresses]


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextlib.contextmanager
def _raw(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that treats each connection as it likes."""
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            stopped.set()
            thread.join()


def test_a_message_comes_signed_with_its_id_and_its_very_bytes(settings: Settings, plain: Receiver) -> None:
    assert Sender(settings).send(_claim(plain.url + "?key=1")) == 204
    (message,) = plain.messages
    assert message.verified(SECRET) == json.loads(BODY)
    assert message.body == BODY.encode()
    assert message.path == "/hooks?key=1"
    assert message.id == "msg_1"
    assert abs(int(message.headers["webhook-timestamp"]) - time.time()) < 60
    assert message.headers["content-type"] == "application/json"
    assert message.headers["host"] == plain.url.split("/")[2]
    assert {"authorization", "cookie", "accept-encoding"}.isdisjoint(message.headers)


def test_a_signature_is_made_anew_at_every_try(settings: Settings, plain: Receiver) -> None:
    for clock in (time.time() - 100, time.time()):
        Sender(settings, clock=lambda clock=clock: clock).send(_claim(plain.url))
    first, second = plain.messages
    assert first.headers["webhook-timestamp"] != second.headers["webhook-timestamp"]
    assert first.verified(SECRET) == second.verified(SECRET)


def test_a_message_goes_over_tls_to_a_receiver_that_is_trusted(settings: Settings, authority: trustme.CA) -> None:
    with _secure(authority, "localhost") as secure:
        assert Sender(_trusting(settings, authority)).send(_claim(secure.url)) == 204
        assert secure.messages[0].verified(SECRET) == json.loads(BODY)


def test_a_certificate_of_nobody_known_or_for_another_name_gets_nothing(
    settings: Settings, authority: trustme.CA
) -> None:
    with _secure(authority, "localhost") as secure, _secure(authority, "elsewhere.example") as misnamed:
        assert "certificate is not trusted" in _miss(settings, secure.url).reason
        trusting = _trusting(settings, authority)
        assert "certificate is not trusted" in _miss(trusting, misnamed.url).reason
        assert secure.messages == misnamed.messages == []


def test_http_is_only_for_developing(strict: Settings, plain: Receiver) -> None:
    assert _miss(strict, plain.url).reason == "Only https:// addresses are called."
    assert plain.connections == 0


@pytest.mark.parametrize("status", [200, 202, 299])
def test_any_2xx_is_a_delivery(settings: Settings, plain: Receiver, status: int) -> None:
    plain.statuses = [status]
    assert Sender(settings).send(_claim(plain.url)) == status


@pytest.mark.parametrize("status", [300, 304, 400, 404, 410, 429, 500, 503])
def test_any_other_status_is_none(settings: Settings, plain: Receiver, status: int) -> None:
    plain.statuses = [status]
    outcome = _miss(settings, plain.url)
    assert (outcome.status, outcome.gone) == (status, status == 410)
    assert str(status) in outcome.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(settings: Settings, plain: Receiver, status: int) -> None:
    with receiver() as target:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", target.url)
            handler.end_headers()

        plain.answer = redirect
        assert "redirects are not followed" in _miss(settings, plain.url).reason
        assert (len(plain.messages), target.connections) == (1, 0)


def test_proxies_and_credentials_of_the_environment_are_not_used(
    settings: Settings, plain: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with receiver() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert Sender(settings).send(_claim(plain.url)) == 204
        assert proxy.connections == 0
    assert "authorization" not in plain.messages[0].headers


def test_a_receiver_that_never_answers_is_cut_off(settings: Settings) -> None:
    hurried = settings.model_copy(update={"webhook_seconds": 0.3})
    with _raw(lambda connection: time.sleep(1)) as url:
        assert _miss(hurried, url).reason == "No answer within 0.3 seconds."


def _dribble(first: bytes, step: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(400):  # forty seconds in all, never silent for long
            connection.sendall(step)
            time.sleep(0.1)

    return answer


def test_a_receiver_that_dribbles_its_answer_gains_no_time(settings: Settings) -> None:
    hurried = settings.model_copy(update={"webhook_seconds": 1})
    with _raw(_dribble(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n")) as url:
        assert _miss(hurried, url).reason == "No answer within 1 seconds."
    with _raw(_dribble(b"", b"HTTP/1.1 100 Continue\r\n\r\n")) as url:
        assert _miss(hurried, url).reason == "No answer within 1 seconds."
    with _raw(_dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", b"x")) as url:
        assert Sender(hurried).send(_claim(url)) == 200  # the status is what counts


def test_a_tls_handshake_that_dribbles_gains_no_time(settings: Settings) -> None:
    hurried = settings.model_copy(update={"webhook_seconds": 0.5})
    hello = b"\x16\x03\x03\x40\x00"  # a record of 16 KiB is announced, and comes byte by byte
    with _raw(_dribble(hello, b"\x02")) as url:
        assert "within" in _miss(hurried, url.replace("http:", "https:")).reason


def test_an_answer_is_read_no_further_than_a_few_kilobytes_and_never_kept(settings: Settings) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 500 SECRET\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            sent += connection.send(b"SECRET" * 20_000)

    with _raw(flood) as url:
        outcome = _miss(settings, url)
    assert outcome == Miss("Answered 500.", 500)
    assert sent < 50_000_000  # what fits into buffers on the way


@pytest.mark.parametrize(
    "answer", [b"", b"SECRET\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 2000000 SECRET\r\n\r\n", b"SSH-2.0-SECRET\r\n"]
)
def test_what_is_no_answer_is_told_in_our_own_words(settings: Settings, answer: bytes) -> None:
    def give(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with _raw(give) as url:
        for outcome in (_miss(settings, url), _miss(settings, url.replace("http:", "https:"))):
            assert outcome.status is None
            assert "SECRET" not in outcome.reason


def test_something_unforeseen_is_a_try_that_failed(settings: Settings) -> None:
    def broken(_host: str, _port: int) -> list[str]:
        raise ValueError("SECRET")

    assert _miss(settings, "https://example.com/", resolve=broken).reason == "The address can't be called."


@pytest.mark.parametrize("host", [".example.com", "a..b", "a" * 64 + ".com", "%00"])
def test_a_name_that_is_none_is_not_called(settings: Settings, host: str) -> None:
    assert NO_PEER in _miss(settings, f"https://{host}/").reason


def test_nobody_there_is_told(settings: Settings, free_port: int) -> None:
    assert _miss(settings, f"http://127.0.0.1:{free_port}/").reason == "No connection: Connection refused."


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_that_leads_to_a_private_address_is_not_even_knocked_at(
    strict: Settings, authority: trustme.CA, address: str
) -> None:
    with _secure(authority, "localhost") as secure:
        trusting = _trusting(strict, authority)
        assert NO_PEER in _miss(trusting, secure.url, resolve=_to(address)).reason
        assert secure.connections == 0


def test_an_unknown_name_and_a_private_one_are_told_in_the_same_words(strict: Settings, free_port: int) -> None:
    """So a caller can't find out which names there are in this network, nor which ports are open."""
    unknown = _miss(strict, "https://nobody.invalid/")
    private = _miss(strict, f"https://localhost:{free_port}/")
    assert unknown == private
    assert _miss(strict, "https://" + "a" * 70 + ".example/") == unknown


def test_a_name_that_changes_between_the_look_and_the_connection_gets_not_a_byte(
    strict: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver says a public address first, and a private one from then on; the sockets are real."""
    received: list[bytes] = []
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]
        return public if len(asked) == 1 else real("127.0.0.1", port, *rest, **more)

    with _raw(lambda connection: received.append(connection.recv(65536))) as url:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        outcome = _miss(strict, url.replace("http://127.0.0.1", "https://rebinding.example"))
        monkeypatch.undo()
        assert NO_PEER in outcome.reason
        assert asked == ["rebinding.example", "93.184.216.34"]
        _until(lambda: len(received) == 1)
    assert received == [b""]  # connected to, and left at once


def test_every_try_looks_the_name_up_again(settings: Settings, plain: Receiver) -> None:
    answers = iter([["127.0.0.1"], ["10.255.255.1"]])
    sender = Sender(_refusing(settings, "10.0.0.0/8"), resolve=lambda _host, _port: next(answers))
    assert sender.send(_claim(plain.url)) == 204
    outcome = sender.send(_claim(plain.url))
    assert isinstance(outcome, Miss)
    assert NO_PEER in outcome.reason


def test_of_several_addresses_only_those_that_may_be_called_are(settings: Settings, plain: Receiver) -> None:
    careful = _refusing(settings, "127.0.0.2/32")
    assert Sender(careful, resolve=_to("127.0.0.2", "127.0.0.3", "127.0.0.1")).send(_claim(plain.url)) == 204
    assert len(plain.messages) == 1


def test_this_machine_is_not_called_by_whatever_address_it_has(plain: Receiver) -> None:
    class Anything(Peers):
        """As if 127.0.0.1 were a public address of this machine."""

        def allow(self, host: str) -> bool:
            return True

    port = int(plain.url.rsplit(":", 1)[1].split("/")[0])
    connector = Connector(Anything(allow_private=False), Deadline(20), 5, _to("127.0.0.1"))
    with pytest.raises(NoPeer):
        connector.connect_tcp("example.com", port)
    assert plain.messages == []


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_receiver_in_the_documentation_takes_what_is_signed_and_nothing_else(
    settings: Settings, free_port: int
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), re.DOTALL)
    environment = os.environ | {"WEBHOOK_SECRET": SECRET, "PORT": str(free_port)}
    sender, claim = Sender(settings), _claim(f"http://127.0.0.1:{free_port}/")
    forged = dataclasses.replace(claim, secrets=(new_secret(),))
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _until(lambda: sender.send(claim) == 204)
            assert sender.send(claim) == 204
            assert sender.send(forged) == Miss("Answered 400.", 400)
        finally:
            process.kill()
        printed, _ = process.communicate()
    assert printed == "webhook.ping {'ä': '€'}\n"
