"""Auto: looks at what there is, takes the stages that fit, and says why."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import torch

from cogram_core.methods.contract import ChoosingMethod, Given, MethodParams, Source, StageChoice
from cogram_core.stopping import stop_point

# Between sources of one origin 0.25 and more was measured (`python -m bench.merging`), between others 0.08 at most.
_ONE_ORIGIN = 0.15
# Beyond this many neurons a sweep over all of them takes longer than people wait who left everything open.
_MOST_NEURONS = 5_000


class Params(MethodParams):
    """``auto`` has none: who wants to choose names stages."""


def choose(given: Given, _: Params) -> list[StageChoice]:
    """align, where sources come from different initialisations; chain_of_merges; cogram, where evaluation data has targets.

    Without any data for statistics it is the weighted mean. Sources are taken to be of one origin if there is a base, or
    if the cosine of their weights, the median over the layers' matrices, is above 0.15.

    Source: what was best in each setting of bench/merging.py.
    """
    network = given.network
    if network is None or (given.evaluation is None and any(source.data is None for source in given.sources)):
        why = "no data was named that statistics could be taken on, neither evaluation data nor each source's own"
        return [StageChoice("linear", {}, f"{why}: the weighted mean needs none")]
    chosen = []
    if given.has_base:
        origin = "there is a base that all sources come from"
    else:
        found = likeness(given.sources, network.names)
        origin = f"the cosine of the sources' weights is {found:.2f}, the median over the matrices"
        if found < _ONE_ORIGIN:
            chosen.append(StageChoice("align", {}, f"{origin}: they come from different initialisations"))
            origin = "the sources are aligned"
    chosen.append(StageChoice("chain_of_merges", {}, f"there is data for statistics, and {origin}"))
    if given.evaluation is not None:
        chosen.append(_refinement(sum(layer.neurons for layer in network.layers)))
    return chosen


def _refinement(neurons: int) -> StageChoice:
    if neurons <= _MOST_NEURONS:
        return StageChoice(
            "cogram", {}, f"there is evaluation data to decide on, and {neurons} neurons can all be visited"
        )
    why = f"there is evaluation data to decide on; {neurons} neurons would take too long, so it is layers alone"
    return StageChoice("cogram", {"granularity": "layer"}, why)


def likeness(sources: Sequence[Source], names: Sequence[str]) -> float:
    """The cosine between the first source's weights and those of the one that is least like it.

    Of each source it is the median over all tensors of two and more dimensions; one where there is none. In [−1, 1].
    """
    return min(_likenesses(sources, names))


def _likenesses(sources: Sequence[Source], names: Sequence[str]) -> Iterator[float]:
    first, *others = sources
    for other in others:
        cosines = []
        for name in names:
            stop_point()
            one = first.read(name)
            if one.ndim > 1 and one.numel():
                pair = one.double().flatten(), other.read(name).double().flatten()
                cosines.append(float(torch.nn.functional.cosine_similarity(*pair, dim=0)))
        yield statistics.median(cosines) if cosines else 1.0


METHOD = ChoosingMethod(name="auto", params=Params, choose=choose)
