from __future__ import annotations

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cogram_core.checkpoints.atomic import abandoned_folders, atomic_folder
from cogram_core.errors import OutputError


def test_the_folder_appears_complete_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with atomic_folder(output) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_bytes(b"x")
        assert not output.exists()
        assert partial.parent == output.parent
        assert partial.name.startswith(".")
    assert (output / "sub" / "file").read_bytes() == b"x"
    assert list(output.parent.iterdir()) == [output]
    # Like any folder made by hand, not the private mode of a temporary one.
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(output.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, OutputError])
def test_an_exception_leaves_nothing(kind: type[BaseException], tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "out") as partial:
            (partial / "file").write_bytes(b"x")
            raise kind

    with pytest.raises(kind):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with atomic_folder(output) as partial:
        (partial / "file").write_bytes(b"first")
    with pytest.raises(OutputError, match=r"output\.exists"), atomic_folder(output):
        pytest.fail("the block must not run")
    assert (output / "file").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [output]


def test_a_file_in_the_place_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"output\.exists"), atomic_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_an_output_that_appears_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def race() -> None:
        with atomic_folder(output) as partial:
            (partial / "file").write_bytes(b"mine")
            output.mkdir()
            (output / "file").write_bytes(b"theirs")

    with pytest.raises(OutputError, match=r"output\.exists"):
        race()
    assert (output / "file").read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [output]


def test_a_parent_that_cannot_hold_it_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="can't be written"), atomic_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


KILLED = (
    "import os, signal, sys; from pathlib import Path; from cogram_core.checkpoints.atomic import atomic_folder\n"
    "with atomic_folder(Path(sys.argv[1])) as partial:\n"
    "    (partial / 'file').write_bytes(b'x')\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)


def test_a_process_killed_in_between_leaves_no_output(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert all(path.name.startswith(".out.") for path in tmp_path.iterdir())
    with abandoned_folders(tmp_path / "out") as left:
        assert [(path / "file").read_bytes() for path in left] == [b"x"]
        with abandoned_folders(tmp_path / "out") as taken:
            assert taken == ()
    assert list(tmp_path.iterdir()) == []


def leftover(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    return path


def test_only_what_was_this_outputs_is_found_abandoned(tmp_path: Path) -> None:
    mine = leftover(tmp_path, ".out.0123456789ab.partial")
    for name in (".out.b.0123456789ab.partial", ".out.short.partial", ".out.0123456789ab", ".o.0123456789ab.partial"):
        leftover(tmp_path, name)
    (tmp_path / ".out.aaaaaaaaaaaa.partial").write_bytes(b"a file")
    (tmp_path / ".out.bbbbbbbbbbbb.partial").symlink_to(leftover(tmp_path, "precious"))
    kept = len(list(tmp_path.iterdir())) - 1
    with abandoned_folders(tmp_path / "out") as left:
        assert left == (mine,)
    assert not mine.exists()
    assert len(list(tmp_path.iterdir())) == kept


def test_a_folder_that_somebody_works_in_is_not_abandoned(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as partial, abandoned_folders(tmp_path / "out") as left:
        assert left == ()
        assert partial.is_dir()


def test_abandoned_folders_stay_where_the_block_fails(tmp_path: Path) -> None:
    mine = leftover(tmp_path, ".out.0123456789ab.partial")

    def fail() -> None:
        with abandoned_folders(tmp_path / "out"):
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    with abandoned_folders(tmp_path / "out") as left:
        assert left == (mine,)


def test_names_that_mean_something_to_a_pattern_are_taken_as_they_are(tmp_path: Path) -> None:
    leftover(tmp_path, ".ab.0123456789ab.partial")
    mine = leftover(tmp_path, ".a[b].0123456789ab.partial")
    with abandoned_folders(tmp_path / "a[b]") as left:
        assert left == (mine,)
