"""The layers a sequential network may consist of: torch.nn's class names and parameter names, without torch.

Each description knows the tensors that its torch.nn module would have, so that headers alone can tell whether a
checkpoint fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

LAYER_NAME = r"^[^.]+(\.[^.]+)*$"
Shape = tuple[int, ...]
MAX_SIZE = 2**24
MAX_LAYERS = 10_000
MAX_DEPTH = 8
_Size = Annotated[int, Field(ge=1, le=MAX_SIZE)]
# Once a validator of ours has looked at it, JSON's list is a Python list, which strictness would refuse for a tuple.
_Listed = Strict(False)
_Pair = _Size | Annotated[tuple[_Size, _Size], _Listed]
_Padding = Annotated[int, Field(ge=0, le=2**16)]
_PoolPadding = _Padding | Annotated[tuple[_Padding, _Padding], _Listed]
_PaddingPair = _PoolPadding | Literal["same", "valid"]
_Shape = Annotated[tuple[_Size, ...], _Listed, Field(min_length=1, max_length=8)]


def _both(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


class LayerSpec(BaseModel):
    """One layer; ``name`` is where its tensors stand in the checkpoint, by default its place in the list."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    torch_class: ClassVar[str]

    name: str | None = Field(None, pattern=LAYER_NAME, max_length=512)

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of the module's own floating tensors."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the torch.nn class."""
        return self.model_dump(exclude={"name", "type"})


class _Weighted(LayerSpec):
    bias: bool = True

    def _with_bias(self, weight: Shape) -> dict[str, Shape]:
        return {"weight": weight, "bias": weight[:1]} if self.bias else {"weight": weight}


