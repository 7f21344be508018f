"""What is said across the wire, as frozen values. ``wire.py`` turns them into bytes and back.

Adding a field here means touching ``protos/federation.proto`` and ``wire.py`` in the same commit. Every message
of a round carries a ``TaskRef``: run, round, attempt and plan digest.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType, TypeAlias

from .errors import ConfigError
from .metrics import MetricSum
from .privacy.values import PublishedEpsilon
from .secure_sum.terms import SumTerms
from .signed_document import SignedDocument
from .tensors import Digest

EnvoyName = NewType("EnvoyName", str)
"""As in the certificate: ``spiffe://FEDERATION/envoy/NAME``."""
RunId = NewType("RunId", str)

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""Federations, envoys, operators and runs: lower-case letters, digits, dots and hyphens, at most 63 characters."""

PART_BYTES = 1 << 20
"""Data of one part of a stream: of 1 to 4 MiB, the size with the least CPU a byte and the least memory a stream."""
MAX_APPROVED = 256
"""Proposals that a site says it approved, at most."""
MAX_PART_BYTES = 4 << 20


class TaskKind(Enum):
    """What an envoy is asked to do."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class PayloadKind(Enum):
    """What the bytes of an update are; an envoy refuses what it does not know."""

    PLAIN = "plain"  # the update itself
    CODED = "coded"  # what the run's codec made of it
    MASKED = "masked"  # words of a secure sum: either of the two in fixed point under masks, its tallies behind it


@dataclass(frozen=True, slots=True)
class AskedProtection:
    """What an experiment asks each site to add to its own protection; it can only add, never replace or weaken.

    Raises:
        ConfigError: out of range, or noise without the bound that it is measured by.
    """

    max_norm: float | None = None  # L2 of what leaves a site, in its units; > 0
    noise_multiplier: float = 0.0  # noise standard deviation / max_norm; at least 0

    def __post_init__(self) -> None:
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise ConfigError(f"max_norm is {self.max_norm:g}, expected more than 0; leave it out for no bound")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(f"noise_multiplier is {self.noise_multiplier:g}, expected at least 0")
        if self.noise_multiplier and self.max_norm is None:
            raise ConfigError(
                f"noise_multiplier is {self.noise_multiplier:g} and max_norm is not given; noise is measured by the"
                " bound: give both"
            )


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Names one task: a round of a run, by its attempt, under one plan."""

    run: RunId
    round: int  # from 1
    attempt: int  # from 1
    plan: Digest

    def __str__(self) -> str:
        attempt = f" (attempt {self.attempt})" if self.attempt > 1 else ""
        return f"round {self.round}{attempt} of {self.run}"


@dataclass(frozen=True, slots=True)
class Task:
    """One round's order to one envoy. With ``sum`` the answer is masked, and ``payload`` is what is under the masks."""

    ref: TaskRef
    kind: TaskKind
    model: Digest  # of the safetensors file
    model_bytes: int
    layout: Digest
    seed: bytes  # 32 bytes, the same for every envoy of the run
    seconds_left: float
    min_participants: int
    cohort: tuple[EnvoyName, ...]
    payload: PayloadKind = PayloadKind.PLAIN
    codec: Digest | None = None  # given where the payload is coded, and nowhere else
    asked: AskedProtection = AskedProtection()
    sum: SumTerms | None = None  # None: without secure aggregation
    proposal: Digest | None = None  # what the site must have approved
    patches: tuple[SignedDocument, ...] = ()  # all changes to the run so far, in their order
    fairness_min_cell: int = 0  # sites may publish by subgroups, of cells of so many people at least; 0: not asked


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The task is over without this envoy; local work on it stops."""

    ref: TaskRef
    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """The line stands, and there is no work for now."""


@dataclass(frozen=True, slots=True)
class SumItem:
    """What the aggregator of a secure sum says to one envoy; ``utils/secure_sum/encoding.py`` reads the content."""

    ref: TaskRef
    content: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What is proposed to a site; nothing of it runs before the site's data manager approves it."""

    run: RunId
    proposal: SignedDocument


WorkItem: TypeAlias = Task | Withdrawal | Idle | SumItem | Offer


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Heard; and what the director's clock and audit log say, where they are told."""

    now: float = 0.0  # seconds since 1970; 0: not told
    audit_head: bytes = b""  # ``SignedHead``; empty: none


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Asks who answers."""


@dataclass(frozen=True, slots=True)
class HelloReply:
    """Who answers, and what its clock says."""

    federation: str
    software: str
    now: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """An envoy asks for work and says what it already holds, and what its site approved."""

    software: str
    held: tuple[TaskRef, ...] = ()
    wait_seconds: float = 0.0
    approved: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """A model, manifest or blob by digest, from an offset on."""

    digest: Digest
    offset: int = 0
    ref: TaskRef | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """The first part of a stream."""

    length: int  # bytes of the whole
    offset: int = 0  # where the data starts
    grant: str = ""  # uploads alone
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """Some bytes of a stream. ``content`` may be a view that is only good until the next part."""

    content: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Closing:
    """The last part of an upload: SHA-256 of the whole, from offset 0 on."""

    digest: Digest


Part: TypeAlias = Opening | Data | Closing


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """Announces one update (local minus global) before its bytes.

    Without examples it is a *withheld* one: zeros, sent where a site keeps its update to itself and does not wish to
    say so by silence. A masked one says neither examples nor metrics: they are inside.
    """

    ref: TaskRef
    layout: Digest  # of the plan's updates, coded or not
    length: int  # bytes
    num_examples: int  # 0: withheld
    metrics: tuple[MetricSum, ...] = ()
    payload: PayloadKind = PayloadKind.PLAIN
    codec: Digest | None = None
    privacy: PublishedEpsilon | None = None  # what the data set has spent, with this update
    leakage_score: float | None = None  # of the site's leak test of the plan, where the site publishes it
    fairness: SignedDocument | None = None  # ``utils.fairness``: of the site's held-out examples, where it publishes it


@dataclass(frozen=True, slots=True)
class Receipt:
    """The director has it, and a kill -9 does not lose it."""

    ref: TaskRef
    digest: Digest
    length: int


@dataclass(frozen=True, slots=True)
class Turn:
    """The envoy may upload now, from ``offset`` on."""

    ref: TaskRef
    grant: str
    offset: int
    part_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: ask again."""

    ref: TaskRef


