"""Memory of the GPUs, as the driver's own program tells it: the worker's parent must never touch CUDA before it forks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_QUERY = ("--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")
_PATIENCE_SECONDS = 5.0
_MEBIBYTE = 2**20


class GpuMemory(Collector):
    """Used and present bytes of each device; nothing on a machine without one."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no driver."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Asks the driver."""
        used = GaugeMetricFamily("cogram_gpu_memory_used_bytes", "Memory in use, of all processes", labels=["device"])
        total = GaugeMetricFamily("cogram_gpu_memory_bytes", "Memory of the device", labels=["device"])
        for device, used_mebibytes, all_mebibytes in self._devices():
            used.add_metric([device], float(used_mebibytes) * _MEBIBYTE)
            total.add_metric([device], float(all_mebibytes) * _MEBIBYTE)
        yield used
        yield total

    def _devices(self) -> list[list[str]]:
        if self._program is None:
            return []
        command = (self._program, *_QUERY)
        try:
            said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE_SECONDS).stdout
        except (OSError, subprocess.SubprocessError):  # a driver that hangs or is away must not fail the scrape
            return []
        rows = [[field.strip() for field in line.split(",")] for line in said.splitlines()]
        return [row for row in rows if len(row) == 3 and row[1].isdecimal() and row[2].isdecimal()]
