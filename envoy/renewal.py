"""A member's new certificates: when they are due, what is asked, and what the answer must be. Pure: no clock, no disk.

The leaf is renewed each time, for a new key; the identity is certified anew for the key that it has. The renewal
certificate is asked for where there is none yet, or once two thirds of its own life are over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..utils.certificates import certificate_pem, read_identity_key
from ..utils.errors import IdentityError
from ..utils.identity import expires_at, read_certificate, read_chain
from ..utils.messages import JoinReply, RenewRequest
from ..utils.renewal import due_at, renewal_text
from .enrolment import Credentials, new_request, renewal_chain_of


@dataclass(frozen=True, slots=True)
class RenewalKeys:
    """The keys that were made for one renewal."""

    leaf_key: bytes = field(repr=False)  # PEM
    renewal_key: bytes = field(repr=False)  # PEM; empty where no renewal certificate is asked for


def renewal_due(credentials: Credentials) -> float:
    """From when on the leaf should be renewed, in seconds since 1970."""
    return due_at(credentials.leaf)


def prepare_renewal(credentials: Credentials, now: float) -> tuple[RenewRequest, RenewalKeys]:
    """A request with new keys.

    Args:
        credentials: that the member holds.
        now: seconds since 1970, by this machine's clock.
    """
    leaf_key, signing_request = new_request()
    renewal_key, renewal_request = new_request() if _needs_renewal_certificate(credentials, now) else (b"", b"")
    text = renewal_text(credentials.peer, now, signing_request, renewal_request)
    proof = read_identity_key(credentials.identity_key, "the identity key").sign(text)
    return RenewRequest(signing_request, renewal_request, now, proof), RenewalKeys(leaf_key, renewal_key)


def renewed(credentials: Credentials, keys: RenewalKeys, reply: JoinReply) -> Credentials:
    """The credentials with what came; whether the parts belong together is checked when they are kept.

    Raises:
        IdentityError: the answer is for another member, or is no certificates.
    """
    if (reply.federation, reply.name) != (credentials.peer.federation, credentials.peer.name):
        raise IdentityError(
            f"the director answered for {reply.name} of {reply.federation}; asked was {credentials.peer.name} of"
            f" {credentials.peer.federation}"
        )
    has_renewal = bool(reply.renewal_certificate and keys.renewal_key)
    return replace(
        credentials,
        chain=certificate_pem(*read_chain(reply.chain, "the answer")),
        leaf_key=keys.leaf_key,
        identity_certificate=certificate_pem(read_certificate(reply.identity_certificate, "the answer")),
        renewal_chain=renewal_chain_of(reply) if has_renewal else credentials.renewal_chain,
        renewal_key=keys.renewal_key if has_renewal else credentials.renewal_key,
    )


def may_renew_offline(credentials: Credentials, now: float) -> bool:
    """Is there a renewal certificate that is good now?"""
    held = credentials.renewal_certificate
    return held is not None and now <= expires_at(held)


def _needs_renewal_certificate(credentials: Credentials, now: float) -> bool:
    held = credentials.renewal_certificate
    return held is None or now >= due_at(held)
