"""``python -m worker --queues fusion.cpu``: one Celery worker process, stopped by SIGTERM within a moment."""

from __future__ import annotations

import os
import sys

# Read once, when billiard is imported: SIGTERM then ends a worker as SIGQUIT does, after the running job has let go.
os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")


def main() -> None:
    """Celery's own options are taken as they are."""
    from worker.celery_app import app

    # Workers have nothing to say to each other; asking around for them takes a second of every start.
    app.worker_main(["worker", "--without-mingle", "--without-gossip", *sys.argv[1:]])


if __name__ == "__main__":
    main()
