"""Whether a network takes token ids, found by running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """That a network takes integers as they are, and how.

    ``vocabulary`` says how many ids it knows, None where that can't be told; ``packed`` that it takes packed tokens (see
    ``packing``), ``masked`` that some of them may be padding, ``types`` how many token types it knows; ``aligned`` that it
    labels each place of a text by itself, and not the next one; ``paired`` that it reads one text and tells another;
    ``longest`` how many places it has, None: any number; ``mark`` an id that all texts must have equally often.
    """

    vocabulary: int | None
    packed: bool = False
    masked: bool = False
    types: int = 1
    aligned: bool = False
    paired: bool = False
    longest: int | None = None
    mark: int | None = None


def tokens_of(module: nn.Module, inputs: Tensor) -> Tokens | None:
    """Runs a module on the first of its integer inputs (N, ...), as int64.

    Integers are token ids, and stay integers, where the module runs on them. Else they are numbers like pixels, and None
    is given: a layer that computes with them refuses to mix int64 with its own dtype. The vocabulary is that of the
    first ``nn.Embedding`` that gets the inputs or a part of them.

    Args:
        module: on the CPU, where an id that is out of range is an error and not the end of the process.
        inputs: any tensor.
    """
    if not isinstance(inputs, Tensor) or inputs.is_floating_point() or inputs.is_complex():
        return None
    if inputs.dtype == torch.bool or inputs.ndim < 2 or len(inputs) == 0:
        return None
    embedding, runs = _run(module, inputs[:1].to("cpu", torch.int64, copy=True))
    return Tokens(None if embedding is None else embedding.num_embeddings) if runs else None


def embedding_of(module: nn.Module, inputs: Tensor) -> nn.Embedding | None:
    """The first ``nn.Embedding`` that gets the inputs, int64 (N, ...), or a part of them; a library's own if it tells."""
    if hasattr(module, "get_input_embeddings"):
        told = module.get_input_embeddings()  # type: ignore[operator]
        return told if isinstance(told, nn.Embedding) else None
    return _run(module, inputs[:1].clone())[0]


def _run(module: nn.Module, example: Tensor) -> tuple[nn.Embedding | None, bool]:
    """The embedding that an example, in memory of its own, reaches first, and whether the module runs on it."""
    memory = example.untyped_storage().data_ptr()
    reached: list[nn.Embedding] = []

    def hear(embedding: nn.Module, given: tuple[object, ...]) -> None:
        assert isinstance(embedding, nn.Embedding)
        if given and isinstance(given[0], Tensor) and given[0].untyped_storage().data_ptr() == memory:
            reached.append(embedding)

    embeddings = [inner for inner in module.modules() if isinstance(inner, nn.Embedding)]
    handles = [inner.register_forward_pre_hook(hear) for inner in embeddings]
    runs = True
    try:
        with torch.no_grad():
            module(example)
    except IndexError:
        pass  # an id without a row, which is told with the range of all of them
    except (RuntimeError, TypeError, ValueError):
        runs = False
    finally:
        for handle in handles:
            handle.remove()
    return (reached[0] if reached else None), runs
