"""Builds a chain of torch.nn layers from its description; the only code that a recipe's network can choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cogram_core.recipe.layers import LayerSpec, named_layers


class Chain(nn.Module):
    """Layers one after the other, each under its own dotted name, so that tensor names fit the checkpoint's."""

    def __init__(self, layers: Sequence[LayerSpec]) -> None:
        super().__init__()
        self._order: list[nn.Module] = []
        for name, spec in named_layers(layers):
            layer = getattr(nn, spec.torch_class)(**spec.arguments())
            self._register(name, layer)
            # A plain list: the same module must not be registered a second time under another name.
            self._order.append(layer)

    def _register(self, name: str, layer: nn.Module) -> None:
        *folders, last = name.split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(last, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """The last layer's output."""
        for layer in self._order:
            inputs = layer(inputs)
        return inputs


def build(layers: Sequence[LayerSpec], dtype: torch.dtype, device: torch.device) -> Chain:
    """An uninitialised chain; every tensor has to be loaded before it runs.

    Built on the meta device first, so that no random numbers are drawn and nothing is allocated twice.
    """
    with torch.device("meta"):
        chain = Chain(layers)
    return chain.to_empty(device=device).to(dtype)
