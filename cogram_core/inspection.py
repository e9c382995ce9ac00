"""Looks at a checkpoint or a trace and tells what it is, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogram_core.preflight import summarise_checkpoint
from cogram_core.recipe.layers import named_layers
from cogram_core.report import Summary
from cogram_core.trace import Trace


def inspect(path: str | Path) -> dict[str, Any]:
    """What stands at ``path``: a checkpoint (folder or safetensors file) or a trace (Parquet file).

    Raises:
        CheckpointError: if it is not a valid checkpoint.
        ReplayError: if it is a Parquet file, but not a trace.
    """
    path = Path(path)
    return _trace(Trace(path)) if path.suffix == ".parquet" else _checkpoint(path)


def _checkpoint(path: Path) -> dict[str, Any]:
    summary = summarise_checkpoint(path)
    layers = named_layers(summary.layers or ())
    return {
        "kind": "checkpoint",
        "files": [file.name for file in summary.header.files],
        "parameters": summary.header.parameters,
        "bytes": summary.header.nbytes,
        "dtypes": list(summary.header.dtypes),
        "network": summary.network_kind,
        "network_obstacle": summary.obstacle or None,
        "layers": [{"name": name, "type": layer.torch_class} for name, layer in layers],
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
            for spec in summary.header.tensors.values()
        ],
    }


def _trace(trace: Trace) -> dict[str, Any]:
    summary = Summary()
    for decision in trace.decisions():
        summary.add(decision)
    return {
        "kind": "trace",
        "decisions": summary.totals(),
        "layers": summary.to_document(),
        "sources": trace.metadata["sources"],
        "verdict": trace.metadata["verdict"],
    }
