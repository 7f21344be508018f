"""``/api/v1/audit``: the director's log, and the bundle of evidence; whoever gets one checks it at home.

`fedveil audit verify FILE` takes both, so nobody has to believe this door.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from ...utils.audit_chain import read_entries
from ...utils.certificates import certificate_pem
from ...utils.errors import NotAuthorizedError
from ..audit import LOG_FILE
from ..config import load_config
from ..evidence import export_evidence
from ..hub.rules import Operation, Resource, Target, decide
from ..hub.sign_in import Caller
from .asking import MAX_PAGE, TheCaller, TheHub
from .problems import documented
from .works import TheWorks

router = APIRouter(prefix="/api/v1/audit", tags=["audit"], responses=documented(400, 401, 403, 413, 422, 429, 503))
_PIECE_BYTES = 256 << 10
_ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bundle.",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "One entry a line.", "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}


class EntryBody(BaseModel):
    """One thing that the director did, or was asked for."""

    number: int
    time: str = Field(description="UTC, as the director's clock had it.")
    event: dict[str, Any]
    hash: str = Field(description="Over this entry and the one before.")


class EntryPage(BaseModel):
    """Some entries, the oldest first."""

    items: list[EntryBody]
    next: int | None = Field(description="Ask with `after` set to this for the next ones; none are left without it.")


@router.get("/entries")
def list_entries(
    hub: TheHub,
    caller: TheCaller,
    works: TheWorks,
    after: Annotated[int, Query(ge=-1, le=1 << 53, description="The number of the last entry that is known.")] = -1,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
) -> EntryPage:
    """Entries of the log: all, or what the caller's own organization did, as far as the caller may see."""
    hub.admit(caller, Operation.VIEW, Resource.AUDIT, Target(caller.user.organization))
    everything = hub.may(caller, Operation.VIEW, Resource.AUDIT, Target())
    found: list[EntryBody] = []
    for one in read_entries(works.folder / LOG_FILE):
        is_seen = everything or one.event.get("organization") == caller.user.organization
        if one.number <= after or not is_seen:
            continue
        if len(found) == limit:
            return EntryPage(items=found, next=found[-1].number)
        found.append(EntryBody(number=one.number, time=one.time, event=dict(one.event), hash=one.hash.hex()))
    return EntryPage(items=found, next=None)


@router.get("/log", responses=_LINES, response_class=StreamingResponse)
def download_log(hub: TheHub, caller: TheCaller, works: TheWorks) -> StreamingResponse:
    """The whole log, as it is on disk: chained and signed. `fedveil audit verify` checks it."""
    _check_export(caller)
    hub.did(caller, "audit log exported")()
    path = works.folder / LOG_FILE
    return StreamingResponse(_whole_lines(path), media_type="application/x-ndjson")


@router.post("/evidence", responses=_ZIP, response_class=FileResponse)
def export_bundle(hub: TheHub, caller: TheCaller, works: TheWorks) -> FileResponse:
    """What the director knows of what was done, in one signed bundle: facts, no verdicts. `fedveil audit verify`."""
    _check_export(caller)
    descriptor, name = tempfile.mkstemp(prefix="fedveil-evidence-", suffix=".zip")
    os.close(descriptor)
    path = Path(name)
    try:
        export_evidence(
            works.folder,
            load_config(works.folder),
            certificate_pem(works.root),
            f"user:{caller.user.name}",
            hub.now(),
            path,
        )
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    ended = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="evidence.zip", background=ended)


def _check_export(caller: Caller) -> None:
    """That there is a log is no secret: who may not have it is told so."""
    decision = decide(caller.actor, Operation.EXPORT, Resource.AUDIT, Target())
    if not decision.is_allowed:
        raise NotAuthorizedError(decision.why)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """As many whole lines as there are now: somebody may be writing the next."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        file.seek(0)
        while end and (piece := file.read(min(_PIECE_BYTES, end))):
            end -= len(piece)
            yield piece