Grant: TypeAlias = Turn | Wait | Receipt


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """The answer to an evaluation task."""

    ref: TaskRef
    metrics: tuple[MetricSum, ...]
    fairness: SignedDocument | None = None  # as in an ``UpdateHeader``


@dataclass(frozen=True, slots=True)
class SumStatement:
    """What an envoy says in a secure sum; ``utils/secure_sum/encoding.py`` reads the content."""

    ref: TaskRef
    content: bytes


@dataclass(frozen=True, slots=True)
class SumReply:
    """The answer to a statement; empty where what is to come is pushed."""

    content: bytes = b""


@dataclass(frozen=True, slots=True)
class RosterRequest:
    """Asks who is in the federation."""


@dataclass(frozen=True, slots=True)
class RosterMember:
    """One envoy, by the director's word; whether that is believed is each site's own decision."""

    name: EnvoyName
    organization: str
    identity_key: bytes  # Ed25519 public key, 32 bytes


@dataclass(frozen=True, slots=True)
class RosterReply:
    """All envoys of the federation, by name."""

    federation: str
    members: tuple[RosterMember, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An envoy will not or cannot; the round goes on without it."""

    ref: TaskRef
    error: str  # the error's class
    reason: str  # one line, safe to show


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life, with what the site approved and the head of its audit log."""

    held: tuple[TaskRef, ...] = ()
    approved: tuple[Digest, ...] = ()
    audit_head: bytes = b""  # ``SignedHead``; empty: none


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What an envoy sends with its bootstrap certificate; private keys stay at the site."""

    signing_request: bytes  # PKCS#10, DER, P-256
    identity_key: bytes  # Ed25519 public key, 32 bytes
    identity_proof: bytes  # Ed25519 signature over both signing requests
    renewal_request: bytes = b""  # PKCS#10, DER, P-256; empty from one that asks for no renewal certificate


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """What a member sends for new certificates, signed by the identity key that it is known by."""

    signing_request: bytes  # PKCS#10, DER, P-256
    renewal_request: bytes  # PKCS#10, DER, P-256
    asked_at: float  # seconds since 1970, by the member's clock
    identity_proof: bytes  # Ed25519


@dataclass(frozen=True, slots=True)
class JoinReply:
    """What the registrar answers, to a join and to a renewal."""

    federation: str
    name: EnvoyName
    organization: str
    chain: bytes  # PEM: leaf, then issuer
    identity_certificate: bytes  # PEM
    renewal_certificate: bytes = b""  # PEM; good for Renew alone


@dataclass(frozen=True, slots=True)
class EnvoyView:
    """What an operator sees of an envoy."""

    name: EnvoyName
    organization: str
    connected: bool
    silent_seconds: float
    suspicion: str = ""  # why it is not asked: what is wrong with its audit log


@dataclass(frozen=True, slots=True)
class SumView:
    """What a secure sum leaves in the record of its round."""

    survivors: tuple[EnvoyName, ...]  # whose updates are in the sum
    cohort: int  # envoys that had exchanged keys
    threshold: int
    total_weight: int
    transcript: Digest


@dataclass(frozen=True, slots=True)
class RoundView:
    """What an operator sees of a round: sums over sites, and of one site nothing but what it published."""

    round: int
    attempt: int
    kind: TaskKind
    state: str
    invited: int
    received: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    model: Digest | None = None
    reason: str = ""
    sum: SumView | None = None  # None: a round without secure aggregation, or not closed
    privacy: dict[EnvoyName, PublishedEpsilon] = field(default_factory=dict)  # of the sites that published theirs
    leakage: dict[EnvoyName, float] = field(default_factory=dict)  # scores of leak tests, likewise
    fairness: dict[EnvoyName, SignedDocument] = field(default_factory=dict)  # ``utils.fairness``, likewise


@dataclass(frozen=True, slots=True)
class ExperimentView:
    """What an operator sees of an experiment."""

    run: RunId
    name: str
    state: str
    reason: str
    plan: Digest
    model: Digest | None
    model_bytes: int
    max_rounds: int
    submitted_at: float
    rounds: tuple[RoundView, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    proposal: Digest | None = None
    approved_by: tuple[EnvoyName, ...] = ()  # as far as they said so since the director started
    patches: int = 0  # changes to the run so far

    @property
    def is_over(self) -> bool:
        """Nothing moves it any more."""
        return self.state not in ("queued", "running", "paused")


@dataclass(frozen=True, slots=True)
class StatusReply:
    """What ``director status`` shows."""

    federation: str
    software: str
    up_seconds: float
    envoys: tuple[EnvoyView, ...]
    experiments: tuple[ExperimentView, ...]


@dataclass(frozen=True, slots=True)
class Submission:
    """An experiment as an operator submits it."""

    settings: str  # the text of experiment.toml
    manifest: bytes  # raw bytes of the plan's manifest
    proposal: SignedDocument | None = None  # what sites are asked to approve


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """Blobs still to be put, or the run that was queued."""

    missing: tuple[Digest, ...]
    run: RunId | None
