"""An output folder that appears complete or not at all, and what killed processes left of theirs."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cogram_core.errors import OutputError

_NAME_BYTES = 6


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output`` to write into; renamed to ``output`` on success, removed on any exception.

    Everything in it is flushed to the disk before the rename. A process killed in between leaves the hidden folder
    (``.name.….partial``) and no ``output``. A lock on the folder itself, which the system takes off a dead process, tells
    others that somebody works in it.

    Raises:
        OutputError: ``output`` exists and isn't an empty folder, or can't be created.
    """
    output = output.resolve()
    _check_free(output)
    with ExitStack() as held:
        partial = _make(output, held)
        try:
            yield partial
            _publish(partial, output)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def abandoned_folders(output: Path) -> Iterator[tuple[Path, ...]]:
    """The hidden folders that killed processes left beside ``output``; nobody else gets them during the block.

    They are removed when the block ends well. Folders of living processes and of other users are not among them.
    """
    output = output.resolve()
    pattern = f".{glob.escape(output.name)}.{'[0-9a-f]' * (2 * _NAME_BYTES)}.partial"
    with ExitStack() as held:
        dead = tuple(folder for folder in sorted(output.parent.glob(pattern)) if _is_abandoned(folder, held))
        yield dead
        for folder in dead:
            shutil.rmtree(folder, ignore_errors=True)


def _make(output: Path, held: ExitStack) -> Path:
    """A new hidden folder, locked for as long as ``held`` lasts."""
    while True:
        partial = output.with_name(f".{output.name}.{secrets.token_hex(_NAME_BYTES)}.partial")
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise _refused(output, error) from error
        try:
            if _lock(partial, held):
                return partial
        except BlockingIOError:
            continue  # not locked yet, it looked abandoned: who found it clears it away
        except OSError:
            return partial  # a file system without such locks, where nobody takes anything for abandoned


def _is_abandoned(folder: Path, held: ExitStack) -> bool:
    """Whether a folder of this user is nobody's; then it is locked for as long as ``held`` lasts."""
    try:
        return _lock(folder, held) and folder.lstat().st_uid == os.geteuid()
    except OSError:
        return False


def _lock(folder: Path, held: ExitStack) -> bool:
    """Locks a folder for as long as ``held`` lasts; False if it is gone.

    Raises:
        BlockingIOError: if another process has it.
        OSError: if it is no folder, or the file system has no such locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(folder.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _check_free(output: Path) -> None:
    try:
        free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    except OSError as error:
        raise _refused(output, error) from error
    if not free:
        raise OutputError(f"{output}: output.exists: it is there and not empty; choose another folder or remove it")


def _publish(partial: Path, output: Path) -> None:
    try:
        for folder, _, files in os.walk(partial):
            for name in files:
                _flush(Path(folder, name))
            _flush(Path(folder))
        _check_free(output)
        partial.rename(output)
        _flush(output.parent)
    except OSError as error:
        raise _refused(output, error) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output}: can't be written ({error.strerror}); check that its parent may be written and has room"
    )
