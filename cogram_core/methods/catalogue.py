"""Writes ``catalogue.json``: every method with its parameters as JSON Schema, so that the API validates without torch.

Run ``make catalogue`` after changing a method's parameters; a test fails when the committed file is stale.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cogram_core.methods import METHODS
from cogram_core.methods.contract import ChoosingMethod, Method, TensorMethod

PATH = Path(__file__).with_name("catalogue.json")


def build() -> dict[str, Any]:
    """The catalogue as plain data."""
    return {"methods": [_entry(METHODS[name]) for name in sorted(METHODS)]}


def _entry(method: Method) -> dict[str, Any]:
    module = import_module(f"cogram_core.methods.{method.name}")
    doc = inspect.getdoc(_function(method)) or ""
    summary = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
    source = re.search(r"Source: (.*?)(?:\n\n|\Z)", doc, re.DOTALL)
    return {
        "name": method.name,
        "kind": method.kind,
        "per_tensor": method.per_tensor,
        "needs_data": method.needs_data,
        "needs_base": method.needs_base,
        "summary": summary,
        "formula": doc.split("\n\n")[0].replace("\n", " "),
        "source": source[1].replace("\n", " ") if source else "",
        "parameters": _schema(method),
    }


def _function(method: Method) -> Callable[..., Any]:
    """What does the method's work, whose docstring tells of it."""
    if isinstance(method, TensorMethod):
        return method.merge
    return method.choose if isinstance(method, ChoosingMethod) else method.run


def _schema(method: Method) -> dict[str, Any]:
    schema = method.params.model_json_schema()
    schema.setdefault("properties", {})
    if method.params.ascending:
        schema["x-ascending"] = [list(pair) for pair in method.params.ascending]
    if method.params.presets:
        schema["x-presets"] = {name: dict(values) for name, values in method.params.presets.items()}
    return schema


def main() -> None:
    """Writes the file."""
    PATH.write_text(json.dumps(build(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
