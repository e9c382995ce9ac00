"""The command line: every problem on a line of its own, exit codes that scripts can rely on, no tracebacks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.fuse import usual_cache
from cogram_core import fuse
from tests import nursery
from tests.e2e.inputs import Inputs
from tests.e2e.served import until


def _run(*words: object) -> tuple[int, str, str]:
    code, out, err = nursery.run("app.cli", *map(str, words))
    assert "Traceback" not in err
    return code, out, err


def _written(inputs: Inputs, recipe: dict[str, Any], folder: Path) -> Path:
    """The recipe as a file, with paths for references."""
    here = inputs.local(recipe)
    recipe["sources"] = [source | {"checkpoint": str(here[source["checkpoint"]])} for source in recipe["sources"]]
    recipe["data"] = {key: str(here[name]) for key, name in recipe["data"].items()}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_what_a_fusion_finds_out_is_kept_where_the_user_says_or_not_at_all(
    small_inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {**small_inputs.recipe(), "stages": [{"method": "fisher"}]}
    path = _written(small_inputs, document, tmp_path)
    monkeypatch.setenv("COGRAM_CACHE_DIR", str(tmp_path / "named" / "cache"))
    for name, words in (("none", ("--no-cache",)), ("named", ())):
        code, _, err = _run("fuse", path, "-o", tmp_path / name / "out", *words)
        assert code == 0, err
        assert (tmp_path / "named" / "cache").exists() == (name == "named")
    assert len(list((tmp_path / "named" / "cache").iterdir())) == 2
    assert len({(tmp_path / name / "out" / "model.safetensors").read_bytes() for name in ("none", "named")}) == 1


def test_the_usual_folder_is_where_desktops_keep_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in (
        (str(tmp_path / "own"), tmp_path / "own"),
        ("relative", tmp_path / ".cache"),
        ("", tmp_path / ".cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert usual_cache() == expected / "cogram-fusion"


def test_help_lists_every_command() -> None:
    code, out, _ = _run("--help")
    assert code == 0
    for command in (
        "serve",
        "api",
        "worker",
        "dispatcher",
        "migrate",
        "fuse",
        "calibrate",
        "replay",
        "inspect",
        "validate",
        "methods",
    ):
        assert command in out


def test_every_problem_of_a_recipe_is_a_line_and_the_exit_code_is_2(small_inputs: Inputs, tmp_path: Path) -> None:
    recipe = small_inputs.recipe(stages=[{"method": "fischer"}], sede=1)
    path = _written(small_inputs, recipe, tmp_path)
    for words in (("fuse", path, "-o", tmp_path / "out"), ("validate", path)):
        code, out, err = _run(*words)
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("cogram: ") for line in lines)
        assert any("stages[0].method" in line and "fisher" in line for line in lines)
        assert any("sede" in line and "seed" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_fusion_that_was_killed_is_gone_on_from(small_inputs: Inputs, tmp_path: Path) -> None:
    recipe = small_inputs.recipe()
    path = _written(small_inputs, recipe, tmp_path)
    whole = fuse(path, tmp_path / "whole", journal=tmp_path / "journal")
    left = tmp_path / ".out.0123456789ab.partial"
    left.mkdir()
    (tmp_path / "journal").rename(left / "trace.journal")
    code, out, err = _run("fuse", path, "-o", tmp_path / "out")
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    assert f"resumed after {sum(whole.report['decisions'].values())} decisions" in err
    assert not left.exists()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (whole.output / "model.safetensors").read_bytes()


def test_what_is_missing_on_disk_is_told_without_a_traceback(small_inputs: Inputs, tmp_path: Path) -> None:
    recipe = small_inputs.recipe()
    path = _written(small_inputs, recipe, tmp_path)
    path.write_text(path.read_text().replace(str(small_inputs.path("b")), "nowhere.safetensors"))
    for words in (
        ("fuse", path, "-o", tmp_path / "out"),
        ("validate", path),
        ("validate", tmp_path / "none.yaml"),
        ("inspect", tmp_path / "none"),
        ("inspect", path.with_suffix(".parquet")),
        ("replay", tmp_path / "none.parquet", "-s", small_inputs.path("a"), "-o", tmp_path / "out"),
    ):
        code, out, err = _run(*words)
        assert (code, out) == (2, ""), words
        assert err.startswith("cogram: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_never_overwritten(small_inputs: Inputs, tmp_path: Path) -> None:
    path = _written(small_inputs, small_inputs.recipe(), tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, _, err = _run("fuse", path, "-o", tmp_path / "out")
    assert code == 1
    assert "cogram: " in err
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fusion_leaves_nothing_and_says_so(
    long_inputs: Inputs, tmp_path: Path, number: signal.Signals
) -> None:
    path = _written(long_inputs, long_inputs.long_recipe(), tmp_path)
    command = [sys.executable, "-m", "app.cli", "fuse", str(path), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Its journal shows that the run is under way; a second of it is well short of the end.
    until(lambda: [found for found in tmp_path.iterdir() if found != path] or process.poll() is not None)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "stopped; nothing was written" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [path]


def test_a_good_recipe_is_validated_with_estimates(small_inputs: Inputs, tmp_path: Path) -> None:
    code, out, _ = _run("validate", _written(small_inputs, small_inputs.recipe(), tmp_path))
    assert code == 0
    assert "can be run; about" in out


def test_inspect_tells_what_a_checkpoint_and_a_trace_hold(small_inputs: Inputs, tmp_path: Path) -> None:
    code, out, _ = _run("inspect", small_inputs.path("a"))
    assert code == 0
    assert "140 parameters" in out
    path = _written(small_inputs, small_inputs.recipe(), tmp_path)
    code, out, err = _run("fuse", path, "-o", tmp_path / "out")
    assert (code, out.strip()) == (0, str(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]["summary"]
    assert "plain average" in err
    assert _words(summary) in _words(err)
    code, out, _ = _run("inspect", tmp_path / "out" / "trace.parquet")
    assert code == 0
    assert _words(summary) in _words(out)


def test_inspect_gives_everything_as_json(small_inputs: Inputs, tmp_path: Path) -> None:
    code, out, _ = _run("inspect", "--json", small_inputs.path("a"))
    assert code == 0
    assert json.loads(out)["network"] == "sequential"
    _run("fuse", _written(small_inputs, small_inputs.recipe(), tmp_path), "-o", tmp_path / "out")
    code, out, _ = _run("inspect", "--json", tmp_path / "out" / "trace.parquet")
    assert code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = json.loads(out)
    assert (found["decisions"], found["layers"]) == (report["decisions"], report["layers"])


def _words(text: str) -> str:
    """The text without the line breaks that a narrow terminal gets."""
    return " ".join(text.split())


def test_methods_lists_the_catalogue() -> None:
    code, out, _ = _run("methods")
    assert code == 0
    for method in ("linear", "fisher", "cogram"):
        assert method in out


def test_calibrate_prints_the_table_and_writes_a_recipe_that_fuses(small_inputs: Inputs, tmp_path: Path) -> None:
    stages = [{"method": "fisher", "examples": 64}, {"method": "cogram"}]
    path = _written(small_inputs, small_inputs.recipe(stages=stages), tmp_path)
    code, out, err = _run("calibrate", path, "-o", tmp_path / "calibrated", "--trials", 4)
    assert (code, out.strip()) == (0, str(tmp_path / "calibrated"))
    table = json.loads((tmp_path / "calibrated" / "calibration.json").read_text())
    assert len(table["trials"]) == 4
    assert _words(table["summary"]) in _words(err)
    assert "the recipe's own" in _words(err)
    assert max(map(len, err.splitlines())) <= 80  # what a terminal has that doesn't say how wide it is
    assert "…" not in err
    for word in ["trial", "layer,", "neuron,", "weight", "κ", "τ", "evaluation", "holdout", "accuracy"]:
        assert word in _words(err).split()
    code, _, _ = _run("fuse", tmp_path / "calibrated" / "recipe.calibrated.yaml", "-o", tmp_path / "out")
    assert code == 0


def test_calibrate_says_which_stages_it_could_take(small_inputs: Inputs, tmp_path: Path) -> None:
    path = _written(small_inputs, small_inputs.recipe(), tmp_path)
    code, out, err = _run("calibrate", path, "-o", tmp_path / "calibrated")
    assert (code, out) == (2, "")
    assert "1, 2" in err
    assert "stage" in err
    assert not (tmp_path / "calibrated").exists()
