"""The folder of one attempt: inputs laid out as links to blobs, where the core writes its output, and its journal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sqlalchemy.orm import Session

from app.store.blobs import BlobStore, Storage, StoredBlob
from app.store.database import Database
from app.store.models import Checkpoint, Dataset
from cogram_core.errors import InvalidInput, Problem
from cogram_core.recipe import Reference

_MOST_TRIES = 100
_JOURNAL = "trace.journal"


class Workspace:
    """``work/{fusion}/{attempt}``. What is over leaves its journal for later attempts, until the fusion ends."""

    def __init__(self, work_dir: Path, fusion_id: str, attempt: int) -> None:
        self.fusion_dir = work_dir / fusion_id
        self._attempt = attempt
        self.path = self.fusion_dir / str(attempt)
        self.output = self.path / "output"
        self.journal = self.path / _JOURNAL

    def create(self) -> None:
        """Makes the folder, empty. An earlier attempt's worker may remove the fusion's, empty, at the same moment."""
        for _ in range(_MOST_TRIES):
            with suppress(FileExistsError):  # not exist_ok, which looks again and fails if it is gone by then
                self.fusion_dir.mkdir(parents=True)
            try:
                self.path.mkdir()
            except FileNotFoundError:
                continue
            return
        self.path.mkdir(parents=True)

    def earlier_journals(self) -> list[Path]:
        """What earlier attempts left to go on from. One whose worker is still alive may go on writing: no harm is done."""
        earlier = sorted((attempt, path) for attempt, path in attempts(self.fusion_dir) if attempt < self._attempt)
        journals = [path / _JOURNAL for _, path in earlier]
        return [journal for journal in journals if journal.is_file()]

    def leave(self) -> None:
        """Removes everything but the journal, and earlier journals that reach no further."""
        keep_journal(self.path)
        for journal in self.earlier_journals():
            if _size(journal) <= _size(self.journal):
                shutil.rmtree(journal.parent, ignore_errors=True)

    def lay_out(
        self, database: Database, blobs: BlobStore, references: Iterable[Reference], sign: Callable[[], None]
    ) -> dict[str, Path]:
        """Lays every file that the recipe refers to below ``inputs/``, and tells where each reference is.

        Each may come from far away, so a ``sign`` of life is given before each, and as its bytes come in.
        Raises ``InvalidInput`` with every reference that is not in the store: a path of the machine is never opened.
        """
        found: dict[str, Path] = {}
        problems: list[Problem] = []
        with database.reading() as session:
            contents = [(reference, _stored_files(session, reference)) for reference in references]
        for reference, files in contents:
            missing = [path for path, blob in files.items() if not blobs.storage.has(blob)]
            if missing or not files:
                problems.append(_missing(reference, missing))
                continue
            folder = self.path / "inputs" / reference.value
            for path, blob in files.items():
                sign()
                _lay(folder, path, blob, blobs.storage, sign)
            found[reference.value] = folder / next(iter(files)) if reference.kind == "dataset" else folder
        if problems:
            raise InvalidInput(problems)
        return found


def attempts(fusion_dir: Path) -> list[tuple[int, Path]]:
    """The attempts that have a folder below a fusion's."""
    try:
        return [(int(path.name), path) for path in fusion_dir.iterdir() if path.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):  # its worker may have removed it just now
        return []


def keep_journal(folder: Path) -> None:
    """Removes everything else of an attempt's folder, and the folder if it has no journal."""
    with suppress(OSError):  # others may be removing it, too; what is left now goes in the next round
        for path in folder.iterdir():
            if path.name == _JOURNAL:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    remove_if_empty(folder)


def _size(journal: Path) -> int:
    try:
        return journal.stat().st_size
    except OSError:  # the reaper may have removed it just now
        return 0


def remove_if_empty(folder: Path) -> None:
    """Removes a folder that holds nothing; one that just got something stays."""
    try:
        folder.rmdir()
    except OSError:
        return


def _stored_files(session: Session, reference: Reference) -> dict[str, StoredBlob]:
    if reference.kind == "checkpoint":
        checkpoint = session.get(Checkpoint, reference.value)
        return {} if checkpoint is None else {f.path: StoredBlob(f.digest, f.size) for f in checkpoint.files}
    dataset = session.get(Dataset, reference.value)
    return {} if dataset is None else {dataset.path: StoredBlob(dataset.digest, dataset.size)}


def _lay(folder: Path, path: str, blob: StoredBlob, storage: Storage, sign: Callable[[], None]) -> None:
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise InvalidInput.single(path, "path.outside", "The stored path leaves its checkpoint.")
    target = folder / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.lay(blob, target, sign)


def _missing(reference: Reference, files: list[str]) -> Problem:
    what = f"files {', '.join(files)} of {reference.value}" if files else f"{reference.kind} {reference.value}"
    return Problem(reference.location, "input.missing", f"The {what} is not in the store any more. Upload it again.")
