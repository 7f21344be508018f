"""One field of a message at a time: what a number, a digest, a name, a line or a task's name may be.

``wire``, ``wire_control`` and ``wire_sums`` compose these. Whatever a peer sends wrong becomes a
``MalformedMessageError`` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ..protos import federation_pb2 as pb
from . import messages as m
from .errors import MalformedMessageError
from .privacy.values import PublishedEpsilon, Unit
from .signed_document import MAX_DOCUMENT_BYTES, SIGNATURE_BYTES, SignedDocument
from .tensors import Digest

_P = TypeVar("_P", bound=Message)
_K = TypeVar("_K")
DIGEST_BYTES = 32
_MAX_TEXT = 2_000
_MAX_ROUND = 1 << 30
_MAX_CHAIN_BYTES = 64 << 10


def parse(kind: Callable[[], _P], raw: bytes) -> _P:
    """The protobuf message that some bytes are.

    Raises:
        MalformedMessageError: as every function here.
    """
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise MalformedMessageError(f"{len(raw)} bytes that are no {type(message).__name__}") from error
    return message


def digest_bytes(digest: Digest | None) -> bytes:
    """A digest as the wire has it: 32 bytes, or none."""
    return bytes.fromhex(digest) if digest else b""


def digest(raw: bytes, what: str) -> Digest:
    """A SHA-256 that must be there."""
    if len(raw) != DIGEST_BYTES:
        raise MalformedMessageError(f"{what} has a digest of {len(raw)} bytes, expected {DIGEST_BYTES}")
    return Digest(raw.hex())


def optional_digest(raw: bytes, what: str) -> Digest | None:
    """A SHA-256 that may be left out."""
    return digest(raw, what) if raw else None


def name(text: str, what: str) -> str:
    """A federation's, an envoy's or a run's name; never a path."""
    if not m.NAME_PATTERN.fullmatch(text):
        raise MalformedMessageError(f"{what} has a name that is no name: {text[:80]!r}")
    return text


def line(text: str, what: str) -> str:
    """One line of text that may be shown and logged."""
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise MalformedMessageError(f"{what} is not one printable line of at most {_MAX_TEXT} characters")
    return text


def said(text: str) -> str:
    """A text as a line that ``line`` takes: reasons quote what others wrote, and one must not break a whole message."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:_MAX_TEXT]


def bounded(number: int, most: int, what: str, least: int = 0) -> int:
    """A whole number in a range."""
    if not least <= number <= most:
        raise MalformedMessageError(f"{what} is {number}, expected {least} to {most}")
    return number


def number(number: float, what: str) -> float:
    """A fraction that is neither infinite nor NaN."""
    if not math.isfinite(number):
        raise MalformedMessageError(f"{what} is {number}, expected a finite number")
    return number


def seconds(left: float, what: str, most: float) -> float:
    """A time that is left; none where it is over."""
    if number(left, what) > most:
        raise MalformedMessageError(f"{what} is {left:g}, expected {most:g} at most")
    return max(left, 0.0)


def known(table: dict[int, _K], code: int, what: str) -> _K:
    """What a code of an enumeration means."""
    if code not in table:
        raise MalformedMessageError(f"an unknown {what} ({code}); the other side may be newer")
    return table[code]


def ref_to_wire(ref: m.TaskRef) -> pb.TaskRef:
    """A task's name."""
    return pb.TaskRef(run=ref.run, round=ref.round, attempt=ref.attempt, plan_digest=bytes.fromhex(ref.plan))


def ref_from_wire(ref: pb.TaskRef) -> m.TaskRef:
    """A task's name, checked."""
    this = bounded(ref.round, _MAX_ROUND, "a round", least=1)
    attempt = bounded(ref.attempt, _MAX_ROUND, "an attempt", least=1)
    return m.TaskRef(m.RunId(name(ref.run, "a run")), this, attempt, digest(ref.plan_digest, "a plan"))


def published_to_wire(privacy: PublishedEpsilon | None) -> pb.PublishedEpsilon | None:
    """What a site publishes of its privacy ledger; none where it publishes nothing."""
    if privacy is None:
        return None
    return pb.PublishedEpsilon(epsilon=privacy.epsilon, delta=privacy.delta, unit=privacy.unit.value)


def published(message: pb.PublishedEpsilon) -> PublishedEpsilon:
    """An epsilon with its delta and a unit that is known."""
    try:
        return PublishedEpsilon(message.epsilon, message.delta, Unit(message.unit))
    except ValueError:
        raise MalformedMessageError(
            f"privacy: epsilon {message.epsilon:g}, delta {message.delta:g}, unit {message.unit[:20]!r}; expected a"
            " finite number of at least 0, one in (0, 1), and record, patient or site"
        ) from None


def fairness_to_pb(document: SignedDocument | None) -> pb.SignedDocument | None:
    """What a site publishes by subgroups; none where it publishes nothing."""
    return None if document is None else document_to_pb(document)


def fairness_from_pb(document: pb.SignedDocument) -> SignedDocument:
    """The same; whether it is the site's, and what it says, is for those to check who keep it."""
    return document_from_pb(document, "a fairness report")


def leakage(score: float) -> float:
    """The score of a leak test: a mean SSIM gain over chance, so from -1 to 1."""
    if not -1 <= score <= 1:
        raise MalformedMessageError(f"a leakage score of {score:g}, expected -1 to 1")
    return score


def document_to_pb(document: SignedDocument) -> pb.SignedDocument:
    """A signed text."""
    return pb.SignedDocument(content=document.content, signature=document.signature, chain=document.chain)


def document_from_pb(document: pb.SignedDocument, what: str) -> SignedDocument:
    """A signed text, as long as one may be; who signed what is for those to check who act upon it."""
    if not 0 < len(document.content) <= MAX_DOCUMENT_BYTES or len(document.chain) > _MAX_CHAIN_BYTES:
        raise MalformedMessageError(
            f"{what} of {len(document.content)} bytes with {len(document.chain)} of certificates, expected 1 to"
            f" {MAX_DOCUMENT_BYTES} and at most {_MAX_CHAIN_BYTES}"
        )
    if len(document.signature) != SIGNATURE_BYTES:
        raise MalformedMessageError(
            f"{what} with a signature of {len(document.signature)} bytes, expected {SIGNATURE_BYTES}"
        )
    return SignedDocument(document.content, document.signature, document.chain)
