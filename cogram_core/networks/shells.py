"""Networks that are built and not yet filled."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from torch import Tensor, nn

from cogram_core.networks.parts import Parts, own_parts
from cogram_core.networks.tokens import Tokens


@dataclass(frozen=True)
class Shell:
    """A module on the CPU whose tensors hold whatever the memory held.

    ``parts`` says where a checkpoint's floating tensors stand; ``tokens`` how it takes tokens, None where it takes numbers.
    """

    module: nn.Module
    parts: Parts
    tokens: Tokens | None

    @classmethod
    def of(cls, module: nn.Module, tokens: Tokens | None) -> Shell:
        """The shell of a module whose tensors have the checkpoint's names."""
        return cls(module, own_parts(module), tokens)

    def fill(self, held: Container[str], read: Callable[[str], Tensor]) -> None:
        """Copies a checkpoint in, tensor by tensor: those of ``parts``, and integers of the same name if it has them."""
        state = self.module.state_dict()
        for name, part in self.parts.items():
            part.of(state[part.tensor]).copy_(read(name))
        for name, tensor in state.items():
            if not tensor.is_floating_point() and name in held:
                tensor.copy_(read(name))
