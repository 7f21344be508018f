"""A model card as it is signed: what a director says of a model, bound to the model's file, checked without either.

A card is JSON whose fields ``director/hub/model_cards.py`` fills from the director's records. The key of the director's
audit log signs its canonical text, in which the SHA-256 of the file stands; so whoever has the card, the file and that
key knows that both are as they were signed. What became known later (a dataset was withdrawn) stands beside a card and
never in it: what was signed then stays what was said then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .certificates import public_bytes
from .errors import DigestMismatchError, MalformedMessageError, StorageError, SuspectLogError
from .tensors import canonical_json, digest_of

SCHEMA = "fedveil.model-card/1"
MAX_CARD_BYTES = 4 << 20
_CONTEXT = b"fedveil-model-card/1\0"  # so that no signature is good for another use


@dataclass(frozen=True, slots=True)
class SignedCard:
    """A card that is what its director signed; made by ``sign_card`` and ``read_card`` alone."""

    card: Mapping[str, Any]
    key: bytes  # Ed25519 public key, 32 bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical text, as the audit log names it."""
        return digest_of(canonical_json(self.card))

    @property
    def file_sha256(self) -> str:
        """Of the model."""
        return str(self.card["file"]["sha256"])

    def document(self) -> dict[str, Any]:
        """As it is kept and handed on; ``read_card`` takes its JSON."""
        return {
            "card": dict(self.card),
            "key": base64.b64encode(self.key).decode("ascii"),
            "signature": base64.b64encode(self.signature).decode("ascii"),
        }


def sign_card(card: Mapping[str, Any], key: Ed25519PrivateKey) -> SignedCard:
    """A director signs."""
    return SignedCard(card, public_bytes(key.public_key()), key.sign(_CONTEXT + canonical_json(card)))


def read_card(raw: bytes) -> SignedCard:
    """Read a signed card, or an answer of the REST API that holds one, and believe nothing that was not signed.

    By itself it shows that the card is what the key in it signed; whose key that is, the caller has to know.

    Raises:
        MalformedMessageError: no signed card.
        SuspectLogError: the signature is wrong: the card was changed after it was signed.
    """
    if len(raw) > MAX_CARD_BYTES:
        raise MalformedMessageError(f"{len(raw)} bytes; no model card has more than {MAX_CARD_BYTES}")
    try:
        whole = json.loads(raw)
        card, file = whole["card"], whole["card"]["file"]
        key, signature = (base64.b64decode(whole[name], validate=True) for name in ("key", "signature"))
        public = Ed25519PublicKey.from_public_bytes(key)
        text = _CONTEXT + canonical_json(card)
        is_right = card["schema"] == SCHEMA and isinstance(file["sha256"], str) and isinstance(file["bytes"], int)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise MalformedMessageError("no signed model card; GET /api/v1/models/ID/card?format=json gives one") from error
    if not is_right:
        raise MalformedMessageError(f"no model card of {SCHEMA}")
    try:
        public.verify(signature, text)
    except InvalidSignature as error:
        raise SuspectLogError(
            "the model card is not what the key in it signed: it was changed, or its numbers were written anew by a"
            " program; keep it as it was downloaded"
        ) from error
    return SignedCard(card, key, signature)


def check_model_file(card: SignedCard, path: Path) -> None:
    """Is this the file that the card is of?

    Raises:
        DigestMismatchError: it is another.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    if found != card.file_sha256:
        raise DigestMismatchError(
            f"{path} is not the file of the card: its SHA-256 is {found}, the card says {card.file_sha256};"
            " download it again, and do not use this one"
        )
