"""The operator's keys in the director's folder: its connections', and the Ed25519 key that signs proposals and patches.

    operator.identity.pem    operator.identity.key.pem    certificate and issuer; role operator, name "operator"

The identity opens no connection: that is ``operator.pem``'s. ``director init`` makes both. A folder of an earlier
version has no identity, and certificates end: the folder holds the issuer, so what is missing or nearly over is issued
here. Where the issuer is not (the operator's files alone, on another machine), what is good is used until it ends.
``utils/proposal.py`` says what is signed, and how it is checked.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.certificates import (
    DAY_SECONDS,
    Authority,
    certificate_pem,
    is_key_of,
    issue_identity,
    key_pem,
    read_identity_key,
)
from ..utils.errors import IdentityError
from ..utils.identity import PeerId, Role, check_chain, expires_at, is_for_signing, read_chain
from ..utils.private_files import read_private_file, write_private_file
from .config import load_config
from .founding import (
    ISSUER_KEY_FILE,
    OPERATOR_IDENTITY_FILE,
    OPERATOR_IDENTITY_KEY_FILE,
    OPERATOR_NAME,
    TlsCredentials,
    load_issuer,
    load_root_certificate,
    load_tls,
)
from .own_leaves import own_leaf

_RENEWED_DAYS = 120.0  # with less left, and a year to be had, a certificate is issued anew


def load_operator_identity(folder: Path, now: float) -> tuple[PeerId, Ed25519PrivateKey, bytes]:
    """Who signs for the operator, with which key, and the certificates that prove it.

    Args:
        folder: the director's.
        now: seconds since 1970.

    Returns:
        the operator's name, its key, and the chain as PEM: identity certificate, then issuer.

    Raises:
        ConfigError: this is no director's folder.
        IdentityError: a key cannot be read, or others may read it; or the issuer is missing or expired.
        StorageError: a new certificate cannot be written.
    """
    if not (folder / ISSUER_KEY_FILE).exists():
        return _copied(folder, now)
    issuer, root = load_issuer(folder, now)
    key = _key(folder)
    peer = PeerId(load_config(folder).federation, Role.OPERATOR, OPERATOR_NAME)
    chain = _chain(folder, key, peer, root, now)
    if chain is None or _is_nearly_over(chain[0], issuer, now):
        identity = issue_identity(issuer, key.public_key(), peer, now)
        chain = (identity, issuer.certificate)
        write_private_file(folder / OPERATOR_IDENTITY_FILE, certificate_pem(*chain))
    return peer, key, certificate_pem(*chain)


def load_operator_tls(folder: Path, now: float) -> TlsCredentials:
    """What the operator shows when it calls the director; issued anew where it is due and the issuer is here.

    Args:
        folder: the director's.
        now: seconds since 1970.

    Raises:
        ConfigError: this is no director's folder.
        IdentityError: a key cannot be read, or others may read it; or it expired, and cannot be issued here.
        StorageError: a new certificate cannot be written.
    """
    if not (folder / ISSUER_KEY_FILE).exists():
        return load_tls(folder, Role.OPERATOR, now)
    issuer, _ = load_issuer(folder, now)
    return own_leaf(folder, load_config(folder), Role.OPERATOR, issuer, now)


def _copied(folder: Path, now: float) -> tuple[PeerId, Ed25519PrivateKey, bytes]:
    """The identity where there is no issuer to make another."""
    peer = PeerId(load_config(folder).federation, Role.OPERATOR, OPERATOR_NAME)
    key = read_identity_key(read_private_file(folder / OPERATOR_IDENTITY_KEY_FILE), OPERATOR_IDENTITY_KEY_FILE)
    root = load_root_certificate(folder)
    chain = _chain(folder, key, peer, root, now)
    if chain is None:
        raise IdentityError(
            f"{folder / OPERATOR_IDENTITY_FILE}: is missing, expired or another's, and there is no issuer here to make"
            " another: copy it from the director's folder"
        )
    return peer, key, certificate_pem(*chain)


def _key(folder: Path) -> Ed25519PrivateKey:
    path = folder / OPERATOR_IDENTITY_KEY_FILE
    if not path.exists():
        write_private_file(path, key_pem(Ed25519PrivateKey.generate()))
    return read_identity_key(read_private_file(path), str(path))


def _chain(
    folder: Path, key: Ed25519PrivateKey, peer: PeerId, root: x509.Certificate, now: float
) -> tuple[x509.Certificate, x509.Certificate] | None:
    """What is there, if it is good; None where another has to be issued."""
    try:
        leaf, issuer = read_chain((folder / OPERATOR_IDENTITY_FILE).read_bytes(), OPERATOR_IDENTITY_FILE)
        is_good = check_chain(leaf, issuer, root, now) == peer and is_for_signing(leaf) and is_key_of(leaf, key)
    except (OSError, ValueError, IdentityError):
        return None
    return (leaf, issuer) if is_good else None


def _is_nearly_over(identity: x509.Certificate, issuer: Authority, now: float) -> bool:
    end = expires_at(identity)
    return end < now + _RENEWED_DAYS * DAY_SECONDS and end < expires_at(issuer.certificate)
