from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_TRAIN: _ClassVar[TaskKind]
    TASK_KIND_EVALUATE: _ClassVar[TaskKind]

class PayloadKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAYLOAD_KIND_UNSPECIFIED: _ClassVar[PayloadKind]
    PAYLOAD_KIND_PLAIN: _ClassVar[PayloadKind]
    PAYLOAD_KIND_CODED: _ClassVar[PayloadKind]
    PAYLOAD_KIND_MASKED: _ClassVar[PayloadKind]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_TRAIN: TaskKind
TASK_KIND_EVALUATE: TaskKind
PAYLOAD_KIND_UNSPECIFIED: PayloadKind
PAYLOAD_KIND_PLAIN: PayloadKind
PAYLOAD_KIND_CODED: PayloadKind
PAYLOAD_KIND_MASKED: PayloadKind

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("federation", "software", "now")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    federation: str
    software: str
    now: float
    def __init__(self, federation: _Optional[str] = ..., software: _Optional[str] = ..., now: _Optional[float] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("signing_request", "identity_key", "identity_proof", "renewal_request")
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PROOF_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    identity_key: bytes
    identity_proof: bytes
    renewal_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ..., identity_key: _Optional[bytes] = ..., identity_proof: _Optional[bytes] = ..., renewal_request: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("signing_request", "renewal_request", "asked_at", "identity_proof")
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_REQUEST_FIELD_NUMBER: _ClassVar[int]
    ASKED_AT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_PROOF_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    renewal_request: bytes
    asked_at: float
    identity_proof: bytes
    def __init__(self, signing_request: _Optional[bytes] = ..., renewal_request: _Optional[bytes] = ..., asked_at: _Optional[float] = ..., identity_proof: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("federation", "name", "organization", "chain", "identity_certificate", "renewal_certificate")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    federation: str
    name: str
    organization: str
    chain: bytes
    identity_certificate: bytes
    renewal_certificate: bytes
    def __init__(self, federation: _Optional[str] = ..., name: _Optional[str] = ..., organization: _Optional[str] = ..., chain: _Optional[bytes] = ..., identity_certificate: _Optional[bytes] = ..., renewal_certificate: _Optional[bytes] = ...) -> None: ...

class TaskRef(_message.Message):
    __slots__ = ("run", "round", "attempt", "plan_digest")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    attempt: int
    plan_digest: bytes
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., plan_digest: _Optional[bytes] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ("software", "held", "wait_seconds", "approved")
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    software: str
    held: _containers.RepeatedCompositeFieldContainer[TaskRef]
    wait_seconds: float
    approved: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, software: _Optional[str] = ..., held: _Optional[_Iterable[_Union[TaskRef, _Mapping]]] = ..., wait_seconds: _Optional[float] = ..., approved: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WorkItem(_message.Message):
    __slots__ = ("task", "withdrawal", "idle", "sum_item", "offer")
    TASK_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    SUM_ITEM_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    task: Task
    withdrawal: Withdrawal
    idle: Idle
    sum_item: SumItem
    offer: Offer
    def __init__(self, task: _Optional[_Union[Task, _Mapping]] = ..., withdrawal: _Optional[_Union[Withdrawal, _Mapping]] = ..., idle: _Optional[_Union[Idle, _Mapping]] = ..., sum_item: _Optional[_Union[SumItem, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ...) -> None: ...

class SignedDocument(_message.Message):
    __slots__ = ("content", "signature", "chain")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    signature: bytes
    chain: bytes
    def __init__(self, content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., chain: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("run", "proposal")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    run: str
    proposal: SignedDocument
    def __init__(self, run: _Optional[str] = ..., proposal: _Optional[_Union[SignedDocument, _Mapping]] = ...) -> None: ...

class Idle(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Task(_message.Message):
    __slots__ = ("ref", "kind", "model_digest", "model_bytes", "layout_digest", "seed", "seconds_left", "min_participants", "cohort", "payload", "codec_digest", "sum", "proposal_digest", "patches", "asked_max_norm", "asked_noise_multiplier", "fairness_min_cell")
    REF_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    MIN_PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CODEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    ASKED_MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    ASKED_NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    FAIRNESS_MIN_CELL_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    kind: TaskKind
    model_digest: bytes
    model_bytes: int
    layout_digest: bytes
    seed: bytes
    seconds_left: float
    min_participants: int
    cohort: _containers.RepeatedScalarFieldContainer[str]
    payload: PayloadKind
    codec_digest: bytes
    sum: SumTerms
    proposal_digest: bytes
    patches: _containers.RepeatedCompositeFieldContainer[SignedDocument]
    asked_max_norm: float
    asked_noise_multiplier: float
    fairness_min_cell: int
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., model_digest: _Optional[bytes] = ..., model_bytes: _Optional[int] = ..., layout_digest: _Optional[bytes] = ..., seed: _Optional[bytes] = ..., seconds_left: _Optional[float] = ..., min_participants: _Optional[int] = ..., cohort: _Optional[_Iterable[str]] = ..., payload: _Optional[_Union[PayloadKind, str]] = ..., codec_digest: _Optional[bytes] = ..., sum: _Optional[_Union[SumTerms, _Mapping]] = ..., proposal_digest: _Optional[bytes] = ..., patches: _Optional[_Iterable[_Union[SignedDocument, _Mapping]]] = ..., asked_max_norm: _Optional[float] = ..., asked_noise_multiplier: _Optional[float] = ..., fairness_min_cell: _Optional[int] = ...) -> None: ...

class SumTerms(_message.Message):
    __slots__ = ("suite", "bounds", "max_weight", "equal_weights", "aggregator", "histogram", "group", "noise")
    SUITE_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    MAX_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    EQUAL_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    suite: str
    bounds: _containers.RepeatedScalarFieldContainer[float]
    max_weight: int
    equal_weights: bool
    aggregator: str
    histogram: bool
    group: int
    noise: SumNoise
    def __init__(self, suite: _Optional[str] = ..., bounds: _Optional[_Iterable[float]] = ..., max_weight: _Optional[int] = ..., equal_weights: bool = ..., aggregator: _Optional[str] = ..., histogram: bool = ..., group: _Optional[int] = ..., noise: _Optional[_Union[SumNoise, _Mapping]] = ...) -> None: ...

class SumNoise(_message.Message):
    __slots__ = ("max_norm", "noise_multiplier", "parts")
    MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    max_norm: float
    noise_multiplier: float
    parts: int
    def __init__(self, max_norm: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., parts: _Optional[int] = ...) -> None: ...

class SumItem(_message.Message):
    __slots__ = ("ref", "content")
    REF_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    content: bytes
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., content: _Optional[bytes] = ...) -> None: ...

class SumStatement(_message.Message):
    __slots__ = ("ref", "content")
    REF_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    content: bytes
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., content: _Optional[bytes] = ...) -> None: ...

class SumReply(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class RosterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RosterMember(_message.Message):
    __slots__ = ("name", "organization", "identity_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    organization: str
    identity_key: bytes
    def __init__(self, name: _Optional[str] = ..., organization: _Optional[str] = ..., identity_key: _Optional[bytes] = ...) -> None: ...

class RosterReply(_message.Message):
    __slots__ = ("federation", "members")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    federation: str
    members: _containers.RepeatedCompositeFieldContainer[RosterMember]
    def __init__(self, federation: _Optional[str] = ..., members: _Optional[_Iterable[_Union[RosterMember, _Mapping]]] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("ref", "reason")
    REF_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    reason: str
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("digest", "offset", "ref")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    ref: TaskRef
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., ref: _Optional[_Union[TaskRef, _Mapping]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("opening", "data", "closing")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    data: bytes
    closing: Closing
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., data: _Optional[bytes] = ..., closing: _Optional[_Union[Closing, _Mapping]] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("grant", "offset", "length", "digest")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    grant: str
    offset: int
    length: int
    digest: bytes
    def __init__(self, grant: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Closing(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "kind", "values", "weight")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Metric.Kind]
        KIND_MEAN: _ClassVar[Metric.Kind]
        KIND_AUC: _ClassVar[Metric.Kind]
    KIND_UNSPECIFIED: Metric.Kind
    KIND_MEAN: Metric.Kind
    KIND_AUC: Metric.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: Metric.Kind
    values: _containers.RepeatedScalarFieldContainer[float]
    weight: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[Metric.Kind, str]] = ..., values: _Optional[_Iterable[float]] = ..., weight: _Optional[float] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("ref", "layout_digest", "payload", "codec_digest", "length", "num_examples", "metrics", "privacy", "leakage_score", "fairness")
    REF_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CODEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    LEAKAGE_SCORE_FIELD_NUMBER: _ClassVar[int]
    FAIRNESS_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    layout_digest: bytes
    payload: PayloadKind
    codec_digest: bytes
    length: int
    num_examples: int
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    privacy: PublishedEpsilon
    leakage_score: float
    fairness: SignedDocument
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., layout_digest: _Optional[bytes] = ..., payload: _Optional[_Union[PayloadKind, str]] = ..., codec_digest: _Optional[bytes] = ..., length: _Optional[int] = ..., num_examples: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., privacy: _Optional[_Union[PublishedEpsilon, _Mapping]] = ..., leakage_score: _Optional[float] = ..., fairness: _Optional[_Union[SignedDocument, _Mapping]] = ...) -> None: ...

class PublishedEpsilon(_message.Message):
    __slots__ = ("epsilon", "delta", "unit")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    delta: float
    unit: str
    def __init__(self, epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("ref", "turn", "wait", "receipt")
    REF_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    turn: Turn
    wait: Wait
    receipt: Receipt
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("grant", "offset", "part_bytes")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PART_BYTES_FIELD_NUMBER: _ClassVar[int]
    grant: str
    offset: int
    part_bytes: int
    def __init__(self, grant: _Optional[str] = ..., offset: _Optional[int] = ..., part_bytes: _Optional[int] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("ref", "digest", "length")
    REF_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    digest: bytes
    length: int
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., digest: _Optional[bytes] = ..., length: _Optional[int] = ...) -> None: ...

class MetricsReport(_message.Message):
    __slots__ = ("ref", "metrics", "fairness")
    REF_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FAIRNESS_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    fairness: SignedDocument
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., fairness: _Optional[_Union[SignedDocument, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("ref", "error", "reason")
    REF_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ref: TaskRef
    error: str
    reason: str
    def __init__(self, ref: _Optional[_Union[TaskRef, _Mapping]] = ..., error: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("held", "approved", "audit_head")
    HELD_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    held: _containers.RepeatedCompositeFieldContainer[TaskRef]
    approved: _containers.RepeatedScalarFieldContainer[bytes]
    audit_head: bytes
    def __init__(self, held: _Optional[_Iterable[_Union[TaskRef, _Mapping]]] = ..., approved: _Optional[_Iterable[bytes]] = ..., audit_head: _Optional[bytes] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("now", "audit_head")
    NOW_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    now: float
    audit_head: bytes
    def __init__(self, now: _Optional[float] = ..., audit_head: _Optional[bytes] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EnvoyView(_message.Message):
    __slots__ = ("name", "organization", "connected", "silent_seconds", "suspicion")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SUSPICION_FIELD_NUMBER: _ClassVar[int]
    name: str
    organization: str
    connected: bool
    silent_seconds: float
    suspicion: str
    def __init__(self, name: _Optional[str] = ..., organization: _Optional[str] = ..., connected: bool = ..., silent_seconds: _Optional[float] = ..., suspicion: _Optional[str] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("federation", "software", "up_seconds", "envoys", "experiments")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    UP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENVOYS_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    federation: str
    software: str
    up_seconds: float
    envoys: _containers.RepeatedCompositeFieldContainer[EnvoyView]
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentView]
    def __init__(self, federation: _Optional[str] = ..., software: _Optional[str] = ..., up_seconds: _Optional[float] = ..., envoys: _Optional[_Iterable[_Union[EnvoyView, _Mapping]]] = ..., experiments: _Optional[_Iterable[_Union[ExperimentView, _Mapping]]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("settings", "manifest", "proposal")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    settings: str
    manifest: bytes
    proposal: SignedDocument
    def __init__(self, settings: _Optional[str] = ..., manifest: _Optional[bytes] = ..., proposal: _Optional[_Union[SignedDocument, _Mapping]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("missing", "run")
    MISSING_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedScalarFieldContainer[bytes]
    run: str
    def __init__(self, missing: _Optional[_Iterable[bytes]] = ..., run: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("experiments",)
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentView]
    def __init__(self, experiments: _Optional[_Iterable[_Union[ExperimentView, _Mapping]]] = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class MetricValue(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class SumView(_message.Message):
    __slots__ = ("survivors", "cohort", "threshold", "total_weight", "transcript")
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TOTAL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    survivors: _containers.RepeatedScalarFieldContainer[str]
    cohort: int
    threshold: int
    total_weight: int
    transcript: bytes
    def __init__(self, survivors: _Optional[_Iterable[str]] = ..., cohort: _Optional[int] = ..., threshold: _Optional[int] = ..., total_weight: _Optional[int] = ..., transcript: _Optional[bytes] = ...) -> None: ...

class RoundView(_message.Message):
    __slots__ = ("round", "attempt", "kind", "state", "invited", "received", "seconds", "metrics", "model_digest", "reason", "sum", "privacy", "leakage", "fairness")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INVITED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    LEAKAGE_FIELD_NUMBER: _ClassVar[int]
    FAIRNESS_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    kind: TaskKind
    state: str
    invited: int
    received: int
    seconds: float
    metrics: _containers.RepeatedCompositeFieldContainer[MetricValue]
    model_digest: bytes
    reason: str
    sum: SumView
    privacy: _containers.RepeatedCompositeFieldContainer[SitePrivacy]
    leakage: _containers.RepeatedCompositeFieldContainer[SiteLeakage]
    fairness: _containers.RepeatedCompositeFieldContainer[SiteFairness]
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., state: _Optional[str] = ..., invited: _Optional[int] = ..., received: _Optional[int] = ..., seconds: _Optional[float] = ..., metrics: _Optional[_Iterable[_Union[MetricValue, _Mapping]]] = ..., model_digest: _Optional[bytes] = ..., reason: _Optional[str] = ..., sum: _Optional[_Union[SumView, _Mapping]] = ..., privacy: _Optional[_Iterable[_Union[SitePrivacy, _Mapping]]] = ..., leakage: _Optional[_Iterable[_Union[SiteLeakage, _Mapping]]] = ..., fairness: _Optional[_Iterable[_Union[SiteFairness, _Mapping]]] = ...) -> None: ...

class SiteFairness(_message.Message):
    __slots__ = ("envoy", "document")
    ENVOY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    envoy: str
    document: SignedDocument
    def __init__(self, envoy: _Optional[str] = ..., document: _Optional[_Union[SignedDocument, _Mapping]] = ...) -> None: ...

class SiteLeakage(_message.Message):
    __slots__ = ("envoy", "score")
    ENVOY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    envoy: str
    score: float
    def __init__(self, envoy: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class SitePrivacy(_message.Message):
    __slots__ = ("envoy", "privacy")
    ENVOY_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    envoy: str
    privacy: PublishedEpsilon
    def __init__(self, envoy: _Optional[str] = ..., privacy: _Optional[_Union[PublishedEpsilon, _Mapping]] = ...) -> None: ...

class ExperimentView(_message.Message):
    __slots__ = ("run", "name", "state", "reason", "plan_digest", "model_digest", "model_bytes", "max_rounds", "rounds", "submitted_at", "bytes_up", "bytes_down", "proposal_digest", "approved_by", "patches")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    APPROVED_BY_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    run: str
    name: str
    state: str
    reason: str
    plan_digest: bytes
    model_digest: bytes
    model_bytes: int
    max_rounds: int
    rounds: _containers.RepeatedCompositeFieldContainer[RoundView]
    submitted_at: float
    bytes_up: int
    bytes_down: int
    proposal_digest: bytes
    approved_by: _containers.RepeatedScalarFieldContainer[str]
    patches: int
    def __init__(self, run: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., plan_digest: _Optional[bytes] = ..., model_digest: _Optional[bytes] = ..., model_bytes: _Optional[int] = ..., max_rounds: _Optional[int] = ..., rounds: _Optional[_Iterable[_Union[RoundView, _Mapping]]] = ..., submitted_at: _Optional[float] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., proposal_digest: _Optional[bytes] = ..., approved_by: _Optional[_Iterable[str]] = ..., patches: _Optional[int] = ...) -> None: ...
