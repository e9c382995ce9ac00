"""The stage that aligns: finds groups of units, and an order for each of them in each source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cogram_core.methods.align.activations import likenesses
from cogram_core.methods.align.assignment import best_order
from cogram_core.methods.align.params import Params
from cogram_core.methods.align.weights import WeightMatching
from cogram_core.methods.contract import StageContext
from cogram_core.networks.permutations import Group, Symmetry, find_symmetry, preserves

_EXAMPLES = 64  # of a batch; of sequences as many as have _PLACES places
_PLACES = 2**14
_VERIFIED = 8


def run(context: StageContext, params: Params) -> None:
    """θᵢ ← πᵢ(θᵢ), with the order πᵢ of hidden units in which source i is most like the reference source.

    Units are matched group by group, by a linear assignment that maximises the sum of the correlations of their activations
    where they are read, on the evaluation data, else on all sources' own data together; or by coordinate descent on the
    inner product of all weights. Attention heads are matched as wholes. A group is left alone where permuting it
    changes what some source computes by more than rounding, which the trace says.

    Source: Ainsworth et al. 2023, arXiv:2209.04836; Li et al. 2016, arXiv:1511.07543, for activations.
    """
    batches = _batches(context, params.examples)
    symmetry = find_symmetry(context.network, batches[0])
    if context.restore(len(symmetry.groups) + len(symmetry.left)) is not None:
        return
    reference = _reference(context, params)
    orders = _orders(context, params, symmetry, batches, reference)
    changing = _changing(context, symmetry, orders, batches[0][:_VERIFIED])
    for group, order in zip(symmetry.groups, orders, strict=True):
        if group.layer in changing:
            _skip(context, group.layer, f"permuting its units changes what {changing[group.layer]} computes")
            continue
        reason = _told(group, order, context.sources[reference].name)
        context.permute(group.axes, order, layer=group.layer, reason=reason)
    for layer, reason in symmetry.left.items():
        _skip(context, layer, reason)


def _told(group: Group, order: Tensor, reference: str) -> str:
    moved, of = int((order != torch.arange(group.units)).sum()), group.units * (len(order) - 1)
    units = "units" if group.features == 1 else f"blocks of {group.features}"
    return f"{moved} of {of} {units} of the other sources moved to match those of {reference}"


def _skip(context: StageContext, layer: str, reason: str) -> None:
    context.record(layer=layer, kind="layer", action="skipped", reason=reason)


def _reference(context: StageContext, params: Params) -> int:
    if isinstance(params.reference, int):
        return params.reference
    return [source.name for source in context.sources].index(params.reference)


def _batches(context: StageContext, examples: int) -> list[Tensor]:
    """Inputs that all sources are run on, in parts whose size depends on nothing but theirs."""
    own = [source.data for source in context.sources if source.data is not None]
    data = own if context.evaluation is None else [context.evaluation]
    found: list[Tensor] = []
    for each in data:
        inputs = each.evenly(max(1, examples // len(data))).inputs
        places = 1 if inputs.is_floating_point() else inputs.shape[1:].numel()
        found += torch.split(inputs, max(1, min(_EXAMPLES, _PLACES // max(1, places))))
    return found


def _orders(
    context: StageContext, params: Params, symmetry: Symmetry, batches: Sequence[Tensor], reference: int
) -> list[Tensor]:
    """For each group int64 (sources, units); the reference's units stay."""
    stay = [torch.arange(group.units).repeat(len(context.sources), 1) for group in symmetry.groups]
    others = [place for place in range(len(context.sources)) if place != reference]
    reads = [source.read for source in context.sources]
    if params.match == "activations":
        found = likenesses(context.network, [reads[place] for place in (reference, *others)], symmetry.groups, batches)
        for done, (order, tables) in enumerate(zip(stay, found, strict=True)):
            for place, table in zip(others, tables, strict=True):
                order[place] = best_order(table)
            context.progress(done + 1, len(symmetry.groups))
        return stay
    for done, place in enumerate(others):
        matching = WeightMatching(
            reads[reference], reads[place], symmetry.groups, context.network.parameters, context.seed
        )
        for order, best in zip(stay, matching.orders(), strict=True):
            order[place] = best
        context.progress(done + 1, len(others))
    return stay


def _changing(context: StageContext, symmetry: Symmetry, orders: Sequence[Tensor], inputs: Tensor) -> dict[str, str]:
    """The groups' layers whose order some source's outputs depend on beyond rounding, each with the source's name."""
    found: dict[str, str] = {}
    for place, source in enumerate(context.sources):
        context.network.load(source.read)
        pairs: list[tuple[Group, Tensor]] = list(zip(symmetry.groups, (order[place] for order in orders), strict=True))
        if preserves(context.network, inputs, pairs):
            continue
        for pair in pairs:
            if not preserves(context.network, inputs, [pair]):
                found.setdefault(pair[0].layer, source.name)
    return found
