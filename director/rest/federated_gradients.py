"""``POST /api/v1/federated/gradients``: one site's answer to one round in one body, and bodies that come in pieces.

A body is hexadecimal (``0x...``), base64, or was uploaded before. What is in it is for ``posting``; here it is decoded.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt

from ...utils.errors import LengthMismatchError, MalformedMessageError, StorageError
from ...utils.messages import NAME_PATTERN, RunId
from ...utils.metrics import MAX_METRICS, MetricKind, MetricSum
from ...utils.privacy.values import PublishedEpsilon, Unit
from ...utils.proposal import MAX_ROUNDS
from ..body_uploads import BodyUpload, BodyUploads
from ..hub.hub import Hub
from ..hub.rules import Operation, Resource, Target
from ..hub.store import new_id
from ..posting import Post, PostingDesk
from .asking import TheCaller, TheHub
from .federated_callers import speaks_for
from .federated_versions import digest_of_version
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/federated/gradients",
    tags=["federated"],
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
)
_FOLDER = "posted"
_MAX_TEXT = 4 << 20  # as much as any body
_MAX_COUNT = 1_000_000_000
_RANGE = re.compile(r"([0-9]{1,10})-([0-9]{1,10})")
_OCTETS = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
UploadId = Annotated[str, Path(min_length=1, max_length=32, description="Of the upload.")]
Number = StrictInt | StrictFloat


class MetricBody(BaseModel):
    """One metric, as a sum over the site's examples."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[!-~]{1,32}$")
    kind: MetricKind = MetricKind.MEAN
    values: list[Number] = Field(min_length=1, max_length=1024, description="Of a mean: its numerator alone.")
    weight: Number = Field(ge=0, description="What the numerator is divided by.")

    def metric(self) -> MetricSum:
        """As it is summed.

        Raises:
            MalformedMessageError: not such numbers.
        """
        try:
            return MetricSum(self.name, self.kind, tuple(map(float, self.values)), float(self.weight))
        except (ValueError, OverflowError) as error:
            raise MalformedMessageError(f"metrics: {error}") from error


class EpsilonBody(BaseModel):
    """What a site publishes of its ledger: all that its data set has spent, with this update."""

    model_config = ConfigDict(extra="forbid")
    epsilon: Number = Field(ge=0)
    delta: Number = Field(gt=0, lt=1)
    unit: Unit

    def published(self) -> PublishedEpsilon:
        """As it is kept.

        Raises:
            MalformedMessageError: not such numbers.
        """
        try:
            return PublishedEpsilon(float(self.epsilon), float(self.delta), self.unit)
        except (ValueError, OverflowError) as error:
            raise MalformedMessageError(f"privacy: {error}") from error


class Gradients(BaseModel):
    """One site's answer to one round."""

    model_config = ConfigDict(extra="forbid")
    organization_id: str = Field(min_length=1, max_length=32)
    round: StrictInt = Field(ge=1, le=MAX_ROUNDS)
    gradients_encrypted: str | None = Field(
        None,
        min_length=1,
        max_length=_MAX_TEXT,
        description=(
            "The update (local minus global): float32, little-endian, in the order of the round's layout; or a"
            " safetensors file of its tensors by name. Hexadecimal behind 0x, or base64. None with `upload_id`, and in"
            " a round that asks for metrics."
        ),
    )
    upload_id: str | None = Field(None, min_length=1, max_length=32, description="Of a body that was uploaded before.")
    model_version: str = Field(min_length=1, max_length=64, description="The model that the update is of.")
    sample_count: StrictInt | str = Field(
        description=(
            "What the update weighs: a number that the site chooses, such as a rounded one, or a bucket such as"
            " 100-199, of which the lower bound counts. It need not be exact."
        )
    )
    sealed_to: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="The director's key that the body is sealed to; None: it is not."
    )
    envoy: str | None = Field(None, min_length=1, max_length=63, description="Where the organization has several.")
    task_id: str | None = Field(None, min_length=1, max_length=63, description="The run under way by default.")
    metrics: list[MetricBody] = Field(default=[], max_length=MAX_METRICS)
    privacy: EpsilonBody | None = None
    leakage_score: Number | None = Field(None, description="Of the site's leak test, where it publishes it.")


