"""Which names and paths a file may have. A path is a key here, and becomes a file name in a worker's own folder later."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from app.uploads.errors import PickleRefused, UnusablePath
from cogram_core.checkpoints.header import is_pickle_name
from cogram_core.errors import Problem

NAME_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
_NAME = re.compile(NAME_PATTERN)
# For the contract; what no pattern can tell, such as the names of pickles, is refused as well.
PATH_PATTERN = r"^(?!/|\.{1,2}(/|$))([^/\\\x00-\x1f\x7f]|/(?!/|$|\.{1,2}(/|$)))+$"
MAX_PATH = 512
_MAX_PART_BYTES = 255  # what common file systems take


def _name_fault(name: str) -> str | None:
    if not _NAME.fullmatch(name):
        return "a name has 1 to 128 characters out of A-Z a-z 0-9 . _ -"
    if not name.strip("."):
        return "a name has more than dots"
    return None


def _checked_name(name: str) -> str:
    fault = _name_fault(name)
    if fault:
        raise ValueError(fault)
    return name


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(_checked_name)]


def name_problem(name: str) -> Problem | None:
    """What keeps ``name`` from naming a checkpoint or dataset."""
    fault = _name_fault(name)
    return Problem("name", UnusablePath.code, f"{name[:200]!r}: {fault}") if fault else None


def path_problem(path: str, location: str = "path") -> Problem | None:
    """What keeps ``path`` from being the plain relative path of a file that may be stored."""
    fault = _path_fault(path)
    if fault:
        return Problem(location, UnusablePath.code, f"{path[:80]!r}: {fault}")
    if not is_pickle_name(path):
        return None
    return Problem(
        location,
        PickleRefused.code,
        f"{path!r} is a pickle by its name; opening one runs code, so it is refused. Convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')",
    )


def check_name(name: str) -> None:
    """Raises unless ``name`` may name a checkpoint or dataset."""
    problem = name_problem(name)
    if problem:
        raise UnusablePath(problem.message, errors=[problem])


def check_path(path: str) -> None:
    """Raises unless ``path`` is a plain relative path of a file that may be stored."""
    problem = path_problem(path)
    if problem:
        kind = PickleRefused if problem.code == PickleRefused.code else UnusablePath
        raise kind(problem.message, errors=[problem])


def _path_fault(path: str) -> str | None:
    if not path or len(path) > MAX_PATH:
        return f"a path has 1 to {MAX_PATH} characters"
    if not path.isprintable():
        return "a path has no control characters"
    if "\\" in path:
        return "a path has no backslashes; folders are parted by /"
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return "a path is relative and plain: no leading or double slash, no . and no .. in it"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return f"each part of a path has at most {_MAX_PART_BYTES} bytes"
    return None
