"""Statements signed by a site's identity key, in the style of DSSE: bytes are signed, and they stay as they came.

The signature is Ed25519 over the scheme, the kind and the body, each of the two with its length before it, so that no
statement can pass for one of another kind. Whose key it must be is told by the reader's own roster.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import IdentityError, SumRefusedError
from ..messages import EnvoyName
from ..roster import Roster

SIGNATURE_BYTES = 64
_DOMAIN = b"fedveil-sum/1\0"
Signer: TypeAlias = Callable[[bytes], bytes]
"""``Ed25519PrivateKey.sign`` of the site's identity."""


class Kind(Enum):
    """What a body is."""

    ADVERT = "advert"
    DEAL = "deal"
    MASKED = "masked"
    CONSENT = "consent"
    UNMASKING = "unmasking"


@dataclass(frozen=True, slots=True)
class Signed:
    """A body and who says so; nobody looked at the signature yet."""

    by: EnvoyName
    kind: Kind
    body: bytes
    signature: bytes


def to_be_signed(kind: Kind, body: bytes) -> bytes:
    """The bytes under the signature.

    >>> to_be_signed(Kind.ADVERT, b"xyz")[22:28]
    b'advert'
    """
    name = kind.value.encode()
    return b"".join((_DOMAIN, struct.pack("<Q", len(name)), name, struct.pack("<Q", len(body)), body))


def signed(by: EnvoyName, kind: Kind, body: bytes, sign: Signer) -> Signed:
    """The body with its signature."""
    return Signed(by, kind, body, sign(to_be_signed(kind, body)))


def check_signed(statement: Signed, kind: Kind, roster: Roster) -> bytes:
    """The body, if it is of this kind and the envoy's key in the roster signed it.

    Raises:
        SumRefusedError: another kind, an envoy outside the roster, or a signature that does not fit.
    """
    if statement.kind is not kind:
        raise SumRefusedError(f"{statement.by}: a statement of kind {statement.kind.value}, expected {kind.value}")
    try:
        key = roster.entry(statement.by).identity_key
    except IdentityError as error:
        raise SumRefusedError(str(error)) from error
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(statement.signature, to_be_signed(kind, statement.body))
    except (InvalidSignature, ValueError):
        raise SumRefusedError(
            f"{statement.by}: its {kind.value} is not signed by the identity key that the roster has for it"
        ) from None
    return statement.body