class PostedReceipt(BaseModel):
    """The director has it, and a kill -9 does not lose it. `document` is what is signed; the rest repeats it."""

    organization_id: str
    envoy: str
    task_id: str
    round: int
    attempt: int
    model_version: str
    update_sha256: str
    bytes: int
    sample_count: int
    received_at: float = Field(description="Seconds since 1970.")
    audit_entry: int = Field(description="Of the director's audit log, where the same is said.")
    audit_head: str = Field(description="A line for `audit verify --heads`.")
    document: str = Field(description="Canonical JSON, in base64; see `utils/update_receipt.py`.")
    signature: str = Field(description="Ed25519, hexadecimal, by the log's key.")
    log_key: str = Field(description="Hexadecimal. Compare it with the key that you know.")


class NewUpload(BaseModel):
    """A body that will come in pieces."""

    model_config = ConfigDict(extra="forbid")
    organization_id: str = Field(min_length=1, max_length=32)
    length: StrictInt = Field(ge=1, le=1 << 40, description="Bytes of the whole, as they are: no hexadecimal.")
    envoy: str | None = Field(None, min_length=1, max_length=63)


class UploadBody(BaseModel):
    """How far a body came."""

    upload_id: str
    offset: int = Field(description="Bytes that are here: the next piece begins there.")
    length: int
    expires_at: float = Field(description="Seconds since 1970; then it is forgotten.")

    @classmethod
    def of(cls, one: BodyUpload) -> UploadBody:
        """As it is shown."""
        return cls(upload_id=one.id, offset=one.offset, length=one.length, expires_at=one.expires_at)


async def content_of(request: Request) -> bytes:
    """The raw body of a request; how long it may be is for ``limits``."""
    return await request.body()


Content = Annotated[bytes, Depends(content_of)]


@router.post("", status_code=status.HTTP_201_CREATED, responses=documented(402, 410))
def post_gradients(hub: TheHub, works: TheWorks, caller: TheCaller, gradients: Gradients) -> PostedReceipt:
    """Answer the open round: taken where the experiment allows updates in the clear, refused under secure aggregation.

    The very same update may come again and gets a receipt again; another one of the same envoy is refused.
    """
    envoy = speaks_for(hub, works, caller, gradients.organization_id, gradients.envoy)
    desk = PostingDesk(hub.federation, works.folder, works.coordinator, works.history, hub.audit, hub.now)
    post = Post(
        organization=gradients.organization_id,
        envoy=envoy,
        round=gradients.round,
        model_version=gradients.model_version,
        sample_count=_least(gradients.sample_count),
        sealed_to=gradients.sealed_to or "",
        metrics=tuple(one.metric() for one in gradients.metrics),
        privacy=None if gradients.privacy is None else gradients.privacy.published(),
        leakage_score=None if gradients.leakage_score is None else _finite(gradients.leakage_score),
        run=_run(gradients.task_id),
    )
    desk.round_of(post)  # before anything is decoded
    with _body(hub, works, gradients) as body:
        taken = desk.post(replace(post, body=body), lambda version: digest_of_version(hub, version))
    if gradients.upload_id is not None:
        _uploads(works).drop(gradients.upload_id)
    one = taken.receipt
    return PostedReceipt(
        organization_id=one.organization,
        envoy=one.envoy,
        task_id=one.ref.run,
        round=one.ref.round,
        attempt=one.ref.attempt,
        model_version=one.model,
        update_sha256=one.update,
        bytes=one.num_bytes,
        sample_count=one.sample_count,
        received_at=one.received_at,
        audit_entry=one.entry,
        audit_head=one.head,
        document=base64.b64encode(taken.document).decode(),
        signature=taken.signature.hex(),
        log_key=taken.key.hex(),
    )


@router.post("/uploads", status_code=status.HTTP_201_CREATED)
def begin_upload(hub: TheHub, works: TheWorks, caller: TheCaller, new: NewUpload, response: Response) -> UploadBody:
    """Begin a body that comes in pieces: PUT each behind the one before, then post with `upload_id`."""
    speaks_for(hub, works, caller, new.organization_id, new.envoy)
    desk = PostingDesk(hub.federation, works.folder, works.coordinator, works.history, hub.audit, hub.now)
    most = desk.largest_body()
    if new.length > most:
        raise LengthMismatchError(f"an upload of {new.length} bytes; no update of the run under way has over {most}")
    made = _uploads(works).begin(new_id(), new.organization_id, new.length, hub.now())
    response.headers["Location"] = f"{router.prefix}/uploads/{made.id}"
    return UploadBody.of(made)


