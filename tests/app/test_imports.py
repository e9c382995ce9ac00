"""No module of the API brings torch with it, whatever it imports and however."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import app

HEAVY = ["torch", "numpy", "scipy", "safetensors", "pyarrow", "celery", "worker", "obstore"]
# They are for other processes than the API's.
OTHERS = ("app.cli.__main__", "app.store.blobs.remote")
# Loaded where they are first needed, which is after the first answer: together they took a third of the API's start.
LATER = ["alembic", "cryptography", "httpx", "jsonschema", "jwt", "opentelemetry.sdk", "sqlalchemy.dialects.postgresql"]


def _loaded_by(code: str, looked_for: list[str] = HEAVY) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(set(sys.modules) & set({looked_for!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_no_module_of_app_imports_torch() -> None:
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.") if "migrations" not in module.name]
    wanted = [name for name in names if name not in OTHERS]
    assert "app.main" in wanted
    assert "app.fusions.traces" in wanted
    assert _loaded_by("\n".join(f"import {name}" for name in wanted)) == set()


def test_the_application_and_its_contract_are_made_without_torch() -> None:
    assert _loaded_by("from app.main import create_app\ncreate_app().openapi()") == set()


def test_what_the_first_answer_does_without_is_not_loaded_before_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cogram.sqlite'}"
    code = f"import app.serving\nfrom app.settings import Settings\napp.serving.set_up(Settings(database_url={url!r}))"
    assert _loaded_by(code, HEAVY + LATER) == set()
    loaded = _loaded_by("from sqlalchemy import create_engine\ncreate_engine('postgresql+psycopg://')", LATER)
    assert loaded == {"sqlalchemy.dialects.postgresql"}  # so that the names above are the right ones


def test_pythons_collector_keeps_away_from_what_the_api_is_made_of(tmp_path: Path) -> None:
    code = (
        "import gc\n"
        "looked = []\n"
        "gc.callbacks.append(lambda phase, info: looked.append(info['generation']))\n"
        "import app.api\n"
        "looked.clear()\n"
        "app.api._set_up(None)\n"
        "print(looked, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    environment = os.environ | {"COGRAM_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[] True True\n"


def test_the_help_of_the_command_line_comes_without_torch() -> None:
    code = "import contextlib, io\nfrom app.cli import main\nsys.argv = ['cogram', '--help']\n"
    code += "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main()"
    assert _loaded_by(code) == set()
