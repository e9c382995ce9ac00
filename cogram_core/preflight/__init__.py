"""All that headers alone can tell, all problems at once, with estimates. Free of torch and numpy: the API runs it."""

from cogram_core.preflight.checks import (
    Preflight,
    criterion_problems,
    needs_network,
    preflight,
    prototype_problems,
)
from cogram_core.preflight.data import DatasetFacts, LossKind, read_dataset_facts
from cogram_core.preflight.estimates import Estimates
from cogram_core.preflight.files import preflight_files
from cogram_core.preflight.payloads import payload_problems
from cogram_core.preflight.summaries import NETWORK_FILE, CheckpointSummary, summarise_checkpoint

__all__ = [
    "NETWORK_FILE",
    "CheckpointSummary",
    "DatasetFacts",
    "Estimates",
    "LossKind",
    "Preflight",
    "criterion_problems",
    "needs_network",
    "payload_problems",
    "preflight",
    "preflight_files",
    "prototype_problems",
    "read_dataset_facts",
    "summarise_checkpoint",
]
