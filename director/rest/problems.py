"""What went wrong, as ``application/problem+json`` (RFC 9457): one table from our errors to statuses, nothing else.

Whatever is refused is answered so, what the framework refuses too. An error of ours says who, what was expected and
what came; it holds no secret. An error that is none of ours is logged whole and answered with 500 and no word of it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ...utils import errors

_LOG = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
TYPE = "urn:fedveil:problem:"

_STATUS: Mapping[type[errors.FederationError], int] = {
    errors.FederationError: 409,
    errors.ConfigError: 422,
    errors.IdentityError: 401,
    errors.NotAuthorizedError: 403,
    errors.MalformedMessageError: 422,
    errors.UnknownEntityError: 404,
    errors.UnknownArtifactError: 404,
    errors.ChangedMeanwhileError: 412,
    errors.RoundOverError: 410,
    errors.UnsendableUpdateError: 422,
    errors.NotInvitedError: 403,
    errors.NotApprovedError: 403,
    errors.AgreementError: 403,
    errors.PrivacyError: 403,
    errors.BudgetExhaustedError: 402,
    errors.PlanError: 422,
    errors.DatasetError: 422,
    errors.StorageError: 503,
    errors.UnreachableError: 503,
    errors.TooManyCallsError: 429,
}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    where: str = Field(description="The field, as a path.", examples=["body.name"])
    what: str = Field(description="What was expected.")
    check: str | None = Field(default=None, description="Of an update: which check it failed.", examples=["nan_check"])


class Problem(BaseModel):
    """Why a request was refused."""

    type: str = Field(
        description="A name for this sort of problem.", examples=["urn:fedveil:problem:UnknownEntityError"]
    )
    title: str = Field(description="The same for all problems of a sort.")
    status: int
    detail: str = Field(description="What was expected, what came, what to do.")
    errors: list[Fault] | None = Field(None, description="Each thing that is wrong, where several are.")
    missing: list[str] | None = Field(None, description="Blobs that have to be brought first, by their SHA-256.")


class MissingBlobsError(errors.ProtocolError):
    """A plan is not here in whole."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(f"{len(missing)} blobs are missing: PUT each to /api/v1/plans/PLAN/blobs/BLOB, then ask again")
        self.missing = list(missing)


def status_of(error: errors.FederationError) -> int:
    """The status of an error: its own class's, or that of the nearest one above it."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def install(app: FastAPI) -> None:
    """Answer every refusal of an app as a problem."""

    @app.exception_handler(errors.FederationError)
    def ours(_: Request, error: errors.FederationError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            Fault(where=".".join(map(str, one["loc"]))[:200], what=str(one["msg"])[:300]) for one in error.errors()
        ]
        detail = "; ".join(f"{one.where}: {one.what}" for one in faults[:5]) or "not as the API's description says"
        return problem(422, "MalformedRequest", "The request is not as the API's description says", detail, faults[:50])

    @app.exception_handler(HTTPException)
    def framework(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(request))
        return problem(error.status_code, "Refused", str(error.detail), str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("unexpected method=%s path=%s", request.method, request.url.path, exc_info=error)
        return problem(500, "Unexpected", "An error of the director itself", "it is in the director's log")


def refusal(error: errors.FederationError) -> JSONResponse:
    """The answer to an error of ours."""
    status = status_of(error)
    _LOG.info("refused error=%s status=%d reason=%s", type(error).__name__, status, error)
    missing = error.missing if isinstance(error, MissingBlobsError) else None
    faults = None
    if isinstance(error, errors.FailedChecksError):
        faults = [Fault(where="body", what=what, check=check) for check, what in error.failed]
    return problem(status, type(error).__name__, _title(type(error)), str(error), faults, missing=missing)


def problem(
    status: int,
    kind: str,
    title: str,
    detail: str,
    faults: Sequence[Fault] | None = None,
    headers: Mapping[str, str] | None = None,
    missing: list[str] | None = None,
) -> JSONResponse:
    """The answer."""
    found = list(faults) if faults else None
    body = Problem(type=TYPE + kind, title=title, status=status, detail=detail, errors=found, missing=missing)
    told = dict(headers or {})
    if status == 401:
        told["WWW-Authenticate"] = 'Bearer realm="fedveil"'
    return _Answer(body.model_dump(exclude_none=True), status, told, MEDIA_TYPE)


class _Answer(JSONResponse):
    def render(self, content: Any) -> bytes:
        """What came is told again, and JSON may hold halves of characters, which UTF-8 has no bytes for."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the API's description: an operation may answer so."""
    return {status: {"model": Problem, "description": _WORDS[status]} for status in statuses}


def _methods(request: Request) -> list[str]:
    """All that may be done at the path of a request, by the API's own description."""
    found: set[str] = set()
    for path, ways in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)), request.url.path):
            found |= {method.upper() for method in ways}
    return sorted(found)


def in_description(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document whose refusals are problems; FastAPI would say JSON of its own."""
    for ways in document["paths"].values():
        for operation in ways.values():
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")):
                    answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                    answer["description"] = _WORDS[int(status)]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


_WORDS = {
    400: "The request cannot be read.",
    401: "Nobody, or nobody any more.",
    402: "The privacy budget is spent.",
    403: "Known, but may not do this; the detail says why.",
    404: "There is no such thing, or none that the caller may see.",
    409: "Not now, or not beside what there is.",
    410: "It is over.",
    412: "Somebody else changed it since it was read.",
    413: "Too large.",
    416: "The file has no such bytes; Content-Range says how many it has.",
    422: "Not as it should be; `errors` says what.",
    428: "Say which version the change is of (If-Match).",
    429: "Too often; Retry-After says when.",
    503: "The director's database or disk does not answer.",
}


def _title(kind: type[errors.FederationError]) -> str:
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")
