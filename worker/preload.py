"""What a worker's parent imports before it forks, so that a job's fresh child starts in milliseconds, not seconds."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any

from app import tracing

_MODULES = (
    "cogram_core.pipeline",  # and torch with it
    # torch loads this when a module first leaves the meta device: half a second in every child.
    "torch.fx.experimental.symbolic_shapes",
)


def preload(**_signal: Any) -> None:
    """Imports only: no tensor is made and no device touched before the fork."""
    for name in (*_MODULES, *tracing.modules()):
        import_module(name)
    # Celery collects garbage before every fork: half a million objects of torch, in a fifth of a second. What is there
    # now stays for good, so no collection needs to look at it, and none dirties the pages that the children share.
    gc.collect()
    gc.freeze()
