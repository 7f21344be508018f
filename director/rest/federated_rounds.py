"""What a site that only posts has to know, and to say: the open round, what is proposed to it, what it approves."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from ...utils.errors import ProtocolError, UnknownEntityError
from ...utils.messages import MAX_APPROVED, EnvoyName, TaskKind
from ...utils.proposal import Proposal, proposal_of
from ...utils.sealed_update import RECIPIENT, SCHEMA, SUITE
from ...utils.tensors import Digest
from ..hub.hub import Hub
from ..hub.rules import Operation, Resource, Target
from ..hub.site_words import SiteWord
from ..posting import LEARNER
from ..present import Present
from ..records import RunRecord
from ..sealing_key import sealing_key
from .asking import TheCaller, TheHub
from .federated_callers import TaskQuery, sees_run, speaks_for
from .problems import documented
from .works import TheWorks, Works

router = APIRouter(
    prefix="/api/v1/federated", tags=["federated"], responses=documented(400, 401, 403, 404, 413, 422, 429, 503)
)
MAX_AVAILABLE_SECONDS = 7 * 86_400.0
_DIGEST = r"^[0-9a-f]{64}$"
EnvoyQuery = Annotated[
    str | None, Query(max_length=63, description="Of the organization; needed where it has several.")
]


class TensorBody(BaseModel):
    """One tensor of what leaves a site."""

    name: str
    shape: list[int]
    offset: int = Field(description="In numbers, from the start of the vector.")


class SealingBody(BaseModel):
    """How a body is sealed to the director; see `utils/sealed_update.py`."""

    schema_name: str
    suite: str
    key: str = Field(description="X25519, hexadecimal; `sealed_to` of a post names it.")
    recipient: str


class RoundBody(BaseModel):
    """The round under way, as one envoy of the caller's organization meets it."""

    federation: str
    task_id: str
    round: int
    attempt: int
    state: str
    kind: TaskKind
    takes: str = Field(description='"gradients", "metrics" or "nothing"; `why` says why nothing.')
    why: str
    envoy: str
    has_approved: bool
    is_asked: bool
    has_answered: bool
    proposal_digest: str | None
    plan_digest: str
    model_version: str = Field(description="SHA-256 of the model that the update is to be of.")
    layout_digest: str
    elements: int = Field(description="float32 numbers in an update.")
    tensors: list[TensorBody]
    is_coded: bool = Field(description="The numbers are the codes of the run's codec.")
    codec: str | None
    secure_aggregation: str
    max_norm: float | None = Field(description="L2, that an update must not pass.")
    closes_at: float = Field(description="Seconds since 1970.")
    sealing: SealingBody | None
    log_key: str | None = Field(description="Of the director's audit log, hexadecimal: receipts are signed by it.")
    privacy_budget: dict[str, Any] | None
    aggregation_config: dict[str, Any]


class ProposalBody(BaseModel):
    """What is proposed to a site."""

    task_id: str
    proposal_digest: str
    document: str = Field(description="Canonical JSON, in base64: all that the site is asked for.")
    signature: str = Field(description="Ed25519, base64.")
    chain: str = Field(description="PEM: who signed it.")
    purpose: str
    expires_at: float
    is_secure: bool = Field(description="Sums alone leave the sites: no single body can answer it.")
    approved_by: list[str] = Field(description="Of the caller's own envoys.")


class Proposals(BaseModel):
    """All that are open, by task."""

    items: list[ProposalBody]


class Word(BaseModel):
    """What a site says of itself; it stands until it says another, or its time is over."""

    model_config = ConfigDict(extra="forbid")
    organization_id: str = Field(min_length=1, max_length=32)
    envoy: str | None = Field(None, min_length=1, max_length=63)
    approved: list[Annotated[str, Field(pattern=_DIGEST)]] = Field(
        max_length=MAX_APPROVED, description="Digests of all proposals that it approves; one that is left out is not."
    )
    available_seconds: float = Field(
        3600.0,
        ge=0,
        le=MAX_AVAILABLE_SECONDS,
        allow_inf_nan=False,
        description="It answers for so long without a line of its own; 0: it is away from now on.",
    )


class WordBody(BaseModel):
    """The word as it stands."""

    envoy: str
    approved: list[str]
    available_until: float = Field(description="Seconds since 1970.")


@router.get("/round", responses=documented(409))
def show_round(
    hub: TheHub, works: TheWorks, caller: TheCaller, task: TaskQuery = None, envoy: EnvoyQuery = None
) -> RoundBody:
    """The round under way: whether it asks the caller's envoy, for what, and how a body is to look."""
    name = speaks_for(hub, works, caller, caller.user.organization, envoy)
    present = works.coordinator.present()
    if present is None or task not in {None, present.run}:
        raise UnknownEntityError("no such task is under way")
    if not sees_run(hub, caller, Resource.TASK, works.history.run(present.run)):
        raise UnknownEntityError("no task is under way that you may see")
    return _round(hub, works, present, name)


@router.get("/proposals")
def list_proposals(hub: TheHub, works: TheWorks, caller: TheCaller) -> Proposals:
    """What is proposed to the caller's organization: runs that are not over, and ask one of its envoys."""
    own = caller.user.organization
    hub.allow(caller, Operation.VIEW, Resource.PLAN, Target(own, hub.collaborations_of(own)))
    stations, found = hub.stations.of(own), []
    for record, proposal in _open_proposals(works):
        asked = [one for one in stations if not proposal.sites or one in proposal.sites]
        if asked and sees_run(hub, caller, Resource.TASK, record):
            found.append(_proposal(works, record, proposal, asked))
    return Proposals(items=found)


