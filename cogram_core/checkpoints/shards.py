"""Which files make up a checkpoint: one file, a folder, or named blobs; and the index that ties shards together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogram_core.checkpoints.opening import open_regular, read_exactly
from cogram_core.checkpoints.parsing import PICKLE_ADVICE, is_pickle_name
from cogram_core.checkpoints.specs import INDEX_LIMIT, MAX_TENSORS, FileHeader, Problems, TensorSpec, name_fault, shown
from cogram_core.checkpoints.strict_json import Bounds, Malformed, RepeatedKeys, parse_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
# Beside the weight map, "metadata" may hold what its writer likes, within reason.
_BOUNDS = Bounds(depth=8, objects=1000, arrays=1000, strings=2 * MAX_TENSORS + 20_000, commas=MAX_TENSORS + 20_000)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The safetensors files of a checkpoint by name, how errors name them, and what the index says, if there is one."""

    shards: Mapping[str, Path]
    label: Callable[[str], str]
    weight_map: Mapping[str, str] | None = None
    index: str = ""


def locate_files(location: Path | Mapping[str, Path], problems: Problems) -> CheckpointFiles:
    """The files that make up the checkpoint at ``location``; what is missing or unclear is noted in ``problems``."""
    if isinstance(location, Mapping):
        top = {name: path for name, path in location.items() if "/" not in name}
        return _choose(top, str, "checkpoint", problems)
    folder = location
    if folder.is_dir():
        files = {path.name: path for path in folder.iterdir() if path.is_file()}
        return _choose(files, lambda name: str(folder / name), str(folder), problems)
    if not location.exists():
        problems.add(str(location), "not_found", "doesn't exist; give a safetensors file or a folder with one")
        return CheckpointFiles({}, str)
    return CheckpointFiles({location.name: location}, lambda _: str(location))


def gather_tensors(
    files: Sequence[FileHeader], label: Callable[[str], str], problems: Problems
) -> dict[str, TensorSpec]:
    """All tensors of all files, in the order of their names; a name that two files hold is a problem."""
    tensors: dict[str, TensorSpec] = {}
    homes: dict[str, str] = {}
    for file in files:
        for spec in file.tensors:
            if spec.name in tensors:
                text = f"{homes[spec.name]} holds a tensor of this name too; keep one"
                problems.add(f"{label(file.name)}: {shown(spec.name)}", "duplicate_tensor", text)
            tensors[spec.name] = spec
            homes[spec.name] = file.name
    return dict(sorted(tensors.items()))


def compare_with_index(found: CheckpointFiles, files: Sequence[FileHeader], problems: Problems) -> None:
    """The index names exactly the tensors that each shard holds."""
    if found.weight_map is None:
        return
    held = {file.name: {spec.name for spec in file.tensors} for file in files}
    for tensor, shard in found.weight_map.items():
        if tensor not in held[shard]:
            text = f"the index says it lies in {shard}, which has no such tensor; write the index again"
            problems.add(f"{found.index}: {shown(tensor)}", "tensor_missing", text)
    for file in files:
        for spec in file.tensors:
            if found.weight_map.get(spec.name) != file.name:
                text = "the index doesn't name this tensor for this file; write the index again"
                problems.add(f"{found.label(file.name)}: {shown(spec.name)}", "tensor_not_in_index", text)


def _choose(files: Mapping[str, Path], label: Callable[[str], str], place: str, problems: Problems) -> CheckpointFiles:
    """``model.safetensors``, else an index and the files it names, else the only safetensors file; others are not read."""
    single = sorted(name for name in files if name.endswith(_SUFFIX))
    indexes = sorted(name for name in files if name.endswith(_INDEX_SUFFIX))
    index = INDEX_FILE if INDEX_FILE in indexes else indexes[0] if len(indexes) == 1 else None
    if SINGLE_FILE in files and index is None:
        return CheckpointFiles({SINGLE_FILE: files[SINGLE_FILE]}, label)
    if index is not None:
        return _sharded(files, index, label, problems)
    if len(single) == 1 and not indexes:
        return CheckpointFiles({single[0]: files[single[0]]}, label)
    if single or indexes:
        text = f"has {', '.join((single + indexes)[:8])}: name one {SINGLE_FILE}, or give one file"
        problems.add(place, "ambiguous", text)
    else:
        _report_no_safetensors(files, label, place, problems)
    return CheckpointFiles({}, label)


def _report_no_safetensors(
    files: Mapping[str, Path], label: Callable[[str], str], place: str, problems: Problems
) -> None:
    for name in sorted(filter(is_pickle_name, files)):
        problems.add(label(name), "pickle", f"is a pickle by its name: {PICKLE_ADVICE}")
    if not problems.count:
        problems.add(place, "not_found", f"has no safetensors file; add {SINGLE_FILE}, or shards with {INDEX_FILE}")


def _sharded(files: Mapping[str, Path], index: str, label: Callable[[str], str], problems: Problems) -> CheckpointFiles:
    place = label(index)
    weight_map = _read_weight_map(files[index], place, problems)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard not in files:
            text = f"the index {index} names this file, which is missing; add it"
            problems.add(label(shard), "shard_missing", text)
    if SINGLE_FILE in files and SINGLE_FILE not in shards:
        text = f"stands beside {index}, which doesn't name it: which one counts? remove the other"
        problems.add(label(SINGLE_FILE), "ambiguous", text)
    present = {shard: files[shard] for shard in shards if shard in files}
    return CheckpointFiles(present, label, weight_map, place)


def _read_weight_map(path: Path, place: str, problems: Problems) -> dict[str, str]:
    """The index's weight map without its faulty lines, each of which is a problem."""
    try:
        document = parse_json(_read_index_bytes(path), _BOUNDS)
    except Malformed as error:
        problems.add(place, error.code, error.message)
        return {}
    except OSError as error:
        problems.add(place, "unreadable", f"can't be read ({error.strerror}); check that it may be read")
        return {}
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        problems.add(place, "index", 'has no "weight_map" object from tensors to files; write the index again')
        return {}
    for part in (document, weight_map):
        for key in part.repeated if isinstance(part, RepeatedKeys) else ():
            problems.add(f"{place}: {shown(key)}", "duplicate_key", "the key occurs twice in the index; keep one")
    return {tensor: shard for tensor, shard in weight_map.items() if _is_good_line(tensor, shard, place, problems)}


def _is_good_line(tensor: str, shard: Any, place: str, problems: Problems) -> bool:
    fault = name_fault(tensor)
    if fault is not None:
        problems.add(f"{place}: {shown(tensor)}", "name", fault)
    plain = isinstance(shard, str) and _is_plain_file_name(shard)
    if not plain:
        given = shown(shard) if isinstance(shard, str) else "no string"
        text = f"its file is {given}; it has to be the plain name of a {_SUFFIX} file beside the index"
        problems.add(f"{place}: {shown(tensor)}", "shard_name", text)
    return plain and fault is None


def _is_plain_file_name(name: str) -> bool:
    return (
        name.endswith(_SUFFIX)
        and not name.startswith(".")
        and len(name) <= 255
        and name.isprintable()
        and not any(mark in name for mark in "/\\")
    )


def _read_index_bytes(path: Path) -> bytes:
    descriptor, size = open_regular(path)
    try:
        if size > INDEX_LIMIT:
            raise Malformed(
                "index_too_large", f"has {size} bytes, more than {INDEX_LIMIT}; is it a checkpoint's index?"
            )
        return read_exactly(descriptor, size)
    finally:
        os.close(descriptor)
