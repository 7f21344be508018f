"""A sum whose aggregator is an envoy: what is sealed to it, and how it signs what it opened. The director relays.

Sites walk the same steps as in any sum. Two of their answers go through the director sealed: the masked vector
(``sealed_stream``) and the shares that unmask. So the director alone cannot open the sum; it learns what the aggregator
gives back, the total, and sees of the rest lengths and times. The director and the aggregator together see what a
director that aggregates sees: a site's update stays hidden from both by its masks, not by these seals.

The key that is sealed to follows from the aggregator's Ed25519 identity, as each site's own roster has it, so no key
has to be announced, believed or kept. The two uses of one key are separate by construction (Thormarker 2021, eprint
2021/509, has the argument); the price is that this seal is X25519 alone, not post-quantum, and that whoever steals the
identity key later opens seals that it recorded. What it then has are masked vectors.

The aggregator can give back a wrong total, as a director that aggregates can: its signature says who did. This is our
own protocol code and has had no outside review.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from ..errors import BadShareError, MalformedMessageError, SumRefusedError
from ..messages import EnvoyName
from ..roster import Roster, check_identity_key
from ..tensors import Digest
from . import sealing
from .cohort import Cohort, framed
from .opened import Opened, unmask_total
from .sealed_stream import Binding, open_stream
from .signed import Signer
from .spec import SCHEME
from .terms import Suite

SUITE = Suite.X25519
WORD_BYTES = 4
SEALED = b"\xff\xfffedveil-sum/1 sealed "
"""Before what is sealed: no protobuf message begins so, and none of ``handover``."""
_PRIME = 2**255 - 19


def seal_key(roster: Roster, aggregator: EnvoyName) -> bytes:
    """The public key that an envoy of the roster can be sealed to: its Ed25519 point on the curve of X25519.

    Source: RFC 7748, 4.1: u = (1 + y) / (1 - y).

    Raises:
        IdentityError: the roster does not have it.
    """
    key = check_identity_key(aggregator, roster.entry(aggregator).identity_key)
    y = int.from_bytes(key, "little") & (2**255 - 1)
    return ((1 + y) * pow(1 - y, -1, _PRIME) % _PRIME).to_bytes(32, "little")


def opening_key(identity: Ed25519PrivateKey) -> X25519PrivateKey:
    """The private key of ``seal_key``: the scalar of the identity (RFC 8032, 5.1.5)."""
    raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    return X25519PrivateKey.from_private_bytes(hashlib.sha512(identity.private_bytes(*raw)).digest()[:32])


def vector_binding(cohort: Cohort, sender: EnvoyName) -> Binding:
    """The stream in which one site's masked vector travels to the aggregator.

    Raises:
        ValueError: the director aggregates this sum.
    """
    return Binding(cohort.transcript, sender, _aggregator(cohort), cohort.words * WORD_BYTES, SUITE)


def is_sealed(content: bytes) -> bool:
    """Does it say of itself that it is what ``seal_unmasking`` gives? Only the aggregator can tell."""
    return content.startswith(SEALED)


def seal_unmasking(cohort: Cohort, by: EnvoyName, content: bytes, roster: Roster) -> bytes:
    """What a site reveals, for the aggregator alone.

    Raises:
        IdentityError: the aggregator is not in the site's roster.
    """
    return SEALED + sealing.seal(SUITE, seal_key(roster, _aggregator(cohort)), content, _unmasking_info(cohort, by))


def open_unmasking(cohort: Cohort, by: EnvoyName, box: bytes, key: X25519PrivateKey) -> bytes:
    """What a site revealed.

    Raises:
        MalformedMessageError: it is not sealed to this key, by this site's name and for this sum.
    """
    if not is_sealed(box):
        raise MalformedMessageError(f"{by} revealed shares that are not sealed to {_aggregator(cohort)}")
    return sealing.open_box(SUITE, key, box[len(SEALED) :], _unmasking_info(cohort, by))


def open_total(
    opened: Opened,
    announced: Mapping[EnvoyName, Digest],
    sealed: Callable[[EnvoyName], Iterable[bytes]],
    key: X25519PrivateKey,
) -> NDArray[np.uint32]:
    """The sum of the survivors' vectors, without its masks. Memory: the sum, and one part of one stream.

    Args:
        opened: what unmasks it.
        announced: the SHA-256 of each masked vector, as its site signed it.
        sealed: the sealed stream of each survivor, in pieces of any size.
        key: ``opening_key`` of the aggregator.

    Returns:
        uint32, shape (opened.words,): body, padding, tallies.

    Raises:
        MalformedMessageError: a stream that does not open; the message names its site.
        BadShareError: a site sealed another vector than it signed for; names it.
    """
    total = np.zeros(opened.words, np.uint32)
    for name in opened.survivors:
        sha, at = hashlib.sha256(), 0
        for part in open_stream(vector_binding(opened.cohort, name), key, sealed(name)):
            sha.update(part)
            words = np.frombuffer(part, "<u4")
            _add(opened.cohort, total, at, words)
            at += words.size
        if sha.hexdigest() != announced[name]:
            raise BadShareError(f"{name} sealed another masked vector than the one that it signed for", name)
    unmask_total(opened, total)
    return total


def sign_total(opened: Opened, total: Digest, sign: Signer) -> bytes:
    """The aggregator's word that this is the unmasked sum; ``total`` is the SHA-256 of its bytes."""
    return sign(_total_statement(opened, total))


def check_total(opened: Opened, total: Digest, signature: bytes, roster: Roster) -> None:
    """Did the aggregator of this sum sign this total? Whether it is right is for nobody else to know.

    Raises:
        SumRefusedError: no.
        IdentityError: the aggregator is not in the roster.
    """
    aggregator = _aggregator(opened.cohort)
    key = Ed25519PublicKey.from_public_bytes(roster.entry(aggregator).identity_key)
    try:
        key.verify(signature, _total_statement(opened, total))
    except InvalidSignature:
        raise SumRefusedError(
            f"the total of {opened.spec.ref} is not signed by {aggregator}, its aggregator, for this sum"
        ) from None


def without_masks(opened: Opened) -> Opened:
    """The same sum, whose masks somebody else took away."""
    return replace(opened, plus=(), minus=())


def _add(cohort: Cohort, total: NDArray[np.uint32], at: int, words: NDArray[np.uint32]) -> None:
    """Add a part of a vector from word ``at`` on: 32-bit words in the body, 64-bit words in the tallies."""
    body = min(max(cohort.tally_start - at, 0), words.size)
    np.add(total[at : at + body], words[:body], out=total[at : at + body])
    tail = total[at + body : at + words.size].view(np.uint64)
    np.add(tail, words[body:].view(np.uint64), out=tail)


def _aggregator(cohort: Cohort) -> EnvoyName:
    if not cohort.spec.terms.aggregator:
        raise ValueError(f"{cohort.spec.ref} is summed by the director")
    return EnvoyName(cohort.spec.terms.aggregator)


def _unmasking_info(cohort: Cohort, by: EnvoyName) -> bytes:
    return framed(SCHEME.encode(), b"sealed unmasking", cohort.transcript, by.encode(), _aggregator(cohort).encode())


def _total_statement(opened: Opened, total: Digest) -> bytes:
    consents = hashlib.sha256(opened.evidence).digest()
    if len(total) != 64:
        raise MalformedMessageError(f"the digest of a total has {len(total)} digits, expected 64")
    return framed(SCHEME.encode(), b"total", opened.transcript, consents, bytes.fromhex(total))
