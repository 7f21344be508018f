"""Boxes that one site alone can open: HPKE (RFC 9180, base mode) with HKDF-SHA256 and AES-256-GCM.

| suite           | key encapsulation                        | public key | added to a plaintext |
|-----------------|------------------------------------------|------------|----------------------|
| mlkem768-x25519 | MLKEM768-X25519 (X-Wing), post-quantum   | 1216 bytes | 1136 bytes           |
| x25519          | DHKEM(X25519)                            | 32 bytes   | 48 bytes             |

A hybrid public key is the one of ML-KEM-768 and then the one of X25519. A box says nothing of who sealed it: statements
are signed for that.
"""

from __future__ import annotations

from functools import cache

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ..errors import MalformedMessageError
from .terms import Suite

PrivateKey = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey
SEED_BYTES = 32
_KEMS = {Suite.X25519: hpke.KEM.X25519, Suite.MLKEM768_X25519: hpke.KEM.MLKEM768_X25519}
_MLKEM_SEED_BYTES = 64
_MLKEM_PUBLIC_BYTES = 1184
_X25519_BYTES = 32
PUBLIC_KEY_BYTES = {Suite.X25519: _X25519_BYTES, Suite.MLKEM768_X25519: _MLKEM_PUBLIC_BYTES + _X25519_BYTES}
BOX_OVERHEAD_BYTES = {suite: kem.enc_length() + 16 for suite, kem in _KEMS.items()}


def key_pair(suite: Suite, seed: bytes) -> tuple[PrivateKey, bytes]:
    """The private key and the bytes of the public one, which follow from the seed.

    The keys are HKDF-Expand (SHA-256) of the seed with info ``fedveil-sum/1 key NAME-OF-SUITE``: 32 bytes for X25519;
    for the hybrid the 64 bytes of ML-KEM's own seed (d and z of FIPS 203) and then the 32 for X25519.

    Raises:
        ValueError: a seed that has not 32 bytes, or a suite that this machine's cryptography has not
            (``is_available``).
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed of {len(seed)} bytes, expected {SEED_BYTES}")
    hybrid = suite is Suite.MLKEM768_X25519
    length = _X25519_BYTES + (_MLKEM_SEED_BYTES if hybrid else 0)
    drawn = HKDFExpand(SHA256(), length, b"fedveil-sum/1 key " + suite.value.encode("ascii")).derive(seed)
    curve = X25519PrivateKey.from_private_bytes(drawn[-_X25519_BYTES:])
    public = curve.public_key().public_bytes_raw()
    if not hybrid:
        return curve, public
    try:
        lattice = MLKEM768PrivateKey.from_seed_bytes(drawn[:_MLKEM_SEED_BYTES])
    except UnsupportedAlgorithm as error:
        raise ValueError("this machine's cryptography has no ML-KEM-768") from error
    return hpke.MLKEM768X25519PrivateKey(lattice, curve), lattice.public_key().public_bytes_raw() + public


def seal(suite: Suite, public_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """A box that the owner of the public key opens, if told the same ``info``.

    Raises:
        MalformedMessageError: the public key, a peer's bytes, has another length, is no key, or is a point of small
            order, for which anybody knows the shared secret.
    """
    if len(public_key) != PUBLIC_KEY_BYTES[suite]:
        raise MalformedMessageError(
            f"a public key of {len(public_key)} bytes, expected {PUBLIC_KEY_BYTES[suite]} for {suite.value}"
        )
    key: X25519PublicKey | hpke.MLKEM768X25519PublicKey
    try:
        key = curve = X25519PublicKey.from_public_bytes(public_key[-_X25519_BYTES:])
        if suite is Suite.MLKEM768_X25519:
            lattice = MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC_BYTES])
            key = hpke.MLKEM768X25519PublicKey(lattice, curve)
        return _hpke(suite).encrypt(plaintext, key, info)
    except ValueError:
        raise MalformedMessageError(f"a public key of {suite.value} to which nothing can be sealed") from None


def open_box(suite: Suite, private_key: PrivateKey, box: bytes, info: bytes) -> bytes:
    """What was sealed.

    Raises:
        MalformedMessageError: sealed to another key, with another ``info`` or suite, or not what was sealed.
        ValueError: a private key of another suite.
    """
    if isinstance(private_key, X25519PrivateKey) is not (suite is Suite.X25519):
        raise ValueError(f"the private key is not one of {suite.value}")
    if len(box) < BOX_OVERHEAD_BYTES[suite]:
        raise MalformedMessageError(f"a box of {len(box)} bytes, expected {BOX_OVERHEAD_BYTES[suite]} or more")
    try:
        return _hpke(suite).decrypt(box, private_key, info)
    except (InvalidTag, ValueError):
        raise MalformedMessageError("a box that does not open: of another key or transcript, or damaged") from None


@cache
def is_available(suite: Suite) -> bool:
    """Whether this machine's cryptography has the suite; OpenSSL 3.0, as some distributions build on, has no ML-KEM."""
    try:
        key_pair(suite, bytes(SEED_BYTES))
    except ValueError:
        return False
    return True


@cache
def _hpke(suite: Suite) -> hpke.Suite:
    return hpke.Suite(_KEMS[suite], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
