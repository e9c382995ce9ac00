from __future__ import annotations

import json
import subprocess
import sys

import pytest

import cogram_core

HEAVY = ["torch", "numpy", "scipy", "safetensors", "pyarrow", "transformers", "tokenizers"]
WEB = ["fastapi", "starlette", "sqlalchemy", "celery", "redis", "httpx", "typer", "rich"]


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(result.stdout)}


@pytest.mark.parametrize(
    "statement",
    [
        "import cogram_core",
        "from cogram_core import Recipe",
        "import cogram_core.recipe.parsing; cogram_core.recipe.methods.catalogue()",
        "import cogram_core.errors",
        "import cogram_core.preflight",
        "import cogram_core.checkpoints.header",
        "import cogram_core.observer",
    ],
)
def test_what_the_api_uses_of_the_core_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement).isdisjoint([*HEAVY, *WEB])


def test_decisions_and_traces_do_without_torch() -> None:
    loaded = loaded_by("from cogram_core import journal, recording, trace")
    assert "pyarrow" in loaded
    assert loaded.isdisjoint({"torch", "safetensors", *WEB})


def test_the_whole_core_loads_no_web_queue_or_database() -> None:
    statement = "import cogram_core; [getattr(cogram_core, name) for name in cogram_core.__all__]"
    loaded = loaded_by(statement)
    assert "torch" in loaded
    assert loaded.isdisjoint([*WEB, "transformers"])


def test_the_public_names_are_there_and_no_others() -> None:
    assert dir(cogram_core) == sorted(cogram_core.__all__)
    for name in cogram_core.__all__:
        assert getattr(cogram_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'fuze'"):
        _ = cogram_core.fuze
