"""The blocks of the small transformers that benchmarks are run on."""

from __future__ import annotations

from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of several heads, of queries, keys and values that one linear layer makes."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.arriving = nn.Linear(width, 3 * width)
        self.leaving = nn.Linear(width, width)
        self._heads, self._causal = heads, causal

    def forward(self, inputs: Tensor) -> Tensor:
        count, places, width = inputs.shape
        parts = self.arriving(inputs).view(count, places, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=self._causal)
        return self.leaving(mixed.transpose(1, 2).reshape(count, places, width))


class Block(nn.Module):
    """Attention, then two linear layers, each behind a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm_2 = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs + self.attention(self.norm_1(inputs))
        return inputs + self.inner(self.norm_2(inputs))
