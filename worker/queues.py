"""What the dispatcher asks of the broker, over connections that give up instead of waiting for one that is silent."""

from __future__ import annotations

from typing import Any

from celery import Celery

_FINITE = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}


def connected(celery: Celery) -> Any:
    """A connection to publish over; a context manager."""
    return celery.connection_for_write(transport_options=_FINITE)


def depth(celery: Celery, queue: str) -> int:
    """How many messages wait in the queue."""
    with connected(celery) as connection, connection.channel() as channel:
        declared = celery.amqp.queues[queue](channel).queue_declare()
        return int(declared.message_count)
