"""One run of a resolved recipe over loaded sources: stages, guard, and what is to be written. Writes no output itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogram_core.errors import Problem, ReplayError
from cogram_core.evaluation.datasets import Dataset
from cogram_core.guard import Choice, Jury, hear_inputs, verdict_document
from cogram_core.journal import JOURNAL_NAME, Journal
from cogram_core.methods import METHODS
from cogram_core.methods.contract import (
    ChoosingMethod,
    MethodParams,
    StageChoice,
    StageContext,
    TensorMethod,
    parse_params,
)
from cogram_core.networks.network import Network
from cogram_core.observer import Observer, StageInfo
from cogram_core.output import output_dtypes
from cogram_core.permuting import Axis, check_permutations, pack_alignment
from cogram_core.recipe import Recipe
from cogram_core.recording import Recorder
from cogram_core.replaying import apply_decision, layers_of, rebuild
from cogram_core.report import Summary, build_report
from cogram_core.resuming import EarlierRun, Identity
from cogram_core.sources import LoadedSource, check_finite, differing_integers, source_digests
from cogram_core.stopping import stop_point
from cogram_core.trace import VERSION, Decision


@dataclass(frozen=True)
class Inputs:
    """Everything a run works on. ``network`` is None where nothing has to run forward."""

    sources: list[LoadedSource]
    network: Network | None
    evaluation: Dataset | None
    holdout: Dataset | None
    training: Dataset | None
    base: LoadedSource | None = None
    chosen: tuple[StageChoice, ...] = ()
    """The stages that were chosen, and why, where the recipe left that open."""


@dataclass(frozen=True)
class Outcome:
    """What is to be written: the fused value of each tensor, in the compute dtype, each to be asked for once."""

    value: Callable[[str], Tensor]
    written: Choice
    verdict: dict[str, Any]


class Run:
    """Carries out one recipe. ``folder`` gets the journal while it goes and the trace at the end.

    ``carry_out``, then writing the outcome's tensors, then ``finish``; all inside ``repeatable``. With an ``identity`` the
    journal can be gone on from, and with an ``earlier`` run of that identity this one goes on from it.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: Inputs,
        folder: Path,
        observer: Observer,
        *,
        identity: Identity | None = None,
        earlier: EarlierRun | None = None,
        journal: Path | None = None,
    ) -> None:
        self._recipe = recipe
        self._inputs = inputs
        self._sources = list(inputs.sources)  # as the stages see them: an aligning one puts others here
        self._folder = folder
        self._observer = observer
        self._summary = Summary()
        self._started = time.monotonic()
        self._identity = identity
        self._earlier = earlier or EarlierRun()
        self._resumed = 0
        self.journal = journal or folder / JOURNAL_NAME
        self._journal = Journal(self.journal, None if identity is None else identity.to_document())
        self._recorder = Recorder(
            self._journal, self._heard, self._earlier.decisions, self._earlier.count, self._resumes
        )

    def carry_out(self) -> Outcome:
        """Runs all stages and the guard.

        Raises:
            CheckpointError: if a source or the base holds NaN or infinity.
            ReplayError: if what an earlier run decided doesn't belong where it stands.
            FusionStopped: if the observer asked to stop.
        """
        base = [] if self._inputs.base is None else [self._inputs.base]
        check_finite([*self._inputs.sources, *base])
        network = self._inputs.network
        return self._without_network() if network is None else self._with_network(network)

    def finish(self, outcome: Outcome) -> dict[str, Any]:
        """Writes ``trace.parquet`` and returns the report."""
        known = self._inputs.sources
        digests = source_digests(known) if self._identity is None else self._identity.sources
        sources = [
            {"name": source.name, "weight": source.weight, "sha256": digest}
            for source, digest in zip(known, digests, strict=True)
        ]
        base = self._base_digest()
        metadata = {
            "version": VERSION,
            "recipe": self._recipe.to_document(),
            "sources": sources,
            "base": base,
            "written": outcome.written.to_document(),
            "verdict": outcome.verdict,
        }
        self._journal.finish(self._folder / "trace.parquet", metadata)
        return build_report(
            recipe=self._recipe,
            chosen=self._inputs.chosen,
            verdict=outcome.verdict,
            sources=sources,
            base=base,
            summary=self._summary,
            differing_integers=differing_integers(self._inputs.sources),
            seconds=time.monotonic() - self._started,
            resumed_after=self._resumed,
            ignored_journals=self._earlier.ignored,
            device=self._inputs.sources[0].device,
        )

    def _base_digest(self) -> str | None:
        if self._identity is not None:
            return self._identity.base
        return None if self._inputs.base is None else self._inputs.base.store.digest()

    def close(self) -> None:
        """Closes the journal of a run that did not finish. Safe to call twice."""
        self._journal.close()

    def carry_out_stages(self, network: Network, stages: slice) -> None:
        """Runs some of the stages on the network as it stands, and leaves their result in it. Nothing is compared."""
        jury = Jury(self._recipe.guard, network, None, None, {})
        for info in self._stages()[stages]:
            self._stage(info, network, jury)

    def _resumes(self, taken: int) -> None:
        self._resumed = taken
        self._observer.resumed(taken)

    def _heard(self, decision: Decision) -> None:
        self._summary.add(decision)
        self._observer.decision(decision)

    def _with_network(self, network: Network) -> Outcome:
        inputs = self._inputs
        dtypes = output_dtypes(self._recipe, inputs.sources[0].store)
        jury = Jury(self._recipe.guard, network, inputs.evaluation, inputs.holdout, dtypes)
        if self._recipe.guard.mode != "off":
            hear_inputs(jury, network, [(source.name, source.read) for source in inputs.sources])
        final = Choice("stage", "nothing", seq=0)
        for info in self._stages():
            final = self._stage(info, network, jury) or final
        written = jury.choose(final)
        value: Callable[[str], Tensor] = network.tensor
        if written != final:
            value = rebuild(self._recipe, inputs.sources, inputs.base, self._journal.decisions(), written)
        return Outcome(value, written, jury.verdict(written))

    def _stage(self, info: StageInfo, network: Network, jury: Jury) -> Choice | None:
        """Carries out one stage; its last result, None of an aligning one."""
        heard: list[Choice] = []

        def milestone(label: str) -> None:
            choice = Choice("stage", f"{info.method}: {label}", seq=self._recorder.count)
            heard.append(choice)
            self._journal.flush()  # what follows may take long before it has a decision to write
            if self._recipe.guard.mode != "off":
                jury.hear(choice)

        context = StageContext(
            info=info,
            sources=self._sources,
            base=self._inputs.base,
            network=network,
            evaluation=self._inputs.evaluation,
            training=self._inputs.training,
            holdout=self._inputs.holdout,
            seed=self._recipe.seed,
            recorder=self._recorder,
            observer=self._observer,
            milestone=milestone,
            past=self._recorder.past,
            permute=partial(self._permute, info),
            restore=partial(self._restore, info, network),
        )
        method, params = METHODS[info.method], self._params(info)
        assert not isinstance(method, ChoosingMethod)  # others have taken its place
        self._observer.stage_started(info)
        if isinstance(method, TensorMethod):
            for done, name in enumerate(network.names):
                network.tensor(name).copy_(self._merge_tensor(info, method, params, name))
                context.progress(done + 1, len(network.names))
            milestone("merged")
        else:
            method.run(context, params)
        if not heard and method.kind != "aligning":
            milestone("unchanged")
        self._observer.stage_finished(info)
        return heard[-1] if heard else None

    def _permute(self, info: StageInfo, axes: Sequence[Axis], permutations: Tensor, *, layer: str, reason: str) -> None:
        """See ``StageContext.permute``."""
        shapes = {name: facts.shape for name, facts in self._sources[0].store.facts().items()}
        check_permutations(axes, permutations, shapes)
        self._sources[:] = [
            source.reordered(axes, order) for source, order in zip(self._sources, permutations, strict=True)
        ]
        self._recorder.record(
            stage=info.index,
            method=info.method,
            layer=layer,
            kind="layer",
            action="aligned",
            reason=reason,
            payload=pack_alignment(axes, permutations),
        )

    def _restore(self, info: StageInfo, network: Network, count: int) -> Decision | None:
        """See ``StageContext.restore``."""
        past = self._recorder.past
        if not past.left or past.left < count:
            past.forget()
            return None
        decision = None
        state = {name: network.tensor(name) for name in network.names}
        layers = layers_of(self._inputs.sources[0])
        for done in range(count):
            (decision,) = past.upcoming(1)
            if decision.stage != info.index:
                message = f"decision {decision.seq} is of stage {decision.stage}, and stage {info.index} is to go on"
                raise ReplayError([Problem("journal", "resume.other_stage", f"{message}; remove the earlier journal")])
            apply_decision(decision, self._sources, self._inputs.base, state, layers, self._params(info))
            if decision.kind == "tensor":  # the others were changed in their place
                network.tensor(decision.layer).copy_(state[decision.layer])
                state[decision.layer] = network.tensor(decision.layer)
            past.take(1)
            self._observer.progress(info, done + 1, count)
            stop_point()
        return decision

    def _merge_tensor(self, info: StageInfo, method: TensorMethod, params: MethodParams, name: str) -> Tensor:
        merged = method.merged(name, self._sources, self._inputs.base, params)
        past = self._recorder.past
        if any((known.stage, known.layer) == (info.index, name) for known in past.upcoming(1)):
            past.take(1)
            return merged
        self._recorder.record(
            stage=info.index, method=info.method, layer=name, kind="tensor", action="merged", step=1.0, reason="formula"
        )
        return merged

    def _without_network(self) -> Outcome:
        """A single per-tensor stage over any state dict: each tensor is merged when it is about to be written."""
        (info,) = self._stages()
        method, params = METHODS[info.method], self._params(info)
        assert isinstance(method, TensorMethod)
        total = sum(facts.floating for facts in self._inputs.sources[0].store.facts().values())
        written = Choice("stage", f"{info.method}: merged", seq=total)

        def value(name: str) -> Tensor:
            merged = self._merge_tensor(info, method, params, name)
            self._observer.progress(info, self._recorder.count, total)
            if self._recorder.count == total:
                self._observer.stage_finished(info)
            return merged

        self._observer.stage_started(info)
        if total == 0:  # no tensor will be asked for
            self._observer.stage_finished(info)
        return Outcome(value, written, verdict_document(self._recipe.guard, written))

    def _stages(self) -> list[StageInfo]:
        stages: Sequence[Any] = self._recipe.stages
        return [StageInfo(index, len(stages), stage.method) for index, stage in enumerate(stages)]

    def _params(self, info: StageInfo) -> MethodParams:
        return parse_params(METHODS[info.method], self._recipe.stages[info.index].parameters)


def recipe_dtype(recipe: Recipe) -> torch.dtype:
    """The dtype a recipe computes in."""
    dtype: torch.dtype = getattr(torch, recipe.compute_dtype)
    return dtype
