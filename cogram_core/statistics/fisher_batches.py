"""Fisher information by batches: the sums of squares of single examples' gradients, and for which tensors they are right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.seeding import generator
from cogram_core.statistics.fisher_calls import Batch, CallRule, Key, Owner, Seen, Sizes, owners, rule_for
from cogram_core.statistics.fisher_directions import Estimator, directions
from cogram_core.statistics.fisher_gradients import Addend, rule_of, sum_of_squares
from cogram_core.stopping import stop_point

# Numbers that a batch's modules give, 2²⁴ float32 are 64 MiB; and elements of its gradients of modules without a rule of
# their own. Constants, so that results don't depend on the memory at hand.
_ACTIVATIONS = 2**24
_RECOMPUTED = 2**23
_AT_ONCE = 16  # directions whose gradients are squared together
# How far the gradients of a batch's examples may be from those of single ones. Rounding is orders of magnitude below, and
# a tensor that is used in a way that its module's calls don't show far above; what is so small beside the largest of all
# may be noise alone.
_RELATIVE, _NOISE = 1e-3, 1e-9


def parts_of(data: Dataset, size: int, seed: int) -> Iterator[tuple[Dataset, list[tuple[int, int]]]]:
    """The examples, so many at a time, and what their draws follow from."""
    bounds = [*range(0, len(data), size), len(data)]
    for first, last in pairwise(bounds):
        places = torch.arange(first, last, device=data.targets.device)
        yield data.take(places), [(seed, place) for place in range(first, last)]


class InBatches:
    """The tensors of a network whose single gradients a batch's passes give."""

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        """``names`` are those of the tensors that are asked for."""
        self._network = network
        # Of their own, but in the network's memory: the network itself never asks for gradients.
        self._leaves = {name: network.tensor(name).requires_grad_() for name in names}
        self._owners: dict[str, Owner] = {}
        self._shared: frozenset[Key] = frozenset()
        self._batched: dict[Key, tuple[bool, ...]] = {}
        self._idle: set[str] = set()
        self._unfit: set[str] = set()

    def sums(self, data: Dataset, kind: Estimator, seed: int) -> dict[str, Tensor]:
        """Σ_b Σ_r (∇ ⟨d_r, z_b⟩)² in float64 of every tensor that is fit for it."""
        self._learn(data.inputs)
        if not self._owners:
            return {}
        total = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in self._leaves.items()}
        at_once = min(_AT_ONCE, math.prod(self._network.output_shape)) if kind == "exact" else 1
        for part, keys in parts_of(data, self._examples(at_once), seed):
            batch = self._run(part.inputs)
            rules: dict[Key, CallRule] = {}
            found = directions(kind, part.loss, batch.outputs.detach(), part.targets, keys)
            while drawn := list(islice(found, at_once)):
                for name, value in self._squares(batch, drawn, rules).items():
                    total[name] += value
        return {name: value for name, value in total.items() if name not in self._unfit}

    def _run(self, inputs: Tensor) -> Batch:
        return Batch(self._network, self._owners, self._leaves, inputs, self._shared)

    def _examples(self, directions: int) -> int:
        """How many make up a batch where so many directions are taken at once."""
        numbers = sum(call.numbers for call in self._network.calls.calls)
        recomputed = sum(
            self._leaves[name].numel()
            for owner in self._owners.values()
            if rule_of(owner.module) is None
            for name in owner.tensors.values()
        )
        most = min(_ACTIVATIONS // max(1, numbers), _RECOMPUTED // max(1, recomputed))
        return max(1, most // max(1, directions))

    def _squares(self, batch: Batch, drawn: Sequence[Tensor], rules: dict[Key, CallRule]) -> dict[str, Tensor]:
        """Σ_b Σ_r g_br² for some directions; what turns out to be unfit is noted. ``rules`` are kept for further ones."""
        idle = {name: self._leaves[name] for name in self._idle}
        pulled = []
        for direction in drawn:
            stop_point()
            gradients, reached = batch.gradients(direction, idle)
            pulled.append(gradients)
            self._unfit |= reached.keys()
        uses = Counter(name for key in pulled[0] for name in batch.seen[key].owner.tensors.values())
        found: dict[str, list[Addend]] = {}
        squares: dict[str, Tensor] = {}
        for key in list(pulled[0]):
            stop_point()
            call = batch.seen[key]
            given = self._addends(key, call, [gradients.pop(key) for gradients in pulled], rules)
            if given is None:
                self._unfit |= set(call.owner.tensors.values())
                continue
            for name, addend in given.items():
                found.setdefault(name, []).append(addend)
                if len(found[name]) == uses[name]:  # then and not at the end: gradients of a call take memory
                    squares[name] = sum_of_squares(found.pop(name), len(drawn[0]))
        return {name: value for name, value in squares.items() if name not in self._unfit}

    def _addends(
        self, key: Key, call: Seen, arrived: list[list[Tensor]], rules: dict[Key, CallRule]
    ) -> dict[str, Addend] | None:
        """None where the call doesn't show every example's part, or can't be repeated example by example."""
        batched, sizes, examples = self._batched.get(key), call.sizes(), len(arrived[0][0])
        given = len(call.given)
        if batched is None or len(batched) != len(sizes) or not all(batched[given:]):
            return None
        if any(size != examples for size, moved in zip(sizes, batched, strict=True) if moved):
            return None
        try:
            if key not in rules:
                rules[key] = rule_for(call, batched[:given], examples, self._leaves)
            return rules[key](arrived)
        except (RuntimeError, TypeError, ValueError, LookupError):
            return None

    def _learn(self, inputs: Tensor) -> None:
        """Finds out from the first and the last example what has a part for every example, and which tensors are fit."""
        self._owners = owners(self._network, self._leaves)
        pair = inputs[[0, -1]]
        singles = [self._run(pair[place : place + 1]) for place in (0, 1)]
        draw = torch.from_numpy(generator(0, "fisher", "probe").standard_normal(singles[0].outputs.numel()))
        direction = draw.to(singles[0].outputs).reshape(singles[0].outputs.shape)
        true = [single.gradients(direction, self._leaves)[1] for single in singles]
        self._take_out(self._leaves.keys() - true[0].keys() - true[1].keys(), self._idle)
        together = self._together(pair, singles)
        one = self._run(pair[:1]).seen
        for key, call in together.seen.items():
            if key in one and (moved := _moved(one[key].sizes(), call.sizes())) is not None:
                self._batched[key] = moved
        found = self._squares(together, [direction.expand(2, *direction.shape[1:])], {})
        self._take_out(_differing(true, found) - self._idle, self._unfit)

    def _together(self, pair: Tensor, singles: Sequence[Batch]) -> Batch:
        """Both examples as one batch, with as much as possible of what they share handed on once for each."""
        plain = self._run(pair)
        fixed = {key: call.shapes[0] for key, call in plain.seen.items() if _is_shared(call, singles[0].seen.get(key))}
        for shared in (frozenset(fixed), frozenset(key for key, shape in fixed.items() if shape[0] == 1)):
            self._shared = shared
            try:
                together = self._run(pair)
            except (RuntimeError, TypeError, ValueError, LookupError):
                continue
            if together.outputs.shape == plain.outputs.shape and torch.allclose(together.outputs, plain.outputs):
                return together
        self._shared = frozenset()
        return plain

    def _take_out(self, names: set[str], into: set[str]) -> None:
        """Calls give nothing to these tensors any more."""
        into |= names
        left = {
            key: Owner(owner.module, {own: name for own, name in owner.tensors.items() if name not in into})
            for key, owner in self._owners.items()
        }
        self._owners = {key: owner for key, owner in left.items() if owner.tensors}


def _is_shared(call: Seen, single: Seen | None) -> bool:
    """Whether all that a call is given, and its one output, are the same for all examples."""
    return single is not None and len(call.edges) == 1 and call.sizes() == single.sizes()


def _moved(one: Sizes, two: Sizes) -> tuple[bool, ...] | None:
    """Which values have an entry for every example: their first dimension is one of one, two of two. None: can't be told."""
    if len(one) != len(two):
        return None
    pairs = list(zip(one, two, strict=True))
    return tuple(pair == (1, 2) for pair in pairs) if all(a == b or (a, b) == (1, 2) for a, b in pairs) else None


def _differing(true: Sequence[Mapping[str, Tensor]], found: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors whose sums of squares are not those of the single gradients."""
    expected: dict[str, Tensor] = {}
    for gradients in true:
        for name, gradient in gradients.items():
            square = gradient.square().double()
            expected[name] = expected[name] + square if name in expected else square
    expected = {name: value for name, value in expected.items() if bool(torch.isfinite(value).all())}
    noise = _NOISE * max((float(value.max()) for value in expected.values()), default=0.0)
    return {
        name
        for name, value in expected.items()
        if name not in found or not bool(((found[name] - value).abs() <= _RELATIVE * float(value.max()) + noise).all())
    }
