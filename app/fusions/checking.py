"""From a recipe as posted to one that can be queued: references resolved, headers compared, all problems together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.orm import Session
from starlette.requests import Request

from app.checkpoints import repository as checkpoints
from app.checkpoints.service import contents
from app.datasets import repository as datasets
from app.examining.examiners import Examiners, Files
from app.fetching import fetched
from app.storage_away import log_gone
from app.store.blobs import BlobGone, BlobStore
from app.store.models import Checkpoint, Dataset
from cogram_core.errors import Problem, RecipeError
from cogram_core.preflight import DatasetFacts, Estimates
from cogram_core.recipe import Recipe, Reference


@dataclass(frozen=True)
class Checked:
    """A recipe after checking; it can be run if there are no ``problems``."""

    recipe: Recipe | None = None
    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)  # by id
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    estimates: Estimates | None = None


def resolve(session: Session, tenant: str, document: Mapping[str, Any]) -> Checked:
    """The recipe with ids for references; the rest of the checks needs no database."""
    try:
        recipe = Recipe.from_document(document)
    except RecipeError as error:
        return Checked(problems=error.problems)
    found: dict[tuple[str, str], Checkpoint | Dataset] = {}
    problems = []
    for reference in recipe.references():
        row = _find(session, tenant, reference)
        if row is None:
            problems.append(_unknown(reference))
        else:
            found[reference.kind, reference.value] = row
    return Checked(
        recipe=recipe.with_references({key: row.id for key, row in found.items()}),
        checkpoints={row.id: row for row in found.values() if isinstance(row, Checkpoint)},
        datasets={row.id: row for row in found.values() if isinstance(row, Dataset)},
        problems=tuple(problems),
    )


async def compare(checked: Checked, blobs: BlobStore, examiners: Examiners, request: Request) -> Checked:
    """Adds what headers alone can tell: mismatches between the checkpoints and the data, and estimates."""
    if checked.recipe is None or checked.problems:
        return checked
    facts = {key: _facts(row) for key, row in checked.datasets.items()}
    document = checked.recipe.to_document()
    async with fetched(_headers(checked, blobs)) as (paths, gone):
        if gone:
            return replace(checked, problems=_gone(checked.recipe, gone))
        problems, estimates = await examiners.recipe(document, paths, facts, request)
    return replace(checked, problems=problems, estimates=estimates)


@contextmanager
def _headers(checked: Checked, blobs: BlobStore) -> Iterator[tuple[dict[str, Files], set[str]]]:
    """For each checkpoint, where its files can be read; and those that the storage has lost."""
    with ExitStack() as stack:
        found, gone = {}, set()
        for key, row in checked.checkpoints.items():
            try:
                found[key] = stack.enter_context(blobs.storage.headers(contents(row.files)))
            except BlobGone as error:
                log_gone(error)
                gone.add(key)
        yield found, gone


def _find(session: Session, tenant: str, reference: Reference) -> Checkpoint | Dataset | None:
    """By id, or the latest of a name."""
    value = reference.value
    if "\x00" in value:
        return None
    if reference.kind == "checkpoint":
        return checkpoints.get(session, tenant, value) or checkpoints.newest_named(session, tenant, value)
    return datasets.get(session, tenant, value) or datasets.newest_named(session, tenant, value)


def _unknown(reference: Reference) -> Problem:
    kind = reference.kind
    message = (
        f"there is no {kind} with the id or name {reference.value!r}; "
        f"POST /v1/{kind}s makes one of uploaded files, GET /v1/{kind}s lists them"
    )
    return Problem(reference.location, f"{kind}.not_found", message)


def _gone(recipe: Recipe, keys: Set[str]) -> tuple[Problem, ...]:
    message = "the stored bytes of {} are gone; upload them again, and use the checkpoint that you make of them"
    return tuple(
        Problem(reference.location, "input.missing", message.format(reference.value))
        for reference in recipe.references()
        if reference.value in keys
    )


def _facts(row: Dataset) -> DatasetFacts:
    return DatasetFacts(
        examples=row.examples,
        input_shape=tuple(row.input_shape),
        target_min=row.target_min,
        target_max=row.target_max,
        loss=row.loss,
        target_shape=tuple(row.target_shape),
        token_min=row.token_min,
        token_max=row.token_max,
    )
