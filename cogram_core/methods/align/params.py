"""The parameters of ``align``."""

from __future__ import annotations

from typing import Annotated, Literal

from cogram_core.methods.contract import Field, MethodParams

_Place = Annotated[int, Field(ge=0, strict=True)]


class Params(MethodParams):
    """Parameters of ``align``."""

    match: Literal["activations", "weights"] = Field(
        "activations", description="match units by what they do on data, or by their weights"
    )
    reference: _Place | str = Field(0, description="the source whose units stay: its place in the list, or its name")
    examples: int = Field(256, ge=1, description="examples that activations are taken from, drawn evenly")
