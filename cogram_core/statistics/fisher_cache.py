"""Fisher information that was computed before, by a run that shared a folder with this one.

An entry is known by all that it follows from, as it is really read: every tensor of the network and every number of the
data, the network's modules and what it gives for the first example, the parameters, and what torch computes with. So an
aligned source, another tokeniser or another torch is another entry, and an entry has the very bytes that computing gives.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.shards import SINGLE_FILE
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.checkpoints.writer import CheckpointWriter, TensorLayout
from cogram_core.errors import InvalidInput, OutputError
from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

Fisher = dict[str, Tensor]

CACHE_BYTES = 10 * 2**30
"""What a folder may hold where nobody says otherwise."""
_VERSION = "1"  # of the numbers: another one whenever the same inputs give others
_ABANDONED_SECONDS = 3600.0  # whoever has been writing for so long is dead
_SUFFIX, _PARTIAL = ".safetensors", ".partial"


class FisherCache:
    """Entries in a folder, a file each; safe for several processes with the same folder.

    What can't be read is computed again and replaced, what can't be written is done without: a cache breaks no run.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def get(self, key: str) -> Fisher | None:
        """An entry, on the CPU; None where there is none."""
        path = self._folder / (key + _SUFFIX)
        try:
            found = _read(path, key)
            os.utime(path)  # the least recently used are given up first
        except (OSError, InvalidInput):
            return None
        return found

    def put(self, key: str, fisher: Fisher) -> None:
        """Keeps an entry, unless there is no room for it at all."""
        size = sum(value.numel() * value.element_size() for value in fisher.values())
        if 0 < size <= self._most_bytes:
            with suppress(OSError, OutputError):
                self._folder.mkdir(parents=True, exist_ok=True)
                _write(self._folder, key, fisher)
                self._make_room()

    def _make_room(self) -> None:
        """Removes the least recently used entries until the others fit, and what dead writers left."""
        for partial in self._folder.glob(f"*{_PARTIAL}"):
            if time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)
        entries = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):  # another process makes room, too
                facts = path.stat()
                entries.append((facts.st_mtime_ns, facts.st_size, path))
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            left -= size


_active: ContextVar[FisherCache | None] = ContextVar("fisher_cache", default=None)


@contextmanager
def remembering(folder: Path | None, most_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """Inside the block no Fisher information is computed that ``folder`` has; without one, all of it."""
    token = _active.set(None if folder is None else FisherCache(folder, most_bytes))
    try:
        yield
    finally:
        _active.reset(token)


def remembered(network: Network, data: Dataset, parameters: tuple[Any, ...], compute: Callable[[], Fisher]) -> Fisher:
    """What ``compute`` gives for the network and the data as they are, or has given before.

    Args:
        network: with the tensors at which it is taken.
        data: the very examples.
        parameters: all else that it follows from.
        compute: gives tensors in the compute dtype, on the network's device.
    """
    cache = _active.get()
    if cache is None:
        return compute()
    key = _key(network, data, parameters)
    known = cache.get(key)
    if known is None:
        known = {name: value.cpu() for name, value in compute().items()}
        cache.put(key, known)
    return {name: value.to(network.device) for name, value in known.items()}


def _key(network: Network, data: Dataset, parameters: tuple[Any, ...]) -> str:
    device = network.device
    cuda = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    machine = (torch.__version__, device.type, processor, torch.get_num_threads())
    digest = hashlib.sha256(repr((_VERSION, machine, parameters, data.loss)).encode())
    for name, module in network.module.named_modules():
        kind = type(module)
        digest.update(f"{name}: {kind.__module__}.{kind.__qualname__}({module.extra_repr()})\n".encode())
    for name, tensor in (*network.module.named_parameters(), *network.module.named_buffers()):
        _take(digest, name, tensor)
    _take(digest, "inputs", data.inputs)
    _take(digest, "targets", data.targets)
    _take(digest, "first", network.logits(data.inputs[:1]))  # what no module tells about its forward pass
    return digest.hexdigest()


def _take(digest: Any, name: str, tensor: Tensor) -> None:
    stop_point()
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _checksum(key: str, fisher: Fisher) -> str:
    """Over the names, types, shapes and numbers, and whose they are."""
    digest = hashlib.sha256(key.encode())
    for name in sorted(fisher):
        _take(digest, name, fisher[name])
    return digest.hexdigest()


def _read(path: Path, key: str) -> Fisher | None:
    """An entry; None where it is not what was written.

    Raises:
        OSError, CheckpointError: if it can't be read.
    """
    header = read_checkpoint_header(path)
    with CheckpointReader(header) as reader:
        found = {name: reader.read(name) for name in header.tensors}
    return found if header.files[0].metadata.get("checksum") == _checksum(key, found) else None


def _write(folder: Path, key: str, fisher: Fisher) -> None:
    """Under another name first, so that nobody ever sees a part of it.

    Raises:
        OSError, OutputError: if that is not possible.
    """
    layout = [TensorLayout(name, DTYPE_NAMES[value.dtype], tuple(value.shape)) for name, value in fisher.items()]
    with tempfile.TemporaryDirectory(prefix=f"{key}.", suffix=_PARTIAL, dir=folder) as made:
        with CheckpointWriter(Path(made), layout, metadata={"checksum": _checksum(key, fisher)}) as writer:
            for name, value in fisher.items():
                writer.write(name, value)
            writer.finish()
        (Path(made) / SINGLE_FILE).replace(folder / (key + _SUFFIX))
