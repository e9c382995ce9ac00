"""How commands fail: every problem on a line of its own, a stable exit code, no traceback for what was foreseen.

Exit codes: 1 the command could not do its work, 2 the input is wrong, 130 and 143 it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from app.listening import CannotServe
from cogram_core.errors import CogramError, FusionStopped, InvalidInput

P = ParamSpec("P")
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def telling(command: Callable[P, None]) -> Callable[P, None]:
    """The command, with the errors that it may raise told to the terminal."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except InvalidInput as error:
            tell(*map(str, error.problems))
            raise typer.Exit(WRONG_INPUT) from error
        except CannotServe as error:
            tell(str(error))
            raise typer.Exit(WRONG_INPUT) from error
        except (FusionStopped, KeyboardInterrupt) as error:
            tell("stopped; nothing was written")
            raise typer.Exit(INTERRUPTED) from error
        except CogramError as error:
            tell(str(error))
            raise typer.Exit(FAILED) from error

    return run


def tell(*lines: str) -> None:
    """Writes to standard error."""
    for line in lines:
        typer.echo(f"cogram: {line}", err=True)
