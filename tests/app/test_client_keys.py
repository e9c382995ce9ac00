"""The client sends its key, and what it sends again after a broken connection is done once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app import client as client_module
from app.client import Client, ServiceProblem, Unreachable
from app.store.models import Checkpoint, Fusion
from tests.app.access import Guarded
from tests.app.factories import Service, chain


class Swallower:
    """A proxy before the service that lets requests through, and breaks the connection when something was made."""

    def __init__(self, service: httpx.URL, answers: int) -> None:
        self._service = (service.host, service.port or 80)
        self._left = answers
        self.swallowed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Takes no more, and waits for what is under way."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[connection])
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._service, 20) as service, contextlib.suppress(OSError):
            back = threading.Thread(target=self._answer, args=(service, client))
            back.start()
            while piece := client.recv(65536):
                service.sendall(piece)
            service.shutdown(socket.SHUT_WR)
            back.join(20)

    def _answer(self, service: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := service.recv(65536):
                if self._left > 0 and b"\r\nlocation: " in piece.lower():
                    self._left -= 1
                    self.swallowed += 1
                    break
                client.sendall(piece)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def swallowing(service: Service, answers: int) -> Iterator[Swallower]:
    """The proxy for the length of the block."""
    proxy = Swallower(service.http.base_url, answers)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RECONNECT_SECONDS", 0.01)


def _count(service: Service, table: type[Fusion] | type[Checkpoint]) -> int:
    with service.context.database.reading() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def test_a_submission_whose_answer_is_lost_is_sent_again_and_done_once(service: Service) -> None:
    recipe = service.recipe()
    with swallowing(service, 3) as proxy, Client(proxy.url) as client:
        fusion = client.submit(recipe)
        assert proxy.swallowed == 3
        assert client.submit(recipe)["id"] != fusion["id"]  # another call of the caller's is another fusion
    assert _count(service, Fusion) == 2
    assert service.http.get(f"/v1/fusions/{fusion['id']}").json()["id"] == fusion["id"]


def test_a_checkpoint_whose_answer_is_lost_is_made_once(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(chain())
    with swallowing(service, 1) as proxy, Client(proxy.url) as client:
        made = client.upload_checkpoint("net", path)
    assert proxy.swallowed == 1
    assert [entry["id"] for entry in service.http.get("/v1/checkpoints").json()["items"]] == [made["id"]]


def test_it_gives_up_in_the_end(sqlite_service: Service, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(client_module, "_MOST_RESENDS", 3)
    recipe = sqlite_service.recipe()
    with swallowing(sqlite_service, 100) as proxy, Client(proxy.url) as client:
        with pytest.raises(Unreachable):
            client.submit(recipe)
        assert proxy.swallowed == 4
    assert _count(sqlite_service, Fusion) == 1
    with Client(f"http://127.0.0.1:{free_port}") as client, pytest.raises(Unreachable):
        client.submit(recipe)


def test_the_key_is_the_one_given_or_that_of_the_environment(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    key, other = guarded.key("one"), guarded.key("two")
    monkeypatch.delenv("COGRAM_API_KEY", raising=False)
    with Client(guarded.address) as nobody, pytest.raises(ServiceProblem, match=r"401 auth\.required"):
        nobody.fusion("fus_0")
    with guarded.calling(key) as one:
        one.upload("checkpoints", "net", "model.safetensors", chain())
    monkeypatch.setenv("COGRAM_API_KEY", key.text)
    digest = guarded.service.blobs()[0]
    with Client(guarded.address) as named, Client(guarded.address, api_key=other.text) as given:
        assert (named.has(digest), given.has(digest)) == (True, False)
