"""``cogram serve`` keeps its parts running, loses no job over their deaths, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.client import Client, Unreachable
from app.listening import listen
from tests.e2e.inputs import Inputs
from tests.e2e.served import Served, gone, serving, until
from tests.e2e.test_service import local_sha256, remote_sha256, upload


@pytest.fixture(scope="module")
def undisturbed(long_inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of a run that nobody disturbs."""
    return local_sha256(long_inputs, long_inputs.long_recipe(), tmp_path_factory.mktemp("undisturbed") / "out")


def _begin(client: Client, inputs: Inputs) -> str:
    """The id of a fusion that is under way."""
    upload(client, inputs)
    fusion_id = str(client.submit(inputs.long_recipe())["id"])
    until(lambda: client.fusion(fusion_id)["progress"])
    return fusion_id


def test_a_worker_killed_in_mid_fusion_is_replaced_and_the_job_ends_with_the_same_bytes(
    data_dir: Path, long_inputs: Inputs, undisturbed: str
) -> None:
    with serving(data_dir) as served, served.client() as client:
        fusion_id = _begin(client, long_inputs)
        worker = served.part("--queues", "fusion.cpu,fusion.cuda")
        children = worker.children(recursive=True)
        worker.kill()
        fusion = client.wait(fusion_id, 90)
        assert (fusion["state"], fusion["attempt"]) == ("succeeded", 2)
        assert gone(children), "the dead worker's child went on"
        assert remote_sha256(client, fusion_id) == undisturbed
        kinds = [event.type for event in client.follow(fusion_id)]
        assert (kinds.count("started"), kinds.count("succeeded")) == (2, 1)


def test_a_service_stopped_in_mid_fusion_ends_in_seconds_and_finishes_the_job_after_its_return(
    data_dir: Path, long_inputs: Inputs, undisturbed: str
) -> None:
    with serving(data_dir) as served, served.client() as client:
        fusion_id = _begin(client, long_inputs)
        family = served.family()
        assert len(family) >= 7  # itself, broker, API, dispatcher, two workers, and the child with the job
        asked = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - asked < 15
        assert gone(family, 0.5)
    with serving(data_dir) as served, served.client() as client:
        assert client.wait(fusion_id, 90)["state"] == "succeeded"
        assert remote_sha256(client, fusion_id) == undisturbed


def test_nothing_outlives_a_service_killed_in_mid_fusion_and_mid_upload(data_dir: Path, long_inputs: Inputs) -> None:
    incoming = data_dir / "blobs" / "incoming"
    with serving(data_dir) as served, served.client() as client:
        _begin(client, long_inputs)
        with socket.create_connection(("127.0.0.1", int(served.address.rsplit(":", 1)[1]))) as upload:
            head = b"PUT /v1/datasets/x/files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n"
            upload.sendall(head + b"x" * 2_000_000)
            until(lambda: list(incoming.iterdir()))
            family = served.family()
            served.process.kill()
            served.process.wait(10)
            assert gone(family)
    with serving(data_dir):
        assert list(incoming.iterdir()) == []


def test_real_servers_take_the_place_of_the_embedded_parts(
    data_dir: Path, small_inputs: Inputs, postgresql_url: str, broker_url: str
) -> None:
    with serving(data_dir, DATABASE_URL=postgresql_url, BROKER_URL=broker_url) as served, served.client() as client:
        upload(client, small_inputs)
        fusion_id = client.submit(small_inputs.recipe())["id"]
        assert client.wait(fusion_id, 60)["state"] == "succeeded"
        assert "valkey-server" not in {process.name() for process in served.family()}
        assert not (served.folder / "broker").exists()
        assert not list(served.folder.glob("*.sqlite3"))


