"""A text and who signed it, as it travels; ``proposal`` says what may stand in it and checks the signature."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DOCUMENT_BYTES = 256 << 10
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """Not checked: whoever acts upon it reads it with ``read_proposal`` or ``read_patch``."""

    content: bytes  # canonical JSON
    signature: bytes  # Ed25519, 64 bytes
    chain: bytes  # PEM: the signer's identity certificate, the issuer
