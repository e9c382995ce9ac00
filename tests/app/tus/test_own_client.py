"""The service's own client: large files go on where they were."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import httpx
import pytest

from app import client, client_uploads
from app.client import Client, ServiceProblem, Unreachable
from app.settings import Settings
from tests.app.factories import Service, chain, safetensors_file
from tests.app.tus.lines import line, soon
from tests.app.tus.processes import api_process
from tests.app.tus.speaking import VERSION


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_large_checkpoint_gets_across_a_bad_line_and_a_kill_of_the_api(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    count = 3_000_000
    file.write_bytes(safetensors_file({"weight": ("F32", (count,), os.urandom(count) * 4)}))
    made = []
    # The first connection asks whether the bytes are there, begins the upload and sends: it all goes over one.
    with api_process(settings, tmp_path) as api, line(httpx.URL(api.url), 4_000_000, 3_000_000) as bad:
        with Client(bad.url) as sender:
            sending = threading.Thread(target=lambda: made.append(sender.upload_checkpoint("large", file)))
            sending.start()
            assert soon(lambda: bad.cuts == 2)
            api.kill()
            api.start()
            sending.join(90)
        assert [(one["name"], one["files"][0]["size"]) for one in made] == [("large", file.stat().st_size)]
        with Client(api.url) as sender:
            again = sender.upload_checkpoint("again", file)  # nothing is sent
        assert again["sha256"] == made[0]["sha256"]


def test_uploads_that_vanish_again_and_again_are_given_up(
    sqlite_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(client, "_RESUMABLE_FROM", 0)
    monkeypatch.setattr(client_uploads, "_MOST_FAILURES", 3)
    monkeypatch.setattr(client_uploads, "_PAUSE_SECONDS", 0)
    begin = client_uploads.ResumableUpload._begin
    begun = []

    def begin_and_vanish(upload: client_uploads.ResumableUpload) -> int:
        offset = begin(upload)
        begun.append(upload._url)
        assert sqlite_service.http.delete(f"/v1{upload._url}", headers=VERSION).status_code == 204
        return offset

    monkeypatch.setattr(client_uploads.ResumableUpload, "_begin", begin_and_vanish)
    # Which of them depends on whether the answer is read before the connection ends that the rest of the body went to.
    with Client(str(sqlite_service.http.base_url)) as sender, pytest.raises((ServiceProblem, Unreachable)):
        sender.upload_checkpoint("net", file)
    assert 1 < len(begun) <= 4


def test_a_refusal_that_stays_is_not_tried_again(sqlite_service: Service, tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(b"x" * (9 << 20))
    small = tmp_path / "model.safetensors"
    small.write_bytes(chain())
    with Client(str(sqlite_service.http.base_url)) as sender:
        with pytest.raises(ServiceProblem) as refused:
            sender.upload_checkpoint("net", file)
        assert (refused.value.status, refused.value.code) == (400, "upload.headers")
        assert sender.upload_checkpoint("net", small)["tensors"] == 4
