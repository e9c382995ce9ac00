"""``cogram serve`` and the service's parts, one command each."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.settings import database_needed, settings_with_folder
from app.listening import CannotServe
from app.queues import FUSION_CPU, QUEUES

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="All files; COGRAM_DATA_DIR, else ./cogram-data.")]
_Host = Annotated[str | None, typer.Option("--host", help="COGRAM_HOST, else 127.0.0.1.")]
_Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0 takes a free one; else 8765.")]


def serve(
    data_dir: _DataDir = None,
    host: _Host = None,
    port: _Port = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Fusions at once; COGRAM_WORKERS.")] = None,
) -> None:
    """Run the whole service here: API, dispatcher, worker, and a broker of its own."""
    from app.logs import configure_logging
    from app.serve import serve as run

    configure_logging()
    settings = settings_with_folder(data_dir=data_dir, host=host, port=port, workers=workers)
    where = settings.data_dir.resolve()
    with database_needed():
        run(settings, lambda address: typer.echo(f"cogram is ready at {address} (data in {where})"))


def api(data_dir: _DataDir = None, host: _Host = None, port: _Port = None) -> None:
    """Run the HTTP API alone."""
    from app.api import run_api

    run_api(settings_with_folder(data_dir=data_dir, host=host, port=port))


def worker(
    ctx: typer.Context,
    queues: Annotated[str, typer.Option("--queues", help="fusion.cpu, fusion.cuda or both; or io alone.")] = FUSION_CPU,
    data_dir: _DataDir = None,
) -> None:
    """Run a worker alone; Celery's worker options may follow."""
    unknown = {name.strip() for name in queues.split(",")} - set(QUEUES)
    if unknown:
        known = ", ".join(QUEUES)
        raise CannotServe(f"there is no queue {', '.join(map(repr, sorted(unknown)))}; known here: {known}.")
    _become(data_dir, "worker", "--queues", queues, *ctx.args)


def dispatcher(data_dir: _DataDir = None) -> None:
    """Run the dispatcher alone: it publishes queued jobs and takes lost ones back."""
    _become(data_dir, "worker.dispatcher")


def migrate(data_dir: _DataDir = None) -> None:
    """Bring the database to the newest schema."""
    from app.store.migrate import migrate as run

    settings = settings_with_folder(data_dir=data_dir)
    with database_needed():
        run(settings.resolved_database_url)


def _become(data_dir: Path | None, module: str, *arguments: str) -> None:
    """Replaces this process; the worker is another floor of the house, and this one doesn't import it."""
    settings_with_folder(data_dir=data_dir)  # what is wrong with them is told here
    environment = dict(os.environ)
    if data_dir is not None:
        environment["COGRAM_DATA_DIR"] = str(data_dir.resolve())
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
