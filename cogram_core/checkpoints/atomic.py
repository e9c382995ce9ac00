"""An output folder that appears complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cogram_core.errors import OutputError


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output`` to write into; renamed to ``output`` on success, removed on any exception.

    Everything in it is flushed to the disk before the rename. A process killed in between leaves the hidden folder
    (``.name.….partial``) and no ``output``.

    Raises:
        OutputError: ``output`` exists and isn't an empty folder, or can't be created.
    """
    output = output.resolve()
    _check_free(output)
    partial = output.with_name(f".{output.name}.{secrets.token_hex(6)}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise _refused(output, error) from error
    try:
        yield partial
        _publish(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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
