"""Builds a chain of torch.nn layers from its description; the only code that a recipe's network can choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cogram_core.errors import NetworkError, Problem
from cogram_core.recipe.layers import LayerSpec, named_layers
from cogram_core.recipe.layers import Residual as ResidualSpec


class Chain(nn.Module):
    """Layers one after the other, each under its own dotted name, so that tensor names fit the checkpoint's."""

    def __init__(self, layers: Sequence[LayerSpec], location: str = "network.layers") -> None:
        """Makes the layers, without values; errors name ``location``.

        Raises:
            NetworkError: if torch refuses a layer's arguments or its name.
        """
        super().__init__()
        self._order: list[nn.Module] = []
        for place, (name, spec) in enumerate(named_layers(layers)):
            here = f"{location}[{place}]"
            try:
                layer = _make(spec, here)
                self._register(name, layer)
            except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                message = f"torch can't make the layer {name!r} ({spec.torch_class}): {error}; correct its description"
                raise NetworkError([Problem(here, "network.invalid_layer", message)]) from error
            # A plain list: the same module must not be registered a second time under another name.
            self._order.append(layer)

    def _register(self, name: str, layer: nn.Module) -> None:
        *folders, last = name.split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        if last in parent._modules:
            raise ValueError("another layer stands under this name or below it")
        parent.add_module(last, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """The last layer's output."""
        for layer in self._order:
            inputs = layer(inputs)
        return inputs


class Residual(nn.Module):
    """layers(x) + shortcut(x), the shortcut being x itself where none is given."""

    def __init__(self, spec: ResidualSpec, location: str) -> None:
        """Makes the layers inside.

        Raises:
            NetworkError: as ``Chain``.
        """
        super().__init__()
        self.layers = Chain(spec.layers, f"{location}.layers")
        self.shortcut = None if spec.shortcut is None else Chain(spec.shortcut, f"{location}.shortcut")

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum, of equal shapes: broadcasting would hide a mistake.

        Raises:
            ValueError: if the shapes differ.
        """
        result: Tensor = self.layers(inputs)
        beside = inputs if self.shortcut is None else self.shortcut(inputs)
        if result.shape != beside.shape:
            shapes = f"{list(result.shape[1:])} and {list(beside.shape[1:])}"
            raise ValueError(f"a residual adds outputs of one shape, here {shapes}; correct its layers or its shortcut")
        return result + beside


def _make(spec: LayerSpec, location: str) -> nn.Module:
    if isinstance(spec, ResidualSpec):
        return Residual(spec, location)
    layer: nn.Module = getattr(nn, spec.torch_class)(**spec.arguments())
    return layer


def build(layers: Sequence[LayerSpec], dtype: torch.dtype, device: torch.device) -> Chain:
    """An uninitialised chain; every tensor has to be loaded before it runs.

    Built on the meta device first, so that no random numbers are drawn and nothing is allocated twice.

    Raises:
        NetworkError: as ``Chain``.
    """
    with torch.device("meta"):
        chain = Chain(layers)
    return chain.to_empty(device=device).to(dtype)
