"""What a method is, and what it is given. Methods differ in kind:

TensorMethod     merging, tensor by tensor, without data: any state dict of any architecture
NetworkMethod    aligning the sources, merging from data, refining the current network, or training it; sees the network,
                 the sources and data
ChoosingMethod   none itself: chooses stages by what there is
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.observer import Observer, StageInfo
from cogram_core.recording import Past, Recorder
from cogram_core.stopping import stop_point
from cogram_core.trace import Decision

__all__ = ["Field", "MethodParams", "NetworkMethod", "Source", "StageContext", "TensorMethod"]


class MethodParams(BaseModel):
    """Parameters of a method: validated, frozen, unknown keys refused.

    ``ascending`` names pairs of fields whose values may not fall; ``presets`` has, for each value of a field ``preset``, the
    defaults that it changes. Both go into the catalogue, so that the API can do without torch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    ascending: ClassVar[tuple[tuple[str, str], ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="after")
    def _check_order(self) -> MethodParams:
        for low, high in self.ascending:
            first, second = getattr(self, low), getattr(self, high)
            if first is not None and second is not None and first > second:
                raise ValueError(f"{low} ({first}) is above {high} ({second})")
        return self


class Source(Protocol):
    """A checkpoint that is to be fused, its tensors read one by one."""

    @property
    def name(self) -> str:
        """As in the recipe."""
        ...

    @property
    def weight(self) -> float:
        """Its say, positive."""
        ...

    @property
    def data(self) -> Dataset | None:
        """Its own data, where the recipe names some."""
        ...

    def read(self, tensor: str) -> Tensor:
        """One tensor, in the compute dtype, on the run's device."""
        ...

    def read_rows(self, tensor: str, first: int, last: int) -> Tensor:
        """Rows first to last − 1 of one tensor, as ``read`` gives them."""
        ...


@dataclass(frozen=True)
class StageContext:
    """What a stage works with. The network holds M; a merging stage overwrites it, refining and training ones change it.

    An aligning stage leaves M alone and changes the sources.
    """

    info: StageInfo
    sources: Sequence[Source]
    base: Source | None
    network: Network
    evaluation: Dataset | None
    training: Dataset | None
    holdout: Dataset | None
    seed: int
    recorder: Recorder
    observer: Observer
    milestone: Callable[[str], None]
    """Called with a label when M is worth comparing: the guard scores it there and then."""
    past: Past
    """What an earlier, killed run has left of this one; a stage takes over what it has carried out again, or forgets it."""
    permute: Callable[..., None]
    """``permute(axes, permutations, layer=…, reason=…)``: puts hidden units of all sources in another order, for this stage
    and all that follow, and records it; see ``permuting.Axis`` and ``permuting.check_permutations``."""
    restore: Callable[[int], Decision | None]
    """Carries out the past's next ``count`` decisions on M and takes them over; the last one is returned. None, and the
    past forgotten, where they are not all there: the caller computes them."""

    @property
    def record(self) -> Callable[..., None]:
        """``Recorder.record`` for this stage."""
        return partial(self.recorder.record, stage=self.info.index, method=self.info.method)

    def progress(self, done: int, total: int) -> None:
        """Tells the observer, and stops the run if it asks for that.

        Raises:
            FusionStopped: if the observer wants the run to end.
        """
        self.observer.progress(self.info, done, total)
        stop_point()

    def evaluation_data(self) -> Dataset:
        """The evaluation data, which the recipe's rules guarantee to be there for methods that need it."""
        assert self.evaluation is not None
        return self.evaluation

    def holdout_data(self) -> Dataset:
        """The holdout data, for the one purpose that a recipe can ask for: to hold single moves against it."""
        assert self.holdout is not None
        return self.holdout

    def training_data(self) -> Dataset:
        """The training data, which the recipe's rules guarantee to be there for training methods, and for no others."""
        assert self.training is not None
        return self.training


@dataclass(frozen=True)
class TensorMethod:
    """Merges one tensor of all sources at a time: ``merge(tensors, weights, params)``.

    ``merge`` gets n tensors of one shape in the compute dtype and n positive weights, and returns one float64 tensor of
    that shape. One that ``needs_base`` gets the base's tensor before them: ``merge(base, tensors, weights, params)``. It
    must depend on nothing else, so that a replay can call it again.
    """

    name: str
    params: type[MethodParams]
    merge: Callable[..., Tensor]
    kind: Literal["merging"] = "merging"
    per_tensor: bool = True
    needs_data: bool = False
    needs_base: bool = False

    def merged(self, name: str, sources: Sequence[Source], base: Source | None, params: MethodParams) -> Tensor:
        """One tensor of all sources merged, in the compute dtype; ``base`` is there where the method needs it."""
        values = [source.read(name) for source in sources]
        weights = [source.weight for source in sources]
        if not self.needs_base:
            return self.merge(values, weights, params).to(values[0].dtype)
        assert base is not None  # the recipe's rules see to it
        return self.merge(base.read(name), values, weights, params).to(values[0].dtype)


@dataclass(frozen=True)
class NetworkMethod:
    """Works on the network with the sources and data: ``run(context, params)`` leaves its result in the network."""

    name: str
    params: type[MethodParams]
    run: Callable[[StageContext, Any], None]
    kind: Literal["aligning", "merging", "refining", "training"]
    per_tensor: bool = False
    needs_data: bool = True
    needs_base: bool = False


@dataclass(frozen=True)
class Given:
    """What a choice of stages goes by. ``network`` is None where the recipe names no data to run it on."""

    sources: Sequence[Source]
    network: Network | None
    evaluation: Dataset | None
    has_base: bool


@dataclass(frozen=True)
class StageChoice:
    """A stage that was chosen: its method, the parameters that differ from the defaults, and why."""

    method: str
    parameters: Mapping[str, Any]
    why: str


@dataclass(frozen=True)
class ChoosingMethod:
    """Stands for stages that are chosen when the inputs are known; the resolved recipe has those in its place."""

    name: str
    params: type[MethodParams]
    choose: Callable[[Given, Any], list[StageChoice]]
    kind: Literal["choosing"] = "choosing"
    per_tensor: bool = False
    needs_data: bool = False
    needs_base: bool = False


Method = TensorMethod | NetworkMethod | ChoosingMethod


def parse_params(method: Method, values: Mapping[str, Any]) -> MethodParams:
    """The method's own model of its parameters."""
    return method.params.model_validate(dict(values))
