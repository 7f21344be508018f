"""What members and users sign to be certified, and when a certificate is due: both sides must agree on each.

The identity key signs the digests of both signing requests under a context of their own, so that nothing signed for
one purpose, federation, member or hour is good for another, and no byte moves from one request into the next. Pure.
"""

from __future__ import annotations

from cryptography import x509

from .identity import PeerId, expires_at
from .tensors import canonical_json, digest_of

RENEWED_AFTER = 2 / 3
"""The share of its life after which a certificate is replaced."""
_JOIN, _RENEWAL, _IDENTITY = b"fedveil-join/1\0", b"fedveil-renewal/1\0", b"fedveil-identity/1\0"


def join_text(signing_request: bytes, renewal_request: bytes) -> bytes:
    """What the identity key signs in a join.

    Without a renewal request it is the signing request alone, as it was before there were renewals: a join that was
    prepared then may still be repeated.
    """
    if not renewal_request:
        return signing_request
    return _JOIN + canonical_json({"leaf": digest_of(signing_request), "renewal": digest_of(renewal_request)})


def renewal_text(member: PeerId, asked_at: float, signing_request: bytes, renewal_request: bytes) -> bytes:
    """What the identity key signs in a renewal.

    Args:
        member: as it joined; not the name in its renewal certificate.
        asked_at: seconds since 1970, by the member's clock.
        signing_request: PKCS#10, of the new leaf.
        renewal_request: PKCS#10, of a new renewal certificate; empty where none is asked for.
    """
    said = {
        "member": str(member),
        "asked_at": asked_at,
        "leaf": digest_of(signing_request),
        "renewal": digest_of(renewal_request),
    }
    return _RENEWAL + canonical_json(said)


def identity_text(user: PeerId) -> bytes:
    """What a user's identity key signs to be certified: that it is this user's, in this federation.

    Whoever sends it again gets a certificate of the same key for the same name: of use to its holder alone.
    """
    return _IDENTITY + canonical_json({"user": str(user)})


def due_at(certificate: x509.Certificate) -> float:
    """From when on the certificate should be replaced, in seconds since 1970: two thirds into its life."""
    begin = certificate.not_valid_before_utc.timestamp()
    return begin + (expires_at(certificate) - begin) * RENEWED_AFTER
