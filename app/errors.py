"""Errors of the HTTP side, and how every one of them is told: RFC 9457, application/problem+json.

ApiError
├── BadRequest             400  the request can't be read at all
├── Unauthorized           401  nobody that this service knows
├── Forbidden              403  known, and not allowed
├── NotFound               404
├── RequestTimeout         408  the body came too slowly
├── Conflict               409  not in this state
├── Gone                   410
├── PreconditionFailed     412
├── TooLarge               413
├── UnsupportedMedia       415
├── RangeNotSatisfiable    416
├── Misdirected            421  for another host
├── Unprocessable          422  read, but wrong; lists every problem found
├── Locked                 423  somebody else is at it
├── TooManyRequests        429  allowed, but not so soon
├── Unavailable            503
└── InsufficientStorage    507
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Self

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.allowed_methods import allowed_methods
from app.request_scope import current_request_id
from app.store.outages import Outage, outage_in
from app.validation import body_keys, from_pydantic
from cogram_core.errors import InvalidInput, Problem

MEDIA_TYPE = "application/problem+json"
_UNREGISTERED = {460: "Checksum Mismatch"}  # tus 1.0 has it, the registry of statuses hasn't
_SOON = {"Retry-After": "2"}
_MOST_TOLD = 100  # as many as a small document has keys would be an answer of megabytes, written while all others wait
_OF_ANY_CALL = (401, 403, 408, 414, 421, 422, 429, 431, 500, 503)


class ProblemEntry(BaseModel):
    """One thing that is wrong."""

    location: str = Field(description="where, as a path into the document or the name of the thing")
    code: str
    message: str = Field(description="what is wrong, and what to do about it")

    @classmethod
    def of(cls, problem: Problem) -> ProblemEntry:
        """The entry for a problem that the core or this service found."""
        return cls(location=_writable(problem.location), code=problem.code, message=_writable(problem.message))


class ProblemDocument(BaseModel):
    """What every failed call answers (RFC 9457)."""

    type: str = Field(description="urn:cogram:problem: and the code")
    title: str
    status: int
    code: str = Field(description="stable; made for programs")
    detail: str
    instance: str
    request_id: str
    errors: list[ProblemEntry]


class ApiError(Exception):
    """Root of the errors that become an answer of their own."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str, *, errors: Iterable[Problem] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(ApiError):
    """The request can't be read."""

    status, code, title = 400, "request.malformed", "Malformed request"


class Unauthorized(ApiError):
    """Nobody that this service knows."""

    status, code, title = 401, "auth.required", "Who are you?"


class Forbidden(ApiError):
    """The caller is known, and not allowed to do this."""

    status, code, title = 403, "auth.forbidden", "Not allowed"


class NotFound(ApiError):
    """There is nothing under this name."""

    status, code, title = 404, "not_found", "Not found"


class RequestTimeout(ApiError):
    """The body came too slowly, or no longer."""

    status, code, title = 408, "request.too_slow", "Request too slow"


class Conflict(ApiError):
    """The thing is not in a state that allows this."""

    status, code, title = 409, "conflict", "Conflict"


class Gone(ApiError):
    """It was there, and will not come back."""

    status, code, title = 410, "gone", "Gone"


class PreconditionFailed(ApiError):
    """What the caller makes a condition does not hold here."""

    status, code, title = 412, "request.precondition", "Precondition failed"


class TooLarge(ApiError):
    """More bytes than this service takes at once."""

    status, code, title = 413, "request.too_large", "Too large"


class UnsupportedMedia(ApiError):
    """The body is of a kind that this call doesn't take."""

    status, code, title = 415, "request.unsupported_media", "Unsupported media type"


class RangeNotSatisfiable(ApiError):
    """The range lies outside of the file."""

    status, code, title = 416, "range.not_satisfiable", "Range not satisfiable"


class Misdirected(ApiError):
    """The request names a host that this is not."""

    status, code, title = 421, "request.host", "Not this host"


class Unprocessable(ApiError):
    """The request was read, and something in it is wrong."""

    status, code, title = 422, "request.invalid", "Invalid request"

    @classmethod
    def single(cls, location: str, message: str) -> Self:
        """The error with one entry, under the class's own code."""
        return cls(message, errors=[Problem(location, cls.code, message)])


class Locked(ApiError):
    """Another request is at it."""

    status, code, title = 423, "locked", "Locked"


class TooManyRequests(ApiError):
    """Allowed, but not so soon; Retry-After tells when."""

    status, code, title = 429, "rate.exceeded", "Too many requests"


class Unavailable(ApiError):
    """Something the service needs is not there."""

    status, code, title = 503, "service.not_ready", "Not ready"


class CutOff(BadRequest):
    """The caller hung up in the middle of a request."""

    code, title = "request.cut_off", "Connection ended"


class DatabaseAway(Unavailable):
    """The database is out of reach, or too busy to be waited for."""

    code, title = "service.database", "Database not reachable"


