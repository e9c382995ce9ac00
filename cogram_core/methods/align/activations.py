"""How alike the units of two networks are, by what they do on the same data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from cogram_core.methods.align.moments import Moments
from cogram_core.networks.network import Network
from cogram_core.networks.permutations import Group, Place
from cogram_core.networks.permutations_wiring import floats, plain_attention
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point

Read = Callable[[str], Tensor]

_MOST_PLACES = 8  # of one group: the units of a residual stream are read all along the network
_MOST_ROWS = 4096  # of a batch: neighbouring places of an image or a text say much the same
_MOST_NUMBERS = 2**25  # of sums that are held at once: 256 MiB; more groups take more passes


def likenesses(
    network: Network, reads: Sequence[Read], groups: Sequence[Group], batches: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """How alike units are, group by group.

    Args:
        network: its values are lost.
        reads: give the tensors of the first network and of each of the others.
        groups: of units.
        batches: inputs, (N, ...) each.

    Yields:
        For each group, for each of the others, float64 (units, units): how alike the first's units and the other's are (see
        ``Moments``), with one standard error for units that keep their place, summed over the places at which the group
        is read, 8 at most. Padding takes no part.
    """
    for chunk in _chunks(groups, len(reads) - 1):
        places = [(group, place) for group in chunk for place in _some(group.readers)]
        sums = [[_nothing(network, *entry) for _ in reads[1:]] for entry in places]
        for batch in batches:
            first: list[Tensor] = []
            for number, read in enumerate(reads):
                stop_point()
                network.load(read)
                seen = _seen(network, batch, places)
                if number == 0:
                    first = seen
                    continue
                for entry, one, other in zip(sums, first, seen, strict=True):
                    entry[number - 1].add(one, other)
        for group in chunk:
            own = [entry for entry, (owner, _) in zip(sums, places, strict=True) if owner is group]
            yield [torch.stack([_table(entry[i]) for entry in own]).sum(0) for i in range(len(reads) - 1)]


def _table(moments: Moments) -> Tensor:
    """Likeness, with one standard error, (1 − r²)/√N, for units that keep their place: less than that tells nothing."""
    likeness = torch.nan_to_num(moments.likeness(), nan=0.0, posinf=0.0, neginf=0.0)  # where a source overflows
    kept = likeness.diagonal()
    return likeness + torch.diag((1 - kept.square()) / math.sqrt(max(1, moments.count)))


def _some(places: Sequence[Place]) -> list[Place]:
    """At most 8, drawn evenly."""
    count = min(len(places), _MOST_PLACES)
    return [places[number * len(places) // count] for number in range(count)]


def _chunks(groups: Sequence[Group], others: int) -> Iterator[list[Group]]:
    """Groups whose sums are held together."""
    chunk: list[Group] = []
    held = 0
    for group in groups:
        size = others * sum((group.units * _features(group, place)) ** 2 for place in _some(group.readers))
        if chunk and held + size > _MOST_NUMBERS:
            yield chunk
            chunk, held = [], 0
        chunk.append(group)
        held += size
    if chunk:
        yield chunk


def _features(group: Group, place: Place) -> int:
    """How many of a unit's numbers at a place are different features, and not one feature at several points."""
    return math.gcd(group.features, place.axis.after)


def _nothing(network: Network, group: Group, place: Place) -> Moments:
    return Moments.none(group.units, _features(group, place), network.device)


def _seen(network: Network, batch: Tensor, places: Sequence[tuple[Group, Place]]) -> list[Tensor]:
    """What arrives at each place, as rows (N, units, features) in float64."""
    modules = dict(network.module.named_modules())
    mask = network.present(batch)
    found: dict[int, Tensor] = {}
    counts: Counter[str] = Counter()

    def keep(name: str, arguments: Any) -> None:
        nth = counts[name]
        counts[name] += 1
        for number, (group, place) in enumerate(places):
            if (place.module, place.nth) == (name, nth):
                found[number] = _rows(floats(arguments)[place.argument], group, place, mask)

    with ExitStack() as stack, plain_attention():
        for name in {place.module for _, place in places}:
            hook = _hook(keep, name)
            stack.callback(modules[name].register_forward_pre_hook(hook, with_kwargs=True).remove)
        network.logits(batch)
    return [found[number] for number in range(len(places))]


def _hook(keep: Callable[[str, Any], None], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hear(_: nn.Module, arguments: Any, named: Any) -> None:
        keep(name, (arguments, named))

    return hear


def _rows(value: Tensor, group: Group, place: Place, mask: Tensor | None) -> Tensor:
    axis, features = place.axis, _features(group, place)
    last = value.movedim(axis.dim, -1)  # (..., before · units · after)
    if mask is not None and axis.dim > 1 and value.shape[:2] == mask.shape:
        last = last[mask]
    parts = last.reshape(-1, axis.before, group.units, features, axis.after // features)
    rows = parts.permute(0, 1, 4, 2, 3).flatten(0, 2)  # (N, units, features)
    if len(rows) > _MOST_ROWS:
        chosen = generator(0, "rows", len(rows)).permutation(len(rows))[:_MOST_ROWS]
        rows = rows[torch.from_numpy(chosen).to(rows.device)]
    return rows.double()
