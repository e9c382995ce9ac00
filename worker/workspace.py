"""The folder of one attempt: inputs laid out as links to blobs, and where the core writes its output."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sqlalchemy.orm import Session

from app.store.blobs import BlobStore
from app.store.models import Checkpoint, Dataset
from cogram_core.errors import InvalidInput, Problem
from cogram_core.recipe import Reference

_MOST_TRIES = 100


class Workspace:
    """``work/{fusion}/{attempt}``; removed with those of all earlier attempts."""

    def __init__(self, work_dir: Path, fusion_id: str, attempt: int) -> None:
        self._fusion_dir = work_dir / fusion_id
        self._attempt = attempt
        self.path = self._fusion_dir / str(attempt)
        self.output = self.path / "output"

    def create(self) -> None:
        """Makes the folder, empty. An earlier attempt's worker may remove the fusion's, empty, at the same moment."""
        for _ in range(_MOST_TRIES):
            with suppress(FileExistsError):  # not exist_ok, which looks again and fails if it is gone by then
                self._fusion_dir.mkdir(parents=True)
            try:
                self.path.mkdir()
            except FileNotFoundError:
                continue
            return
        self.path.mkdir(parents=True)

    def remove(self) -> None:
        """Removes it and every earlier attempt's; a later attempt, if there is one, has another worker."""
        for attempt, path in attempts(self._fusion_dir):
            if attempt <= self._attempt:
                shutil.rmtree(path, ignore_errors=True)  # the reaper may be removing it, too
        remove_if_empty(self._fusion_dir)

    def lay_out(self, session: Session, blobs: BlobStore, references: Iterable[Reference]) -> dict[str, Path]:
        """Links every file that the recipe refers to below ``inputs/``, and tells where each reference is.

        Raises ``InvalidInput`` with every reference that is not in the store: a path of the machine is never opened.
        """
        found: dict[str, Path] = {}
        problems: list[Problem] = []
        for reference in references:
            files = _stored_files(session, reference)
            missing = [path for path, digest in files.items() if not blobs.path(digest).is_file()]
            if missing or not files:
                problems.append(_missing(reference, missing))
                continue
            folder = self.path / "inputs" / reference.value
            for path, digest in files.items():
                _link(folder, path, blobs.path(digest))
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


def remove_if_empty(folder: Path) -> None:
    """Removes a folder that holds nothing; one that just got something stays."""
    try:
        folder.rmdir()
    except OSError:
        return


def _stored_files(session: Session, reference: Reference) -> dict[str, str]:
    if reference.kind == "checkpoint":
        checkpoint = session.get(Checkpoint, reference.value)
        return {} if checkpoint is None else {file.path: file.digest for file in checkpoint.files}
    dataset = session.get(Dataset, reference.value)
    return {} if dataset is None else {dataset.path: dataset.digest}


def _link(folder: Path, path: str, blob: Path) -> None:
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise InvalidInput.single(path, "path.outside", "The stored path leaves its checkpoint.")
    link = folder / inside
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():  # one checkpoint may be referred to more than once
        link.symlink_to(blob)


def _missing(reference: Reference, files: list[str]) -> Problem:
    what = f"files {', '.join(files)} of {reference.value}" if files else f"{reference.kind} {reference.value}"
    return Problem(reference.location, "input.missing", f"The {what} is not in the store any more. Upload it again.")
