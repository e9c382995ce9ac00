"""Puts the commands together."""

from __future__ import annotations

import typer

from app.cli.calibrate import calibrate
from app.cli.failures import telling
from app.cli.fuse import fuse
from app.cli.keys import keys
from app.cli.look import inspect, methods, validate
from app.cli.replay import replay
from app.cli.service import api, dispatcher, migrate, serve, worker

_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fuses trained neural network checkpoints into one, without retraining, and records every decision.",
)
for _command in (fuse, calibrate, replay, inspect, validate, methods):
    _app.command(rich_help_panel="On this machine")(telling(_command))
for _command in (serve, migrate, api, dispatcher):
    _app.command(rich_help_panel="The service")(telling(_command))
_app.command(
    rich_help_panel="The service", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(telling(worker))
_app.add_typer(keys, name="keys", rich_help_panel="The service")


def main() -> None:
    """The ``cogram`` command."""
    _app()
