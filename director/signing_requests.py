"""What comes to be signed: the keys in signing requests, and the proof that the identity key is held.

Whatever else a signing request asks for (a name, a use, a life) is not looked at: the registrar decides it.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..utils.errors import IdentityError, MalformedMessageError
from ..utils.roster import check_identity_key

_MAX_REQUEST_BYTES = 8 << 10


def requested_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key of a signing request.

    Raises:
        MalformedMessageError: no PKCS#10 in DER, too long, or for a key of another kind.
        IdentityError: the request is not signed by its own key.
    """
    if len(raw) > _MAX_REQUEST_BYTES:
        raise MalformedMessageError(f"a signing request of {len(raw)} bytes, expected at most {_MAX_REQUEST_BYTES}")
    try:
        signing_request = x509.load_der_x509_csr(raw)
        key = signing_request.public_key()
        is_proven = signing_request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise MalformedMessageError("not a PKCS#10 signing request in DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise MalformedMessageError(f"a signing request for a key of kind {kind}, expected P-256 (secp256r1)")
    if not is_proven:
        raise IdentityError("the signing request is not signed by its own key")
    return key


def proven_identity_key(raw: bytes, proof: bytes, text: bytes) -> Ed25519PublicKey:
    """An identity key whose holder signed this text.

    Raises:
        MalformedMessageError: no Ed25519 key.
        IdentityError: the signature is not its own, or everybody can sign for it.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise MalformedMessageError(f"an identity key of {len(raw)} bytes, expected 32 of Ed25519") from error
    try:
        key.verify(proof, text)
    except InvalidSignature as error:
        raise IdentityError("the identity key did not sign the signing request") from error
    check_identity_key("a join", raw)  # one of small order "signs" anything
    return key
