"""What the README tells a newcomer to paste."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.served import Served

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _in_a_checkout(folder: Path) -> None:
    """The names that the commands use, without copying the repository."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "examples").symlink_to(ROOT / "examples")


def test_the_walk_through_works_when_pasted(served: Served, tmp_path: Path) -> None:
    _in_a_checkout(tmp_path)
    commands = [block for block in _blocks("sh") if not block.startswith("make ")]  # those run the tests themselves
    assert "http://127.0.0.1:8765" in "".join(commands)
    script = "set -eu\n" + "\n".join(commands).replace("http://127.0.0.1:8765", served.address)
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"state":"succeeded"' in result.stdout
    assert (tmp_path / "fused.safetensors").read_bytes() == (tmp_path / "fused" / "model.safetensors").read_bytes()


def test_the_python_examples_run(tmp_path: Path) -> None:
    _in_a_checkout(tmp_path)
    subprocess.run([sys.executable, "-m", "examples.clinics", "clinics"], cwd=tmp_path, check=True, capture_output=True)
    recipe = re.search(r"<<'YAML'\n(.*?)^YAML", README, re.DOTALL | re.MULTILINE)
    assert recipe
    (tmp_path / "clinics" / "recipe.yaml").write_text(recipe[1])
    for block in _blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "written" in result.stdout
