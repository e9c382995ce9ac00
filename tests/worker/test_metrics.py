"""A worker's port is its own; its jobs' processes never hold it."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client import CollectorRegistry

from app.listening import listen
from app.metrics.gpu import GpuMemory
from app.metrics.server import new_registry, serve_metrics
from app.settings import Settings
from tests.worker.conftest import LONG
from tests.worker.rig import Rig, job_process


def test_the_process_of_a_job_lets_go_of_its_workers_port(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    rig.dispatcher()
    monkeypatch.setenv("COGRAM_METRICS_PORT", str(port))
    worker = rig.worker()
    fusion_id = rig.submit(rig.recipe(**LONG))
    rig.deciding(fusion_id)
    assert _listening(psutil.Process(worker.pid)) == [port]
    assert _listening(job_process(worker)) == []
    assert "cogram_worker_stopping 0.0" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    worker.kill()
    worker.wait()
    with listen("127.0.0.1", port):  # free at once, whatever becomes of the child
        pass


def test_a_port_that_is_taken_keeps_nobody_from_working(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        settings = Settings(data_dir=tmp_path, metrics_port=listener.getsockname()[1])
        assert serve_metrics(settings, "test", new_registry()) is None
    served = serve_metrics(settings, "test", new_registry())
    assert served is not None
    assert "process_resident_memory_bytes" in httpx.get(served.address).text
    served.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(served.address)


SAID = """0, 1024, 143771
1, 0, 143771
2, [N/A], [N/A]
"""


def test_memory_of_gpus_is_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ $1 = --query-gpu=index,memory.used,memory.total ] && printf '{SAID}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    registry = CollectorRegistry()
    registry.register(GpuMemory())
    assert registry.get_sample_value("cogram_gpu_memory_used_bytes", {"device": "0"}) == 1024 * 2**20
    assert registry.get_sample_value("cogram_gpu_memory_bytes", {"device": "1"}) == 143771 * 2**20
    assert registry.get_sample_value("cogram_gpu_memory_bytes", {"device": "2"}) is None
    program.write_text("#!/bin/sh\nexit 9\n")
    assert registry.get_sample_value("cogram_gpu_memory_bytes", {"device": "0"}) is None


def _listening(process: psutil.Process) -> list[int]:
    found = process.net_connections(kind="tcp")
    return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]
