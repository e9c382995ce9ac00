"""The fusion core: checkpoints in, checkpoint out.

No web, queue, database or cloud import may enter here. The public names are handed out lazily (PEP 562), so that a
process that only needs recipes and headers never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogram_core.calibration import Calibration, calibrate
    from cogram_core.inspection import inspect
    from cogram_core.modules import fuse_modules
    from cogram_core.pipeline import Fusion, fuse
    from cogram_core.recipe import Recipe
    from cogram_core.replaying import replay

__all__ = ["Calibration", "Fusion", "Recipe", "calibrate", "fuse", "fuse_modules", "inspect", "replay"]

_HOMES = {
    "Calibration": "cogram_core.calibration",
    "calibrate": "cogram_core.calibration",
    "Fusion": "cogram_core.pipeline",
    "Recipe": "cogram_core.recipe",
    "fuse": "cogram_core.pipeline",
    "fuse_modules": "cogram_core.modules",
    "inspect": "cogram_core.inspection",
    "replay": "cogram_core.replaying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