class Linear(_Weighted):
    """A fully connected layer."""

    torch_class = "Linear"
    type: Literal["linear"]
    in_features: _Size
    out_features: _Size

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in), bias (out)."""
        return self._with_bias((self.out_features, self.in_features))


class _Convolution(_Weighted):
    in_channels: _Size
    out_channels: _Size
    groups: _Size = 1

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups ({self.groups}) must divide in_channels ({self.in_channels}) and "
                f"out_channels ({self.out_channels})"
            )
        return self


def _check_same(padding: object, stride: int | tuple[int, int]) -> None:
    if padding == "same" and _both(stride) != (1, 1):
        raise ValueError("padding: same needs stride: 1; write the padding as a number")


class Conv1d(_Convolution):
    """A convolution over (channels, length)."""

    torch_class = "Conv1d"
    type: Literal["conv1d"]
    kernel_size: _Size
    stride: _Size = 1
    padding: _Padding | Literal["same", "valid"] = 0
    dilation: _Size = 1

    @model_validator(mode="after")
    def _check_padding(self) -> Self:
        _check_same(self.padding, self.stride)
        return self

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in / groups, k), bias (out)."""
        return self._with_bias((self.out_channels, self.in_channels // self.groups, self.kernel_size))


class Conv2d(_Convolution):
    """A convolution over (channels, height, width)."""

    torch_class = "Conv2d"
    type: Literal["conv2d"]
    kernel_size: _Pair
    stride: _Pair = 1
    padding: _PaddingPair = 0
    dilation: _Pair = 1

    @model_validator(mode="after")
    def _check_padding(self) -> Self:
        _check_same(self.padding, self.stride)
        return self

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in / groups, kh, kw), bias (out)."""
        return self._with_bias((self.out_channels, self.in_channels // self.groups, *_both(self.kernel_size)))


class _BatchNorm(LayerSpec):
    num_features: _Size
    eps: float = Field(1e-5, gt=0)
    affine: bool = True
    track_running_stats: Literal[True] = True

    def tensors(self) -> dict[str, Shape]:
        """Scale, shift and running statistics, each (features)."""
        shape = (self.num_features,)
        affine = {"weight": shape, "bias": shape} if self.affine else {}
        return {**affine, "running_mean": shape, "running_var": shape}


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (features) or (features, length)."""

    torch_class = "BatchNorm1d"
    type: Literal["batchnorm1d"]


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (features, height, width)."""

    torch_class = "BatchNorm2d"
    type: Literal["batchnorm2d"]


class LayerNorm(LayerSpec):
    """Layer normalisation over the last dimensions."""

    torch_class = "LayerNorm"
    type: Literal["layernorm"]
    normalized_shape: _Size | _Shape
    eps: float = Field(1e-5, gt=0)
    elementwise_affine: bool = True
    bias: bool = True

    def tensors(self) -> dict[str, Shape]:
        """Scale and shift, each of the normalised shape."""
        if not self.elementwise_affine:
            return {}
        shape = (self.normalized_shape,) if isinstance(self.normalized_shape, int) else self.normalized_shape
        return {"weight": shape, "bias": shape} if self.bias else {"weight": shape}


class GroupNorm(LayerSpec):
    """Group normalisation over channels."""

    torch_class = "GroupNorm"
    type: Literal["groupnorm"]
    num_groups: _Size
    num_channels: _Size
    eps: float = Field(1e-5, gt=0)
    affine: bool = True

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.num_channels % self.num_groups:
            raise ValueError(f"num_groups ({self.num_groups}) must divide num_channels ({self.num_channels})")
        return self

    def tensors(self) -> dict[str, Shape]:
        """Scale and shift, each (channels)."""
        shape = (self.num_channels,)
        return {"weight": shape, "bias": shape} if self.affine else {}


class ReLU(LayerSpec):
    """max(x, 0)."""

    torch_class = "ReLU"
    type: Literal["relu"]


class GELU(LayerSpec):
    """x · Φ(x)."""

    torch_class = "GELU"
    type: Literal["gelu"]
    approximate: Literal["none", "tanh"] = "none"


class SiLU(LayerSpec):
    """x · sigmoid(x)."""

    torch_class = "SiLU"
    type: Literal["silu"]


class Tanh(LayerSpec):
    """Hyperbolic tangent."""

    torch_class = "Tanh"
    type: Literal["tanh"]


class Sigmoid(LayerSpec):
    """1 / (1 + exp(−x))."""

    torch_class = "Sigmoid"
    type: Literal["sigmoid"]


class MaxPool2d(LayerSpec):
    """Maximum over windows."""

    torch_class = "MaxPool2d"
    type: Literal["maxpool2d"]
    kernel_size: _Pair
    stride: _Pair | None = None
    padding: _PoolPadding = 0


class AvgPool2d(LayerSpec):
    """Mean over windows."""

    torch_class = "AvgPool2d"
    type: Literal["avgpool2d"]
    kernel_size: _Pair
    stride: _Pair | None = None
    padding: _PoolPadding = 0


class AdaptiveAvgPool2d(LayerSpec):
    """Mean over as many windows as the output has places."""

    torch_class = "AdaptiveAvgPool2d"
    type: Literal["adaptiveavgpool2d"]
    output_size: _Pair


class Flatten(LayerSpec):
    """All dimensions from ``start_dim`` to ``end_dim`` become one."""

    torch_class = "Flatten"
    type: Literal["flatten"]
    start_dim: int = Field(1, ge=1, le=8)  # dimension 0 is the batch: folding it in would mix examples
    end_dim: int = Field(-1, ge=-8, le=8)


class Unflatten(LayerSpec):
    """Dimension ``dim`` becomes several."""

    torch_class = "Unflatten"
    type: Literal["unflatten"]
    dim: int = Field(ge=1, le=8)
    unflattened_size: _Shape


class Dropout(LayerSpec):
    """Nothing at all in evaluation; listed so that places in the list keep their numbers."""

    torch_class = "Dropout"
    type: Literal["dropout"]
    p: float = Field(0.5, ge=0, le=1)


class Embedding(LayerSpec):
    """A row of its table for each token id."""

    torch_class = "Embedding"
    type: Literal["embedding"]
    num_embeddings: _Size
    embedding_dim: _Size

    def tensors(self) -> dict[str, Shape]:
        """The table, (num_embeddings, embedding_dim)."""
        return {"weight": (self.num_embeddings, self.embedding_dim)}


class Identity(LayerSpec):
    """Hands on its input."""

    torch_class = "Identity"
    type: Literal["identity"]


class Residual(LayerSpec):
    """layers(x) + shortcut(x), or layers(x) + x where no shortcut is given.

    Tensors stand below its name: ``3.layers.0.weight``, ``3.shortcut.0.weight`` for the residual at place 3.
    """

    torch_class = "Residual"  # of cogram_core.networks.sequential; torch.nn has none
    type: Literal["residual"]
    layers: Annotated[tuple[AnyLayerField, ...], _Listed, Field(min_length=1, max_length=MAX_LAYERS)]
    shortcut: Annotated[tuple[AnyLayerField, ...], _Listed, Field(min_length=1, max_length=MAX_LAYERS)] | None = None

    @model_validator(mode="after")
    def _check_inside(self) -> Self:
        if _depth(self) > MAX_DEPTH:
            raise ValueError(f"residuals are nested deeper than {MAX_DEPTH} levels; flatten them")
        for layers in self.branches().values():
            check_names(layers)
        return self

    def branches(self) -> dict[str, tuple[AnyLayer, ...]]:
        """Its lists of layers by name, those that are there."""
        return {"layers": self.layers, **({} if self.shortcut is None else {"shortcut": self.shortcut})}

    def tensors(self) -> dict[str, Shape]:
        """Those of the layers inside, below ``layers`` and ``shortcut``."""
        return {
            f"{branch}.{name}": shape
            for branch, layers in self.branches().items()
            for name, shape in expected_tensors(layers).items()
        }


def _depth(layer: LayerSpec) -> int:
    if not isinstance(layer, Residual):
        return 0
    return 1 + max(_depth(inner) for layers in layer.branches().values() for inner in layers)


_Norm = BatchNorm1d | BatchNorm2d | LayerNorm | GroupNorm
_Elementwise = ReLU | GELU | SiLU | Tanh | Sigmoid | Dropout | Identity
_Shaping = MaxPool2d | AvgPool2d | AdaptiveAvgPool2d | Flatten | Unflatten
AnyLayer = Linear | Conv1d | Conv2d | Embedding | _Norm | _Elementwise | _Shaping | Residual


def _lower_type(value: Any) -> Any:
    """Layer types are torch.nn's class names in any case."""
    if isinstance(value, Mapping) and isinstance(value.get("type"), str):
        return {**value, "type": value["type"].lower()}
    return value


AnyLayerField = Annotated[Annotated[AnyLayer, Field(discriminator="type")], BeforeValidator(_lower_type)]
Residual.model_rebuild()


def named_layers(layers: Iterable[LayerSpec]) -> list[tuple[str, LayerSpec]]:
    """Each layer with the name under which its tensors stand: its own, or its place in the list."""
    return [(layer.name or str(place), layer) for place, layer in enumerate(layers)]


def expected_tensors(layers: Iterable[LayerSpec]) -> dict[str, Shape]:
    """Names and shapes of all floating tensors of the chain."""
    return {
        f"{name}.{tensor}": shape for name, layer in named_layers(layers) for tensor, shape in layer.tensors().items()
    }


def vocabulary(layers: Iterable[LayerSpec]) -> int | None:
    """How many token ids the chain knows, or None where it does not begin with an embedding and takes numbers."""
    for layer in layers:
        if isinstance(layer, Embedding):
            return layer.num_embeddings
        if isinstance(layer, Residual):
            return vocabulary(layer.layers)
        if not isinstance(layer, Flatten | Unflatten | Dropout | Identity):
            return None
    return None


def count_layers(layers: Iterable[LayerSpec]) -> int:
    """How many layers there are, those inside residuals included."""
    return sum(
        1 + (sum(map(count_layers, layer.branches().values())) if isinstance(layer, Residual) else 0)
        for layer in layers
    )


def check_names(layers: Iterable[LayerSpec]) -> None:
    """Raises ValueError, for pydantic, where two layers of one list have one name."""
    counts = Counter(name for name, _ in named_layers(layers))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"two layers are called {twice[0]!r}; names must differ (by default a layer's place)")
