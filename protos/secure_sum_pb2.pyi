from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Content(_message.Message):
    __slots__ = ("advert", "cohort", "shares", "delivery", "masked", "survivors", "consent", "consents", "unmasking")
    ADVERT_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    CONSENTS_FIELD_NUMBER: _ClassVar[int]
    UNMASKING_FIELD_NUMBER: _ClassVar[int]
    advert: Signed
    cohort: CohortCall
    shares: Shares
    delivery: Delivery
    masked: Signed
    survivors: SurvivorsCall
    consent: Signed
    consents: ConsentSet
    unmasking: Signed
    def __init__(self, advert: _Optional[_Union[Signed, _Mapping]] = ..., cohort: _Optional[_Union[CohortCall, _Mapping]] = ..., shares: _Optional[_Union[Shares, _Mapping]] = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ..., masked: _Optional[_Union[Signed, _Mapping]] = ..., survivors: _Optional[_Union[SurvivorsCall, _Mapping]] = ..., consent: _Optional[_Union[Signed, _Mapping]] = ..., consents: _Optional[_Union[ConsentSet, _Mapping]] = ..., unmasking: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...

class Signed(_message.Message):
    __slots__ = ("by", "kind", "body", "signature")
    BY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    by: str
    kind: str
    body: bytes
    signature: bytes
    def __init__(self, by: _Optional[str] = ..., kind: _Optional[str] = ..., body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AdvertBody(_message.Message):
    __slots__ = ("spec", "share_key", "mask_key", "metrics", "given_up")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SHARE_KEY_FIELD_NUMBER: _ClassVar[int]
    MASK_KEY_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    share_key: bytes
    mask_key: bytes
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    given_up: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, spec: _Optional[bytes] = ..., share_key: _Optional[bytes] = ..., mask_key: _Optional[bytes] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., given_up: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[int] = ...) -> None: ...

class CohortCall(_message.Message):
    __slots__ = ("adverts", "threshold")
    ADVERTS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    adverts: _containers.RepeatedCompositeFieldContainer[Signed]
    threshold: int
    def __init__(self, adverts: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., threshold: _Optional[int] = ...) -> None: ...

class DealBody(_message.Message):
    __slots__ = ("transcript", "mask_secret_commitment", "self_secret_commitment", "pieces")
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    MASK_SECRET_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SELF_SECRET_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    transcript: bytes
    mask_secret_commitment: bytes
    self_secret_commitment: bytes
    pieces: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, transcript: _Optional[bytes] = ..., mask_secret_commitment: _Optional[bytes] = ..., self_secret_commitment: _Optional[bytes] = ..., pieces: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("share_box", "pair_box", "mask_share_commitment", "self_share_commitment", "pair_commitment")
    SHARE_BOX_FIELD_NUMBER: _ClassVar[int]
    PAIR_BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_SHARE_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    SELF_SHARE_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    PAIR_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    share_box: bytes
    pair_box: bytes
    mask_share_commitment: bytes
    self_share_commitment: bytes
    pair_commitment: bytes
    def __init__(self, share_box: _Optional[bytes] = ..., pair_box: _Optional[bytes] = ..., mask_share_commitment: _Optional[bytes] = ..., self_share_commitment: _Optional[bytes] = ..., pair_commitment: _Optional[bytes] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("deal", "pieces")
    DEAL_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    deal: Signed
    pieces: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, deal: _Optional[_Union[Signed, _Mapping]] = ..., pieces: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Delivered(_message.Message):
    __slots__ = ("deal", "piece")
    DEAL_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    deal: Signed
    piece: bytes
    def __init__(self, deal: _Optional[_Union[Signed, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("dealt",)
    DEALT_FIELD_NUMBER: _ClassVar[int]
    dealt: _containers.RepeatedCompositeFieldContainer[Delivered]
    def __init__(self, dealt: _Optional[_Iterable[_Union[Delivered, _Mapping]]] = ...) -> None: ...

class MaskedBody(_message.Message):
    __slots__ = ("transcript", "delivery", "words", "digest")
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    transcript: bytes
    delivery: bytes
    words: int
    digest: bytes
    def __init__(self, transcript: _Optional[bytes] = ..., delivery: _Optional[bytes] = ..., words: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class SurvivorsCall(_message.Message):
    __slots__ = ("body",)
    BODY_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    def __init__(self, body: _Optional[bytes] = ...) -> None: ...

class ConsentBody(_message.Message):
    __slots__ = ("transcript", "delivery", "survivors", "audit_head")
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HEAD_FIELD_NUMBER: _ClassVar[int]
    transcript: bytes
    delivery: bytes
    survivors: _containers.RepeatedScalarFieldContainer[str]
    audit_head: bytes
    def __init__(self, transcript: _Optional[bytes] = ..., delivery: _Optional[bytes] = ..., survivors: _Optional[_Iterable[str]] = ..., audit_head: _Optional[bytes] = ...) -> None: ...

class ConsentSet(_message.Message):
    __slots__ = ("body", "voices")
    BODY_FIELD_NUMBER: _ClassVar[int]
    VOICES_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    voices: _containers.RepeatedCompositeFieldContainer[Voice]
    def __init__(self, body: _Optional[bytes] = ..., voices: _Optional[_Iterable[_Union[Voice, _Mapping]]] = ...) -> None: ...

class Voice(_message.Message):
    __slots__ = ("by", "signature")
    BY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    by: str
    signature: bytes
    def __init__(self, by: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class UnmaskingBody(_message.Message):
    __slots__ = ("transcript", "consent", "shares")
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    transcript: bytes
    consent: bytes
    shares: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, transcript: _Optional[bytes] = ..., consent: _Optional[bytes] = ..., shares: _Optional[_Iterable[bytes]] = ...) -> None: ...
