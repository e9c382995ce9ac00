"""``cogram keys``: who may call the service. Works on the database itself, so it needs no key, but access to that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.failures import telling
from app.cli.settings import database_needed, settings_of

if TYPE_CHECKING:
    from app.store.database import Database
    from app.store.models import Account

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="All files; COGRAM_DATA_DIR, else ./cogram-data.")]
_NO_TABLES = "the database has no accounts yet: run cogram migrate (or cogram serve) on it first."
_WAIT = "It may take COGRAM_KEY_CACHE_SECONDS until every process has noticed."


def create(
    name: Annotated[str, typer.Option("--name", help="What the key is for; shown in the list.")],
    scope: Annotated[
        list[str], typer.Option("--scope", help="read, upload, fuse or webhooks; may stand several times.")
    ],
    tenant: Annotated[str, typer.Option("--tenant", help="Whose objects it reaches.")] = "default",
    quota_bytes: Annotated[int | None, typer.Option(min=0, max=2**62, help="Stored; else COGRAM_QUOTA_BYTES.")] = None,
    quota_jobs: Annotated[
        int | None, typer.Option(min=0, max=2**30, help="Fusions kept; else COGRAM_QUOTA_FUSIONS.")
    ] = None,
    quota_concurrent: Annotated[
        int | None, typer.Option(min=0, max=2**30, help="Fusions that have not ended; else COGRAM_QUOTA_CONCURRENT.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second; else COGRAM_REQUESTS_PER_SECOND.")] = None,
    expires_days: Annotated[float | None, typer.Option(help="It works so long; for ever, if left out.")] = None,
    data_dir: _DataDir = None,
) -> None:
    """Make a key and print it, this once: it is kept as a hash only."""
    from app.auth import service

    allowance = service.Allowance(quota_bytes, quota_jobs, quota_concurrent, rate)
    with _database(data_dir) as database, database.transaction() as session:
        made = service.create(session, tenant, name, scope, allowance, expires_days)
    typer.echo(f"{made.account} for tenant {tenant}; keep the key, it can't be shown again:", err=True)
    typer.echo(made.text)


def list_(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only of this tenant.")] = None,
    data_dir: _DataDir = None,
) -> None:
    """List all accounts: keys, and the subjects of an identity provider that have called."""
    from rich.console import Console
    from rich.table import Table

    from app.auth import service

    table = Table("id", "tenant", "name", "scopes", "bytes", "fusions", "at once", "a second", "made", "standing")
    with _database(data_dir) as database, database.reading() as session:
        for account in service.everyone(session, tenant):
            table.add_row(*_cells(account))
    Console(width=None if typer.get_text_stream("stdout").isatty() else 200).print(table)


def revoke(
    account: Annotated[str, typer.Argument(metavar="ID", help="key_… or oidc:…")], data_dir: _DataDir = None
) -> None:
    """End an account for good; what it made stays with its tenant."""
    from app.auth import service

    with _database(data_dir) as database, database.transaction() as session:
        ended = service.revoke(session, account)
    typer.echo(f"{ended.id} ({ended.name}) is revoked. {_WAIT}")


keys.command("create")(telling(create))
keys.command("list")(telling(list_))
keys.command("revoke")(telling(revoke))


@contextmanager
def _database(data_dir: Path | None) -> Iterator[Database]:
    from sqlalchemy import inspect, make_url

    from app.listening import CannotServe
    from app.store.database import Database

    settings = settings_of(data_dir=data_dir)
    url = make_url(settings.resolved_database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():  # opening would make an empty one
        raise CannotServe(_NO_TABLES)
    database = Database(settings.resolved_database_url)
    try:
        with database_needed():
            ready = inspect(database.engine).has_table("accounts")
        if not ready:
            raise CannotServe(_NO_TABLES)
        yield database
    finally:
        database.close()


def _cells(account: Account) -> tuple[str, ...]:
    from rich.markup import escape

    from app.auth.service import is_good
    from app.store.models import utc_now

    limits = (account.quota_bytes, account.quota_jobs, account.quota_concurrent, account.requests_per_second)
    if is_good(account, utc_now()):
        standing = "good" if account.expires_at is None else f"until {account.expires_at:%Y-%m-%d %H:%M}Z"
    else:
        standing = "revoked" if account.revoked_at is not None else "expired"
    return (
        account.id,
        account.tenant,
        escape(account.name),  # brackets are markup to the table
        " ".join(account.scopes),
        *("" if limit is None else f"{limit:g}" if isinstance(limit, float) else str(limit) for limit in limits),
        f"{account.created_at:%Y-%m-%d}",
        standing,
    )
