"""Texts as a network of packed tokens takes them: padding behind, labels where the loss looks for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cogram_core.errors import DatasetError, Problem
from cogram_core.networks.packing import flush_left, pack
from cogram_core.networks.tokens import Tokens
from cogram_core.preflight.data import IGNORED, MASK, TYPES

_LISTED = 8


@dataclass(frozen=True)
class Texts:
    """Token ids (N, T), their targets, which of them count and their types, (N, T) both; None: all do, all are of type 0."""

    ids: Tensor
    targets: Tensor
    mask: Tensor | None = None
    types: Tensor | None = None

    @property
    def labelled(self) -> bool:
        """Whether each place has a label of its own."""
        return self.targets.ndim == 2 and not self.targets.is_floating_point()


def arranged(texts: Texts, tokens: Tokens, place: str) -> Texts:
    """The same texts with a mask, padding behind what counts, and no more places than the longest has.

    What is padding has the id 0, the type 0 and, where places have labels, −100. For a network that labels each place by
    itself a place of padding is added behind, and all labels stand one place later. For one that tells another text the
    ids of that text, which are the labels, stand behind those of the first, and so do the labels.

    Raises:
        DatasetError: listing what the network can't take.
    """
    mask = torch.ones_like(texts.ids, dtype=torch.bool) if texts.mask is None else texts.mask.bool()
    problems = _problems(texts, mask, tokens, place)
    if problems:
        raise DatasetError(problems)
    width = int(mask.sum(dim=1).max())
    order = flush_left(torch.where(mask, torch.arange(mask.shape[1]), -1))[:, :width]
    mask, order = order >= 0, order.clamp(min=0)
    ids = torch.where(mask, texts.ids.to(torch.int64).gather(1, order), 0)
    types = None if texts.types is None else torch.where(mask, texts.types.to(torch.int64).gather(1, order), 0)
    targets = texts.targets
    if texts.labelled and tokens.paired:
        return _with_told_behind(Texts(ids, targets.to(torch.int64), mask))
    if texts.labelled:
        targets = torch.where(mask, targets.to(torch.int64).gather(1, order), IGNORED)
    found = Texts(ids, targets, mask, types)
    return _with_labels_behind(found) if tokens.aligned else found


def _with_labels_behind(texts: Texts) -> Texts:
    assert texts.mask is not None
    empty = torch.zeros(len(texts.ids), 1, dtype=torch.int64)
    ids, mask = torch.cat([texts.ids, empty], dim=1), torch.cat([texts.mask, empty.bool()], dim=1)
    types = None if texts.types is None else torch.cat([texts.types, empty], dim=1)
    targets = torch.cat([empty + IGNORED, texts.targets], dim=1) if texts.labelled else texts.targets
    return replace(texts, ids=ids, targets=targets, mask=mask, types=types)


def _with_told_behind(texts: Texts) -> Texts:
    """Both texts in as many places, (N, 2·T) together."""
    assert texts.mask is not None
    told = texts.targets != IGNORED
    width = int((told * torch.arange(1, told.shape[1] + 1)).max())  # what stands behind the last one is cut off
    labels, told = texts.targets[:, :width], told[:, :width]
    half = max(texts.ids.shape[1], width)

    def beside(first: Tensor, second: Tensor, value: int) -> Tensor:
        rows = (nn.functional.pad(part, (0, half - part.shape[1]), value=value) for part in (first, second))
        return torch.cat(list(rows), dim=1)

    nothing = torch.full_like(texts.ids, IGNORED)
    return Texts(
        beside(texts.ids, torch.where(told, labels, 0), 0),
        beside(nothing, labels, IGNORED),
        beside(texts.mask, told, 0),
    )


def packed(texts: Texts) -> Tensor:
    """The texts as a network's inputs, int64 (N, T)."""
    return pack(texts.ids, texts.mask, texts.types)


def _problems(texts: Texts, mask: Tensor, tokens: Tokens, place: str) -> list[Problem]:
    found = []
    if texts.labelled and not tokens.paired and texts.targets.shape != texts.ids.shape:
        given, wanted = texts.targets.shape[1], texts.ids.shape[1]
        message = f"have labels of {given} places, and the texts have {wanted}; give each place one"
        found.append(Problem(place, "dataset.invalid_targets", message))
    if not bool(mask.any(dim=1).all()):
        empty = torch.nonzero(~mask.any(dim=1))[:, 0].tolist()
        shown = ", ".join(map(str, empty[:_LISTED])) + (", …" if len(empty) > _LISTED else "")
        message = f"says that nothing counts in {len(empty)} examples ({shown}); take them out"
        found.append(Problem(f"{place}: {MASK}", "dataset.empty_text", message))
    if not tokens.masked and not bool(mask.all()):
        message = "has places that are not 1, but this network takes no mask; give sequences of one length"
        found.append(Problem(f"{place}: {MASK}", "dataset.padded", message))
    width = int(mask.sum(dim=1).max())
    if tokens.longest is not None and width > tokens.longest:
        message = f"have up to {width} places, the network has {tokens.longest}; cut them"
        found.append(Problem(place, "dataset.too_long", message))
    if tokens.mark is not None:
        counts = ((texts.ids == tokens.mark) & mask).sum(dim=1)
        if int(counts.min()) != int(counts.max()) or int(counts.max()) == 0:
            message = (
                f"have the id {tokens.mark}, the end, {int(counts.min())} to {int(counts.max())} times; this network "
            )
            message += "takes texts that have it equally often, once at least"
            found.append(Problem(place, "dataset.unequal_ends", message))
    if texts.types is not None and (texts.types.min() < 0 or texts.types.max() >= tokens.types):
        low, high = int(texts.types.min()), int(texts.types.max())
        message = f"reach from {low} to {high}, but the network has the types 0 to {tokens.types - 1}; correct them"
        found.append(Problem(f"{place}: {TYPES}", "dataset.types_outside", message))
    return found
