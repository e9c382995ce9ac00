"""Two clients that others wrote: tuspy, and tus-js-client under node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed

from app.settings import Settings
from app.store.models import Upload, UploadedFile
from tests.app.factories import Service, sha256
from tests.app.tus.lines import line, soon
from tests.app.tus.processes import api_process
from tests.app.tus.speaking import Tus, repr_digest

_NODE = Path(sys.executable).parent / "node"
_SCRIPT = Path(__file__).parents[2] / "clients" / "upload.mjs"
CONTENT = os.urandom(3_500_000)
METADATA = {"kind": "checkpoint", "name": "net", "filename": "model.safetensors", "filetype": "none of our business"}
_PATIENT = {"retryDelays": [100, 200, 400, 800, 1600]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def _node(url: str, file: Path, **options: Any) -> tuple[int, dict[str, Any]]:
    arguments = [
        str(_NODE),
        str(_SCRIPT),
        url + "/v1/uploads",
        str(file),
        json.dumps({"metadata": METADATA, **options}),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def _stored(service: Service) -> bool:
    """Whether the file is there, as it was."""
    with service.context.database.reading() as session:
        rows = [(file.kind, file.name, file.path, file.digest) for file in session.query(UploadedFile)]
    return (
        rows == [("checkpoint", "net", "model.safetensors", sha256(CONTENT))]
        and service.blob(sha256(CONTENT)).read_bytes() == CONTENT
    )


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "with checksums"])
def test_tuspy_gets_a_file_across_a_bad_line(service: Service, file: Path, checked: bool) -> None:
    budgets = (10_000_000, 700_000, 10_000_000, 1_300_000) if not checked else (10_000_000, 10_000_000, 300_000)
    with line(service.http.base_url, *budgets) as bad, file.open("rb") as stream:
        uploader = TusClient(bad.url + "/v1/uploads").uploader(
            file_stream=stream,
            metadata=METADATA,
            chunk_size=2_000_000 if not checked else 600_000,
            retries=9,
            retry_delay=0.2,
            upload_checksum=checked,
        )
        uploader.upload()
    assert bad.cuts >= 1
    assert uploader.request.response_headers["repr-digest"] == repr_digest(CONTENT)
    assert _stored(service)


def test_tus_js_client_gets_a_file_across_a_bad_line(service: Service, file: Path) -> None:
    with line(service.http.base_url, 800_000, 900_000) as bad:
        code, seen = _node(bad.url, file, **_PATIENT)
    assert (code, bad.cuts, seen.get("error")) == (0, 2, None)
    assert seen["digest"] == repr_digest(CONTENT)
    assert _stored(service)


def test_tus_js_client_sends_the_first_bytes_with_the_creation_and_in_chunks(service: Service, file: Path) -> None:
    url = str(service.http.base_url)
    code, seen = _node(url, file, uploadDataDuringCreation=True, chunkSize=1_500_000, overridePatchMethod=True)
    assert code == 0
    assert seen["requests"] == [["POST", 201], ["POST", 204], ["POST", 204]]
    assert _stored(service)


def test_tus_js_client_begins_anew_when_its_creation_is_cut_off(sqlite_service: Service, file: Path) -> None:
    with line(sqlite_service.http.base_url, 800_000) as bad:
        code, seen = _node(bad.url, file, uploadDataDuringCreation=True, **_PATIENT)
    assert (code, bad.cuts) == (0, 1)
    assert seen["requests"][-1] == ["POST", 201]
    assert _stored(sqlite_service)
    assert soon(lambda: not Tus(sqlite_service).staged())
    with sqlite_service.context.database.reading() as session:
        assert session.query(Upload).count() == 1  # of what was cut off nothing is left


def test_tus_js_client_gives_an_upload_up(sqlite_service: Service, file: Path) -> None:
    code, seen = _node(str(sqlite_service.http.base_url), file, chunkSize=1_000_000, terminateAfter=1_000_000)
    assert code == 0
    assert ["DELETE", 204] in seen["requests"]
    tus = Tus(sqlite_service)
    assert tus.head(seen["url"]).status_code == 404
    assert tus.staged() == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_clients_that_ended_go_on_after_a_kill_of_the_api(settings: Settings, file: Path, tmp_path: Path) -> None:
    """Clients and service know of the uploads only what they wrote down."""
    urls = str(tmp_path / "urls.json")
    with api_process(settings, tmp_path) as api, line(httpx.URL(api.url), 10_000_000, 1_800_000, 1_900_000) as bad:
        with file.open("rb") as stream:
            first = TusClient(bad.url + "/v1/uploads").uploader(file_stream=stream, metadata=METADATA)
            with pytest.raises(TusUploadFailed):
                first.upload()
        code, seen = _node(bad.url, file, storage=urls, retryDelays=[])
        assert (code, seen["resumed"], bad.cuts) == (1, False, 2)
        api.kill()
        api.start()
        with file.open("rb") as stream:
            second = TusClient(bad.url + "/v1/uploads").uploader(file_stream=stream, url=first.url)
            assert second.offset > 0
            second.upload()
        code, seen = _node(bad.url, file, storage=urls, retryDelays=[])
        assert (code, seen["resumed"]) == (0, True)
        assert seen["requests"] == [["HEAD", 200], ["PATCH", 204]]
        assert second.request.response_headers["repr-digest"] == seen["digest"] == repr_digest(CONTENT)
