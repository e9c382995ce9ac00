"""A service without its HTTP side: real workers and dispatchers on a real broker and database, and jobs to run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from sqlalchemy.orm import selectinload

from app.settings import Settings
from app.store import jobs
from app.store.blobs import BlobStore, LocalStorage, open_blobs, record_blob
from app.store.database import Database
from app.store.events import EventType, events_after
from app.store.ids import FusionId, new_checkpoint_id, new_dataset_id
from app.store.models import Checkpoint, CheckpointFile, Dataset, Event, Fusion
from app.store.ownership import LOCAL
from app.store.states import FINAL, FusionState
from cogram_core.journal import read_journal
from cogram_core.recipe import Recipe
from tests import nursery
from tests.nursery import Forked

ROOT = Path(__file__).parents[2]
PATIENCE = 110.0  # less than a test may take; what is well is there within seconds


@dataclass
class Rig:
    """One data folder, database and broker, and the processes that were started on them."""

    settings: Settings
    database: Database
    folder: Path
    processes: list[Forked] = field(default_factory=list)

    @property
    def blobs(self) -> BlobStore:
        return open_blobs(self.settings, self.database)

    def blob(self, digest: str) -> Path:
        """Where a blob lies."""
        return LocalStorage(self.settings.blob_dir).path(digest)

    def worker(self, queues: str = "fusion.cpu", module: str = "worker") -> Forked:
        return self._start("worker", module, "--queues", queues, "--loglevel", "info")

    def dispatcher(self) -> Forked:
        return self._start("dispatcher", "worker.dispatcher")

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(30)
        self.database.close()

    def row(self, fusion_id: str) -> Fusion:
        with self.database.reading() as session:
            fusion = session.get(Fusion, fusion_id, options=[selectinload(Fusion.artifacts)])
            assert fusion is not None
            return fusion

    def until(self, done: Callable[[], bool], seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def wait(self, fusion_id: str, done: Callable[[Fusion], bool], seconds: float = PATIENCE) -> Fusion:
        self.until(lambda: done(self.row(fusion_id)), seconds)
        return self.row(fusion_id)

    def ended(self, fusion_id: str, seconds: float = PATIENCE) -> Fusion:
        return self.wait(fusion_id, lambda fusion: fusion.state in FINAL, seconds)

    def succeeds(self, recipe: Mapping[str, Any]) -> None:
        fusion = self.ended(self.submit(recipe))
        assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1), fusion.error

    def deciding(self, fusion_id: str, attempt: int = 1) -> Fusion:
        """Waits until the attempt is in the middle of its last stage."""

        def reached(fusion: Fusion) -> bool:
            progress = fusion.progress or {}
            return fusion.attempt == attempt and progress.get("method") == "cogram" and progress.get("done", 0) > 0

        return self.wait(fusion_id, reached)

    def recorded(self, fusion_id: str, attempt: int = 1) -> None:
        """Waits until the attempt's journal holds decisions that a process of its own can read."""
        journal = self.settings.work_dir / fusion_id / str(attempt) / "trace.journal"
        self.until(lambda: journal.exists() and any(True for _ in read_journal(journal)))

    def events(self, fusion_id: str, kind: EventType) -> list[Event]:
        with self.database.reading() as session:
            return [event for event in events_after(session, fusion_id, 0, 10_000) if event.type == kind]

    def submit(self, recipe: Mapping[str, Any]) -> FusionId:
        parsed = Recipe.from_document(recipe)
        with self.database.transaction() as session:
            inputs = [reference.value for reference in parsed.references()]
            return FusionId(jobs.submit(session, LOCAL, parsed.to_document(), inputs).id)

    def checkpoint(self, tensors: Mapping[str, torch.Tensor]) -> str:
        stored = self._store(tensors)
        checkpoint = new_checkpoint_id()
        with self.database.transaction() as session:
            record_blob(session, stored)
            session.add(
                Checkpoint(
                    id=checkpoint,
                    tenant=LOCAL.tenant,
                    owner=LOCAL.account,
                    name="net",
                    sha256=stored.digest,
                    tensors=len(tensors),
                    parameters=1,
                    dtypes=["F32"],
                )
            )
            session.flush()
            session.add(
                CheckpointFile(
                    checkpoint_id=checkpoint, path="model.safetensors", digest=stored.digest, size=stored.size
                )
            )
        return checkpoint

    def dataset(self, inputs: torch.Tensor, targets: torch.Tensor) -> str:
        stored = self._store({"inputs": inputs, "targets": targets})
        dataset = new_dataset_id()
        with self.database.transaction() as session:
            record_blob(session, stored)
            session.add(
                Dataset(
                    id=dataset,
                    tenant=LOCAL.tenant,
                    owner=LOCAL.account,
                    name="data",
                    digest=stored.digest,
                    path="data.safetensors",
                    size=stored.size,
                    examples=len(inputs),
                    input_shape=list(inputs.shape[1:]),
                    target_min=int(targets.min()),
                    target_max=int(targets.max()),
                    loss="cross_entropy",
                    target_shape=[],
                )
            )
        return dataset

    def recipe(self, width: int = 8, sweeps: int = 1, granularity: str = "neuron") -> dict[str, Any]:
        """Two small classifiers, always the same; a greater ``width``, more ``sweeps`` and single weights take longer."""
        random = torch.Generator().manual_seed(7)
        sources = [self.checkpoint(_network(width, random)) for _ in range(2)]
        inputs = torch.randn(64, 16, generator=random)
        targets = torch.arange(64) % 4
        return {
            "sources": [{"name": f"s{index}", "checkpoint": source} for index, source in enumerate(sources)],
            "data": {
                "evaluation": self.dataset(inputs[:32], targets[:32]),
                "holdout": self.dataset(inputs[32:], targets[32:]),
            },
            "stages": [
                {"method": "linear"},
                {
                    "method": "cogram",
                    "granularity": granularity,
                    "min_gain": 0.0,
                    "max_sweeps": {"layer": 1, "neuron": sweeps, "weight": sweeps},
                },
            ],
            "threads": 1,
        }

    def work_folders(self) -> list[str]:
        return [str(path.relative_to(self.settings.work_dir)) for path in self.settings.work_dir.glob("*")]

    def model(self, fusion_id: str) -> str:
        """The digest of the fused checkpoint."""
        return {file.path: file.digest for file in self.row(fusion_id).artifacts}["model.safetensors"]

    def _store(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        path = self.folder / "upload.safetensors"
        save_file(dict(tensors), path)
        writer = self.blobs.writer()
        writer.write(path.read_bytes())
        return writer.publish()

    def _start(self, name: str, module: str, *arguments: str) -> Forked:
        log = self.folder / f"{name}-{len(self.processes)}.log"
        process = nursery.start(module, *arguments, out=log, err=log, environment=self._environment())
        self.processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "OMP_NUM_THREADS": "1",
            "DATABASE_URL": self.settings.resolved_database_url,
            "BROKER_URL": self.settings.resolved_broker_url,
            "COGRAM_DATA_DIR": str(self.settings.data_dir),
            "COGRAM_LEASE_SECONDS": str(self.settings.lease_seconds),
            "COGRAM_STALL_SECONDS": str(self.settings.stall_seconds),
            "COGRAM_MAX_ATTEMPTS": str(self.settings.max_attempts),
            "COGRAM_REPUBLISH_SECONDS": str(self.settings.republish_seconds),
            "COGRAM_BLOB_PATIENCE_SECONDS": str(self.settings.blob_patience_seconds),
            "COGRAM_COLLECT_SECONDS": str(self.settings.collect_seconds),
            "COGRAM_COLLECT_GRACE_SECONDS": str(self.settings.collect_grace_seconds),
            **({"BLOB_URL": self.settings.blob_url} if self.settings.blob_url else {}),
        }


def _network(width: int, random: torch.Generator) -> dict[str, torch.Tensor]:
    sizes = [16, width, width, 4]
    tensors = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        tensors[f"{2 * index}.weight"] = torch.randn(outputs, inputs, generator=random) / inputs**0.5
        tensors[f"{2 * index}.bias"] = torch.randn(outputs, generator=random) / 10
    return tensors


def job_process(worker: Forked) -> psutil.Process:
    """The one child of a worker: the process that runs its job."""
    (child,) = psutil.Process(worker.pid).children()
    return child
