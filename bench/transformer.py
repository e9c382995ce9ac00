"""The evaluator at layer level on a transformer, against full forward passes. `python -m bench.transformer`

Two copies of one character model, one trained further on Python code and one on English prose, are merged layer by layer
in one sweep. Both sides compute in float32, candidate by candidate, and must take the same decisions with the same
losses, to the last bit; else the program ends with an error. Sides take turns, layer by layer; the ratio is the median of
whole sweeps. Time is the processor's, for both compute in one thread, and the clock would tell of the machine's other work.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import itertools
import pydoc_data.topics
import statistics
import sys
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.attention import Block
from bench.evaluator import STEPS, TOLERANCE
from cogram_core import fuse_modules
from cogram_core.evaluation.losses import causal_lm, predicted_tokens, weighted_mean
from cogram_core.mixing import softmax_shares
from cogram_core.observer import SilentObserver, StageInfo
from cogram_core.trace import Decision

REPEATS = 5
BLOCKS, WIDTH, HEADS, PLACES = 12, 256, 4, 64
CHARACTERS = 256  # the bytes
SEQUENCES = 8
STEEPNESS = 5.5
LEAST_RATIO = 1.8

Text = tuple[Tensor, Tensor]
"""Bytes and labels, int64 (N, T) each, the same: the loss shifts the labels by itself."""

Found = tuple[str, str, float | None, float | None]
"""Layer, what was done, step, loss afterwards."""


class Transformer(nn.Module):
    """A causal language model of characters; its layers are registered in the order in which they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, causal=True) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.characters(tokens) + self.places(places))))


@dataclass(frozen=True)
class Task:
    """Two sources and what decisions are taken on."""

    sources: tuple[Transformer, Transformer]
    data: Text


def transformer_task(sequences: int = SEQUENCES) -> Task:
    """A start trained on both kinds of text, and two short fine-tunings of it; so many sequences to decide on, half each."""
    code, prose = _text(inspect.getsource(typing)), _text("".join(pydoc_data.topics.topics.values()))
    torch.manual_seed(0)
    start = _train(Transformer(), torch.cat([code[:500], prose[:500]]), steps=20, rate=1e-3)
    sources = tuple(_train(start, text[500:1000], steps=8, rate=3e-4) for text in (code, prose))
    half = sequences // 2
    held = torch.cat([code[1000 : 1000 + half], prose[1000 : 1000 + half]])
    return Task((sources[0], sources[1]), (held, held))


def _text(text: str) -> Tensor:
    """Sequences of bytes, int64 (N, T)."""
    codes = torch.tensor(list(text.encode()))
    return codes[: len(codes) // PLACES * PLACES].view(-1, PLACES)


def _train(start: Transformer, text: Tensor, steps: int, rate: float) -> Transformer:
    network = copy.deepcopy(start).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(steps):
        batch = text[torch.randint(len(text), (8,))]
        optimizer.zero_grad()
        causal_lm(network(batch), batch).mean().backward()
        optimizer.step()
    return network.eval()


class Naive:
    """One sweep of CoGraM's layer level, every loss by a full forward pass."""

    def __init__(self, task: Task) -> None:
        self.network = fuse_modules(task.sources, stages=["linear"]).module
        self.sources, self.data = task.sources, task.data
        self.loss = 0.0

    def _loss(self) -> float:
        with torch.no_grad():
            losses = causal_lm(self.network(self.data[0]), self.data[1])
        return weighted_mean(losses, predicted_tokens(self.data[1]))

    def sweep(self) -> Iterator[Found]:
        """The layers from output to input."""
        self.loss = self._loss()
        layers = [name for name, module in self.network.named_modules() if module._parameters]
        for name in reversed(layers):
            own, *others = (list(module.get_submodule(name).parameters()) for module in (self.network, *self.sources))
            yield self._visit(name, own, others)

    @torch.no_grad()
    def _visit(self, name: str, own: list[nn.Parameter], sources: list[list[nn.Parameter]]) -> Found:
        kept = [part.clone() for part in own]
        shares = softmax_shares([self._with(own, source) for source in sources], STEEPNESS)
        targets = [
            sum(s * p.double() for s, p in zip(shares, parts, strict=True)) for parts in zip(*sources, strict=True)
        ]
        step = loss = 0.0
        for step in STEPS:
            wide = [old.double() for old in kept]
            loss = self._with(own, [old + step * (to - old) for old, to in zip(wide, targets, strict=True)])
            if loss < self.loss * (1 - TOLERANCE):
                self.loss = loss
                return name, "merged", step, loss
        self._with(own, kept, run=False)
        return name, "rolled_back", step, loss

    def _with(self, own: list[nn.Parameter], value: list[Tensor], run: bool = True) -> float:
        for part, new in zip(own, value, strict=True):
            part.copy_(new)
        return self._loss() if run else self.loss


class Turns(SilentObserver):
    """Lets the naive side decide on a layer whenever the engine has, so that what else the machine does slows both."""

    def __init__(self, slow: Iterator[Found]) -> None:
        self.found: list[Found] = []
        self.expected: list[Found] = []
        self.quick_seconds = self.slow_seconds = 0.0
        self._slow = slow
        self._since: float | None = None

    def stage_started(self, stage: StageInfo) -> None:
        if stage.method == "cogram":
            self._since = time.process_time()

    def decision(self, decision: Decision) -> None:
        if self._since is None:
            return
        reached = time.process_time()
        self.quick_seconds += reached - self._since
        self.found.append((decision.layer, str(decision.action), decision.step, decision.loss_after))
        self.expected += itertools.islice(self._slow, 1)
        self._since = time.process_time()
        self.slow_seconds += self._since - reached


def turn(task: Task) -> Turns:
    """One sweep of both sides."""
    turns = Turns(Naive(task).sweep())
    stage = {"method": "cogram", "granularity": "layer", "max_sweeps": {"layer": 1}, "prototypes": {"kind": "all"}}
    fuse_modules(task.sources, stages=["linear", stage], data={"evaluation": task.data}, guard="off", observer=turns)
    return turns


def main() -> int:
    parser = argparse.ArgumentParser(description="Layer level on a transformer, against full forward passes.")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="how many sequences decisions are taken on")
    torch.set_num_threads(1)
    task = transformer_task(parser.parse_args().sequences)
    ratios = []
    for _ in range(REPEATS):
        done = turn(task)
        if done.found != done.expected:
            print("the two sides decide differently")
            return 1
        ratios.append(done.slow_seconds / done.quick_seconds)
        print(f"naive {done.slow_seconds:.1f} s, engine {done.quick_seconds:.1f} s, {ratios[-1]:.2f} times", flush=True)
    merged = sum(action == "merged" for _, action, _, _ in done.found)
    ratio = statistics.median(ratios)
    print(f"{len(done.found)} layers, {merged} merged, the same decisions and losses; median ratio {ratio:.2f}")
    return 0 if ratio >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
