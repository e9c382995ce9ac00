"""What callers get who look at a fusion while others upload and fuse; and what a crowd of followers costs the API.

The clients are plain connections in one event loop, so that most of the processor is left for what is measured.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors.torch import save_file
from torch import nn

from app.client import Client
from bench.service.processes import api_process, watched_memory
from bench.service.serving import serving

CLIENTS, SECONDS, PAUSE, ROUNDS = 50, 20.0, 1.0, 3  # the service itself asks them to wait twice as long
FOLLOWERS = 300
MOST_P99, MOST_RESIDENT = 0.05, 300e6
UPLOAD_BYTES = int(os.environ.get("COGRAM_BENCH_BYTES", str(2 * 2**30)))


def latency() -> bool:
    """Prints how long GET /v1/fusions/{id} takes; whether it is within its bound."""
    rows: list[tuple[float, str, list[list[float]]]] = []
    with _fusing() as (address, client, fusion_id, folder):
        for pause, rounds in ((PAUSE, ROUNDS), (0.0, 1)):
            quiet, busy = [], []
            for _ in range(rounds):
                quiet.append(asyncio.run(_crowd(address, fusion_id, pause)))
                with _uploading(address, folder):
                    busy.append(asyncio.run(_crowd(address, fusion_id, pause)))
            rows += [(pause, "fusion", quiet), (pause, "fusion and upload", busy)]
        assert client.fusion(fusion_id)["state"] == "running", "the fusion ended before the measuring did"
    print(f"## GET /v1/fusions/{{id}} by {CLIENTS} clients at once, each on a connection that stays open\n")
    print(
        "| each asks again | meanwhile | answers a second | median | 99th percentile |\n| --- | --- | --- | --- | --- |"
    )
    for pause, meanwhile, waits in rows:
        often = f"after {pause:g} s" if pause else "at once"
        rate = sum(map(len, waits)) / len(waits) / SECONDS
        print(f"| {often} | {meanwhile} | {rate:.0f} | {_rounds(waits, 0.5)} | {_rounds(waits, 0.99)} |")
    worst = statistics.median(_percentile(one, 0.99) for one in rows[1][2])
    print(f"\nBound: {MOST_P99 * 1e3:.0f} ms for the 99th percentile of clients that wait, with fusion and upload.\n")
    return worst <= MOST_P99


def followers() -> bool:
    """Prints what many followers cost, and how many got the end; whether all did within the bound."""
    with _fusing() as (address, client, fusion_id, _), watched_memory(api_process()) as memory:
        ends = asyncio.run(_follow(address, fusion_id, client))
    got = sum(end == "cancelled" for end in ends)
    print(f"## {FOLLOWERS} followers of one fusion\n")
    print("| got the final event | API resident at the most | bound | before |\n| --- | --- | --- | --- |")
    most, bound, before = (f"{size / 1e6:.0f} MB" for size in (memory.most, MOST_RESIDENT, memory.before))
    print(f"| {got} of {FOLLOWERS} | {most} | {bound} | {before} |\n")
    return got == FOLLOWERS and memory.most <= MOST_RESIDENT


@contextmanager
def _fusing() -> Iterator[tuple[str, Client, str, Path]]:
    """A service with a long fusion: its address, a client, the fusion's id, a folder for files."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cogram-bench-")))
        address = stack.enter_context(serving())
        client = stack.enter_context(Client(address))
        yield address, client, stack.enter_context(_long_fusion(client, folder)), folder


@contextmanager
def _long_fusion(client: Client, folder: Path) -> Iterator[str]:
    """One that has begun to decide and will not end by itself; cancelled at the end of the block."""
    torch.manual_seed(0)
    for name in "ab":
        network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        client.upload_checkpoint(name, folder / f"{name}.safetensors")
    for name in ("evaluation", "holdout"):
        data = {"inputs": torch.randn(1000, 64), "targets": torch.arange(1000) % 10}
        save_file(data, folder / f"{name}.safetensors")
        client.upload_dataset(name, folder / f"{name}.safetensors")
    stages: list[dict[str, Any]] = [
        {"method": "linear"},
        {
            "method": "cogram",
            "granularity": "weight",
            "min_gain": 0.0,
            "max_sweeps": {"layer": 1, "neuron": 1000, "weight": 1000},
            "prototypes": {"kind": "all"},
        },
    ]
    data_of_recipe = {"evaluation": "evaluation", "holdout": "holdout"}
    sources = [{"name": name, "checkpoint": name} for name in "ab"]
    fusion_id = str(client.submit({"sources": sources, "data": data_of_recipe, "stages": stages})["id"])
    for event in client.follow(fusion_id):
        if event.type == "decisions":
            break
    yield fusion_id
    if client.fusion(fusion_id)["state"] == "running":
        client.cancel(fusion_id)
    client.wait(fusion_id, 120)


@contextmanager
def _uploading(address: str, folder: Path) -> Iterator[None]:
    """Large files come in, one after the other, for as long as the block lasts."""
    source = folder / "large"
    if not source.exists():
        with source.open("wb") as file:
            file.truncate(UPLOAD_BYTES)
    url = f"{address}/v1/checkpoints/large/files/model.safetensors"
    command = f'while true; do curl -sS -o /dev/null -H "Expect:" -T "{source}" "{url}"; done'
    process = subprocess.Popen(["sh", "-c", f"exec 2>/dev/null; {command}"], start_new_session=True)
    time.sleep(1.0)
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait()


async def _crowd(address: str, fusion_id: str, pause: float) -> list[float]:
    end = time.perf_counter() + SECONDS
    every = await asyncio.gather(*(_client(address, fusion_id, pause, place, end) for place in range(CLIENTS)))
    return [wait for waits in every for wait in waits]


async def _client(address: str, fusion_id: str, pause: float, place: int, end: float) -> list[float]:
    """How long each of its answers took."""
    reader, writer = await _open(address)
    request = f"GET /v1/fusions/{fusion_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    waits = []
    await asyncio.sleep(pause * place / CLIENTS)
    while time.perf_counter() < end:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, pause - waits[-1]))
    writer.close()
    return waits


async def _follow(address: str, fusion_id: str, client: Client) -> list[str]:
    """The type of the last event that each follower got."""
    begun = [asyncio.Event() for _ in range(FOLLOWERS)]
    following = [asyncio.create_task(_follower(address, fusion_id, one)) for one in begun]
    await asyncio.gather(*(one.wait() for one in begun))
    await asyncio.sleep(5)  # with news for all of them
    await asyncio.to_thread(client.cancel, fusion_id)
    return await asyncio.wait_for(asyncio.gather(*following), 120)


async def _follower(address: str, fusion_id: str, begun: asyncio.Event) -> str:
    reader, writer = await _open(address)
    writer.write(
        f"GET /v1/fusions/{fusion_id}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    last = ""
    while line := await reader.readline():
        if line.startswith(b"event: "):
            last = line.removeprefix(b"event: ").decode().strip()
            begun.set()
    writer.close()
    return last


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(address)
    return await asyncio.open_connection(where.hostname, where.port)


def _rounds(waits: list[list[float]], share: float) -> str:
    """The median of the rounds, and each of them where there are several."""
    of_each = [_percentile(one, share) * 1e3 for one in waits]
    several = f" ({', '.join(f'{one:.0f}' for one in of_each)})" if len(of_each) > 1 else ""
    return f"{statistics.median(of_each):.0f} ms{several}"


def _percentile(waits: list[float], share: float) -> float:
    return sorted(waits)[int(share * len(waits))]
