"""Trivial merges through the HTTP API: how long one takes on its way, and how many a second get through."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from app.client import Client
from bench.service.serving import serving

SEQUENTIAL, AT_ONCE, CALLERS = 200, 500, 8
MOST_MEDIAN, MOST_P99, LEAST_RATE = 0.5, 1.5, 10.0
RECIPE: dict[str, Any] = {
    "sources": [{"name": name, "checkpoint": name} for name in "ab"],
    "stages": [{"method": "linear"}],
}


def main(workers: int = 1) -> bool:
    """Prints the figures; whether all are within their bounds."""
    with serving("--workers", str(workers), COGRAM_REQUESTS_PER_SECOND="10000") as address:
        with Client(address) as client:
            _upload(client)
            for _ in range(3 * workers):  # what starts for the first time
                _one(client)
            seconds = sorted(_one(client) for _ in range(SEQUENTIAL))
        median, p99 = statistics.median(seconds), seconds[int(0.99 * SEQUENTIAL)]
        ended, took = _at_once(address)
    rate = AT_ONCE / took
    print(f"## Trivial merges, {workers} worker(s)\n")
    print("| | measured | bound |\n| --- | --- | --- |")
    print(f"| submit to succeeded, one after the other, median of {SEQUENTIAL} | {median:.2f} s | {MOST_MEDIAN} s |")
    print(f"| 99th percentile | {p99:.2f} s | {MOST_P99} s |")
    print(f"| {AT_ONCE} posted at once: ended as | {dict(ended)} | none lost |")
    print(f"| first post to last end | {took:.1f} s, {rate:.1f} a second | {LEAST_RATE:.0f} a second |\n")
    return median <= MOST_MEDIAN and p99 <= MOST_P99 and rate >= LEAST_RATE and ended["succeeded"] == AT_ONCE


def _upload(client: Client) -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for name in "ab":
            path = Path(folder) / f"{name}.safetensors"
            save_file({"weight": torch.randn(16, 16), "bias": torch.randn(16)}, path)
            client.upload_checkpoint(name, path)


def _one(client: Client) -> float:
    began = time.perf_counter()
    ended = client.wait(client.submit(RECIPE)["id"], 60)
    assert ended["state"] == "succeeded", ended["error"]
    return time.perf_counter() - began


def _at_once(address: str) -> tuple[Counter[str], float]:
    """The states that all ended in, and the seconds from the first post to the last end."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        counts = [AT_ONCE // CALLERS + (caller < AT_ONCE % CALLERS) for caller in range(CALLERS)]
        ids = [fusion_id for posted in pool.map(lambda count: _post(address, count), counts) for fusion_id in posted]
    with Client(address) as client:
        ended = Counter(client.wait(fusion_id, 600)["state"] for fusion_id in ids)
    return ended, time.perf_counter() - began


def _post(address: str, count: int) -> list[str]:
    with Client(address) as client:
        return [str(client.submit(RECIPE)["id"]) for _ in range(count)]