@router.get("/uploads/{upload_id}")
def show_upload(hub: TheHub, works: TheWorks, caller: TheCaller, upload_id: UploadId) -> UploadBody:
    """How far a body came, for whoever was cut off."""
    return UploadBody.of(_upload(hub, works, caller, upload_id))


@router.put("/uploads/{upload_id}", responses=documented(412), openapi_extra=_OCTETS)
def put_piece(
    hub: TheHub,
    works: TheWorks,
    caller: TheCaller,
    upload_id: UploadId,
    content: Content,
    offset: Annotated[int, Query(ge=0, le=1 << 40, description="Where the piece begins.")],
) -> UploadBody:
    """One piece, of at most 4 MiB; refused with 412 where the body ends elsewhere than at `offset`."""
    upload = _upload(hub, works, caller, upload_id)
    if not content:
        raise MalformedMessageError("a piece of no bytes")
    return UploadBody.of(_uploads(works).put(upload, offset, content))


@router.delete("/uploads/{upload_id}", status_code=status.HTTP_204_NO_CONTENT)
def end_upload(hub: TheHub, works: TheWorks, caller: TheCaller, upload_id: UploadId) -> None:
    """Forget a body."""
    _uploads(works).drop(_upload(hub, works, caller, upload_id).id)


def _upload(hub: Hub, works: Works, caller: TheCaller, upload_id: str) -> BodyUpload:
    """An upload of the caller's own organization; another's is not there for it."""
    upload = _uploads(works).get(upload_id, hub.now())
    if upload.organization != caller.user.organization:
        return _uploads(works).get("", hub.now())
    hub.allow(caller, Operation.EDIT, Resource.ENVOY, Target(upload.organization))
    return upload


def _uploads(works: Works) -> BodyUploads:
    return BodyUploads(works.folder / _FOLDER)


@contextmanager
def _body(hub: Hub, works: Works, gradients: Gradients) -> Iterator[FilePath | None]:
    """The file of the body, while it is looked at; None where there is none."""
    text, upload_id = gradients.gradients_encrypted, gradients.upload_id
    if text is not None and upload_id is not None:
        raise MalformedMessageError("gradients_encrypted and upload_id: give one of the two")
    if upload_id is not None:
        uploads = _uploads(works)
        upload = uploads.get(upload_id, hub.now())
        if upload.organization != gradients.organization_id:
            upload = uploads.get("", hub.now())
        yield uploads.whole(upload)
    elif text is not None:
        content = _decoded(text)
        try:
            with tempfile.NamedTemporaryFile(prefix=".post-", dir=works.folder) as file:
                file.write(content)
                file.flush()
                yield FilePath(file.name)
        except OSError as error:
            raise StorageError(f"{works.folder}: cannot be written: {error.strerror}") from error
    else:
        yield None


def _decoded(text: str) -> bytes:
    try:
        if text[:2] in {"0x", "0X"}:
            if len(text) % 2:
                raise MalformedMessageError(f"gradients_encrypted: {len(text) - 2} hexadecimal digits, expected pairs")
            return binascii.unhexlify(text[2:])
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise MalformedMessageError("gradients_encrypted: expected hexadecimal digits behind 0x, or base64") from None


def _least(said: int | str) -> int:
    """What a number or bucket of examples weighs.

    >>> _least(120), _least("100-199")
    (120, 100)
    """
    least = most = said
    if isinstance(said, str):
        found = _RANGE.fullmatch(said)
        least, most = (0, 0) if found is None else (int(found.group(1)), int(found.group(2)))
    if not isinstance(least, int) or not isinstance(most, int) or not 1 <= least <= most <= _MAX_COUNT:
        raise MalformedMessageError(
            f"sample_count: expected a number from 1 to {_MAX_COUNT}, or a bucket of such numbers as 100-199"
        )
    return least


def _run(task_id: str | None) -> RunId | None:
    if task_id is not None and not NAME_PATTERN.fullmatch(task_id):
        raise MalformedMessageError("task_id: expected the name of a run")
    return None if task_id is None else RunId(task_id)


def _finite(score: float) -> float:
    if not -1 <= score <= 1:
        raise MalformedMessageError("leakage_score: expected a number from -1 to 1")
    return float(score)
