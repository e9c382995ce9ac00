"""Where the tensors of a checkpoint of the transformers library stand in its modules, by the library's own rules.

The library renames tensors on loading, joins some (the experts of a mixture become one tensor), and undoes it on saving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cogram_core.networks.parts import Part


def find_parts(model: nn.Module, names: Iterable[str]) -> dict[str, Part]:
    """For each of a checkpoint's tensors that the model, a ``PreTrainedModel``, has: where. The others are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    state = dict(model.state_dict(keep_vars=True))
    joined = _joined(model, state, converters) if converters else {}
    prefix = str(model.base_model_prefix) or None
    found = {}
    for name in names:
        if name in joined:
            found[name] = joined[name]
            continue
        inner, _ = rename_source_key(name, renamings, [], prefix, state)
        if inner in state:
            found[name] = Part(inner)
    return found


def _joined(model: nn.Module, state: Mapping[str, Tensor], converters: Iterable[Any]) -> dict[str, Part]:
    """The checkpoint's names of what the library joins, found by giving numbered places to its own way back."""
    from transformers.core_model_loading import apply_converters, revert_weight_conversion

    back = [converter.reverse_transform() for converter in converters]
    found: dict[str, Part] = {}
    for name, tensor in state.items():
        if apply_converters(name, back)[1] is None or not tensor.is_floating_point():
            continue
        places = torch.arange(tensor.numel()).reshape(tensor.shape)
        for outer, taken in revert_weight_conversion(model, {name: places}).items():  # type: ignore[arg-type]
            if (part := _strided(name, places, taken)) is not None:
                found[outer] = part
    return found


def _strided(name: str, places: Tensor, taken: Tensor) -> Part | None:
    """The part of a tensor that has these places; None where they are not evenly spaced."""
    if taken.numel() == 0:
        return None
    first = taken[(0,) * taken.ndim]
    steps = [taken.select(axis, 1)[(0,) * (taken.ndim - 1)] - first if size > 1 else 1
             for axis, size in enumerate(taken.shape)]  # fmt: skip
    part = Part(name, tuple(taken.shape), tuple(map(int, steps)), int(first))
    last = part.offset + sum((size - 1) * step for size, step in zip(part.shape, part.strides or (), strict=True))
    if min(part.strides or (1,)) < 0 or last >= places.numel():
        return None
    return part if torch.equal(part.of(places), taken) else None
