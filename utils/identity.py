"""Who is who: the names in certificates, and whether a certificate may be believed.

A name is the SPIFFE URI ``spiffe://FEDERATION/ROLE/NAME`` in the certificate's SAN; never a common name, a header or
a field of a message. ``certificates`` makes certificates, ``join_file`` carries them to a site, this module reads and
checks them. ``now`` is seconds since 1970 and always an argument.

Whether a name was revoked is the director's to look up at each call (``director/standing.py``); whose identity keys a
site believes is its own roster's to say.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from .errors import IdentityError
from .messages import NAME_PATTERN

MAX_CHAIN_BYTES = 64 << 10
MAX_CHAIN = 4
DOCUMENT_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""RFC 9336: an identity certificate signs what its owner says and opens no connection."""
_SCHEME = "spiffe://"
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class Role(Enum):
    """What a certificate is good for."""

    DIRECTOR = "director"  # serves; never a client
    ENVOY = "envoy"  # a site
    OPERATOR = "operator"  # steers the director: submits, stops, shows
    JOIN = "join"  # the one-time certificate of a join file, good for Join alone
    RENEW = "renew"  # a member's certificate of a year, good for Renew alone


@dataclass(frozen=True, slots=True)
class PeerId:
    """Who a certificate names.

    >>> str(PeerId("lungs", Role.ENVOY, "hospital-a"))
    'spiffe://lungs/envoy/hospital-a'
    """

    federation: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        """Check both names.

        Raises:
            IdentityError: one of them is no name.
        """
        check_name("federation", self.federation)
        check_name(self.role.value, self.name)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.federation}/{self.role.value}/{self.name}"


def check_name(what: str, name: str) -> str:
    """Give the name back if it is one.

    Raises:
        IdentityError: other characters than ``NAME_PATTERN`` allows, or too long.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise IdentityError(
            f"{name!r} is no name for {what}: lower-case letters, digits, dots and hyphens, at most 63,"
            " starting and ending with a letter or digit"
        )
    return name


def parse_spiffe(uri: str) -> PeerId:
    """Read ``spiffe://FEDERATION/ROLE/NAME``, and nothing else.

    Raises:
        IdentityError: it is not exactly that.
    """
    pieces = uri.removeprefix(_SCHEME).split("/")
    roles = {role.value: role for role in Role}
    if not uri.startswith(_SCHEME) or len(pieces) != 3 or pieces[1] not in roles:
        raise IdentityError(f"{uri!r} is no identity; expected spiffe://FEDERATION/ROLE/NAME")
    return PeerId(pieces[0], roles[pieces[1]], pieces[2])


def peer_of(certificate: x509.Certificate) -> PeerId:
    """Who a certificate names, by its one SAN URI. Whether to believe it is ``check_chain``'s question.

    Raises:
        IdentityError: it has no SPIFFE URI, or more than one.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *_UNREADABLE) as error:
        raise IdentityError("a certificate without a SPIFFE identity") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"a certificate with {len(uris)} identities, expected one")
    return parse_spiffe(uris[0])


def read_chain(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """Certificates of a PEM text, the leaf first.

    Raises:
        IdentityError: not one to four PEM certificates.
    """
    if len(pem) > MAX_CHAIN_BYTES:
        raise IdentityError(f"{what}: {len(pem)} bytes of certificates, expected at most {MAX_CHAIN_BYTES}")
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except _UNREADABLE as error:
        raise IdentityError(f"{what}: no PEM certificate") from error
    if len(chain) > MAX_CHAIN:
        raise IdentityError(f"{what}: a chain of {len(chain)} certificates, expected at most {MAX_CHAIN}")
    return chain


def read_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The one certificate of a PEM text.

    Raises:
        IdentityError: not exactly one PEM certificate.
    """
    chain = read_chain(pem, what)
    if len(chain) != 1:
        raise IdentityError(f"{what}: {len(chain)} certificates, expected one")
    return chain[0]


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate, in groups to be read over the phone: ``3f2a 90bc ...``.

    Raises:
        IdentityError: no PEM certificate.
    """
    digits = read_certificate(certificate, "fingerprint").fingerprint(hashes.SHA256()).hex()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def expires_at(certificate: x509.Certificate) -> float:
    """The last second the certificate is good for, in seconds since 1970."""
    return certificate.not_valid_after_utc.timestamp()


def when(seconds: float) -> str:
    """A time as people read it: ``2026-05-01 12:00 UTC``."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def check_validity(certificate: x509.Certificate, what: str, now: float) -> None:
    """Is the certificate good at this time?

    Raises:
        IdentityError: it expired, or begins later; the message says when.
    """
    if now > expires_at(certificate):
        raise IdentityError(f"{what} expired on {when(expires_at(certificate))}; it is {when(now)}")
    if now < certificate.not_valid_before_utc.timestamp():
        begin = when(certificate.not_valid_before_utc.timestamp())
        raise IdentityError(f"{what} is good from {begin} on; it is {when(now)}: check this machine's clock")


def check_issued(certificate: x509.Certificate, issuer: x509.Certificate, what: str) -> None:
    """Did this authority sign the certificate, and was it allowed to?

    Raises:
        IdentityError: another authority signed it, or the issuer may not sign what it signed.
    """
    constraints, may_sign = _authority(issuer)
    if not constraints.ca or not may_sign:
        raise IdentityError(f"{what} was issued by a certificate that may not issue any")
    if _authority(certificate)[0].ca and constraints.path_length == 0:
        raise IdentityError(f"{what} is an authority below one that may only issue leaves")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_UNREADABLE) as error:
        raise IdentityError(f"{what} was not issued by this federation") from error


def check_chain(leaf: x509.Certificate, issuer: x509.Certificate, root: x509.Certificate, now: float) -> PeerId:
    """Does the leaf chain to this very root, at this time? Gives who it names.

    Raises:
        IdentityError: another federation's, expired, or not yet good; the message says which of the three.
    """
    check_issued(root, root, "the root")
    check_issued(issuer, root, "the issuer")
    check_issued(leaf, issuer, "the certificate")
    for certificate, what in ((root, "the root"), (issuer, "the issuer"), (leaf, "the certificate")):
        check_validity(certificate, what, now)
    return peer_of(leaf)


def is_for_clients(certificate: x509.Certificate) -> bool:
    """A client's certificate, and nothing but that."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return False
    return list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def is_for_signing(certificate: x509.Certificate) -> bool:
    """An identity certificate: it signs what its owner says, and opens no connection."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return False
    return list(usage) == [DOCUMENT_SIGNING]


def _authority(certificate: x509.Certificate) -> tuple[x509.BasicConstraints, bool]:
    """Basic constraints, and whether the key may sign certificates; a leaf where they are missing."""
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        may_sign = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return x509.BasicConstraints(ca=False, path_length=None), False
    return constraints, may_sign
