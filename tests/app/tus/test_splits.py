"""However an upload is split, interrupted and repeated, the file is the one that was sent."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.store.staging import Staging
from tests.app.factories import sha256
from tests.app.tus.lines import half_sent, soon
from tests.app.tus.speaking import Tus, checksum, repr_digest

_PIECES = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@dataclass(frozen=True)
class Step:
    """A chunk of so many bytes, and what becomes of it."""

    size: int
    fate: Literal["whole", "checked", "damaged", "cut", "cut checked", "elsewhere"]


_STEPS = st.lists(
    st.builds(
        Step,
        st.integers(0, 300_000) | st.just(1_200_000),
        st.sampled_from(["whole", "checked", "damaged", "cut", "cut checked", "elsewhere"]),
    ),
    max_size=7,
)


@given(content=st.integers(1, 2_000_000).map(lambda size: hashlib.shake_128(b"seed").digest(size)), steps=_STEPS)
@_PIECES
def test_any_splits_and_cuts_give_the_same_file(tus: Tus, content: bytes, steps: list[Step]) -> None:
    url = tus.create(len(content))
    for step in steps:
        offset = tus.offset(url)
        if offset == len(content):
            break
        chunk = content[offset : offset + step.size]
        _take(tus, url, offset, chunk, step.fate)
        assert tus.offset(url) >= offset, "what was told once holds"
    offset = tus.offset(url)
    last = tus.patch(url, offset, content[offset:])
    assert last.headers["Repr-Digest"] == repr_digest(content)
    assert tus.service.blob(sha256(content)).read_bytes() == content


def _take(tus: Tus, url: str, offset: int, chunk: bytes, fate: str) -> None:
    match fate:
        case "whole":
            assert tus.patch(url, offset, chunk).headers["Upload-Offset"] == str(offset + len(chunk))
        case "checked":
            assert tus.patch(url, offset, chunk, checksum(chunk)).status_code == 204
        case "damaged":
            assert tus.patch(url, offset, chunk, checksum(chunk + b"x")).status_code == 460
            assert tus.offset(url) == offset
        case "elsewhere":
            assert tus.patch(url, offset + 1, b"").status_code == 409
        case _:
            _cut(tus, url, offset, chunk, fate == "cut checked")


def _cut(tus: Tus, url: str, offset: int, chunk: bytes, checked: bool) -> None:
    """The connection breaks in the middle of the chunk."""
    before = tus.expiry(url)
    more = "".join(f"{name}: {value}\r\n" for name, value in checksum(chunk).items()) if checked else ""
    with half_sent(tus.service.http.base_url, url, offset, len(chunk), chunk[: len(chunk) // 2], more) as connection:
        if len(chunk) == 0:
            connection.recv(1)
        assert soon(lambda: tus.expiry(url) > before)
    assert soon(lambda: tus.patch(url, 10**9, b"").status_code == 409)
    if checked and chunk:
        assert tus.offset(url) == offset


@given(pieces=st.lists(st.binary(max_size=3000), max_size=8), kept=st.lists(st.sampled_from(["keep", "drop", "die"])))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_staged_bytes_are_those_that_were_kept(tmp_path: Path, pieces: list[bytes], kept: list[str]) -> None:
    """Each piece by a staging of its own, which knows only what lies on the disk; some die before they can keep it."""
    folder = tmp_path / "staging"
    Staging(folder).create("upl_1")
    expected = b""
    for piece, fate in zip(pieces, [*kept, *["keep"] * len(pieces)], strict=False):
        if fate == "die":
            _write_and_die(folder, piece)
            continue
        staged = Staging(folder).open("upl_1")
        assert staged.mark.kept == len(expected)
        staged.write(piece)
        staged.release(keep=fate == "keep")
        expected += piece if fate == "keep" else b""
    last = Staging(folder).open("upl_1")
    assert last.whole_digest() == sha256(expected)
    assert last.part.read_bytes() == expected
    last.discard()


def _write_and_die(folder: Path, piece: bytes) -> None:
    child = os.fork()
    if child == 0:
        try:
            Staging(folder).open("upl_1").write(piece)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
