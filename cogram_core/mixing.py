"""Mixing of values by shares, exactly enough that a record of the shares gives the same bytes again.

Shares are rounded to multiples of a power of two before they are used. A float32 value times such a share has at most 41
significant bits, so the products and, but for extreme spreads of magnitude, their sum are exact in float64, and the only
rounding is the one at the end. Hence a mix of given shares doesn't depend on the order of the sources, and equal
sources give themselves. (The shares of three and more sources may depend on it in their last bit: a third is no multiple
of a power of two.) Values of float64 leave no such room; there it is seen to that equal sources give
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

SCALAR_BITS = 16
ELEMENTWISE_BITS = 15  # so that a share of exactly one still fits a 16-bit integer


def softmax_shares(losses: Sequence[float], steepness: float) -> tuple[float, ...]:
    """a = softmax(−λ·L), rounded to multiples of 2⁻¹⁶ that sum to one; a loss that isn't finite gets nothing.

    For two sources this is α = sigmoid(λ·(L_B − L_A)).

    Source: arXiv:2512.03610 (CoGraM), mixing factor.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return (0.0,) * len(losses)
    best = min(finite)
    raw = [math.exp(-steepness * (loss - best)) if math.isfinite(loss) else 0.0 for loss in losses]
    total = math.fsum(raw)
    return round_shares([value / total for value in raw])


def round_shares(shares: Sequence[float], bits: int = SCALAR_BITS) -> tuple[float, ...]:
    """Nearby multiples of 2⁻ᵇⁱᵗˢ that sum to one exactly: running sums are rounded, so no share is off by more.

    Args:
        shares: not negative, summing to one up to rounding.
        bits: the unit's exponent.
    """
    unit = 1 << bits
    bounds = [round(math.fsum(shares[: place + 1]) * unit) for place in range(len(shares) - 1)]
    bounds = [0, *(min(bound, unit) for bound in bounds), unit]
    return tuple((high - low) / unit for low, high in pairwise(bounds))


def mix(values: Iterable[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
    """Σ aᵢ·xᵢ in float64 with shares that sum to one; where float64 values all agree, they give themselves.

    Args:
        values: of one shape (...), taken one by one, so that one is held at a time.
        shares: one a value: numbers, or tensors that broadcast against the values.
    """
    first, same, total = _summed(values, shares)
    return total if same is None else torch.where(same, first, total)


def weighted_sum(values: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ·xᵢ in float64; values of one shape (...), taken one by one."""
    return _summed(values, weights)[2]


def weighted_mean(values: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ·xᵢ / Σ wᵢ in float64; equal values give themselves, for there is one division, at the end."""
    first, same, total = _summed(values, weights)
    mean = total / math.fsum(weights)
    return mean if same is None else torch.where(same, first, mean)


def add_task_vectors(base: Tensor, values: Iterable[Tensor], coefficients: Sequence[float]) -> Tensor:
    """θ₀ + Σ λᵢ (θᵢ − θ₀) in float64.

    Args:
        base: θ₀, shape (...).
        values: θᵢ, each of that shape, taken one by one.
        coefficients: λᵢ, one a value; they may be negative and need not sum to one.
    """
    origin = base.double()
    total = origin.clone()
    for value, coefficient in zip(values, coefficients, strict=True):
        total += coefficient * (value.double() - origin)
    return total


def plain_average(values: Iterable[Tensor], count: int) -> Tensor:
    """The mean of ``count`` values of one dtype with equal weights, rounded once, to it."""
    first, same, total = _summed(values, [1.0] * count)
    mean = total / count
    return (mean if same is None else torch.where(same, first, mean)).to(first.dtype)


def _summed(values: Iterable[Tensor], shares: Sequence[float | Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The first value, where all agree with it (None: it doesn't matter), and Σ aᵢ·xᵢ in float64."""
    first = total = torch.empty(0)
    same: Tensor | None = None
    for place, (value, share) in enumerate(zip(values, shares, strict=True)):
        if place == 0:
            # Not from zero: zero plus a negative zero would lose its sign.
            first, total = value, value.double() * share
            same = torch.ones_like(value, dtype=torch.bool) if value.dtype == torch.float64 else None
            continue
        total += value.double() * share
        if same is not None:
            same &= value == first
    return first, same, total


def step_towards(current: Tensor, target: Tensor, step: float) -> Tensor:
    """x + t·(y − x) in float64 for y in float64; t = 1 gives y itself."""
    if step == 1.0:
        return target
    origin = current.double()
    return origin + step * (target - origin)


def elementwise_bounds(weights: Sequence[Tensor]) -> Tensor:
    """Running shares of each element, as integers in units of 2⁻¹⁵.

    Args:
        weights: n tensors, not negative, each of shape (...), with a positive sum everywhere.

    Returns:
        int32, shape (n − 1, ...); the last bound is always one and left out.
    """
    unit = 1 << ELEMENTWISE_BITS
    # Not torch.cumsum, which has no deterministic kernel on CUDA.
    running = list(accumulate(weight.double() for weight in weights))
    return torch.stack([torch.round(bound / running[-1] * unit) for bound in running[:-1]]).to(torch.int32)


def mix_elementwise(values: Sequence[Tensor], bounds: Tensor) -> Tensor:
    """Σ aᵢ·xᵢ in float64 with the shares between successive ``bounds`` (see ``elementwise_bounds``)."""
    unit = 1 << ELEMENTWISE_BITS
    edges = [torch.zeros_like(bounds[0]), *bounds, torch.full_like(bounds[0], unit)]
    return mix(values, [(high - low).double() / unit for low, high in pairwise(edges)])


def mean_shares(bounds: Tensor) -> tuple[float, ...]:
    """The mean share of each source over all elements; equal shares where there are none."""
    sources, unit = len(bounds) + 1, 1 << ELEMENTWISE_BITS
    if bounds[0].numel() == 0:
        return (1.0 / sources,) * sources
    edges = [0.0, *(float(bound.double().mean()) / unit for bound in bounds), 1.0]
    return tuple(high - low for low, high in pairwise(edges))


def pack_shares(bounds: Tensor) -> bytes:
    """``bounds`` as little-endian 16-bit integers, for a trace."""
    return bounds.cpu().numpy().astype("<u2").tobytes()


def unpack_shares(payload: bytes, shape: Sequence[int], sources: int) -> Tensor:
    """The bounds again, int32 of shape (sources − 1, *shape).

    Raises:
        ValueError: if the payload has another length, or its bounds fall or pass one.
    """
    if len(payload) != 2 * (sources - 1) * math.prod(shape):
        raise ValueError(f"{len(payload)} bytes of shares for {sources} tensors of shape {list(shape)}")
    flat = torch.frombuffer(bytearray(payload), dtype=torch.uint16) if payload else torch.zeros(0, dtype=torch.uint16)
    bounds = flat.to(torch.int32).reshape(sources - 1, *shape)
    if bool((bounds[1:] < bounds[:-1]).any()) or bool((bounds[-1:] > 1 << ELEMENTWISE_BITS).any()):
        raise ValueError("a share is negative: the bounds of its element fall, or pass one")
    return bounds
