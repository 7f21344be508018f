"""Who may join, and what members get: invitations, and certificates for those who were invited.

An invitation is made for one name, role and organization; the certificate's name comes from there and never from the
signing request. An invitation is used up by the first key that comes with it; the very same request may come again,
since its answer may have been lost. The hub registers envoys of organizations that take part without a file, by the
same rules. A member renews by its identity key: a new leaf, its identity certified anew, and a new renewal certificate
where it asks for one. ``identity_store`` remembers, ``revocations`` who is a member no more, ``service`` answers the
calls, ``founding`` makes the authorities. Private keys of others are never seen here.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..utils.addresses import Address
from ..utils.certificates import (
    CLOCK_SKEW_SECONDS,
    DAY_SECONDS,
    LEAF_DAYS,
    RENEWAL_DAYS,
    Authority,
    certificate_pem,
    issue_client,
    issue_identity,
    key_pem,
    make_key,
)
from ..utils.errors import (
    ConfigError,
    IdentityError,
    JoinFileError,
    MalformedMessageError,
    NameTakenError,
    NotAuthorizedError,
    TooManyCallsError,
)
from ..utils.identity import PeerId, Role, expires_at, when
from ..utils.join_file import INVITED_ROLES, JoinFile, sign_join_file
from ..utils.messages import EnvoyName, JoinReply, JoinRequest, RenewRequest
from ..utils.renewal import identity_text, join_text, renewal_text
from ..utils.tensors import digest_of
from .audit import DirectorAudit
from .founding import OPERATOR_NAME
from .identity_store import Identity, Invitation, IssuedCertificate
from .signing_requests import proven_identity_key, requested_key

USER_ROLE = "user"
"""Of members that are users of the hub: operators who sign with a certified key, and have none for connections."""
_RESERVED = frozenset({OPERATOR_NAME, Role.DIRECTOR.value})
MIN_TTL_SECONDS = 60.0
MAX_TTL_SECONDS = 30.0 * DAY_SECONDS
MAX_ORGANIZATION = 200
MAX_CERTIFICATES = 1_000
"""Certificates of one member that have not expired: one that renews without end fills no disk."""


class Members(Protocol):
    """What the registrar remembers; ``identity_store.IdentityStore``."""

    def add_invitation(self, invitation: Invitation, /) -> None:
        """Remember a join file before it is handed out."""

    def use_invitation(self, invitation_id: str, csr_digest: str, now: float, /) -> Invitation:
        """Use an invitation up for one signing request, or raise ``JoinFileError``."""

    def repeat_invitation(self, invitation: Invitation, /) -> None:
        """Remember what is used as it is made, or know it again, or raise ``JoinFileError``."""

    def identity(self, name: str, /) -> Identity | None:
        """The member of that name."""

    def add_identity(
        self, identity: Identity, certificates: tuple[IssuedCertificate, ...], /, *, reinstates: bool = False
    ) -> None:
        """Remember a member, and certificates that it is given; reinstated, it has these alone."""

    def certificates(self, name: str, now: float, /) -> tuple[IssuedCertificate, ...]:
        """Those of a name that have not expired."""


class Revoked(Protocol):
    """Who is a member no more; ``revocations.Revocations``."""

    def since(self, name: str, /) -> float | None:
        """When the name was revoked, if it is now."""


@dataclass(frozen=True, slots=True)
class Certified:
    """A user's identity certificate, and the issuer's that signed it."""

    leaf: x509.Certificate
    issuer: x509.Certificate


class Registrar:
    """Invites, and issues to those who were invited. Safe to share between threads.

    Args:
        federation: its name.
        issuer: signs certificates and join files; or gives the present one, where it may change.
        root: every join file carries it.
        members: the memory.
        revoked: who is a member no more.
        leaf_days: how long the certificates of envoys and operators last.
        audit: what is issued is written down in it before it is handed out.
    """

    def __init__(
        self,
        federation: str,
        issuer: Authority | Callable[[], Authority],
        root: x509.Certificate,
        members: Members,
        revoked: Revoked,
        *,
        leaf_days: float = LEAF_DAYS,
        audit: DirectorAudit | None = None,
    ) -> None:
        self._federation, self._root = federation, root
        self._issuer = issuer if callable(issuer) else lambda: issuer
        self._members, self._revoked, self._leaf_seconds = members, revoked, leaf_days * DAY_SECONDS
        self._audit = audit or DirectorAudit()
        self._joining = threading.Lock()  # a name is given once, also to two invitations of that name

    def invite(
        self,
        name: str,
        organization: str,
        role: Role,
        addresses: Sequence[str],
        ttl_seconds: float,
        now: float,
        *,
        reinstate: bool = False,
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
            reinstate: the name was revoked and is to join again, with new keys. It stays revoked until it does.

        Raises:
            IdentityError: no name, one that is taken or revoked, or the issuer expired.
            ConfigError: a role, organization, address or time that cannot be.
        """
        self._check_invitation(name, organization, role, ttl_seconds)
        peer = PeerId(self._federation, role, name)
        taken, revoked_at = self._members.identity(name), self._revoked.since(name)
        if revoked_at is not None and not reinstate:
            raise IdentityError(
                f"{name} was revoked on {when(revoked_at)}; choose another name, or say that it is to come back"
                " (--reinstate)"
            )
        if revoked_at is None and reinstate:
            raise IdentityError(f"{name} is not revoked, so there is nothing to reinstate")
        if taken is not None and revoked_at is None:
            raise IdentityError(
                f"{name} of {taken.organization} joined on {when(taken.joined_at)}; choose another name for this one"
            )
        key, invitation_id = make_key(), secrets.token_hex(16)
        bootstrap_id = PeerId(self._federation, Role.JOIN, invitation_id)
        issuer = self._issuer()
        bootstrap = issue_client(issuer, key.public_key(), bootstrap_id, ttl_seconds, now)
        join = JoinFile(
            federation=peer.federation,
            name=peer.name,
            organization=organization,
            role=role,
            addresses=_dialled(addresses),
            root=certificate_pem(self._root),
            issuer=certificate_pem(issuer.certificate),
            bootstrap=certificate_pem(bootstrap),
            bootstrap_key=key_pem(key),
            expires_at=int(expires_at(bootstrap)),
        )
        self._members.add_invitation(Invitation(invitation_id, name, role.value, organization, float(join.expires_at)))
        return sign_join_file(join, issuer)

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
        keys = self._requested(request)
        with self._joining:
            invitation = self._members.use_invitation(bootstrap.name, keys.digest, now)
            known = self._members.identity(invitation.name)
            returns = self._revoked.since(invitation.name) is not None  # or else the file were revoked too
            known = None if returns else known
            if known is not None and (known.identity_key, known.role) != (request.identity_key, invitation.role):
                raise JoinFileError(
                    f"{invitation.name} joined on {when(known.joined_at)} with another join file, used before this one;"
                    " if that was not you, tell the director's operator"
                )
            return self._enrol(invitation, keys, request, known, now, returns=returns)

    def register(
        self,
        name: str,
        organization: str,
        request: JoinRequest,
        now: float,
        claim: Callable[[], None] = lambda: None,
    ) -> JoinReply:
        """Issue to a new envoy by the hub's word alone: its organization takes part, and asked by one of its users.

        The same request gets the same name again, since its answer may have been lost; any other gets nothing, and a
        name that was revoked comes back by a join file alone.

        Args:
            name: of the envoy; no other member has it.
            organization: whose it is, for people.
            request: its keys.
            now: seconds since 1970.
            claim: makes the name the organization's, once it is known that it may be given and before it is.

        Raises:
            MalformedMessageError: no signing request for a P-256 key, no Ed25519 key, or one that is not proven.
            NameTakenError: somebody else has that name, or had it, or it is none.
            ConfigError: no organization.
        """
        try:
            self._check_invitation(name, organization, Role.ENVOY, MIN_TTL_SECONDS)
            PeerId(self._federation, Role.ENVOY, name)
        except IdentityError as error:  # of the name, not of the caller
            raise NameTakenError(str(error)) from error
        try:
            keys = self._requested(request)
        except IdentityError as error:  # likewise, of the keys
            raise MalformedMessageError(str(error)) from error
        with self._joining:
            revoked_at, known = self._revoked.since(name), self._members.identity(name)
            if revoked_at is not None:
                raise NameTakenError(
                    f"{name} was revoked on {when(revoked_at)}; choose another name, or ask the director's operator for"
                    " a join file that brings it back"
                )
            if known is not None and (known.identity_key, known.role) != (request.identity_key, Role.ENVOY.value):
                raise NameTakenError(f"{name} of {known.organization} is here already; choose another name")
            invitation = Invitation(_registration_of(name), name, Role.ENVOY.value, organization, now, keys.digest)
            claim()
            try:
                self._members.repeat_invitation(invitation)
            except JoinFileError:
                raise NameTakenError(
                    f"{name} was registered with other keys; choose another name, or send the very same request"
                ) from None
            return self._enrol(invitation, keys, request, known, now, returns=False)

    def renew(self, caller: PeerId, request: RenewRequest, now: float) -> JoinReply:
        """Answer one renewal: a new leaf, the identity certified anew, a renewal certificate where one is asked for.

        The same request again gets certificates for the same keys again: of use to nobody but their holder.

        Args:
            caller: whom the certificate of the connection names: the member's leaf, or its renewal certificate.
            request: its new keys, signed by its identity key.
            now: seconds since 1970.

        Raises:
            NotAuthorizedError: the caller's certificate renews nothing, or the member was revoked.
            MalformedMessageError: no signing request for a P-256 key.
            IdentityError: nobody joined by this name, another's identity key signed, or the member's clock and the
                director's differ by more than five minutes.
            TooManyCallsError: the member has a thousand certificates that have not expired.
        """
        if caller.role not in (Role.ENVOY, Role.OPERATOR, Role.RENEW) or caller.federation != self._federation:
            raise NotAuthorizedError(f"{caller} may not renew; that needs a member's certificate")
        leaf_key = requested_key(request.signing_request)
        renewal_key = requested_key(request.renewal_request) if request.renewal_request else None
        with self._joining:
            member = self._members.identity(caller.name)
            if member is None:
                raise IdentityError(f"nobody joined this federation as {caller.name}; ask the director's operator")
            revoked_at = self._revoked.since(caller.name)
            if revoked_at is not None:
                raise NotAuthorizedError(f"{caller.name} was revoked on {when(revoked_at)}; nothing was renewed")
            peer = PeerId(self._federation, Role(member.role), member.name)
            text = renewal_text(peer, request.asked_at, request.signing_request, request.renewal_request)
            identity_key = proven_identity_key(member.identity_key, request.identity_proof, text)
            _check_clock(caller.name, request.asked_at, now)
            if len(self._members.certificates(member.name, now)) >= MAX_CERTIFICATES:
                raise TooManyCallsError(
                    f"{member.name} has {MAX_CERTIFICATES} certificates that have not expired; wait until some have"
                )
            issued = self._issue(member, leaf_key, identity_key, renewal_key, now)
            self._write_down(issued.records)
            self._members.add_identity(replace(member, certificate_sha256=issued.records[0].sha256), issued.records)
        return issued.reply

    def certify(self, name: str, organization: str, raw_key: bytes, proof: bytes, now: float) -> Certified:
        """Certify the identity key of a user, who signs with it and opens no connection.

        A user who lost a key brings another one: the director believes the last one alone.

        Args:
            name: of the user, who proved who it is.
            organization: whose user it is, for people.
            raw_key: Ed25519 public key, 32 bytes.
            proof: the key's signature of ``identity_text``.
            now: seconds since 1970.

        Returns:
            the certificate, and the present issuer's.

        Raises:
            MalformedMessageError: no Ed25519 key.
            NameTakenError: a member that joined has that name.
            NotAuthorizedError: the name was revoked, or the key's possession is not proven.
            TooManyCallsError: the user has a thousand certificates that have not expired.
        """
        peer = PeerId(self._federation, Role.OPERATOR, name)
        try:
            identity_key = proven_identity_key(raw_key, proof, identity_text(peer))
        except IdentityError as error:
            raise NotAuthorizedError(f"the identity key did not sign that it is {peer}'s") from error
        with self._joining:
            taken, revoked_at = self._members.identity(name), self._revoked.since(name)
            if name in _RESERVED or (taken is not None and taken.role != USER_ROLE):
                raise NameTakenError(f"{name} is the name of another member, so nothing is certified for this user")
            if revoked_at is not None:
                raise NotAuthorizedError(f"{name} was revoked on {when(revoked_at)}; nothing was certified")
            if len(self._members.certificates(name, now)) >= MAX_CERTIFICATES:
                raise TooManyCallsError(
                    f"{name} has {MAX_CERTIFICATES} certificates that have not expired; wait until some have"
                )
            issuer = self._issuer()
            made = issue_identity(issuer, identity_key, peer, now)
            sha256 = made.fingerprint(hashes.SHA256()).hex()
            self._audit.enrolled(name, USER_ROLE, organization, sha256, raw_key)
            member = Identity(name, USER_ROLE, organization, sha256, raw_key, taken.joined_at if taken else now)
            self._members.add_identity(member, (IssuedCertificate(sha256, name, USER_ROLE, now, expires_at(made)),))
        return Certified(made, issuer.certificate)

    def _requested(self, request: JoinRequest) -> _Requested:
        """The keys of a join, each of them proven."""
        text = join_text(request.signing_request, request.renewal_request)
        return _Requested(
            requested_key(request.signing_request),
            proven_identity_key(request.identity_key, request.identity_proof, text),
            requested_key(request.renewal_request) if request.renewal_request else None,
            digest_of(text, request.identity_key),
        )

    def _enrol(
        self,
        invitation: Invitation,
        keys: _Requested,
        request: JoinRequest,
        known: Identity | None,
        now: float,
        *,
        returns: bool,
    ) -> JoinReply:
        """Issue to whoever an invitation is for, write it down, and remember it."""
        member = Identity(
            name=invitation.name,
            role=invitation.role,
            organization=invitation.organization,
            certificate_sha256="",
            identity_key=request.identity_key,
            joined_at=known.joined_at if known else now,
        )
        issued = self._issue(member, keys.leaf, keys.identity, keys.renewal, now)
        leaf, *others = issued.records
        self._audit.enrolled(member.name, member.role, member.organization, leaf.sha256, member.identity_key)
        self._write_down(others)
        member = replace(member, certificate_sha256=leaf.sha256)
        self._members.add_identity(member, issued.records, reinstates=returns)
        return issued.reply

    def _issue(
        self,
        member: Identity,
        leaf_key: ec.EllipticCurvePublicKey,
        identity_key: Ed25519PublicKey,
        renewal_key: ec.EllipticCurvePublicKey | None,
        now: float,
    ) -> _Issued:
        """A member's certificates, all of the present issuer."""
        issuer = self._issuer()
        peer = PeerId(self._federation, Role(member.role), member.name)
        leaf = issue_client(issuer, leaf_key, peer, self._leaf_seconds, now)
        identity = issue_identity(issuer, identity_key, peer, now)
        renewing = PeerId(self._federation, Role.RENEW, member.name)
        renewal = issue_client(issuer, renewal_key, renewing, RENEWAL_DAYS * DAY_SECONDS, now) if renewal_key else None
        reply = JoinReply(
            federation=self._federation,
            name=EnvoyName(member.name),
            organization=member.organization,
            chain=certificate_pem(leaf, issuer.certificate),
            identity_certificate=certificate_pem(identity),
            renewal_certificate=certificate_pem(renewal) if renewal else b"",
        )
        made = [(leaf, peer.role), *([(renewal, Role.RENEW)] if renewal else [])]
        records = tuple(
            IssuedCertificate(one.fingerprint(hashes.SHA256()).hex(), member.name, role.value, now, expires_at(one))
            for one, role in made
        )
        return _Issued(reply, records)

    def _write_down(self, certificates: Iterable[IssuedCertificate]) -> None:
        for one in certificates:
            self._audit.renewed(one.name, one.role, one.sha256, one.expires_at)

    def _check_invitation(self, name: str, organization: str, role: Role, ttl_seconds: float) -> None:
        if role not in INVITED_ROLES:
            raise ConfigError(f"nobody is invited as {role.value}; expected envoy or operator")
        if name in _RESERVED:
            raise IdentityError(f"{name} is the name of one who is here from the beginning; choose another")
        if not (0 < len(organization) <= MAX_ORGANIZATION and organization.isprintable() and organization.strip()):
            raise ConfigError(f"an organization is 1 to {MAX_ORGANIZATION} printable characters")
        if not MIN_TTL_SECONDS <= ttl_seconds <= MAX_TTL_SECONDS:
            raise ConfigError(f"an invitation lasts a minute to 30 days, not {ttl_seconds:g} s")


