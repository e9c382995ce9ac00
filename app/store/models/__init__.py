"""The tables. The database is the truth about every fusion; the queue carries only its id."""

from app.store.models.access import Account, IdempotentCall
from app.store.models.base import Base, Owned, StateName, UtcDateTime, utc_now
from app.store.models.content import Blob, Checkpoint, CheckpointFile, Dataset, Upload, UploadedFile
from app.store.models.fusions import Artifact, Event, Fusion, FusionInput, OutboxMessage
from app.store.models.webhooks import Delivery, Webhook
from app.store.models.workers import WorkerSign

__all__ = [
    "Account",
    "Artifact",
    "Base",
    "Blob",
    "Checkpoint",
    "CheckpointFile",
    "Dataset",
    "Delivery",
    "Event",
    "Fusion",
    "FusionInput",
    "IdempotentCall",
    "OutboxMessage",
    "Owned",
    "StateName",
    "Upload",
    "UploadedFile",
    "UtcDateTime",
    "Webhook",
    "WorkerSign",
    "utc_now",
]
