"""Signed documents as they come over HTTP, and whether their signer is the caller: proposals and patches."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...utils.certificates import public_bytes
from ...utils.errors import IdentityError, NotAuthorizedError
from ...utils.identity import PeerId, Role, read_chain
from ...utils.signed_document import MAX_DOCUMENT_BYTES, SIGNATURE_BYTES, SignedDocument
from ..hub.hub import Hub
from ..hub.sign_in import Caller
from .works import Works

_MAX_CHAIN = 16 << 10


def is_base64(text: str) -> str:
    """Is it? For pydantic: gives the very text.

    Raises:
        ValueError: it is not.
    """
    try:
        base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("expected standard base64") from None
    return text


class DocumentBody(BaseModel):
    """A text and who signed it."""

    model_config = ConfigDict(extra="forbid")
    content: Annotated[
        str,
        Field(max_length=4 * ((MAX_DOCUMENT_BYTES + 2) // 3), description="Canonical JSON, in base64."),
        AfterValidator(is_base64),
    ]
    signature: Annotated[
        str,
        Field(max_length=4 * ((SIGNATURE_BYTES + 2) // 3), description="Ed25519, 64 bytes in base64."),
        AfterValidator(is_base64),
    ]
    chain: str = Field(max_length=_MAX_CHAIN, description="PEM: the signer's identity certificate, then the issuer's.")

    def document(self) -> SignedDocument:
        """As the rest of the director knows it."""
        content, signature = base64.b64decode(self.content), base64.b64decode(self.signature)
        return SignedDocument(content, signature, self.chain.encode("utf-8", "replace"))


def signer_of(hub: Hub, caller: Caller) -> PeerId:
    """Whom a user's identity certificate names."""
    return PeerId(hub.federation, Role.OPERATOR, caller.user.name)


@contextmanager
def signed_by(works: Works, signer: PeerId, document: SignedDocument) -> Iterator[None]:
    """Around the reading of a document: its certificate must be the signer's present one.

    Whatever is wrong with who signed is 403: the caller itself is known.

    Raises:
        NotAuthorizedError: another's, of a key that another took the place of, revoked, or the signature does not fit.
    """
    try:
        _check_certificate(works, signer, document)
        yield
    except NotAuthorizedError:
        raise
    except IdentityError as error:
        raise NotAuthorizedError(str(error)) from error


def _check_certificate(works: Works, signer: PeerId, document: SignedDocument) -> None:
    leaf = read_chain(document.chain, "the signer's certificates")[0]
    member, key = works.members.identity(signer.name), leaf.public_key()
    works.standing.check(signer, leaf.fingerprint(hashes.SHA256()).hex())
    if member is None:
        raise NotAuthorizedError(f"no key of {signer.name} is certified: POST /api/v1/me/identity first")
    if not isinstance(key, Ed25519PublicKey) or public_bytes(key) != member.identity_key:
        raise NotAuthorizedError(f"signed with another key than the one that is certified for {signer.name} now")
