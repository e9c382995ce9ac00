"""The recipe's model. Reading and error wording are in ``parsing``, the rules between fields in ``rules``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)

from cogram_core.recipe.layers import LAYER_NAME, MAX_LAYERS, AnyLayerField, check_names, count_layers

Criterion = Literal["calibrated_loss", "loss", "accuracy"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,2})?)$"
_CLASS = r"^[A-Za-z][A-Za-z0-9_]{0,99}$"
PATTERNS = {
    _NAME: "must be letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first",
    _DEVICE: "must be auto, cpu, cuda or cuda:0, cuda:1, …",
    _CLASS: "must be the name of a class: letters, digits and underscores",
    LAYER_NAME: "must be one or more words with dots between",
}
"""Words for each regular expression that a text has to match."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _bytes(value: Any) -> Any:
    """``5GB`` as 5,000,000,000."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError("write a number of bytes, or one with a unit such as 5GB or 512MiB")
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])


def _network_kind(value: Any) -> str | None:
    """Which of the network's forms a value is meant to have."""
    if value == "auto":
        return "auto"
    if isinstance(value, TransformersNetwork) or (isinstance(value, Mapping) and value.get("kind") == "transformers"):
        return "transformers"
    return "sequential" if isinstance(value, Mapping | SequentialNetwork) else None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Part):
    """A checkpoint that is to be fused, and its say."""

    name: str = Field(pattern=_NAME)
    checkpoint: str = Field(min_length=1)
    data: str | None = Field(None, min_length=1, description="this source's own data, for methods that take statistics")
    # Wide enough for any wish, and narrow enough that sums and products of weights stay far from overflow.
    weight: float = Field(1.0, ge=1e-6, le=1e6)


class SequentialNetwork(_Part):
    """A chain of layers with torch.nn's own parameter names."""

    kind: Literal["sequential"]
    layers: tuple[AnyLayerField, ...] = Field(min_length=1, max_length=MAX_LAYERS)

    @model_validator(mode="after")
    def _check_names(self) -> SequentialNetwork:
        check_names(self.layers)
        if (count := count_layers(self.layers)) > MAX_LAYERS:
            raise ValueError(f"has {count} layers, those inside residuals included; {MAX_LAYERS} at most")
        return self


class TransformersNetwork(_Part):
    """A network of the transformers library, as the first source's ``config.json`` has it."""

    kind: Literal["transformers"]
    architecture: str | None = Field(
        None,
        pattern=_CLASS,
        description="a class of the library, such as BertForMaskedLM; null: the one in config.json",
    )


class Data(_Part):
    """Files with ``inputs`` and ``targets``."""

    evaluation: str | None = Field(None, min_length=1, description="decisions are taken on it")
    holdout: str | None = Field(None, min_length=1, description="the verdict is given on it; no decision ever sees it")
    training: str | None = Field(None, min_length=1, description="read by training stages, and by nothing else")
    max_tokens: int | None = Field(
        None,
        ge=2,
        le=2**20,
        description="tokens that texts are cut to; null: 512, or as many as the network has room for",
    )


class Stage(_Part):
    """One method with its parameters, which the catalogue checks."""

    method: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        parameters = {key: inner for key, inner in value.items() if key != "method"}
        return {"parameters": parameters, **({"method": value["method"]} if "method" in value else {})}

    @model_serializer
    def _flatten(self) -> dict[str, Any]:
        return {"method": self.method, **self.parameters}


class Guard(_Part):
    """The final comparison; ``mode`` alone may be written as a plain word."""

    mode: Literal["best_on_holdout", "report", "off"]
    criterion: Criterion = "calibrated_loss"

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping | Guard):
            raise ValueError("must be best_on_holdout, report or off, or a mapping with the keys mode and criterion")
        return {"mode": value} if isinstance(value, str) else value


class Output(_Part):
    """How the fused checkpoint is written."""

    dtype: Literal["source", "float64", "float32", "bfloat16", "float16"] = "source"
    max_shard_bytes: Annotated[int, BeforeValidator(_bytes), Field(ge=1, lt=2**63)] = 5 * 10**9


@dataclass(frozen=True)
class Reference:
    """A place in a recipe that names a checkpoint or a dataset."""

    location: str
    kind: Literal["checkpoint", "dataset"]
    value: str


class Recipe(_Part):
    """What to fuse and how; stages in order. Make one with ``from_document`` or ``load``."""

    version: int = Field(1, ge=1, le=1)  # Literal[1] would take true for it
    sources: tuple[Source, ...]
    base: str | None = Field(None, min_length=1, description="common ancestor, for methods that take differences to it")
    network: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[SequentialNetwork, Tag("sequential")]
        | Annotated[TransformersNetwork, Tag("transformers")],
        Discriminator(
            _network_kind,
            custom_error_type="network_kind",
            custom_error_message="must be auto, or a mapping {kind: sequential, layers: […]} or {kind: transformers}",
        ),
    ] = "auto"
    data: Data = Data(evaluation=None, holdout=None, training=None, max_tokens=None)
    stages: tuple[Stage, ...] = Field(min_length=1)
    guard: Guard
    compute_dtype: Literal["float32", "float64"] = "float32"
    output: Output = Output()
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = Field("auto", pattern=_DEVICE)
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Recipe:
        """The recipe in a parsed JSON or YAML document, with all defaults filled in.

        Raises:
            RecipeError: listing everything that is wrong with it.
        """
        from cogram_core.recipe.parsing import parse

        return parse(document)

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML or JSON file; paths in it count from the file's folder.

        Raises:
            RecipeError: listing everything that is wrong with it.
        """
        from cogram_core.recipe.parsing import load

        return load(Path(path))

    def to_document(self) -> dict[str, Any]:
        """The recipe as plain data; ``from_document`` gives an equal recipe again."""
        return self.model_dump(mode="json")

    def references(self) -> list[Reference]:
        """Every place that names a checkpoint or a dataset."""
        found: list[tuple[str, Literal["checkpoint", "dataset"], str | None]] = []
        for place, source in enumerate(self.sources):
            found.append((f"sources[{place}].checkpoint", "checkpoint", source.checkpoint))
            found.append((f"sources[{place}].data", "dataset", source.data))
        found.append(("base", "checkpoint", self.base))
        found.append(("data.evaluation", "dataset", self.data.evaluation))
        found.append(("data.holdout", "dataset", self.data.holdout))
        found.append(("data.training", "dataset", self.data.training))
        return [Reference(location, kind, value) for location, kind, value in found if value is not None]

    def with_references(self, replacements: Mapping[tuple[str, str], str]) -> Recipe:
        """The recipe with references exchanged; ``replacements`` maps (kind, value) to the new value."""

        def checkpoint(value: str) -> str:
            return replacements.get(("checkpoint", value), value)

        def dataset(value: str | None) -> str | None:
            return None if value is None else replacements.get(("dataset", value), value)

        sources = tuple(
            source.model_copy(update={"checkpoint": checkpoint(source.checkpoint), "data": dataset(source.data)})
            for source in self.sources
        )
        data = Data(
            evaluation=dataset(self.data.evaluation),
            holdout=dataset(self.data.holdout),
            training=dataset(self.data.training),
            max_tokens=self.data.max_tokens,
        )
        base = None if self.base is None else checkpoint(self.base)
        return self.model_copy(update={"sources": sources, "data": data, "base": base})
