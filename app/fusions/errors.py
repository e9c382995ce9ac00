"""What can be wrong with a request about fusions."""

from __future__ import annotations

from app.errors import BadRequest, Conflict, NotFound, RangeNotSatisfiable, Unprocessable, UnsupportedMedia


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


class NotARecipe(UnsupportedMedia):
    """The body is neither JSON nor YAML."""

    code, title = "recipe.unsupported_media", "Send JSON or YAML"


class RecipeUnreadable(BadRequest):
    """The body is not well-formed."""

    code, title = "recipe.syntax", "Malformed recipe"


class RecipeRefused(Unprocessable):
    """The recipe can't be run; lists every reason."""

    code, title = "recipe.invalid", "Invalid recipe"


class RangeOutside(RangeNotSatisfiable):
    """The range begins behind the end of the file."""

    code, title = "artifact.range", "Range not satisfiable"
