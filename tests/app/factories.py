"""What tests of the HTTP side need to exist before they can begin, made through the service or its own store."""

from __future__ import annotations

import hashlib
import io
import json
import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet

from app.context import Context
from app.store import jobs
from app.store.blobs import LocalStorage
from cogram_core.trace import SCHEMA

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Service:
    """A running service, from the outside and the inside."""

    http: httpx.Client
    context: Context

    def blobs(self) -> list[str]:
        """Digests of all blobs on disk."""
        return sorted(path.name for path in (self.context.settings.blob_dir / "sha256").glob("*/*"))

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        storage = self.context.blobs.storage
        assert isinstance(storage, LocalStorage)
        return storage.path(digest)

    def incoming(self) -> list[Path]:
        """Uploads under way, or left behind."""
        return list(self.context.blobs.incoming.folder.iterdir())

    def raw(self, method: str, target: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
        """A request whose target goes out as it is written here; status and document of the answer."""
        url = self.http.base_url
        with socket.create_connection((url.host, url.port or 80), 25) as connection:
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        headers, _, document = answer.partition(b"\r\n\r\n")
        assert b"content-type: application/problem+json" in headers.lower()
        return int(headers.split()[1]), json.loads(document)

    def connect(self, target: str, headers: str = "") -> socket.socket:
        """A connection on which a GET has been sent, and which takes little before it is read from."""
        url = self.http.base_url
        connection = socket.socket()
        # The kernel may grow a receive buffer to more than a whole answer, and then nothing waits for the client.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(25)
        connection.connect((url.host, url.port or 80))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        return connection

    def upload(self, kind: str, name: str, path: str, content: bytes) -> None:
        """PUT of one file that is expected to work."""
        answer = self.http.put(f"/v1/{kind}/{name}/files/{path}", content=content)
        assert answer.status_code == 201, answer.text

    def checkpoint(self, name: str, content: bytes | None = None) -> dict[str, Any]:
        """A checkpoint of a small chain of linear layers."""
        self.upload("checkpoints", name, "model.safetensors", content or chain())
        return self._created("/v1/checkpoints", name)

    def dataset(self, name: str, content: bytes | None = None) -> dict[str, Any]:
        """A dataset that fits the small chain."""
        self.upload("datasets", name, "data.safetensors", content or examples())
        return self._created("/v1/datasets", name)

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """A recipe whose parts exist."""
        for name in ("a", "b"):
            self.checkpoint(name)
        for name in ("eval", "holdout"):
            self.dataset(name)
        return recipe(**changes)

    def fusion(self, **changes: Any) -> str:
        """The id of a queued fusion."""
        answer = self.http.post("/v1/fusions", json=self.recipe(**changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def claim(self, fusion_id: str) -> jobs.Claim:
        """What a worker does first."""
        with self.context.database.transaction() as session:
            claim = jobs.claim(session, fusion_id, "test-worker", lease_seconds=60, max_attempts=3)
        assert claim is not None
        return claim

    def succeed(self, fusion_id: str, files: Mapping[str, bytes]) -> None:
        """What a worker does last: publishes ``files`` as the fusion's artifacts."""
        claim = self.claim(fusion_id)
        artifacts = []
        for path, content in files.items():
            writer = self.context.blobs.writer()
            writer.write(content)
            artifacts.append(jobs.ArtifactFile(path, writer.publish()))
        with self.context.database.transaction() as session:
            assert jobs.finish_succeeded(session, claim, {"written": "cogram"}, artifacts)

    def _created(self, collection: str, name: str) -> dict[str, Any]:
        answer = self.http.post(collection, json={"name": name})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created


def safetensors_file(tensors: Mapping[str, tuple[str, Shape, bytes]]) -> bytes:
    """The bytes of a safetensors file, tensors back to back in the given order."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def floats(shape: Shape, value: float = 0.5) -> tuple[str, Shape, bytes]:
    """A float32 tensor of one value."""
    return "F32", shape, struct.pack("<f", value) * math.prod(shape)


def chain(hidden: int = 4, value: float = 0.5) -> bytes:
    """A checkpoint of two linear layers: 3 inputs, 2 classes."""
    return safetensors_file(
        {
            "fc1.weight": floats((hidden, 3), value),
            "fc1.bias": floats((hidden,), value),
            "fc2.weight": floats((2, hidden), value),
            "fc2.bias": floats((2,), value),
        }
    )


def examples(count: int = 6, classes: int = 2, width: int = 3) -> bytes:
    """A dataset whose targets go round through the classes."""
    targets = struct.pack(f"<{count}q", *(place % classes for place in range(count)))
    return safetensors_file({"inputs": floats((count, width)), "targets": ("I64", (count,), targets)})


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe as a caller posts it; references by name."""
    document: dict[str, Any] = {
        "sources": [{"name": "a", "checkpoint": "a"}, {"name": "b", "checkpoint": "b"}],
        "data": {"evaluation": "eval", "holdout": "holdout"},
        "stages": [{"method": "fisher"}, {"method": "cogram"}],
    }
    return document | changes


def trace_rows(count: int) -> list[dict[str, Any]]:
    """Decisions on two layers: merged first, then refined and rolled back in turn."""
    return [
        {
            "seq": seq,
            "stage": 0 if seq < 2 else 1,
            "method": "fisher" if seq < 2 else "cogram",
            "sweep": 0,
            "layer": f"fc{seq % 2 + 1}",
            "kind": "layer" if seq % 3 == 0 else "neuron",
            "row": None if seq % 3 == 0 else seq,
            "column": None,
            "loss_before": 1.0,
            "loss_sources": [1.0, float("nan")],
            "spread": 0.1,
            "shares": [0.25, 0.75],
            "step": 1.0,
            "action": "merged" if seq < 2 else "trained" if seq == 3 else ("refined" if seq % 4 < 2 else "rolled_back"),
            "loss_after": 0.5,
            "reason": "test",
            "elapsed": 0.001 * seq,
            "payload": b"never shown",
        }
        for seq in range(count)
    ]


def trace_file(rows: list[dict[str, Any]], group_rows: int = 64) -> bytes:
    """The rows as the core writes them."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=group_rows)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()
