"""GET /v1/methods: the committed catalogue of methods, as it is."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.auth import Reader
from app.errors import declared

router = APIRouter(tags=["methods"])


class MethodOut(BaseModel):
    """One way to fuse."""

    model_config = ConfigDict(extra="allow")

    name: str
    parameters: dict[str, Any] = Field(description="JSON Schema")


class MethodList(BaseModel):
    """Every method."""

    items: list[MethodOut]


@router.get("/methods", responses=declared())
def list_methods(_caller: Reader) -> MethodList:
    """Every method with its parameters' schema, its formula and its source."""
    return _catalogue()


@cache
def _catalogue() -> MethodList:
    document = json.loads((files("cogram_core") / "methods" / "catalogue.json").read_text(encoding="utf-8"))
    return MethodList(items=[MethodOut.model_validate(entry) for entry in document["methods"]])
