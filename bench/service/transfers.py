"""A large file in by PUT and by tus, against one process that reads, hashes, writes and syncs; and out, against nginx.

Each round does all of them one after the other, with content that was never there before; the ratios are of one round.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file

from app.client import Client
from app.listening import listen
from app.store.database import Database
from app.store.models import Artifact
from bench.service import curl
from bench.service.processes import api_process, watched_memory
from bench.service.serving import serving

BYTES = int(os.environ.get("COGRAM_BENCH_BYTES", str(2 * 2**30)))
ROUNDS = 3
LEAST_UPLOAD, LEAST_DOWNLOAD, MOST_GROWTH = 0.6, 0.7, 50e6
_PIECE = 16 * 2**20
_PLAIN = """
import hashlib, os, sys, time
began, digest = time.perf_counter(), hashlib.sha256()
with open(sys.argv[1], "rb", 0) as source, open(sys.argv[2], "wb", 0) as target:
    while piece := source.read(1 << 20):
        digest.update(piece)
        target.write(piece)
    os.fsync(target.fileno())
print(digest.hexdigest(), time.perf_counter() - began)
"""


def uploads() -> bool:
    """Prints the figures of what comes in; whether all are within their bounds."""
    curl.check_curl()
    rows: dict[str, list[float]] = {"PUT": [], "tus": []}
    growths: dict[str, list[int]] = {"PUT": [], "tus": []}
    plain_rates = []
    with tempfile.TemporaryDirectory(prefix="cogram-bench-") as folder:
        source = _source(Path(folder))
        for _ in range(ROUNDS):
            with serving("--data-dir", f"{folder}/data") as address:
                process = api_process()
                _renew(source)
                plain = _plain(source)
                plain_rates.append(BYTES / plain / 1e6)
                for way, ratios in rows.items():
                    _renew(source)
                    with watched_memory(process) as memory:
                        seconds = _upload(address, way, source)
                    ratios.append(plain / seconds)
                    growths[way].append(memory.growth)
            shutil.rmtree(f"{folder}/data")
    print(f"## {BYTES / 1e9:.1f} GB in, median of {ROUNDS} rounds\n")
    print(f"One process that reads, hashes, writes and syncs: {statistics.median(plain_rates):.0f} MB/s\n")
    print("| | of the plain rate | bound | API grows by | bound |\n| --- | --- | --- | --- | --- |")
    good = True
    for way, ratios in rows.items():
        ratio, growth = statistics.median(ratios), max(growths[way])
        seen = ", ".join(f"{one:.2f}" for one in ratios)
        print(f"| {way} | {ratio:.2f} ({seen}) | {LEAST_UPLOAD} | {growth / 1e6:.0f} MB | {MOST_GROWTH / 1e6:.0f} MB |")
        good = good and ratio >= LEAST_UPLOAD and growth <= MOST_GROWTH
    print()
    return good


def downloads() -> bool:
    """Prints the figures of what goes out; whether all are within their bounds."""
    curl.check_curl()
    with tempfile.TemporaryDirectory(prefix="cogram-bench-") as folder:
        source = _source(Path(folder))
        with serving("--data-dir", f"{folder}/data") as address:
            url, blob = _artifact(address, source, Path(folder))
            source.unlink()
            with _nginx(Path(folder), blob.parent) as rival:
                _check_same(url, f"{rival}/{blob.name}")
                pairs = []
                with watched_memory(api_process()) as memory:
                    for _ in range(ROUNDS + 2):
                        pairs.append((curl.get(f"{rival}/{blob.name}"), curl.get(url)))
    ratios = [theirs / ours for theirs, ours in pairs]
    ratio = statistics.median(ratios)
    rates = [BYTES / statistics.median(seconds) / 1e6 for seconds in zip(*pairs, strict=True)]
    print(f"## {BYTES / 1e9:.1f} GB out, median of {len(pairs)} rounds\n")
    print("| nginx | service | of nginx's rate | bound | API grows by |\n| --- | --- | --- | --- | --- |")
    seen = ", ".join(f"{one:.2f}" for one in ratios)
    print(f"| {rates[0]:.0f} MB/s | {rates[1]:.0f} MB/s | {ratio:.2f} ({seen}) | {LEAST_DOWNLOAD} | ", end="")
    print(f"{memory.growth / 1e6:.0f} MB |\n")
    return ratio >= LEAST_DOWNLOAD


def _source(folder: Path) -> Path:
    path = folder / "source"
    with path.open("wb") as file:
        for _ in range(BYTES // _PIECE):
            file.write(os.urandom(_PIECE))
        os.fsync(file.fileno())
    return path


def _renew(source: Path) -> None:
    """Makes it content that nobody has seen."""
    with source.open("r+b") as file:
        file.write(os.urandom(16))
        os.fsync(file.fileno())


def _plain(source: Path) -> float:
    target = source.with_name("target")
    said = subprocess.run([sys.executable, "-c", _PLAIN, source, target], check=True, capture_output=True, text=True)
    target.unlink()
    return float(said.stdout.split()[1])


def _upload(address: str, way: str, source: Path) -> float:
    if way == "PUT":
        return curl.put(f"{address}/v1/checkpoints/large/files/model.safetensors", source)
    return curl.tus(address, "large", source)


def _artifact(address: str, source: Path, folder: Path) -> tuple[str, Path]:
    """The address of an artifact of that content, and its blob; written into the database, as no merge is that quick."""
    curl.put(f"{address}/v1/checkpoints/large/files/model.safetensors", source)
    with Client(address) as client:
        save_file({"weight": torch.ones(4, 4)}, folder / "small.safetensors")
        client.upload_checkpoint("small", folder / "small.safetensors")
        sources = [{"name": name, "checkpoint": "small"} for name in "ab"]
        fusion_id = client.submit({"sources": sources, "stages": [{"method": "linear"}]})["id"]
        assert client.wait(fusion_id, 120)["state"] == "succeeded"
    (blob,) = (path for path in (folder / "data/blobs/sha256").glob("*/*") if path.stat().st_size == BYTES)
    database = Database(f"sqlite:///{folder}/data/cogram.sqlite3")
    with database.transaction() as session:
        session.add(Artifact(fusion_id=fusion_id, path="large.bin", digest=blob.name, size=BYTES))
    database.close()
    return f"{address}/v1/fusions/{fusion_id}/artifacts/large.bin", blob


def _check_same(*urls: str) -> None:
    ends = {httpx.get(url, headers={"Range": "bytes=1000-1999"}).raise_for_status().content for url in urls}
    assert len(ends) == 1, "the two servers serve different files"


@contextmanager
def _nginx(folder: Path, root: Path) -> Iterator[str]:
    """nginx with Debian's settings for sending files, on a free port, over one folder."""
    if shutil.which("nginx") is None:
        sys.exit("downloads are compared with nginx: apt-get install nginx-light")
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    temporary = " ".join(
        f"{kind}_temp_path {folder}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; worker_processes auto; pid {folder}/nginx.pid;\n"
        f"error_log stderr crit; events {{ worker_connections 64; }}\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(config), "-e", "stderr"])
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _wait_for(address: str) -> None:
    for _ in range(100):
        try:
            httpx.get(address)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    sys.exit("nginx does not answer")
