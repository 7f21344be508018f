"""Makes keys and certificates; ``identity`` reads and checks them.

    root, P-256, 10 years, offline                 its key is encrypted with the passphrase
    └── issuer, P-256, 1 year, online              issues leaves alone
        ├── director, P-256, 7 days                serverAuth alone
        ├── envoy, operator, P-256, 7 days         clientAuth alone; join: once, within its file's life
        ├── renew, P-256, 1 year                   clientAuth alone; good for a renewal, where the leaf expired
        └── identity, Ed25519, 1 year              signs what an envoy or operator says; no good for TLS

TLS leaves are P-256 because gRPC finds no common signature algorithm for Ed25519 ones. Keys are made where they stay;
this module never sees another party's private key. ``now`` is seconds since 1970.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .addresses import Address
from .errors import IdentityError, PassphraseError
from .identity import DOCUMENT_SIGNING, PeerId, Role, check_validity, expires_at

DAY_SECONDS = 86_400
ROOT_DAYS = 3_650
ISSUER_DAYS = 365
IDENTITY_DAYS = 365
RENEWAL_DAYS = 365
LEAF_DAYS = 7
MIN_LEAF_DAYS, MAX_LEAF_DAYS = 1 / 24, 30
CLOCK_SKEW_SECONDS = 300
"""Certificates begin this long before they are made, since clocks of two hospitals differ."""
MAX_PASSPHRASE_BYTES = 1_000  # OpenSSL takes 1023

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that issues others, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(federation: str, now: float) -> Authority:
    """A federation's root, good for 10 years."""
    key = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation[:50]} root")])
    builder = _builder(name, name, key.public_key(), now, now + ROOT_DAYS * DAY_SECONDS)
    builder = _as_authority(builder, path_length=1)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def make_issuer(root: Authority, federation: str, now: float) -> Authority:
    """The authority that is online, good for a year; the root's key can be put away after this.

    Raises:
        IdentityError: the root expired.
    """
    key = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation[:50]} issuer")])
    builder = _issued(root, name, key.public_key(), ISSUER_DAYS * DAY_SECONDS, now)
    builder = _as_authority(builder, path_length=0)
    return Authority(builder.sign(root.key, hashes.SHA256()), key)


def issue_server(
    issuer: Authority,
    key: ec.EllipticCurvePublicKey,
    federation: str,
    hosts: Sequence[Address],
    seconds: float,
    now: float,
) -> x509.Certificate:
    """The director's certificate, for exactly these hosts; their ports do not matter.

    Raises:
        IdentityError: the issuer expired.
    """
    peer = PeerId(federation, Role.DIRECTOR, Role.DIRECTOR.value)
    names: list[x509.GeneralName] = []
    for host in hosts:
        name = x509.DNSName(host.host) if host.ip is None else x509.IPAddress(host.ip)
        if name not in names:
            names.append(name)
    return _leaf(issuer, key, peer, names, ExtendedKeyUsageOID.SERVER_AUTH, seconds, now)


def issue_client(
    issuer: Authority, key: ec.EllipticCurvePublicKey, peer: PeerId, seconds: float, now: float
) -> x509.Certificate:
    """A client's certificate; it ends with its issuer at the latest.

    Raises:
        IdentityError: the issuer expired.
        ValueError: a director is no client.
    """
    if peer.role is Role.DIRECTOR:
        raise ValueError("the director's certificate is a server's")
    return _leaf(issuer, key, peer, [], ExtendedKeyUsageOID.CLIENT_AUTH, seconds, now)


def issue_identity(issuer: Authority, key: Ed25519PublicKey, peer: PeerId, now: float) -> x509.Certificate:
    """An envoy's identity certificate, good for a year; no connection can be opened with it.

    Raises:
        IdentityError: the issuer expired.
    """
    return _leaf(issuer, key, peer, [], DOCUMENT_SIGNING, IDENTITY_DAYS * DAY_SECONDS, now)


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """The certificates as one PEM text, in this order."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as PKCS#8, encrypted where a passphrase is given.

    Raises:
        PassphraseError: the passphrase is empty or too long.
    """
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(check_passphrase(passphrase))
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def check_passphrase(passphrase: bytes) -> bytes:
    """Give the passphrase back if it can be one.

    Raises:
        PassphraseError: it is empty or too long.
    """
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes, this one has {len(passphrase)}")
    return passphrase


def read_key(pem: bytes, what: str, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from PEM.

    Raises:
        PassphraseError: the key is encrypted, and this passphrase does not open it.
        IdentityError: no P-256 key.
    """
    key = _load_key(pem, what, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{what}: is no P-256 key")
    return key


def read_identity_key(pem: bytes, what: str) -> Ed25519PrivateKey:
    """An Ed25519 key from PEM.

    Raises:
        IdentityError: no Ed25519 key.
    """
    key = _load_key(pem, what, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(f"{what}: is no Ed25519 key")
    return key


def public_bytes(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of an Ed25519 public key."""
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def is_key_of(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Does the certificate certify this key?"""
    return certificate.public_key() == key.public_key()


def _load_key(pem: bytes, what: str, passphrase: bytes | None) -> object:
    is_encrypted = b"ENCRYPTED" in pem
    if is_encrypted and passphrase is None:
        raise PassphraseError(f"{what}: is encrypted; give the passphrase")
    try:
        return serialization.load_pem_private_key(pem, passphrase if is_encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if is_encrypted:
            raise PassphraseError(f"{what}: this passphrase does not open it") from error
        raise IdentityError(f"{what}: is no PEM private key") from error


def _leaf(
    issuer: Authority,
    key: PublicKey,
    peer: PeerId,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    seconds: float,
    now: float,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer.name)])  # for people; nothing of ours reads it
    builder = _issued(issuer, subject, key, seconds, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    uri = x509.UniformResourceIdentifier(str(peer))
    builder = builder.add_extension(x509.SubjectAlternativeName([*names, uri]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _as_authority(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_key_usage(key_cert_sign=True, digital_signature=True), critical=True)


def _issued(
    issuer: Authority, subject: x509.Name, key: PublicKey, seconds: float, now: float
) -> x509.CertificateBuilder:
    check_validity(issuer.certificate, "the issuing certificate", now)
    end = min(now + seconds, expires_at(issuer.certificate))
    builder = _builder(subject, issuer.certificate.subject, key, now, end)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    return builder.add_extension(issuer_key, critical=False)


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, now: float, end: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - CLOCK_SKEW_SECONDS))
        .not_valid_after(_time(end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