@dataclass(frozen=True, slots=True)
class _Requested:
    """What a join asks certificates for."""

    leaf: ec.EllipticCurvePublicKey
    identity: Ed25519PublicKey
    renewal: ec.EllipticCurvePublicKey | None
    digest: str  # of the request; the same keys give the same


@dataclass(frozen=True, slots=True)
class _Issued:
    """What a member is given, and what is remembered of it; the leaf first."""

    reply: JoinReply
    records: tuple[IssuedCertificate, ...]


def _registration_of(name: str) -> str:
    """The id of a registration, in the place of a join file's; no bootstrap certificate is ever made for it."""
    return digest_of(b"fedveil-registration/1\0", name.encode())[:32]


def _dialled(addresses: Sequence[str]) -> tuple[str, ...]:
    parsed = [Address.parse(text) for text in addresses]
    if not parsed or not all(address.port for address in parsed):
        raise ConfigError("a join file needs the director's address as host:port")
    return tuple(map(str, parsed))


def _check_clock(name: str, asked_at: float, now: float) -> None:
    apart = asked_at - now
    if abs(apart) > CLOCK_SKEW_SECONDS:
        raise IdentityError(
            f"{name} asked at {when(asked_at)} by its own clock, which is {abs(apart) / 60:.0f} min"
            f" {'ahead of' if apart > 0 else 'behind'} the director's ({when(now)}); set the clock that is wrong."
            f" {CLOCK_SKEW_SECONDS // 60} min are allowed, so that no request is good for long"
        )
