"""A small soak on both stacks, its parts killed, its disk full, its uploads cut; and what it is drawn from."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos.disk import LimitedFiles
from tests.chaos.plan import PARTS, draw

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stack", ["embedded", "split"])
@pytest.mark.timeout(300)
def test_a_small_soak_loses_doubles_and_changes_nothing(stack: str, tmp_path: Path) -> None:
    options = ["--jobs", "6", "--kills", str(len(PARTS)), "--pauses", "0.5", "1.5", "--minutes", "4"]
    command = [sys.executable, "-m", "tests.chaos.soak", *options, "--stack", stack, "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: number for number, name in _counts(done.stdout)}
    assert counts["jobs"] == 6
    assert counts["times the disk was full"] >= 1
    assert counts["results compared"] >= 4
    assert counts["uploads cut"] > 0
    killed = sum(number for name, number in counts.items() if name.startswith("kills: "))
    assert killed >= 1
    assert not (tmp_path / "kept" / "data-at-the-end").exists()


def test_a_plan_is_a_function_of_its_seed_alone() -> None:
    assert draw(3, 40) == draw(3, 40)
    assert draw(3, 40) != draw(4, 40)
    assert [*islice(draw(3, 40).kills(2, 10), 50)] == [*islice(draw(3, 40).kills(2, 10), 50)]
    kinds = {job.kind for job in draw(3, 40).jobs}
    assert {"cancelled", "nan", "bad shapes", "finetune", "middling", "linear without data"} <= kinds


def test_where_nothing_may_be_mounted_a_limit_on_files_stands_for_the_full_disk(tmp_path: Path) -> None:
    code = "import pathlib, sys, time\npath = pathlib.Path(sys.argv[1])\nwhile True:\n"
    code += " try:\n  path.write_bytes(b'x' * 9)\n  print('took', flush=True)\n"
    code += " except OSError:\n  print('full', flush=True)\n time.sleep(0.02)\n"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        lines = writer.stdout
        assert lines.readline() == b"took\n"
        disk = LimitedFiles(tmp_path, "by a limit")
        disk.processes = lambda: [writer.pid]
        disk.fill(0.0, lambda _: None)
        seen: list[bytes] = []

        def look(_seconds: float) -> None:
            while b"full\n" not in seen:
                seen.append(lines.readline())

        disk.fill(0.01, look)
        assert b"full\n" in seen
        while seen[-1] != b"took\n":
            seen.append(lines.readline())
        writer.kill()


def _counts(output: str) -> list[tuple[int, str]]:
    found = []
    for line in output.splitlines():
        number, _, name = line.strip().partition("  ")
        if number.replace(",", "").isdecimal():
            found.append((int(number.replace(",", "")), name.strip()))
    return found
