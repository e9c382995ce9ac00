"""Prefixed identifiers that sort by time of creation."""

from __future__ import annotations

import re
import secrets
import time
from typing import NewType

FusionId = NewType("FusionId", str)
CheckpointId = NewType("CheckpointId", str)
DatasetId = NewType("DatasetId", str)
UploadId = NewType("UploadId", str)
WebhookId = NewType("WebhookId", str)
DeliveryId = NewType("DeliveryId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u

_ID = re.compile(rf"[a-z]{{3,4}}_[{_ALPHABET}]{{26}}")


def is_id(text: str) -> bool:
    """Whether the text has the form of an id; what hasn't need not be looked up."""
    return _ID.fullmatch(text) is not None


def _sortable() -> str:
    """26 characters: 48 bits of milliseconds, then 80 random bits."""
    value = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def new_fusion_id() -> FusionId:
    """A fresh ``fus_…``."""
    return FusionId("fus_" + _sortable())


def new_checkpoint_id() -> CheckpointId:
    """A fresh ``ckpt_…``."""
    return CheckpointId("ckpt_" + _sortable())


def new_dataset_id() -> DatasetId:
    """A fresh ``data_…``."""
    return DatasetId("data_" + _sortable())


def new_webhook_id() -> WebhookId:
    """A fresh ``hook_…``."""
    return WebhookId("hook_" + _sortable())


def new_delivery_id() -> DeliveryId:
    """A fresh ``msg_…``."""
    return DeliveryId("msg_" + _sortable())


def new_upload_id() -> UploadId:
    """A fresh ``upl_…``."""
    return UploadId("upl_" + _sortable())
