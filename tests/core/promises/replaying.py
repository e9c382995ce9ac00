"""A fusion to replay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from cogram_core import fuse, replay
from tests.core.factories import checkpoint_bytes, points, recipe_document

NEURON = {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 2}}


class Run:
    """A finished fusion whose data and forward passes are taken away before it is replayed."""

    def __init__(self, folder: Path, modules: list[nn.Module], stages: list[Any], **options: Any) -> None:
        convolution = isinstance(next(modules[0].children()), nn.Conv2d)
        shape, classes = ((1, 4, 4), 3) if convolution else ((6,), 4)
        data = {name: points(90 + place, 40, shape, classes) for place, name in enumerate(("evaluation", "holdout"))}
        document = recipe_document(folder / "in", modules, stages, **{**data, **options})
        self.output = folder / "out"
        self.fusion = fuse(document, self.output)
        self.sources = [Path(source["checkpoint"]) for source in document["sources"]]
        self.trace = folder / "trace.parquet"
        shutil.copyfile(self.output / "trace.parquet", self.trace)
        for path in (folder / "in").glob("*.safetensors"):
            path.unlink()

    def assert_replays(self, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
        expected = checkpoint_bytes(self.output)
        with monkeypatch.context() as patch:

            def forbidden(*_: Any, **__: Any) -> Tensor:
                raise AssertionError("a replay must not run a network")

            patch.setattr(nn.Module, "__call__", forbidden)
            patch.setattr(nn.Module, "__init__", forbidden)
            assert replay(self.sources, self.trace, target) == target
        assert expected
        assert checkpoint_bytes(target) == expected