@router.post("/approvals", responses=documented(409))
def say_approved(hub: TheHub, works: TheWorks, caller: TheCaller, word: Word) -> WordBody:
    """A site without a line says what it approves, and for how long it answers: rounds then ask it.

    It takes a user who may approve plans of the organization, and edit its envoys. A run that takes sums alone cannot
    be approved so: nothing that is posted could be a part of its sum.
    """
    name = speaks_for(hub, works, caller, word.organization_id, word.envoy)
    if word.approved:
        hub.allow(caller, Operation.APPROVE, Resource.PLAN, Target(word.organization_id))
    approved = tuple(map(Digest, dict.fromkeys(word.approved)))
    live = {record.proposal_digest: (record, proposal) for record, proposal in _open_proposals(works)}
    for digest in approved:
        record, proposal = live.get(digest, (None, None))
        is_seen = record is not None and sees_run(hub, caller, Resource.TASK, record)
        if record is None or proposal is None or not is_seen or (proposal.sites and name not in proposal.sites):
            raise UnknownEntityError(f"no proposal {digest[:12]} is open that asks {name}")
        if proposal.is_secure:
            raise ProtocolError(
                f"{record.run} takes sums alone, and nothing that is posted can be a part of one: {LEARNER}"
            )
    now = hub.now()
    said = SiteWord(name, approved, now + word.available_seconds)
    done = hub.did(caller, "site approves", target=name, proposals=list(approved), until=said.until)
    hub.site_words.keep(said, now, done)
    works.coordinator.stay(name, approved, said.until)
    return WordBody(envoy=name, approved=list(approved), available_until=said.until)


def _round(hub: Hub, works: Works, present: Present, name: EnvoyName) -> RoundBody:
    this, settings = present.round, present.settings
    takes, why = _takes(works, present, name)
    _, key = sealing_key(works.folder)
    budget = settings.privacy_budget
    return RoundBody(
        federation=hub.federation,
        task_id=present.run,
        round=this.ref.round,
        attempt=this.ref.attempt,
        state=this.state.value,
        kind=this.kind,
        takes=takes,
        why=why,
        envoy=name,
        has_approved=works.coordinator.has_approved(name, present.proposal),
        is_asked=name in this.cohort,
        has_answered=name in this.received,
        proposal_digest=present.proposal,
        plan_digest=this.ref.plan,
        model_version=present.model,
        layout_digest=present.layout.digest,
        elements=present.payload.size,
        tensors=[TensorBody(name=e.name, shape=list(e.shape), offset=e.offset) for e in present.payload.entries],
        is_coded=present.codec is not None,
        codec=present.codec,
        secure_aggregation=settings.secure_aggregation.value,
        max_norm=settings.protection.max_norm,
        closes_at=present.closes_at,
        sealing=None
        if settings.is_secure
        else SealingBody(schema_name=SCHEMA, suite=SUITE.value, key=key.hex(), recipient=RECIPIENT),
        log_key=hub.audit.public_key.hex() if hub.audit.public_key else None,
        privacy_budget=None
        if budget is None
        else {"epsilon": budget.epsilon, "delta": budget.delta, "mechanism": budget.mechanism.value},
        aggregation_config={
            "min_participants": settings.rounds.min_participants,
            "aggregation_method": "secure_sum" if settings.is_secure else settings.aggregation.method.value,
            "timeout_minutes": settings.rounds.round_timeout_seconds / 60,
            "max_rounds": settings.rounds.max_rounds,
        },
    )


def _takes(works: Works, present: Present, name: EnvoyName) -> tuple[str, str]:
    """What a post of this envoy would bring now; and why nothing, where it is nothing."""
    this = present.round
    if present.settings.is_secure:
        return "nothing", f"sums alone: {LEARNER}"
    if not this.state.takes_answers:
        return "nothing", f"the round is {this.state.value}"
    if name not in this.cohort:
        has_approved = works.coordinator.has_approved(name, present.proposal)
        return "nothing", f"{name} is not asked" if has_approved else f"{name} did not approve this"
    if name in this.received:
        return "nothing", f"{name} answered"
    return ("gradients" if this.kind is TaskKind.TRAIN else "metrics"), ""


def _open_proposals(works: Works) -> list[tuple[RunRecord, Proposal]]:
    live = (one for one in works.history.runs() if not one.state.is_over and one.proposal is not None)
    return [(one, proposal_of(one.proposal.content)) for one in live if one.proposal is not None]


def _proposal(works: Works, record: RunRecord, proposal: Proposal, asked: list[str]) -> ProposalBody:
    document = record.proposal
    if document is None:
        raise ValueError(f"{record.run} has no proposal")
    return ProposalBody(
        task_id=record.run,
        proposal_digest=proposal.digest,
        document=base64.b64encode(document.content).decode(),
        signature=base64.b64encode(document.signature).decode(),
        chain=document.chain.decode("ascii", "replace"),
        purpose=proposal.purpose,
        expires_at=proposal.expires_at,
        is_secure=proposal.is_secure,
        approved_by=[one for one in asked if works.coordinator.has_approved(EnvoyName(one), proposal.digest)],
    )
