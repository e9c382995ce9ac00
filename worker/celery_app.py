"""The Celery application. It carries a job id and nothing else; the database is the truth about every job.

The settings were run as one block against kill, restart and shutdown; each line keeps a job from being lost or from
running twice for ever. Nothing here imports torch: a worker of the io queue is small.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery import Celery, signals
from kombu.entity import Exchange, Queue
from kombu.utils.objects import cached_property

from app.logs import configure_logging
from app.queues import FUSION_CPU, QUEUES
from app.settings import Settings
from worker import recovery
from worker.metrics import forget_in_child, serve_worker
from worker.presence import Presence

RUN_FUSION = "fusions.run"

# Longer than any fusion: a message delivered again while its job runs is answered by the claim, but still a nuisance.
_VISIBILITY_SECONDS = 7 * 24 * 3600


class CogramCelery(Celery):  # type: ignore[misc]  # Celery has no types
    """Celery with workers that give their job back before they stop."""

    @cached_property
    def Worker(self) -> Any:
        """The worker class."""
        return self.subclass_with_self("worker.shutdown:FusionWorker")


app = CogramCelery("cogram", broker=Settings().resolved_broker_url)
app.conf.update(
    imports=("worker.tasks", "worker.webhooks.tasks"),
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],  # type: ignore[no-untyped-call]
    task_default_queue=FUSION_CPU,
    task_create_missing_queues=False,
    task_acks_late=True,
    task_reject_on_worker_lost=False,  # else a job that kills its process runs for ever
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    worker_pool="worker.pool:FusionPool",  # prefork
    worker_pool_start_method="fork",
    worker_concurrency=1,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_soft_shutdown_timeout=60.0,
    worker_enable_soft_shutdown_on_idle=True,
    worker_lost_wait=1.0,
    worker_proc_alive_timeout=30.0,  # a forked child on a loaded machine is slow, not dead
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,  # one that refuses writes (a full disk, no replicas) is as one that is away
    visibility_timeout=_VISIBILITY_SECONDS,
    broker_transport_options={
        "visibility_timeout": _VISIBILITY_SECONDS,
        "health_check_interval": 30,
        "socket_keepalive": True,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    },
    result_backend_transport_options={"visibility_timeout": _VISIBILITY_SECONDS},
)


def tell_queues(queues: Collection[str]) -> None:
    """This worker tells the database that it is there; before all else, since what follows takes seconds."""
    presence = Presence(queues, Settings())
    signals.worker_init.connect(presence.begin, weak=False)
    signals.worker_shutdown.connect(presence.end, weak=False)


def serve_fusions() -> None:
    """Before it takes a job, this worker loads all that its children will need."""
    signals.worker_init.connect(_preload, weak=False)


def _preload(**_signal: Any) -> None:
    from worker.preload import preload

    preload()


def _configure_logs(**_signal: Any) -> None:
    """Replaces Celery's own logs."""
    configure_logging()


signals.setup_logging.connect(_configure_logs, weak=False)
signals.worker_init.connect(serve_worker, weak=False)
signals.worker_process_init.connect(forget_in_child, weak=False)
signals.worker_shutting_down.connect(recovery.on_shutting_down, weak=False)
signals.worker_shutdown.connect(recovery.on_shutdown, weak=False)
