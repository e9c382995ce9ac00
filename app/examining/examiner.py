"""The child: answers questions about headers, one after the other, within its limits.

``python -m app.examining.examiner --memory-bytes N``. Imported by nobody: the API only talks to it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.examining.frames import encoded, read_frame
from app.examining.limits import OUT_OF_MEMORY, bound_memory, bound_processor
from cogram_core.errors import InvalidInput
from cogram_core.preflight import DatasetFacts, preflight, read_dataset_facts, summarise_checkpoint
from cogram_core.recipe import Recipe
from cogram_core.recipe.methods import parameter_validator

_GROWTH_BYTES = 64 * 2**20  # that much more than at the start, and a fresh child takes over
_MOST_QUESTIONS = 5_000


def main() -> None:
    """Until its input ends, or it is worn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-bytes", type=int, required=True)
    bound_memory(parser.parse_args().memory_bytes)
    parameter_validator()  # loaded now, while nobody waits
    gc.collect()
    gc.freeze()
    gc.disable()  # headers make no cycles; looking for some among 150,000 tensors takes as long as reading them
    try:
        answer_all()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # the API asks a fresh child, once


def answer_all() -> None:
    """One frame in, one frame out. A child that has grown says so in its last answer and ends."""
    born_with = _resident_bytes()
    _say({"ready": True})
    for count in range(1, _MOST_QUESTIONS + 1):
        question = read_frame(sys.stdin.buffer)
        if question is None:
            return
        bound_processor(question["cpu_seconds"])
        answer = _answer(question)
        answer["worn"] = count == _MOST_QUESTIONS or _resident_bytes() > born_with + _GROWTH_BYTES
        _say(answer)
        if answer["worn"]:
            return


def _say(document: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(encoded(document))
    sys.stdout.buffer.flush()


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"found": _TOPICS[question["about"]](question)}
    except InvalidInput as error:
        return {"refused": type(error).__name__, "problems": [asdict(problem) for problem in error.problems]}
    except MemoryError:
        raise
    except Exception:  # the API writes it into its log, under the request's id
        return {"broke": traceback.format_exc()[-4000:]}


def _checkpoint(question: Mapping[str, Any]) -> dict[str, Any]:
    summary = summarise_checkpoint(_paths(question["files"]))
    return {
        "tensors": len(summary.header.tensors),
        "parameters": summary.header.parameters,
        "dtypes": sorted(summary.header.dtypes),
        "network_kind": summary.network_kind,
    }


def _tensors(question: Mapping[str, Any]) -> list[dict[str, Any]]:
    header = summarise_checkpoint(_paths(question["files"])).header
    names = {file.path: file.name for file in header.files}
    start, limit = question["start"], question["limit"]
    return [
        {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "file": names[spec.file]}
        for spec in list(header.tensors.values())[start : start + limit]
    ]


def _dataset(question: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(read_dataset_facts(Path(question["path"])))


def _recipe(question: Mapping[str, Any]) -> dict[str, Any]:
    recipe = Recipe.from_document(question["recipe"])
    summaries = {key: summarise_checkpoint(_paths(files)) for key, files in question["checkpoints"].items()}
    facts = {key: _facts(document) for key, document in question["datasets"].items()}
    result = preflight(recipe, summaries, facts)
    return {"problems": [asdict(problem) for problem in result.problems], "estimates": asdict(result.estimates)}


def _facts(document: Mapping[str, Any]) -> DatasetFacts:
    shapes = {name: tuple(document[name]) for name in ("input_shape", "target_shape")}
    return DatasetFacts(**{**document, **shapes})


def _paths(files: Mapping[str, str]) -> dict[str, Path]:
    return {name: Path(path) for name, path in files.items()}


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux: it lives until it has answered enough
        return 0


_TOPICS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "checkpoint": _checkpoint,
    "tensors": _tensors,
    "dataset": _dataset,
    "recipe": _recipe,
}


if __name__ == "__main__":
    main()
