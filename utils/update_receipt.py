"""A receipt that can be shown to others: the director's signed word that it took an update, bound to its audit log.

The director signs it by the key of its log, and names the entry that says the same: whoever has the log finds the entry
there, and ``audit verify --heads`` takes ``head`` as a line. Pure values.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .audit_chain import SignedHead
from .errors import IdentityError, MalformedMessageError
from .messages import EnvoyName, RunId, TaskRef
from .tensors import Digest, canonical_json

SCHEMA = "fedveil.update-receipt/1"
_CONTEXT = b"fedveil-update-receipt/1\0"  # so that no signature is good for another use


@dataclass(frozen=True, slots=True)
class UpdateReceipt:
    """What was taken, of whom, and where the director's log says so."""

    federation: str
    organization: str  # its id
    envoy: EnvoyName
    ref: TaskRef
    model: Digest  # that the update is of
    update: Digest  # SHA-256 of what was taken: float32, little-endian, in the order of the layout
    num_bytes: int
    sample_count: int  # what it weighs
    received_at: float  # seconds since 1970
    entry: int  # of the audit log
    entry_hash: str  # SHA-256, hexadecimal
    head: str  # ``SignedHead`` of the log, that entry in it: hexadecimal

    def to_json(self) -> bytes:
        """Its bytes: what is signed."""
        return canonical_json({"schema": SCHEMA} | asdict(self))


def signed_bytes(content: bytes) -> bytes:
    """What the director's log key signs of a receipt's bytes."""
    return _CONTEXT + content


def read_receipt(content: bytes, signature: bytes, key: bytes) -> UpdateReceipt:
    """Read a receipt, and check that the owner of an audit log signed it.

    Args:
        content: its bytes.
        signature: Ed25519, 64 bytes.
        key: of the director's audit log, 32 bytes, as the reader knows it.

    Raises:
        MalformedMessageError: it is no receipt.
        IdentityError: another key signed it, or its head is of another log.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed_bytes(content))
    except (InvalidSignature, ValueError) as error:
        raise IdentityError("the receipt is not signed by that key: it is no word of this director") from error
    try:
        whole: dict[str, Any] = json.loads(content)
        named = whole.pop("ref")
        ref = TaskRef(RunId(named.pop("run")), **named)
        schema = whole.pop("schema")
        receipt = UpdateReceipt(ref=ref, **whole)
        head = SignedHead.from_bytes(bytes.fromhex(receipt.head))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MalformedMessageError(f"not a receipt: {error}") from error
    if schema != SCHEMA or receipt.to_json() != content:
        raise MalformedMessageError(f"not a receipt of {SCHEMA}, or not in canonical bytes")
    if head.key != key or head.number < receipt.entry:
        raise IdentityError("the receipt names a head of another log, or one before its own entry")
    return receipt
