"""What can be wrong with a request about checkpoints."""

from __future__ import annotations

from app.errors import Conflict, NotFound, Unprocessable


class CheckpointNotFound(NotFound):
    """No checkpoint has this id."""

    code, title = "checkpoint.not_found", "No such checkpoint"


class CheckpointInUse(Conflict):
    """A fusion uses it."""

    code, title = "checkpoint.in_use", "Checkpoint in use"


class FilesMissing(Unprocessable):
    """Files that were not uploaded under this name."""

    code, title = "checkpoint.files_missing", "Files not uploaded"


class FilesChanged(Conflict):
    """A file was replaced while the checkpoint was being made."""

    code, title = "checkpoint.files_changed", "Files changed meanwhile"


class PathsConflict(Unprocessable):
    """A file's path is another file's folder."""

    code, title = "checkpoint.paths_conflict", "A file and a folder at once"
