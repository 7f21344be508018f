"""The key that an organization registers: an X25519 public key, to which what is meant for it alone is sealed.

It comes as age writes it (``age1...``), as PEM, or as 32 bytes in hexadecimal or base64. What looks like a secret is
refused with a text that does not repeat it; a private key that somebody sends as 32 bare bytes cannot be told from a
public one, so the answer names the key's fingerprint, which its owner compares.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ...utils.errors import MalformedMessageError

KEY_BYTES = 32
MAX_TEXT = 1024
_SECRETS = re.compile(
    r"PRIVATE KEY|AGE-SECRET-KEY-|\b(sk|rk)_(live|test)_|\bfv_[0-9a-f]{16}_|^ghp_|^xox[abp]-", re.IGNORECASE
)
_HEX = re.compile(r"(?:0x)?([0-9A-Fa-f]{64})")
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_EXPECTED = "expected an X25519 public key: age1..., PEM, or 32 bytes in hexadecimal or base64"


def read_encryption_key(text: str) -> bytes:
    """The 32 bytes of a public key.

    Raises:
        MalformedMessageError: it is none, or a secret; the text of the error repeats nothing of it.
    """
    said = text.strip()
    if len(said) > MAX_TEXT:
        raise MalformedMessageError(f"encryption_key has {len(said)} characters; {_EXPECTED}")
    if _SECRETS.search(said):
        raise MalformedMessageError(
            "encryption_key looks like a secret; it was not kept. Treat it as lost, make another, and send the public"
            f" part of it: {_EXPECTED}"
        )
    raw = _decoded(said)
    if raw is None or len(raw) != KEY_BYTES:
        raise MalformedMessageError(f"encryption_key: {_EXPECTED}")
    _check_order(raw)
    return raw


def fingerprint(key: bytes) -> str:
    """SHA-256 of the key, in groups for reading out."""
    digest = hashlib.sha256(key).hexdigest()
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def age_text(key: bytes) -> str:
    """The key as age writes it.

    >>> age_text(bytes(range(32)))
    'age1qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0savhh7m'
    """
    values = _regrouped(key, 8, 5)
    assert values is not None  # with padding, always
    checksum = _polymod([*_PREFIX, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    return "age1" + "".join(_BECH32[v] for v in [*values, *((checksum >> 5 * (5 - i)) & 31 for i in range(6))])


def _decoded(said: str) -> bytes | None:
    if said.startswith("-----BEGIN"):
        try:
            key = load_pem_public_key(said.encode("ascii", "replace"))
        except (ValueError, UnsupportedAlgorithm):
            return None
        return key.public_bytes_raw() if isinstance(key, X25519PublicKey) else None
    if said.lower().startswith("age1"):
        return _from_age(said)
    if found := _HEX.fullmatch(said):
        return bytes.fromhex(found.group(1))
    try:
        return base64.b64decode(said, validate=True)
    except (ValueError, binascii.Error):
        return None


def _check_order(raw: bytes) -> None:
    """With one of the few points of small order every shared secret is the same, and known."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        raise MalformedMessageError(
            "encryption_key is a point of small order: nothing sealed to it is secret"
        ) from None


_PREFIX = [*(ord(c) >> 5 for c in "age"), 0, *(ord(c) & 31 for c in "age")]


def _from_age(said: str) -> bytes | None:
    """Bech32 (BIP 173) under the prefix of age's recipients."""
    if said not in {said.lower(), said.upper()} or any(c not in _BECH32 for c in said.lower()[4:]):
        return None
    values = [_BECH32.index(c) for c in said.lower()[4:]]
    return _bytes_of(values[:-6]) if _polymod([*_PREFIX, *values]) == 1 else None


def _bytes_of(values: list[int]) -> bytes | None:
    found = _regrouped(values, 5, 8, pad=False)
    return None if found is None else bytes(found)


def _regrouped(values: bytes | list[int], before: int, after: int, *, pad: bool = True) -> list[int] | None:
    kept, bits, found = 0, 0, []
    for value in values:
        kept, bits = (kept << before) | value, bits + before
        while bits >= after:
            bits -= after
            found.append((kept >> bits) & ((1 << after) - 1))
        kept &= (1 << bits) - 1
    if pad:
        return [*found, kept << (after - bits)] if bits else found
    return None if bits >= before or kept else found


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for place, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if (top >> place) & 1 else 0
    return checksum
