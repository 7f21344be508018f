"""``GET /api/v1/federated/model``: the model of a run, as numbers in JSON or as its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from ...utils.errors import UnknownArtifactError, UnknownEntityError
from ...utils.messages import TaskKind
from ...utils.plan_bundle import INITIAL_FILE, read_manifest
from ...utils.tensors import Digest, canonical_json
from ..hub.hub import Hub
from ..hub.rules import Resource
from ..records import RoundRecord, RunRecord
from ..rounds import RoundState
from .asking import TheCaller, TheHub
from .federated_callers import TaskQuery, seen_run, sees_run
from .federated_versions import Registered, is_semver, registered, sha256_of
from .files import ANSWERS, file_answer
from .outputs import ABOUT_WITHDRAWN, WITHDRAWN, check_gives_model, gives_model, marks
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/federated/model", tags=["federated"], responses=documented(400, 401, 403, 404, 413, 422, 429, 503)
)
LATEST = "latest"
SIGNED_CONTEXT = b"fedveil-model-answer/1\0"
_PIECE_BYTES = 256 << 10
_ACCURACY = "accuracy"
_AS_HEADERS = {
    "model_version": "X-Model-Version",
    "training_round": "X-Training-Round",
    "task_id": "X-Task-Id",
    "accuracy": "X-Accuracy",
    "organizations_contributed": "X-Organizations-Contributed",
    "model_card": "X-Model-Card",
    "signature": "X-Signature",
    "log_key": "X-Log-Key",
}
"""What is said of a model, beside its file: also where a part of it is sent."""


class Format(Enum):
    """How the model comes."""

    HEX = "hex"  # in JSON, with all that is said of it
    SAFETENSORS = "safetensors"  # the file alone


class ModelBody(BaseModel):
    """A model, and what is known of it."""

    model_version: str = Field(description="x.y.z where it is in the registry, else its SHA-256.")
    weights: str = Field(description="The safetensors file, hexadecimal behind 0x: all of its bytes.")
    accuracy: float | None = Field(description="As the sites evaluated this model together; None: none did yet.")
    organizations_contributed: int = Field(description="Whose updates are in it.")
    training_round: int = Field(description="That gave it; 0: the plan's initial one.")
    task_id: str
    sha256: str = Field(description="Of the file.")
    bytes: int
    model_card: str | None = Field(description="Where its card is; None: it is not in the registry.")
    signature: str | None = Field(
        description="Ed25519, hexadecimal, by the key of the director's log, over `fedveil-model-answer/1`, a zero byte"
        " and the canonical JSON of federation, task_id, training_round and sha256."
    )
    log_key: str | None = Field(description="Hexadecimal. Compare it with the key that you know.")


_RESPONSES: dict[int | str, dict[str, Any]] = (
    ANSWERS
    | ABOUT_WITHDRAWN
    | {
        200: {
            "model": ModelBody,
            "description": "The model: in JSON, or as its file.",
            "headers": ANSWERS[200]["headers"]
            | WITHDRAWN
            | {
                name: {"description": f"As `{key}` in JSON; with the file.", "schema": {"type": "string"}}
                for key, name in _AS_HEADERS.items()
            },
            "content": ANSWERS[200]["content"],
        }
    }
)


@dataclass(frozen=True, slots=True)
class _Found:
    record: RunRecord
    digest: Digest
    in_registry: Registered | None

    @property
    def is_published(self) -> bool:
        return self.in_registry is not None and self.in_registry.is_published


@router.get("", response_class=Response, responses=_RESPONSES)
def show_model(
    hub: TheHub,
    works: TheWorks,
    caller: TheCaller,
    request: Request,
    version: Annotated[
        str, Query(min_length=1, max_length=80, description="latest, x.y.z of the registry, or a SHA-256.")
    ] = LATEST,
    task: TaskQuery = None,
    format: Annotated[Format, Query(description="hex: JSON. safetensors: the file, with Range.")] = Format.HEX,  # noqa: A002 - as it is asked for
) -> Response:
    """The latest model of a run, or a version of it; for those who may see its models, if its sites approved that."""
    found = _found(hub, works, caller, version, task)
    if not found.is_published:
        check_gives_model(found.record)
    if not works.artifacts.has(found.digest):
        raise UnknownArtifactError(f"model {found.digest[:12]} is no longer here: the director keeps the last ones")
    rounds = works.history.rounds(found.record.run)
    marked = {} if found.in_registry is None else marks(hub.models.withdrawn(found.in_registry.id))
    if format is Format.SAFETENSORS:
        said = _said(hub, works, found, rounds)
        headers = marked | {name: str(said[key]) for key, name in _AS_HEADERS.items() if said[key] is not None}
        filename = f"{found.record.run}-{said['training_round']}.safetensors"
        return file_answer(request, works.artifacts, found.digest, filename, headers)
    tag = f'"{found.digest}-hex"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(None, 304, {"ETag": tag} | marked)
    said = _said(hub, works, found, rounds)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"} | marked
    return StreamingResponse(_json(said, works, found.digest), media_type="application/json", headers=headers)


def _found(hub: Hub, works: Works, caller: TheCaller, version: str, task: str | None) -> _Found:
    """The model that is asked for.

    Raises:
        UnknownEntityError: there is none that the caller may see.
    """
    if version == LATEST:
        record = seen_run(hub, works, caller, Resource.MODEL, task)
        return _Found(record, record.model, _first(hub, record.model, record))
    digest, semver = sha256_of(version), version if is_semver(version) else None
    if semver is not None:
        for one in registered(hub, semver=semver):
            record = works.history.run(one.run)
            if task in {None, one.run} and (one.is_published or sees_run(hub, caller, Resource.MODEL, record)):
                return _Found(record, one.digest, one)
    withheld: _Found | None = None
    for record in reversed(works.history.runs()) if digest is not None else ():
        if task not in {None, record.run} or not sees_run(hub, caller, Resource.MODEL, record):
            continue
        if digest in _models(works, record):
            found = _Found(record, digest, _first(hub, digest, record))
            if found.is_published or gives_model(record):
                return found
            withheld = withheld or found  # another run may give the same model: what both began with
    if withheld is not None:
        return withheld
    raise UnknownEntityError("there is no such version of a model that you may see")


def _models(works: Works, record: RunRecord) -> set[Digest]:
    made = {one.model_out for one in works.history.rounds(record.run) if one.model_out is not None}
    return made | {_initial(works, record), record.model}


def _initial(works: Works, record: RunRecord) -> Digest:
    return read_manifest(works.artifacts.read(record.plan)).file(INITIAL_FILE).sha256


def _first(hub: Hub, digest: Digest, record: RunRecord) -> Registered | None:
    return next((one for one in registered(hub, digest=digest) if one.run == record.run), None)


def _name(found: _Found) -> str:
    return found.in_registry.semver if found.in_registry is not None else found.digest


def _round_of(rounds: tuple[RoundRecord, ...], digest: Digest) -> int:
    trained = (one for one in rounds if one.round.kind is TaskKind.TRAIN and one.model_out == digest)
    return max((one.round.ref.round for one in trained), default=0)


def _said(hub: Hub, works: Works, found: _Found, rounds: tuple[RoundRecord, ...]) -> dict[str, Any]:
    number = _round_of(rounds, found.digest)
    signed = {
        "federation": hub.federation,
        "task_id": found.record.run,
        "training_round": number,
        "sha256": found.digest,
    }
    key = hub.audit.public_key
    card = None if found.in_registry is None else f"/api/v1/models/{found.in_registry.id}/card"
    return {
        "model_version": _name(found),
        "accuracy": _accuracy(rounds, found.digest),
        "organizations_contributed": len(_contributors(hub, rounds, number)),
        "training_round": number,
        "task_id": found.record.run,
        "sha256": found.digest,
        "bytes": works.artifacts.size(found.digest),
        "model_card": card,
        "signature": hub.audit.sign(SIGNED_CONTEXT + canonical_json(signed)).hex() if key else None,
        "log_key": key.hex() if key else None,
    }


def _accuracy(rounds: tuple[RoundRecord, ...], digest: Digest) -> float | None:
    """Of a model: the sites evaluate the one that enters a round, so it is known one round later."""
    for one in reversed(rounds):
        if one.round.state is RoundState.CLOSED and one.model_in == digest:
            for metric in one.metrics:
                if metric.name == _ACCURACY or metric.name.endswith(f"_{_ACCURACY}"):
                    return metric.value
    return None


def _contributors(hub: Hub, rounds: tuple[RoundRecord, ...], number: int) -> set[str]:
    """Organizations of the envoys whose updates the rounds up to a model took; an envoy that is nobody's counts too."""
    names: set[str] = set()
    for one in rounds:
        if one.round.state is RoundState.CLOSED and one.round.kind is TaskKind.TRAIN and one.round.ref.round <= number:
            names |= set(one.sum.survivors) if one.sum is not None else set(one.round.received)
    return {hub.stations.whose(name) or f"envoy {name}" for name in names}


def _json(said: dict[str, Any], works: Works, digest: Digest) -> Iterator[bytes]:
    """The answer, without the whole model in memory."""
    head, _, tail = json.dumps({"model_version": said["model_version"], "weights": ""} | said).partition('"weights": "')
    yield f'{head}"weights": "0x'.encode()
    with works.artifacts.open(digest) as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece.hex().encode()
    yield tail.encode()
