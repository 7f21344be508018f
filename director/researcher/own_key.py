"""The key that a researcher signs proposals and patches with: made here, certified by the director, kept in a folder.

identity.key.pem    Ed25519, mode 0600; it never leaves
identity.pem        its certificate and the issuer's
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...utils.certificates import DAY_SECONDS, is_key_of, key_pem, public_bytes, read_identity_key
from ...utils.errors import IdentityError
from ...utils.identity import PeerId, Role, check_chain, expires_at, read_certificate, read_chain
from ...utils.private_files import make_private_folder, read_private_file, write_private_file
from ...utils.renewal import identity_text
from ...utils.rest_calls import RestCalls

KEY_FILE, CHAIN_FILE = "identity.key.pem", "identity.pem"
_RENEWED_DAYS = 30.0  # with less left, it is certified anew


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs, and what proves it."""

    peer: PeerId
    key: Ed25519PrivateKey = field(repr=False)
    chain: bytes  # PEM: identity certificate, issuer


def signer_of(calls: RestCalls, folder: Path, federation: str, name: str, root: bytes) -> Signer:
    """The researcher's signature, certified anew where that is due.

    Args:
        calls: as that researcher.
        folder: of its key.
        federation: whose member it is.
        name: of the user.
        root: of the federation, PEM; what the director certifies must lead there.

    Raises:
        IdentityError: the key's file can be read by others or is damaged, or the certificate is not what was asked for.
        NotAuthorizedError: the director certifies no key of this user.
        StorageError: the folder cannot be written to.
    """
    now, peer = time.time(), PeerId(federation, Role.OPERATOR, name)
    key = _key(folder)
    path = folder / CHAIN_FILE
    chain = path.read_bytes() if path.exists() else b""
    if not chain or not _is_good(chain, key, peer, root, now):
        proof = key.sign(identity_text(peer))
        asked = {"identity_key": _text(public_bytes(key.public_key())), "identity_proof": _text(proof)}
        chain = str(calls.json("POST", "/api/v1/me/identity", asked)["chain"]).encode("utf-8", "replace")
        if not _is_good(chain, key, peer, root, now, 0.0):
            raise IdentityError(f"the director's certificate for {peer} is of another key, name or root")
        write_private_file(path, chain)
    return Signer(peer, key, chain)


def _key(folder: Path) -> Ed25519PrivateKey:
    path = folder / KEY_FILE
    if not path.exists():
        make_private_folder(folder)
        write_private_file(path, key_pem(Ed25519PrivateKey.generate()))
    return read_identity_key(read_private_file(path), str(path))


def _is_good(
    chain: bytes, key: Ed25519PrivateKey, peer: PeerId, root: bytes, now: float, days: float = _RENEWED_DAYS
) -> bool:
    """Does it say what it should, for so many days to come?"""
    try:
        leaf, issuer = read_chain(chain, "the identity certificate")
        named = check_chain(leaf, issuer, read_certificate(root, "the root"), now)
    except (IdentityError, ValueError):
        return False
    return named == peer and is_key_of(leaf, key) and expires_at(leaf) - now > days * DAY_SECONDS


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
