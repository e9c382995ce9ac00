"""The service's own client: large files go on where they were."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import httpx
import pytest

from app.client import Client, ServiceProblem
from app.settings import Settings
from tests.app.factories import Service, chain, safetensors_file
from tests.app.tus.lines import line, soon
from tests.app.tus.processes import api_process


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_large_checkpoint_gets_across_a_bad_line_and_a_kill_of_the_api(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    count = 3_000_000
    file.write_bytes(safetensors_file({"weight": ("F32", (count,), os.urandom(count) * 4)}))
    made = []
    # The first connection asks whether the bytes are there, begins the upload and sends: it all goes over one.
    with api_process(settings, tmp_path) as api, line(httpx.URL(api.url), 4_000_000, 3_000_000) as bad:
        with Client(bad.url) as client:
            sending = threading.Thread(target=lambda: made.append(client.upload_checkpoint("large", file)))
            sending.start()
            assert soon(lambda: bad.cuts == 2)
            api.kill()
            api.start()
            sending.join(90)
        assert [(one["name"], one["files"][0]["size"]) for one in made] == [("large", file.stat().st_size)]
        with Client(api.url) as client:
            again = client.upload_checkpoint("again", file)  # nothing is sent
        assert again["sha256"] == made[0]["sha256"]


def test_a_refusal_that_stays_is_not_tried_again(sqlite_service: Service, tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(b"x" * (9 << 20))
    small = tmp_path / "model.safetensors"
    small.write_bytes(chain())
    with Client(str(sqlite_service.http.base_url)) as client:
        with pytest.raises(ServiceProblem) as refused:
            client.upload_checkpoint("net", file)
        assert (refused.value.status, refused.value.code) == (400, "upload.headers")
        assert client.upload_checkpoint("net", small)["tensors"] == 4
