"""Who may join, and what they get: invitations, and certificates for those who were invited.

An invitation is made for one name, role and organization; the certificate's name comes from there and never from the
signing request. An invitation is used up by the first key that comes with it; the very same request may come again,
since its answer may have been lost. ``identity_store`` remembers, ``service`` answers the calls, ``founding`` makes
the authorities. Private keys of others are never seen here.

Renewal (a new leaf for a name that joined, over mutual TLS or signed by its identity key) is one more method beside
``join``; revocation is a mark on the stored identity that the doors look up by ``certificate_sha256``.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..utils.addresses import Address
from ..utils.certificates import (
    DAY_SECONDS,
    LEAF_DAYS,
    Authority,
    certificate_pem,
    issue_client,
    issue_identity,
    key_pem,
    make_key,
)
from ..utils.errors import ConfigError, IdentityError, JoinFileError, MalformedMessageError, NotAuthorizedError
from ..utils.identity import PeerId, Role, expires_at, when
from ..utils.join_file import INVITED_ROLES, JoinFile, sign_join_file
from ..utils.messages import EnvoyName, JoinReply, JoinRequest
from ..utils.roster import check_identity_key
from ..utils.tensors import digest_of
from .founding import OPERATOR_NAME
from .identity_store import Identity, Invitation

MIN_TTL_SECONDS = 60.0
MAX_TTL_SECONDS = 30.0 * DAY_SECONDS
MAX_ORGANIZATION = 200
_MAX_REQUEST_BYTES = 8 << 10


class Members(Protocol):
    """What the registrar remembers; ``identity_store.IdentityStore``."""

    def add_invitation(self, invitation: Invitation, /) -> None:
        """Remember a join file before it is handed out."""

    def use_invitation(self, invitation_id: str, csr_digest: str, now: float, /) -> Invitation:
        """Use an invitation up for one signing request, or raise ``JoinFileError``."""

    def identity(self, name: str, /) -> Identity | None:
        """The member of that name."""

    def add_identity(self, identity: Identity, /) -> None:
        """Remember a member."""


class Registrar:
    """Invites, and issues to those who were invited. Safe to share between threads.

    Args:
        federation: its name.
        issuer: signs certificates and join files.
        root: every join file carries it.
        members: the memory.
        leaf_days: how long the certificates of envoys and operators last.
    """

    def __init__(
        self,
        federation: str,
        issuer: Authority,
        root: x509.Certificate,
        members: Members,
        leaf_days: float = LEAF_DAYS,
    ) -> None:
        self._federation, self._issuer, self._root = federation, issuer, root
        self._members, self._leaf_seconds = members, leaf_days * DAY_SECONDS
        self._joining = threading.Lock()  # a name is given once, also to two invitations of that name

    def invite(
        self, name: str, organization: str, role: Role, addresses: Sequence[str], ttl_seconds: float, now: float
    ) -> JoinFile:
        """Make the join file of one future member. It holds a key: hand it over like a password.

        Several may be out for one name (one was lost, say): the first that is used wins.

        Args:
            name: of the envoy or operator; no other member has it.
            organization: whose it is, for people.
            role: ENVOY or OPERATOR.
            addresses: ``host:port`` of the director.
            ttl_seconds: how long the file is good for; a minute to 30 days.
            now: seconds since 1970.

        Raises:
            IdentityError: no name, one that is taken, or the issuer expired.
            ConfigError: a role, organization, address or time that cannot be.
        """
        self._check_invitation(name, organization, role, ttl_seconds)
        peer = PeerId(self._federation, role, name)
        taken = self._members.identity(name)
        if taken is not None:
            raise IdentityError(
                f"{name} of {taken.organization} joined on {when(taken.joined_at)}; choose another name for this one"
            )
        key, invitation_id = make_key(), secrets.token_hex(16)
        bootstrap_id = PeerId(self._federation, Role.JOIN, invitation_id)
        bootstrap = issue_client(self._issuer, key.public_key(), bootstrap_id, ttl_seconds, now)
        join = JoinFile(
            federation=peer.federation,
            name=peer.name,
            organization=organization,
            role=role,
            addresses=_dialled(addresses),
            root=certificate_pem(self._root),
            issuer=certificate_pem(self._issuer.certificate),
            bootstrap=certificate_pem(bootstrap),
            bootstrap_key=key_pem(key),
            expires_at=int(expires_at(bootstrap)),
        )
        self._members.add_invitation(Invitation(invitation_id, name, role.value, organization, float(join.expires_at)))
        return sign_join_file(join, self._issuer)

    def join(self, bootstrap: PeerId, request: JoinRequest, now: float) -> JoinReply:
        """Answer one join. The same request gets the same name again; any other with that invitation gets nothing.

        Args:
            bootstrap: whom the caller's certificate names.
            request: its keys.
            now: seconds since 1970.

        Raises:
            NotAuthorizedError: the caller's certificate is not that of a join file.
            MalformedMessageError: no signing request for a P-256 key, or no Ed25519 key.
            IdentityError: a key's possession is not proven.
            JoinFileError: the invitation is unknown, too old, or was used before.
        """
        if bootstrap.role is not Role.JOIN or bootstrap.federation != self._federation:
            raise NotAuthorizedError(f"{bootstrap} may not join; a join needs the certificate of a join file")
        leaf_key = _leaf_key(request)
        identity_key = _identity_key(request)
        digest = digest_of(request.signing_request, request.identity_key)
        with self._joining:
            invitation = self._members.use_invitation(bootstrap.name, digest, now)
            known = self._members.identity(invitation.name)
            if known is not None and (known.identity_key, known.role) != (request.identity_key, invitation.role):
                raise JoinFileError(
                    f"{invitation.name} joined on {when(known.joined_at)} with another join file, used before this one;"
                    " if that was not you, tell the director's operator"
                )
            peer = PeerId(self._federation, Role(invitation.role), invitation.name)
            leaf = issue_client(self._issuer, leaf_key, peer, self._leaf_seconds, now)
            identity = issue_identity(self._issuer, identity_key, peer, now)
            self._members.add_identity(
                Identity(
                    name=peer.name,
                    role=peer.role.value,
                    organization=invitation.organization,
                    certificate_sha256=leaf.fingerprint(hashes.SHA256()).hex(),
                    identity_key=request.identity_key,
                    joined_at=known.joined_at if known else now,
                )
            )
        return JoinReply(
            federation=self._federation,
            name=EnvoyName(peer.name),
            organization=invitation.organization,
            chain=certificate_pem(leaf, self._issuer.certificate),
            identity_certificate=certificate_pem(identity),
        )

    def _check_invitation(self, name: str, organization: str, role: Role, ttl_seconds: float) -> None:
        if role not in INVITED_ROLES:
            raise ConfigError(f"nobody is invited as {role.value}; expected envoy or operator")
        if name in {OPERATOR_NAME, Role.DIRECTOR.value}:
            raise IdentityError(f"{name} is the name of one who is here from the beginning; choose another")
        if not (0 < len(organization) <= MAX_ORGANIZATION and organization.isprintable() and organization.strip()):
            raise ConfigError(f"an organization is 1 to {MAX_ORGANIZATION} printable characters")
        if not MIN_TTL_SECONDS <= ttl_seconds <= MAX_TTL_SECONDS:
            raise ConfigError(f"an invitation lasts a minute to 30 days, not {ttl_seconds:g} s")


def _dialled(addresses: Sequence[str]) -> tuple[str, ...]:
    parsed = [Address.parse(text) for text in addresses]
    if not parsed or not all(address.port for address in parsed):
        raise ConfigError("a join file needs the director's address as host:port")
    return tuple(map(str, parsed))


def _leaf_key(request: JoinRequest) -> ec.EllipticCurvePublicKey:
    """The P-256 key of the signing request; whatever else it asks for is not looked at."""
    raw = request.signing_request
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


def _identity_key(request: JoinRequest) -> Ed25519PublicKey:
    try:
        key = Ed25519PublicKey.from_public_bytes(request.identity_key)
    except ValueError as error:
        raise MalformedMessageError(
            f"an identity key of {len(request.identity_key)} bytes, expected 32 of Ed25519"
        ) from error
    try:
        key.verify(request.identity_proof, request.signing_request)
    except InvalidSignature as error:
        raise IdentityError("the identity key did not sign the signing request") from error
    check_identity_key("a join", request.identity_key)  # one of small order "signs" anything
    return key
