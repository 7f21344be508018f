"""``/api/v1/plans``: what tasks run, brought as a manifest and its blobs, each under the SHA-256 of its bytes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Request, Response, status
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from ...utils.artifacts import ArtifactStore, Receiving
from ...utils.data_spec import DataKind
from ...utils.errors import ConfigError, DigestMismatchError, NotAuthorizedError, UnknownEntityError
from ...utils.plan_bundle import MAX_MANIFEST_BYTES, Manifest, read_manifest
from ...utils.tensors import Digest
from ..hub.hub import Hub
from ..hub.plans import Brought
from ..hub.rules import Operation, Resource, Target
from ..hub.sign_in import Caller
from .asking import TheCaller, TheHub
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/plans", tags=["plans"], responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503)
)
PlanDigest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the plan's manifest.")]
BlobDigest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the blob.")]
_PIECE_BYTES = 1 << 20
_NO_PLAN = "there is no such plan: PUT its manifest first"
_RAW: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class BroughtBody(BaseModel):
    """A plan, and what the director does not have of it."""

    plan_digest: str
    missing: list[str] = Field(description="Blobs to be brought, by their SHA-256.")


class PlanFileBody(BaseModel):
    """One file of a plan."""

    path: str
    size: int = Field(description="Bytes.")
    sha256: str


class PlanBody(BroughtBody):
    """What a plan is made of."""

    name: str
    kind: str
    entry: str = Field(description="Where its code begins; empty where it has none.")
    dataset: str | None = Field(description="That it reads, by its name at the sites; none: it reads no data.")
    settings: dict[str, bool | int | float | str]
    privacy: str | None = Field(description="Its differential privacy, in words; none: it is not private.")
    files: list[PlanFileBody]


async def raw_body(request: Request) -> bytes:
    """The bytes of a manifest."""
    found = bytearray()
    try:
        async for piece in request.stream():
            found += piece
            if len(found) > MAX_MANIFEST_BYTES:
                raise HTTPException(413, f"a manifest has at most {MAX_MANIFEST_BYTES} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body did") from None
    return bytes(found)


TheBytes = Annotated[bytes, Depends(raw_body)]


@router.put("/{plan_digest}", openapi_extra=_RAW)
def bring_plan(
    hub: TheHub, caller: TheCaller, works: TheWorks, plan_digest: PlanDigest, manifest: TheBytes
) -> BroughtBody:
    """Bring the manifest of a plan, as its raw bytes; again, it says what is still missing."""
    may_bring(caller)
    read = read_manifest(manifest)
    if read.digest != plan_digest:
        raise DigestMismatchError(f"the manifest's SHA-256 is {read.digest}, the path says {plan_digest}")
    for file in read.files:
        check_size(works, file.size)
    brought = Brought(read.digest, caller.user.id, caller.user.organization, hub.now())
    works.artifacts.put([manifest])
    hub.plans.bring(brought, hub.did(caller, "plan brought", plan=read.digest))
    return BroughtBody(plan_digest=read.digest, missing=missing_of(read, works.artifacts))


@router.get("/{plan_digest}")
def show_plan(hub: TheHub, caller: TheCaller, works: TheWorks, plan_digest: PlanDigest) -> PlanBody:
    """What a plan is made of; for whoever brought it, and the organizations of collaborations with a task of it."""
    manifest = seen_plan(hub, caller, works, plan_digest)
    return PlanBody(
        plan_digest=manifest.digest,
        missing=missing_of(manifest, works.artifacts),
        name=manifest.name,
        kind=manifest.kind.value,
        entry=manifest.entry,
        dataset=dataset_of(manifest),
        settings=dict(manifest.settings),
        privacy=manifest.privacy.label if manifest.privacy is not None else None,
        files=[PlanFileBody(path=one.path, size=one.size, sha256=one.sha256) for one in manifest.files],
    )


def may_bring_blob(
    hub: TheHub, caller: TheCaller, works: TheWorks, plan_digest: PlanDigest, blob: BlobDigest, request: Request
) -> int:
    """Before a byte is read: may this caller bring this blob? Gives how long it is."""
    may_bring(caller)
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal() or len(announced) > 15:
        raise ConfigError("Content-Length: expected how many bytes the blob has")
    check_size(works, int(announced))
    manifest = seen_plan(hub, caller, works, plan_digest)
    size = next((one.size for one in manifest.files if one.sha256 == blob), None)
    if size is not None and size != int(announced):
        raise DigestMismatchError(f"the manifest says that this blob has {size} bytes, {announced} are announced")
    return int(announced)


@router.put("/{plan_digest}/blobs/{blob}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=_RAW)
async def bring_blob(
    request: Request, works: TheWorks, blob: BlobDigest, length: Annotated[int, Depends(may_bring_blob)]
) -> Response:
    """Bring one blob of a plan, or the codec that its experiment names, as raw bytes."""
    receiving = await run_in_threadpool(works.artifacts.receive, Digest(blob), length)
    try:
        await _receive(request, receiving)
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body did") from None
    finally:
        await run_in_threadpool(receiving.discard)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def _receive(request: Request, receiving: Receiving) -> None:
    """Written in pieces of a megabyte, by other threads than the one that answers everybody."""
    held = bytearray()
    async for piece in request.stream():
        held += piece
        if len(held) >= _PIECE_BYTES:
            await run_in_threadpool(receiving.write, bytes(held))
            held.clear()
    await run_in_threadpool(receiving.write, bytes(held))
    await run_in_threadpool(receiving.close)


def may_bring(caller: Caller) -> None:
    """May this caller bring plans at all? Whose they become part of is decided when a task is made of them.

    Raises:
        NotAuthorizedError: no.
    """
    if not caller.actor.grants(Operation.CREATE, Resource.PLAN):
        raise NotAuthorizedError("no rule about create:plan")


def check_size(works: Works, size: int) -> None:
    """Does the director take a blob of so many bytes?

    Raises:
        HTTPException: 413, it does not.
    """
    if size > works.desk.max_model_bytes:
        raise HTTPException(413, f"a blob of {size} bytes; this director takes {works.desk.max_model_bytes} at most")


def targets_of(hub: Hub, plan: Digest) -> list[Target]:
    """Whose a plan is: of each who brought it, and of all collaborations that may see it. Never empty."""
    used = hub.plans.collaborations(plan)
    return [Target(one.organization, used, one.user) for one in hub.plans.of(plan)] or [Target(None, used)]


def seen_plan(hub: Hub, caller: Caller, works: Works, digest: str) -> Manifest:
    """A plan that the caller may see.

    Raises:
        UnknownEntityError: there is none, or it may not.
    """
    plan = Digest(digest)
    targets = targets_of(hub, plan)
    may_own = bool(caller.actor.grants(Operation.CREATE, Resource.PLAN))  # who brings plans sees what it brought
    own = may_own and any(one.owner == caller.user.id for one in targets)
    if not own and not any(hub.may(caller, Operation.VIEW, Resource.PLAN, one) for one in targets):
        raise UnknownEntityError(_NO_PLAN)
    if not works.artifacts.has(plan):
        raise UnknownEntityError("the plan's manifest is gone since no task ran it: PUT it again")
    return read_manifest(works.artifacts.read(plan))


def plan_to_start(hub: Hub, caller: Caller, works: Works, digest: str, collaboration: str) -> Manifest:
    """A plan that the caller may start a task of: its own organization brought it, or the collaboration sees it.

    To see a plan is not enough: who brought it decides which collaborations see it too.

    Raises:
        UnknownEntityError: there is none, or it may not.
    """
    plan = Digest(digest)
    is_ours = any(one.organization == caller.user.organization for one in hub.plans.of(plan))
    if not is_ours and collaboration not in hub.plans.collaborations(plan):
        raise UnknownEntityError(_NO_PLAN)
    return seen_plan(hub, caller, works, digest)


def missing_of(manifest: Manifest, artifacts: ArtifactStore) -> list[str]:
    """The blobs that are not here."""
    return sorted({digest for digest, _ in manifest.blobs() if not artifacts.has(digest)})


def dataset_of(manifest: Manifest) -> str | None:
    """The name of the dataset that a plan reads; None where it reads none."""
    return None if manifest.data.kind is DataKind.NONE else manifest.data.name
