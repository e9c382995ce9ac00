"""No module of the API brings torch with it, whatever it imports and however."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import app

HEAVY = ["torch", "numpy", "scipy", "safetensors", "pyarrow", "celery", "worker", "obstore"]
# They are for other processes than the API's.
OTHERS = ("app.cli.__main__", "app.store.blobs.remote")


def _loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
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


def test_the_help_of_the_command_line_comes_without_torch() -> None:
    code = "import contextlib, io\nfrom app.cli import main\nsys.argv = ['cogram', '--help']\n"
    code += "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main()"
    assert _loaded_by(code) == set()
