"""The statements of a secure sum as protobuf bytes, and back: the only reader and writer of ``secure_sum.proto``.

Everything has a limit that is checked here. Whatever is wrong becomes ``MalformedMessageError``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

from ...protos import secure_sum_pb2 as pb
from ..errors import MalformedMessageError
from ..messages import EnvoyName
from ..metrics import MAX_METRICS, MetricKind
from ..wire_fields import bounded, known, name, parse
from . import statements as s
from .sealing import BOX_OVERHEAD_BYTES, PUBLIC_KEY_BYTES
from .shamir import SHARE_BYTES
from .signed import SIGNATURE_BYTES, Kind, Signed
from .tallies import MetricShape
from .terms import MAX_COHORT

MAX_CONTENT_BYTES = 4 << 20
MAX_HEAD_BYTES = 256
MAX_GIVEN_UP = 64
_HASH = 32
_MOST_WORDS = 1 << 40
_KEYS = frozenset(PUBLIC_KEY_BYTES.values())
_SHARE_BOXES = frozenset(2 * SHARE_BYTES + added for added in BOX_OVERHEAD_BYTES.values())
_PAIR_BOXES = frozenset(32 + added for added in BOX_OVERHEAD_BYTES.values())
_METRIC_KINDS = {1: MetricKind.MEAN, 2: MetricKind.AUC}
_METRIC_CODES = {kind: code for code, kind in _METRIC_KINDS.items()}
_KINDS = {kind.value: kind for kind in Kind}
_SIGNED = {
    Kind.ADVERT: "advert",
    Kind.MASKED: "masked",
    Kind.CONSENT: "consent",
    Kind.UNMASKING: "unmasking",
}


def encode(content: s.Content) -> bytes:
    """One message.

    Raises:
        ValueError: a signed body that does not travel alone.
    """
    message = pb.Content()
    match content:
        case Signed():
            if content.kind not in _SIGNED:
                raise ValueError(f"a {content.kind.value} does not travel alone")
            getattr(message, _SIGNED[content.kind]).CopyFrom(_signed_to_wire(content))
        case s.CohortCall():
            adverts = map(_signed_to_wire, content.adverts)
            message.cohort.CopyFrom(pb.CohortCall(adverts=adverts, threshold=content.threshold))
        case s.Shares():
            message.shares.CopyFrom(pb.Shares(deal=_signed_to_wire(content.deal), pieces=content.pieces))
        case s.Delivery():
            dealt = (pb.Delivered(deal=_signed_to_wire(one.deal), piece=one.piece) for one in content.dealt)
            message.delivery.CopyFrom(pb.Delivery(dealt=dealt))
        case s.SurvivorsCall():
            message.survivors.CopyFrom(pb.SurvivorsCall(body=content.body))
        case s.ConsentSet():
            voices = (pb.Voice(by=one.by, signature=one.signature) for one in content.voices)
            message.consents.CopyFrom(pb.ConsentSet(body=content.body, voices=voices))
    return message.SerializeToString(deterministic=True)


def decode(raw: bytes) -> s.Content:
    """Read one message. Bodies stay bytes, and no signature is looked at.

    Raises:
        MalformedMessageError: it is none, or something in it is beyond its limits.
    """
    if len(raw) > MAX_CONTENT_BYTES:
        raise MalformedMessageError(f"a statement of {len(raw)} bytes, expected at most {MAX_CONTENT_BYTES}")
    message = parse(pb.Content, raw)
    which = message.WhichOneof("content")
    match which:
        case "advert" | "masked" | "consent" | "unmasking":
            statement = _signed(getattr(message, which))
            if _SIGNED.get(statement.kind) != which:
                raise MalformedMessageError(f"a {statement.kind.value} where a {which} belongs")
            return statement
        case "cohort":
            _count(message.cohort.adverts, "a cohort", MAX_COHORT)
            threshold = bounded(message.cohort.threshold, MAX_COHORT, "a threshold", 1)
            return s.CohortCall(tuple(map(_signed, message.cohort.adverts)), threshold)
        case "shares":
            _count(message.shares.pieces, "a deal", MAX_COHORT)
            return s.Shares(_signed(message.shares.deal), tuple(message.shares.pieces))
        case "delivery":
            _count(message.delivery.dealt, "a delivery", MAX_COHORT)
            return s.Delivery(tuple(s.Delivered(_signed(one.deal), one.piece) for one in message.delivery.dealt))
        case "survivors":
            return s.SurvivorsCall(message.survivors.body)
        case "consents":
            _count(message.consents.voices, "a set of consents", MAX_COHORT)
            voices = (
                s.Voice(_envoy(one.by), _sized(one.signature, SIGNATURE_BYTES, "a signature"))
                for one in message.consents.voices
            )
            return s.ConsentSet(message.consents.body, tuple(voices))
        case _:
            raise MalformedMessageError("a statement of a secure sum that says nothing known")


def advert_body(advert: s.Advert) -> bytes:
    """What an envoy signs when it advertises."""
    metrics = (pb.Metric(name=one.name, kind=_METRIC_CODES[one.kind]) for one in advert.metrics)
    return pb.AdvertBody(
        spec=advert.spec,
        share_key=advert.share_key,
        mask_key=advert.mask_key,
        metrics=metrics,
        given_up=advert.given_up,
    ).SerializeToString(deterministic=True)


def read_advert(body: bytes) -> s.Advert:
    """Read ``advert_body``.

    Raises:
        MalformedMessageError: as ``decode``; so do all readers below.
    """
    message = parse(pb.AdvertBody, body)
    for key in (message.share_key, message.mask_key):
        if len(key) not in _KEYS:
            raise MalformedMessageError(f"a public key of {len(key)} bytes, expected one of {sorted(_KEYS)}")
    _count(message.metrics, "an advert's metrics", MAX_METRICS)
    _count(message.given_up, "an advert's transcripts", MAX_GIVEN_UP)
    return s.Advert(
        spec=_hash(message.spec, "a spec"),
        share_key=message.share_key,
        mask_key=message.mask_key,
        metrics=tuple(_metric(one) for one in message.metrics),
        given_up=tuple(_hash(one, "a transcript given up") for one in message.given_up),
    )


def deal_body(deal: s.Deal) -> bytes:
    """What an envoy signs when it shares."""
    return pb.DealBody(
        transcript=deal.transcript,
        mask_secret_commitment=deal.mask_commitment,
        self_secret_commitment=deal.self_commitment,
        pieces=deal.pieces,
    ).SerializeToString(deterministic=True)


def read_deal(body: bytes) -> s.Deal:
    """Read ``deal_body``."""
    message = parse(pb.DealBody, body)
    _count(message.pieces, "a deal", MAX_COHORT)
    return s.Deal(
        transcript=_hash(message.transcript, "a deal's transcript"),
        mask_commitment=_hash(message.mask_secret_commitment, "a commitment"),
        self_commitment=_hash(message.self_secret_commitment, "a commitment"),
        pieces=tuple(_hash(one, "a piece's digest") for one in message.pieces),
    )


def piece_bytes(piece: s.Piece) -> bytes:
    """A piece; the deal signs its digest."""
    return pb.Piece(
        share_box=piece.share_box,
        pair_box=piece.pair_box,
        mask_share_commitment=piece.mask_share_commitment,
        self_share_commitment=piece.self_share_commitment,
        pair_commitment=piece.pair_commitment,
    ).SerializeToString(deterministic=True)


def read_piece(raw: bytes) -> s.Piece:
    """Read ``piece_bytes``."""
    message = parse(pb.Piece, raw)
    if message.share_box and len(message.share_box) not in _SHARE_BOXES:
        raise MalformedMessageError(f"a box of shares of {len(message.share_box)} bytes")
    if message.pair_box and len(message.pair_box) not in _PAIR_BOXES:
        raise MalformedMessageError(f"a box of a pair seed of {len(message.pair_box)} bytes")
    if bool(message.pair_box) != bool(message.pair_commitment):
        raise MalformedMessageError("a pair seed and its commitment go together")
    pair = _hash(message.pair_commitment, "a commitment") if message.pair_commitment else b""
    return s.Piece(
        share_box=message.share_box,
        pair_box=message.pair_box,
        mask_share_commitment=_hash(message.mask_share_commitment, "a commitment"),
        self_share_commitment=_hash(message.self_share_commitment, "a commitment"),
        pair_commitment=pair,
    )


def masked_body(header: s.MaskedHeader) -> bytes:
    """What an envoy signs when its vector is on the way."""
    return pb.MaskedBody(
        transcript=header.transcript, delivery=header.delivery, words=header.words, digest=header.digest
    ).SerializeToString(deterministic=True)


def read_masked(body: bytes) -> s.MaskedHeader:
    """Read ``masked_body``."""
    message = parse(pb.MaskedBody, body)
    return s.MaskedHeader(
        transcript=_hash(message.transcript, "a masked vector's transcript"),
        delivery=_hash(message.delivery, "a delivery"),
        words=bounded(message.words, _MOST_WORDS, "the words of a masked vector", 1),
        digest=_hash(message.digest, "a masked vector"),
    )


def consent_body(consent: s.Consent) -> bytes:
    """What the aggregator asks envoys to sign."""
    return pb.ConsentBody(
        transcript=consent.transcript,
        delivery=consent.delivery,
        survivors=consent.survivors,
        audit_head=consent.audit_head,
    ).SerializeToString(deterministic=True)


def read_consent(body: bytes) -> s.Consent:
    """Read ``consent_body``."""
    message = parse(pb.ConsentBody, body)
    _count(message.survivors, "a set of survivors", MAX_COHORT)
    _count(message.audit_head, "an audit head", MAX_HEAD_BYTES)
    return s.Consent(
        transcript=_hash(message.transcript, "a consent's transcript"),
        delivery=_hash(message.delivery, "a delivery"),
        survivors=tuple(map(_envoy, message.survivors)),
        audit_head=message.audit_head,
    )


def unmasking_body(unmasking: s.Unmasking) -> bytes:
    """What an envoy signs when it reveals its shares."""
    return pb.UnmaskingBody(
        transcript=unmasking.transcript, consent=unmasking.consent, shares=unmasking.shares
    ).SerializeToString(deterministic=True)


def read_unmasking(body: bytes) -> s.Unmasking:
    """Read ``unmasking_body``."""
    message = parse(pb.UnmaskingBody, body)
    _count(message.shares, "an unmasking", MAX_COHORT)
    return s.Unmasking(
        transcript=_hash(message.transcript, "an unmasking's transcript"),
        consent=_hash(message.consent, "a consent"),
        shares=tuple(_sized(one, SHARE_BYTES, "a share") for one in message.shares),
    )


def _signed_to_wire(statement: Signed) -> pb.Signed:
    return pb.Signed(by=statement.by, kind=statement.kind.value, body=statement.body, signature=statement.signature)


def _signed(message: pb.Signed) -> Signed:
    if message.kind not in _KINDS:
        raise MalformedMessageError(f"an unknown kind of statement: {message.kind[:80]!r}; the other side may be newer")
    signature = _sized(message.signature, SIGNATURE_BYTES, "a signature")
    return Signed(_envoy(message.by), _KINDS[message.kind], message.body, signature)


def _metric(message: pb.Metric) -> MetricShape:
    if not (0 < len(message.name) <= 32 and message.name.isascii() and message.name.isprintable()):
        raise MalformedMessageError("a metric's name has 1 to 32 printable ASCII characters")
    return MetricShape(message.name, known(_METRIC_KINDS, message.kind, "kind of metric"))


def _envoy(text: str) -> EnvoyName:
    return EnvoyName(name(text, "an envoy"))


def _hash(raw: bytes, what: str) -> bytes:
    return _sized(raw, _HASH, what)


def _sized(raw: bytes, length: int, what: str) -> bytes:
    if len(raw) != length:
        raise MalformedMessageError(f"{what} has {len(raw)} bytes, expected {length}")
    return raw


def _count(items: Sized | Iterable[object], what: str, most: int) -> None:
    if not isinstance(items, Sized) or len(items) > most:
        raise MalformedMessageError(f"{what} is longer than {most}")
