"""What the director and an aggregator that is an envoy say to each other, in the items and statements of a secure sum.

| message    | by         | says                                             |
|------------|------------|--------------------------------------------------|
| `Order`    | director   | sum this: the digest under which the case lies   |
| `Part`     | aggregator | some bytes of the unmasked total                 |
| `Finished` | aggregator | that was all of it: its digest, signed           |
| `Declined` | aggregator | there will be no total, and why                  |

None of them is a statement of ``encoding``: each begins with a mark of its own, which no protobuf message of ours has.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import MalformedMessageError
from ..tensors import Digest
from .signed import SIGNATURE_BYTES

MARK = b"\xff\xfffedveil-sum/1 total "
"""Field 2,047 of wire type 7, which protobuf does not have."""
PART_BYTES = 1 << 20
MAX_REASON = 1000
_DIGEST_BYTES = 32
_OFFSET = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Order:
    """Sum this."""

    case: Digest


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the total."""

    offset: int  # in bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """All of the total was told."""

    total: Digest
    signature: bytes


@dataclass(frozen=True, slots=True)
class Declined:
    """There will be no total."""

    reason: str


Handover: TypeAlias = Order | Part | Finished | Declined


def is_handover(content: bytes) -> bool:
    """Is it one of these messages, rather than a statement of the sum?"""
    return content.startswith(MARK)


def to_bytes(message: Handover) -> bytes:
    """As it travels."""
    match message:
        case Order(case):
            return MARK + b"O" + bytes.fromhex(case)
        case Part(offset, content):
            return MARK + b"P" + _OFFSET.pack(offset) + content
        case Finished(total, signature):
            return MARK + b"F" + bytes.fromhex(total) + signature
        case Declined(reason):
            return MARK + b"D" + reason[:MAX_REASON].encode()


def from_bytes(raw: bytes) -> Handover:
    """Read what ``to_bytes`` wrote.

    Raises:
        MalformedMessageError: it is none of these.
    """
    kind, body = raw[len(MARK) : len(MARK) + 1], raw[len(MARK) + 1 :]
    if not is_handover(raw):
        raise MalformedMessageError("neither an order nor a total of a secure sum")
    match kind:
        case b"O" if len(body) == _DIGEST_BYTES:
            return Order(Digest(body.hex()))
        case b"P" if _OFFSET.size < len(body) <= _OFFSET.size + PART_BYTES:
            return Part(_OFFSET.unpack_from(body)[0], body[_OFFSET.size :])
        case b"F" if len(body) == _DIGEST_BYTES + SIGNATURE_BYTES:
            return Finished(Digest(body[:_DIGEST_BYTES].hex()), body[_DIGEST_BYTES:])
        case b"D" if len(body) <= 4 * MAX_REASON:
            return Declined(_printable(body))
        case _:
            raise MalformedMessageError(f"a {len(body)} bytes long message of kind {kind!r} about a total")


def _printable(raw: bytes) -> str:
    return "".join(one if one.isprintable() else "?" for one in raw.decode("utf-8", "replace"))[:MAX_REASON]
