"""What can be wrong with a request about fusions."""

from __future__ import annotations

from typing import Self

from app.errors import (
    ApiError,
    BadRequest,
    Conflict,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    Unavailable,
    Unprocessable,
    UnsupportedMedia,
)
from app.request_scope import current_request_id


class FusionNotFound(NotFound):
    """No fusion has this id."""

    code, title = "fusion.not_found", "No such fusion"


class ArtifactNotFound(NotFound):
    """The fusion has no such file."""

    code, title = "artifact.not_found", "No such artifact"


class NotFinished(Conflict):
    """What is asked for exists only once the fusion has ended."""

    code, title = "fusion.not_finished", "Fusion not finished"


class NoResult(Conflict):
    """The fusion ended without a result."""

    code, title = "fusion.no_result", "Fusion without a result"


class AlreadyFinal(Conflict):
    """The fusion has ended; there is nothing left to cancel."""

    code, title = "fusion.already_final", "Fusion already ended"


class AlreadySucceeded(Conflict):
    """There is a result; nothing is left to try again."""

    code, title = "fusion.already_succeeded", "Fusion already succeeded"


class InputsRemoved(Conflict):
    """What the fusion was made from is no longer there; lists all of it."""

    code, title = "fusion.inputs_removed", "Inputs removed"


class NotARecipe(UnsupportedMedia):
    """The body is neither JSON nor YAML."""

    code, title = "recipe.unsupported_media", "Send JSON or YAML"


class RecipeUnreadable(BadRequest):
    """The body is not well-formed."""

    code, title = "recipe.syntax", "Malformed recipe"


class RecipeRefused(Unprocessable):
    """The recipe can't be run; lists every reason."""

    code, title = "recipe.invalid", "Invalid recipe"


class ArtifactIsAnother(PreconditionFailed):
    """The caller wants other bytes than the file has."""

    code, title = "artifact.is_another", "Another file than expected"


class RangeOutside(RangeNotSatisfiable):
    """The range begins behind the end of the file."""

    code, title = "artifact.range", "Range not satisfiable"


class TracesBusy(Unavailable):
    """Too many traces are being read at once."""

    code, title = "trace.busy", "Too many traces at once"


class TraceUnreadable(ApiError):
    """The process that reads a trace did not come to its end."""

    code, title = "trace.unreadable", "Trace not readable"

    @classmethod
    def with_code(cls, code: int) -> Self:
        """For the exit code of the reader; negative: the signal that ended it."""
        return cls(
            f"The process that reads the trace ended with code {code}. Ask again; if that doesn't help, the log tells why "
            f"under request id {current_request_id()}, and the trace is there as an artifact, too."
        )
