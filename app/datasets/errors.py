"""What can be wrong with a request about datasets."""

from __future__ import annotations

from app.errors import Conflict, NotFound, Unprocessable


class DatasetNotFound(NotFound):
    """No dataset has this id."""

    code, title = "dataset.not_found", "No such dataset"


class DatasetInUse(Conflict):
    """A fusion uses it."""

    code, title = "dataset.in_use", "Dataset in use"


class FileMissing(Unprocessable):
    """No file, or more than one, where one is wanted."""

    code, title = "dataset.file_missing", "One uploaded file wanted"


class FileChanged(Conflict):
    """The file was replaced while the dataset was being made."""

    code, title = "dataset.file_changed", "File changed meanwhile"