class DiskFull(Unavailable):
    """A disk that the service needs for its own work takes no more."""

    code, title = "service.disk_full", "Disk full"


class InsufficientStorage(ApiError):
    """The disk takes no more."""

    status, code, title = 507, "storage.full", "Insufficient storage"


def problem_response(
    path: str,
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer for one failed call."""
    document = ProblemDocument(
        type=f"urn:cogram:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=_writable(detail),
        instance=_writable(path),
        request_id=current_request_id(),
        errors=[ProblemEntry.of(problem) for problem in errors],
    )
    return JSONResponse(document.model_dump(), status, dict(headers or {}), MEDIA_TYPE)


def internal_error(path: str) -> JSONResponse:
    """The answer when something broke that nobody foresaw; what it was is in the log, under the request id."""
    detail = f"Something broke on our side. The log has it under request id {current_request_id()}."
    return problem_response(path, status=500, code="internal", title="Internal error", detail=detail)


def unforeseen(path: str, error: Exception) -> JSONResponse:
    """The answer to what nobody turned into one: an outage will pass and is told as such, all else is our mistake.

    Whoever hung up hears no answer; but the log and the metrics have it, and it is no mistake of ours either.
    """
    if isinstance(error, ClientDisconnect):
        return answer_to(CutOff("The connection ended before the request was complete."), path)
    match outage_in(error):
        case Outage.AWAY:
            told: ApiError = DatabaseAway("The database doesn't answer just now. Ask again in a moment.", headers=_SOON)
        case Outage.FULL:
            told = DiskFull("The disk of the service is full. Ask again once there is room.", headers=_SOON)
        case None:
            return internal_error(path)
    return answer_to(told, path)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of a route, for its OpenAPI entry; those that any call may get are among them."""
    # By reference: FastAPI builds a validator for each model that it is given, and here that would be a thousand.
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {
        status: {"description": _UNREGISTERED.get(status) or HTTPStatus(status).phrase, "content": content}
        for status in sorted({*statuses, *_OF_ANY_CALL})
    }


def problem_schemas() -> dict[str, Any]:
    """What ``declared`` refers to."""
    schema = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ProblemDocument": schema}


def install(app: FastAPI) -> None:
    """Makes every error of ``app`` a problem document."""
    app.add_exception_handler(ApiError, _tell_api_error)
    app.add_exception_handler(InvalidInput, _tell_invalid_input)
    app.add_exception_handler(RequestValidationError, _tell_validation_error)
    app.add_exception_handler(HTTPException, _tell_http_error)


def answer_to(error: ApiError, path: str) -> JSONResponse:
    """The answer that ``error`` becomes; for what refuses a call before the application sees it, too."""
    return problem_response(
        path,
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        errors=error.errors,
        headers=error.headers,
    )


async def _tell_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer_to(error, request.url.path)


async def _tell_invalid_input(request: Request, error: Exception) -> JSONResponse:
    """The core's refusals; each of its error classes has a code of its own."""
    assert isinstance(error, InvalidInput)
    return problem_response(
        request.url.path,
        status=422,
        code=error.code,
        title="Invalid input",
        detail=summary(error.problems),
        errors=error.problems,
    )


async def _tell_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    known = body_keys(request)
    entries = error.errors()
    found = [from_pydantic(entry, known) for entry in entries[:_MOST_TOLD]]
    if len(entries) > _MOST_TOLD:
        found.append(
            Problem("request", "too_many", f"{len(entries) - _MOST_TOLD} more things are wrong; correct these")
        )
    malformed = all(problem.code == "json_invalid" for problem in found)
    kind = BadRequest if malformed else Unprocessable
    return problem_response(
        request.url.path, status=kind.status, code=kind.code, title=kind.title, detail=summary(found), errors=found
    )


async def _tell_http_error(request: Request, error: Exception) -> JSONResponse:
    """What the framework itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    if error.status_code == TooLarge.status:
        return await _tell_api_error(request, TooLarge(str(error.detail)))
    if error.status_code == RequestTimeout.status:
        return await _tell_api_error(request, RequestTimeout(str(error.detail), headers=error.headers))
    details = {
        404: f"There is nothing at {request.url.path}. GET /v1/openapi.json lists what there is.",
        405: f"{request.method} is not a method of {request.url.path}.",
    }
    return problem_response(
        request.url.path,
        status=error.status_code,
        code="http." + phrase.lower().replace(" ", "_"),
        title=phrase,
        detail=details.get(error.status_code, str(error.detail)),
        headers={"Allow": ", ".join(allowed_methods(request))} if error.status_code == 405 else error.headers,
    )


def summary(problems: Sequence[Problem]) -> str:
    """One line: the first problem, and how many more there are."""
    more = len(problems) - 1
    return str(problems[0]) + (f" (and {more} more, see errors)" if more else "")


def _writable(text: str) -> str:
    """What a caller sent may hold characters that UTF-8 can't; an answer that quotes it must still be one."""
    return text.encode("utf-8", "backslashreplace").decode()
