"""What the service's commands need before they can begin; what is wrong with it is told in lines, never as a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from app.listening import CannotServe
from app.settings import Settings
from cogram_core.errors import InvalidInput, Problem
from cogram_core.recipe.wording import WORDS

_WORDS = WORDS | {
    "bool_parsing": "must be true or false",
    "float_parsing": "must be a number",
    "int_parsing": "must be a whole number",
}
_ADDRESSES = {
    "BLOB_URL": "must begin with s3://, gs:// or az://; leave it out to use the local disk",
    "DATABASE_URL": "must begin with postgresql:// or sqlite://; leave it out to use SQLite in the data folder",
}


def settings_of(**given: Any) -> Settings:
    """The environment's settings; what is given on the command line comes first.

    Raises:
        InvalidInput: with every setting that can't be used. Their values are not told: some hold passwords.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise InvalidInput([_problem(detail) for detail in error.errors(include_input=False)]) from error


def settings_with_folder(**given: Any) -> Settings:
    """The same, and the data folder is there.

    Raises:
        CannotServe: when it can't be made.
    """
    settings = settings_of(**given)
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotServe(
            f"{settings.data_dir} can't be the data folder: {error.strerror}. Choose another with --data-dir or "
            "COGRAM_DATA_DIR."
        ) from error
    return settings


@contextmanager
def database_needed() -> Iterator[None]:
    """A database that is away ends the block with a line that says so.

    Raises:
        CannotServe: for that.
    """
    from sqlalchemy.exc import DBAPIError

    from app.store.outages import outage_in

    try:
        yield
    except DBAPIError as error:
        if outage_in(error) is None:
            raise
        said = " ".join(str(error.orig).split())
        raise CannotServe(
            f"the database can't be used: {said}. Check DATABASE_URL, and that it runs and has room."
        ) from error


def _problem(detail: Any) -> Problem:
    name = str(detail["loc"][0])
    words = _ADDRESSES.get(name) or _WORDS.get(detail["type"], "").format(**detail.get("ctx", {})) or detail["msg"]
    return Problem(name, "settings.invalid_value", words)
