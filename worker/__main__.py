"""``python -m worker --queues fusion.cpu``: one Celery worker process, stopped by SIGTERM within a moment."""

from __future__ import annotations

import argparse
import os

from app.logs import configure_logging
from app.queues import FUSION_CUDA, IO

# Read once, when billiard is imported: SIGTERM then ends a worker as SIGQUIT does, after the running job has let go.
os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")

_IO_THREADS = 8


def main() -> None:
    """Celery's own options are taken as they are."""
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--queues", "-Q", required=True)
    given, more = parser.parse_known_args()
    queues = {name.strip() for name in given.queues.split(",")}
    if IO in queues and len(queues) > 1:
        parser.error("io must never wait behind a fusion: start another worker with --queues io beside this one.")
    configure_logging()  # before Celery, which warns of what it finds at its start
    from worker import celery_app

    celery_app.tell_queues(queues)
    if queues == {IO}:
        more = ["--pool", "threads", "--concurrency", str(_IO_THREADS), *more]
    else:
        if FUSION_CUDA not in queues:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that device: auto means what the queue says
        celery_app.serve_fusions()
    # Workers have nothing to say to each other; asking around for them takes a second of every start.
    quiet = ["--without-mingle", "--without-gossip", "--hostname", f"{os.getpid()}@%h"]
    celery_app.app.worker_main(["--quiet", "worker", "--queues", ",".join(sorted(queues)), *quiet, *more])


if __name__ == "__main__":
    main()
