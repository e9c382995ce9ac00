"""Names and paths of every kind, wherever a caller may write one: no file outside of the data folder is read or written.

Beside the data folder lies a canary, and every trick in the book points at it or beyond.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.settings import Settings
from tests.app.conftest import running
from tests.app.factories import Service, chain, recipe, sha256, trace_file, trace_rows
from tests.app.security.wire import exchange

CANARY = b"the canary sings"
TRICKS = [
    "../canary",
    "../../canary",
    "a/../../canary",
    "a/../../../../../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "///canary",
    "./canary",
    "a/./b",
    "a//b",
    "a/",
    ".",
    "..",
    "...",
    "....//....//canary",
    "..;/canary",
    "~/canary",
    "~root/.ssh/authorized_keys",
    "$HOME/canary",
    "`id`",
    "$(id)",
    "file:///etc/passwd",
    "http://127.0.0.1/",
    "..\\canary",
    "..\\..\\canary",
    "C:\\canary",
    "C:canary",
    "\\\\server\\share\\canary",
    "con",
    "NUL.safetensors",
    "a:stream",
    "a.",
    "a ",
    " ",
    "-rf",
    "\x00",
    "canary\x00.safetensors",
    "a\nb",
    "a\r\nSet-Cookie: x=y",
    "\x1b[2J",
    "．．/canary",
    "‥/canary",
    "..／canary",
    "..∕canary",
    "..\u2044canary",
    "\u202etxt.yranac",
    "\ufeff../canary",
    "..\u00ad/canary",
    "a" * 300,
    "a/" * 300 + "b",
    "é" * 200,
    "a" * 8000,
]
# As they stand in the line of the request: what a decoder may or may not turn into a path.
TARGETS = [
    *(quote(trick, safe="") for trick in TRICKS),
    *(quote(trick) for trick in TRICKS),
    "%2e%2e/canary",
    "%2e%2e%2fcanary",
    "%2E%2E%5Ccanary",
    "..%2fcanary",
    "..%252fcanary",
    "%252e%252e%252fcanary",
    "..%c0%afcanary",  # overlong forms of the slash and the dot
    "..%e0%80%afcanary",
    "%c0%ae%c0%ae/canary",
    "..%u2215canary",
    "%00",
    "canary%00",
    "canary%",
    "%ff%fe",
    "%ed%a0%80",
    "a%0d%0aX: y",
]


@pytest.fixture
def caged(sqlite_settings: Settings, tmp_path: Path) -> Iterator[Service]:
    """A service with a canary beside its data folder; afterwards it is as it was, and nothing else has come there."""
    (tmp_path / "canary").write_bytes(CANARY)
    with running(sqlite_settings) as service:
        before = _outside(tmp_path, service)
        yield service
        assert _outside(tmp_path, service) == before
        assert (tmp_path / "canary").read_bytes() == CANARY
    inside = {path.name for path in sqlite_settings.data_dir.rglob("*") if path.is_file()}
    assert not {name for name in inside if "canary" in name or "passwd" in name}


def _outside(folder: Path, service: Service) -> set[Path]:
    """All but the data folder and the database, which lies beside it in tests."""
    data = service.context.settings.data_dir
    return {path for path in folder.rglob("*") if data not in (path, *path.parents) and "sqlite" not in path.name}


def _is_stored_under_its_digest(service: Service, content: bytes) -> bool:
    return service.blob(sha256(content)).read_bytes() == content


def test_paths_of_a_put(caged: Service) -> None:
    head = b"Host: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    seen = set()
    for place, target in enumerate(TARGETS):
        for url in (f"/v1/checkpoints/n{place}/files/{target}", f"/v1/datasets/{target}/files/x"):
            (answer,) = exchange(caged, f"PUT {url} HTTP/1.1\r\n".encode() + head)
            assert answer.status in {201, 400, 404, 405, 414, 422}, (url, answer)
            assert CANARY not in answer.body
            assert "set-cookie" not in answer.headers
            seen.add(answer.status)
    assert {201, 422} <= seen
    assert caged.blobs() == [sha256(b"abc")]
    assert _is_stored_under_its_digest(caged, b"abc")


def test_paths_in_the_metadata_of_a_resumable_upload(caged: Service) -> None:
    def encoded(value: str) -> str:
        return base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()

    for trick in [*TRICKS, "\ud800"]:
        for name, path in ((trick, "x"), ("n", trick)):
            metadata = f"kind {encoded('checkpoint')},name {encoded(name)},path {encoded(path)}"
            headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "3", "Upload-Metadata": metadata}
            begun = caged.http.post("/v1/uploads", headers=headers)
            assert begun.status_code in {201, 400, 413, 422, 431}, (trick, begun.text)
            if begun.status_code == 201:
                chunk = {
                    "Tus-Resumable": "1.0.0",
                    "Upload-Offset": "0",
                    "Content-Type": "application/offset+octet-stream",
                }
                assert caged.http.patch(begun.headers["Location"], content=b"abc", headers=chunk).status_code == 204
    for trick in TRICKS:
        headers = {"Tus-Resumable": "1.0.0"}
        for method in ("HEAD", "DELETE"):
            answer = caged.http.request(method, "/v1/uploads/" + quote(trick, safe=""), headers=headers)
            assert answer.status_code in {404, 405, 412, 414}, trick


def test_names_and_files_in_documents(caged: Service) -> None:
    caged.upload("checkpoints", "good", "model.safetensors", chain())
    digest = f"sha256:{sha256(chain())}"
    for trick in TRICKS:
        for kind, document in (
            ("checkpoints", {"name": trick}),
            ("checkpoints", {"name": "good", "files": ["model.safetensors", trick]}),
            ("checkpoints", {"name": "good", "blobs": {trick: digest}}),
            ("checkpoints", {"name": "good", "blobs": {"model.safetensors": trick}}),
            ("datasets", {"name": "good", "files": [trick]}),
        ):
            answer = caged.http.post(f"/v1/{kind}", json=document)
            # Odd names of good files are harmless: blobs lie under their digests.
            assert answer.status_code == 422 or trick.endswith(".safetensors"), (document, answer.text)
            assert CANARY.decode() not in answer.text
    blobs = {"model.safetensors": digest, "a:b/con.": digest}
    odd = caged.http.post("/v1/checkpoints", json={"name": "good", "blobs": blobs})
    assert odd.status_code == 201, odd.text
    assert caged.blobs() == [sha256(chain())]


def test_references_of_recipes_are_ids_and_names_never_files(caged: Service, tmp_path: Path) -> None:
    caged.recipe()
    for trick in [*TRICKS, str(tmp_path / "canary"), str(caged.blob(sha256(chain())))]:
        for document in (
            recipe(sources=[{"name": "a", "checkpoint": trick}, {"name": "b", "checkpoint": "b"}]),
            recipe(base=trick, stages=[{"method": "linear"}]),
            recipe(data={"evaluation": trick, "holdout": trick}),
        ):
            answer = caged.http.post(
                "/v1/fusions", content=json.dumps(document), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code in {400, 422}, (document, answer.text)
            assert CANARY.decode() not in answer.text


def test_yaml_reads_no_files_and_makes_no_objects(caged: Service, tmp_path: Path) -> None:
    for text in (
        f"sources: !include {tmp_path}/canary",
        "sources: !!python/object/apply:os.system ['touch canary2']",
        "sources: !!python/name:os.system",
        f"<<: !file {tmp_path}/canary",
        "a: &a [x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\nsources: [*d, *d]",
        "%TAG ! tag:x\n---\nsources: []",
    ):
        answer = caged.http.post("/v1/fusions", content=text, headers={"Content-Type": "application/yaml"})
        assert answer.status_code in {400, 422}, text
        assert CANARY.decode() not in answer.text


def test_paths_of_artifacts(caged: Service) -> None:
    fusion_id = caged.fusion()
    caged.succeed(fusion_id, {"model.safetensors": chain(), "trace.parquet": trace_file(trace_rows(3))})
    for target in [*TARGETS, "model.safetensors/", "model.safetensors%00", "./model.safetensors", "MODEL.safetensors"]:
        request = (
            f"GET /v1/fusions/{fusion_id}/artifacts/{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        (answer,) = exchange(caged, request.encode())
        assert answer.status in {400, 404, 414}, (target, answer)
        assert CANARY not in answer.body
    for target in TARGETS:
        for url in (f"/v1/fusions/{target}/trace", f"/v1/checkpoints/{target}"):
            (answer,) = exchange(caged, f"GET {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert answer.status in {400, 404, 405, 414}, (url, answer)


def test_what_is_asked_of_a_trace_is_a_value_not_a_program(caged: Service) -> None:
    """The layer is handed to another process on its command line."""
    fusion_id = caged.fusion()
    caged.succeed(fusion_id, {"trace.parquet": trace_file(trace_rows(3))})
    layers: list[Any] = ["--help", "'; touch canary2", '"}, "path": "/etc/passwd', "$(id)", "é\U0001f600", "\x00", "\n"]
    for layer in layers:
        answer = caged.http.get(f"/v1/fusions/{fusion_id}/trace", params={"layer": layer})
        assert (answer.status_code, answer.text) in [(200, ""), (422, answer.text)], layer