def test_the_parts_started_one_by_one_do_the_same_as_serve(
    data_dir: Path, small_inputs: Inputs, postgresql_url: str, broker_url: str, tmp_path: Path
) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
    environment = os.environ | {
        "DATABASE_URL": postgresql_url,
        "BROKER_URL": broker_url,
        "COGRAM_DATA_DIR": str(data_dir),
    }
    parts = []
    with (tmp_path / "parts.log").open("w") as log:

        def cogram(*words: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", "app.cli", *words], env=environment, stdout=log, stderr=log)

        try:
            assert cogram("migrate").wait(30) == 0
            for words in (("api", "--port", port), ("dispatcher",), ("worker",), ("worker", "--queues", "io")):
                parts.append(cogram(*words))
            with Client(f"http://127.0.0.1:{port}") as client:
                until(lambda: _answers(client))
                upload(client, small_inputs)
                recipe = small_inputs.recipe()
                fusion_id = client.submit(recipe)["id"]
                assert client.wait(fusion_id, 60)["state"] == "succeeded"
                assert remote_sha256(client, fusion_id) == local_sha256(small_inputs, recipe, tmp_path / "local")
        finally:
            for part in parts:
                part.terminate()
            codes = [part.wait(30) for part in parts]
    assert codes == [0, 0, 0, 0]


def test_a_service_that_drains_ends_what_runs_answers_meanwhile_and_keeps_what_waits(
    data_dir: Path, long_inputs: Inputs, undisturbed: str
) -> None:
    with serving(data_dir) as served, served.client() as client:
        running = _begin(client, long_inputs)
        served.process.send_signal(signal.SIGUSR2)
        waiting = client.submit(long_inputs.recipe())["id"]
        assert served.process.wait(100) == 0
    with serving(data_dir) as served, served.client() as client:
        fusion = client.fusion(running)
        assert (fusion["state"], fusion["attempt"]) == ("succeeded", 1)
        assert remote_sha256(client, running) == undisturbed
        fusion = client.wait(waiting, 90)
        assert (fusion["state"], fusion["attempt"]) == ("succeeded", 1)


def test_fusions_stand_back_where_callers_wait_for_an_answer(served: Served) -> None:
    worker, io, api = (served.part(*words) for words in (("fusion.cpu,fusion.cuda",), ("io",), ("app.api",)))
    assert worker.nice() > io.nice() == api.nice()
    groups = [Path(f"/proc/{part.pid}/autogroup") for part in (worker, io, api)]
    if groups[0].exists():  # a kernel that shares the processors among sessions first, and within one by niceness
        of_worker, of_io, of_api = (int(group.read_text().split()[-1]) for group in groups)
        assert of_worker > of_io == of_api


def test_an_interrupt_is_a_normal_end(data_dir: Path) -> None:
    with serving(data_dir) as served:
        family = served.family()
        assert served.stop(signal.SIGINT) == 0
        assert gone(family, 0.5)


def test_parts_that_die_are_started_again(data_dir: Path, small_inputs: Inputs) -> None:
    with serving(data_dir) as served:
        with served.client() as client:
            upload(client, small_inputs)
        for words in (("app.api",), ("worker.dispatcher",), ("fusion.cpu,fusion.cuda",), ("io",), ()):
            part = served.part(*words) if words else _broker(served)
            part.kill()
            part.wait(10)  # what is on its way to a process that is about to die may be reset
        # The address holds: a caller waits for the new API and gets its answer.
        with served.client() as client:
            fusion_id = client.submit(small_inputs.recipe())["id"]
            assert client.wait(fusion_id, 60)["state"] == "succeeded"


def test_one_folder_belongs_to_one_service(served: Served, client: Client) -> None:
    code, told = _refused("--data-dir", str(served.folder), "--port", "0")
    assert code == 2
    assert (
        told
        == f"cogram: another cogram serve uses {served.folder}. Stop it, or choose another folder with --data-dir.\n"
    )
    assert client.validate({})["ok"] is False


def test_addresses_that_others_could_reach_or_that_are_taken_are_refused_with_a_remedy(data_dir: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        code, told = _refused("--data-dir", str(data_dir), "--host", host)
        assert code == 2
        assert f"refusing to listen on {host}" in told
        assert "COGRAM_REQUIRE_KEYS=true" in told
    with listen("127.0.0.1", 0) as taken:
        code, told = _refused("--data-dir", str(data_dir), "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "already in use" in told
    assert told.count("\n") == 1


def test_a_folder_too_deep_for_a_socket_is_no_obstacle(tmp_path: Path, small_inputs: Inputs) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with serving(deep) as served, served.client() as client:
        socket_path = Path(_broker(served).cmdline()[0].split("unixsocket:")[1])
        assert not socket_path.is_relative_to(deep)
        assert socket_path.parent.stat().st_mode & 0o777 == 0o700
        upload(client, small_inputs)
        assert client.wait(client.submit(small_inputs.recipe())["id"], 60)["state"] == "succeeded"
    assert not socket_path.parent.exists()


def test_the_broker_listens_on_a_private_socket_only(served: Served) -> None:
    broker = _broker(served)
    assert [found.laddr for found in broker.net_connections("tcp")] == []
    assert (served.folder / "broker").stat().st_mode & 0o777 == 0o700
    assert (served.folder / "broker" / "valkey.sock").stat().st_mode & 0o777 == 0o700
    assert list((served.folder / "broker").glob("appendonlydir/*"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.folder / "broker" / "valkey.sock"))


def _answers(client: Client) -> bool:
    try:
        client.validate({})
    except Unreachable:
        return False
    return True


def _broker(served: Served) -> psutil.Process:
    def found() -> psutil.Process | None:
        children = psutil.Process(served.process.pid).children()
        return next((child for child in children if child.name() == "valkey-server"), None)

    return until(found)


def _refused(*options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "app.cli", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr
