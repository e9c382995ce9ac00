"""How fast a job is cancelled, how soon a killed one is taken up again. `python -m bench.jobs`

Runs against `cogram serve` with its defaults, except that the lease is 10 s instead of 60 s for the last line.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from app.client import Client
from examples.digits import service

ROUNDS = 5
LEASE_SECONDS = 10.0
LARGE = 300_000


def main() -> None:
    torch.set_num_threads(1)
    os.environ["COGRAM_LEASE_SECONDS"] = str(LEASE_SECONDS)
    with tempfile.TemporaryDirectory() as folder, service() as address, Client(address) as client:
        _upload(client, Path(folder))
        measures: dict[str, Callable[[Client], float]] = {
            "cancel in a neuron sweep, request to cancelled": lambda c: _cancel(c, "holdout"),
            f"cancel while the guard scores {LARGE:,} examples": lambda c: _cancel(c, "large"),
            "job's process killed, kill to started again": lambda c: _killed(c, _job_process),
            f"whole worker killed (lease {LEASE_SECONDS:.0f} s), kill to started again": lambda c: _killed(c, _worker),
        }
        _warm(client)
        print("| | median | worst |\n| --- | --- | --- |")
        for name, measure in measures.items():
            seconds = [measure(client) for _ in range(ROUNDS)]
            print(f"| {name} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s |")


def _upload(client: Client, folder: Path) -> None:
    """Two networks of 512 neurons a layer: a neuron sweep over 1,000 examples takes minutes."""
    torch.manual_seed(0)
    for name in ("a", "b"):
        network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        client.upload_checkpoint(name, folder / f"{name}.safetensors")
    for name, count in (("evaluation", 1000), ("holdout", 1000), ("large", LARGE)):
        data = {"inputs": torch.randn(count, 64), "targets": torch.arange(count) % 10}
        save_file(data, folder / f"{name}.safetensors")
        client.upload_dataset(name, folder / f"{name}.safetensors")


def _recipe(stages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"sources": [{"name": name, "checkpoint": name} for name in ("a", "b")], "stages": stages, **more}


def _warm(client: Client) -> None:
    """The first job waits for torch."""
    ended = client.wait(client.submit(_recipe([{"method": "linear"}]))["id"], 60)
    assert ended["state"] == "succeeded", ended["error"]


@contextmanager
def _running(client: Client, holdout: str = "holdout") -> Iterator[str]:
    """A job in the middle of its neuron sweeps, or of the guard's scoring; cancelled at the end of the block."""
    stages = [{"method": "linear"}, {"method": "cogram", "granularity": "neuron", "prototypes": {"kind": "all"}}]
    data = {"evaluation": "evaluation", "holdout": holdout}
    fusion_id = client.submit(_recipe(stages, data=data))["id"]
    awaited = "started" if holdout == "large" else "decisions"
    for event in client.follow(fusion_id):
        if event.type == awaited and event.data.get("method") != "linear":
            break
    time.sleep(1.0)
    yield fusion_id
    client.cancel(fusion_id)
    client.wait(fusion_id, 60)


def _cancel(client: Client, holdout: str) -> float:
    with _running(client, holdout) as fusion_id:
        start = time.perf_counter()
        client.cancel(fusion_id)
        ended = client.wait(fusion_id, 60)
        assert ended["state"] == "cancelled", ended
        return time.perf_counter() - start


def _killed(client: Client, victim: Callable[[], psutil.Process]) -> float:
    with _running(client) as fusion_id:
        attempt = client.fusion(fusion_id)["attempt"]
        start = time.perf_counter()
        victim().kill()
        for event in client.follow(fusion_id):
            if event.type == "started" and event.data["attempt"] > attempt:
                return time.perf_counter() - start
    raise AssertionError("the job was not taken up again")


def _worker() -> psutil.Process:
    """The Celery worker's parent process."""
    return next(p for p in psutil.Process().children(recursive=True) if "fusion.cpu,fusion.cuda" in p.cmdline())


def _job_process() -> psutil.Process:
    """The worker's child that runs the job."""
    return max(_worker().children(), key=lambda process: sum(process.cpu_times()[:2]))


if __name__ == "__main__":
    main()
