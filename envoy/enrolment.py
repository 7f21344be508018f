"""How a site joins, and what it then holds: keys that are made here and never leave.

    joining.json        keys and signing request of a join that was not answered yet
    credentials.json    certificates and keys of a site that joined

The keys are on disk before the director is asked, so that a join whose answer was lost is repeated with the very same
request, which alone the director answers again. Each file is one, so that key and certificate change together. The
call itself is ``client``'s; this module only prepares it and checks its answer.

Renewal replaces ``credentials.json`` as a whole (a new leaf and key, or a new identity); the roster that the site
accepted is a file beside it (``accepted_roster``).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.addresses import Address
from ..utils.certificates import (
    certificate_pem,
    is_key_of,
    key_pem,
    make_key,
    public_bytes,
    read_identity_key,
    read_key,
)
from ..utils.errors import ConfigError, IdentityError
from ..utils.identity import (
    PeerId,
    check_chain,
    check_issued,
    check_validity,
    expires_at,
    is_for_clients,
    parse_spiffe,
    peer_of,
    read_certificate,
    read_chain,
    when,
)
from ..utils.join_file import JoinFile
from ..utils.messages import JoinReply, JoinRequest
from ..utils.private_files import make_private_folder, read_private_file, write_private_file
from ..utils.tensors import digest_of

CREDENTIALS_FILE = "credentials.json"
JOINING_FILE = "joining.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class JoinKeys:
    """What one site made for one join file."""

    invitation: str  # SHA-256 of the bootstrap certificate
    leaf_key: bytes = field(repr=False)  # PEM, P-256
    identity_key: bytes = field(repr=False)  # PEM, Ed25519
    signing_request: bytes  # PKCS#10, DER

    def request(self) -> JoinRequest:
        """What the director gets; the same keys always give the same request."""
        identity = read_identity_key(self.identity_key, "the identity key")
        return JoinRequest(
            self.signing_request, public_bytes(identity.public_key()), identity.sign(self.signing_request)
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """A member's certificates and keys."""

    peer: PeerId
    organization: str
    addresses: tuple[str, ...]  # host:port of the director
    root: bytes  # PEM
    chain: bytes  # PEM: leaf, then issuer
    leaf_key: bytes = field(repr=False)  # PEM
    identity_certificate: bytes  # PEM
    identity_key: bytes = field(repr=False)  # PEM

    @property
    def expires_at(self) -> float:
        """The last second a connection can be opened, in seconds since 1970."""
        return expires_at(read_chain(self.chain, "the certificate")[0])

    @property
    def public_identity(self) -> bytes:
        """The public half of the identity key, 32 bytes, as rosters hold it."""
        return public_bytes(read_identity_key(self.identity_key, "the identity key").public_key())


def prepare_join(folder: Path, join: JoinFile) -> tuple[JoinRequest, JoinKeys]:
    """The request for a join file, its keys safe on disk; the same one again if it was prepared before.

    Raises:
        IdentityError: the folder belongs to a member already, or its files were damaged.
        StorageError: the keys cannot be written.
    """
    if (folder / CREDENTIALS_FILE).exists():
        raise IdentityError(f"{folder} holds the credentials of a member already; join with another folder")
    invitation = digest_of(join.bootstrap)
    path = folder / JOINING_FILE
    keys = _read_keys(path) if path.exists() else None
    if keys is None or keys.invitation != invitation:
        keys = make_keys(join)
        make_private_folder(folder)
        write_private_file(path, _keys_document(keys))
    return keys.request(), keys


def make_keys(join: JoinFile) -> JoinKeys:
    """New keys and the signing request for a join file."""
    leaf_key = make_key()
    # Empty on purpose: the name in the certificate comes from the invitation.
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signing_request = builder.sign(leaf_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    identity_key = key_pem(Ed25519PrivateKey.generate())
    return JoinKeys(digest_of(join.bootstrap), key_pem(leaf_key), identity_key, signing_request)


def save_credentials(folder: Path, join: JoinFile, keys: JoinKeys, reply: JoinReply, now: float) -> Credentials:
    """Check the director's answer, keep it, and forget the join.

    Raises:
        IdentityError: the answer is not for this name, these keys or this federation; nothing was kept.
        StorageError: it cannot be written; the join can be repeated.
    """
    if (reply.federation, reply.name) != (join.federation, join.name):
        raise IdentityError(
            f"the director answered for {reply.name} of {reply.federation}; asked was {join.name} of {join.federation}"
        )
    credentials = Credentials(
        peer=join.peer,
        organization=join.organization,
        addresses=join.addresses,
        root=join.root,
        chain=certificate_pem(*read_chain(reply.chain, "the answer")),
        leaf_key=keys.leaf_key,
        identity_certificate=certificate_pem(read_certificate(reply.identity_certificate, "the answer")),
        identity_key=keys.identity_key,
    )
    _check(credentials, now)
    write_private_file(folder / CREDENTIALS_FILE, _credentials_document(credentials))
    (folder / JOINING_FILE).unlink(missing_ok=True)
    return credentials


def load_credentials(folder: Path, now: float) -> Credentials:
    """What a member holds, checked.

    Raises:
        IdentityError: there is nothing, it is damaged or readable by others, it expired, or its parts do not belong
            together; the message says what to do.
    """
    path = folder / CREDENTIALS_FILE
    if not path.exists():
        unanswered = " (a join was begun and not answered; repeat it)" if (folder / JOINING_FILE).exists() else ""
        raise IdentityError(f"{folder} has not joined a federation yet{unanswered}; see `envoy join FILE`")
    fields = _read_document(path)
    try:
        credentials = Credentials(
            peer=parse_spiffe(fields["peer"]),
            organization=fields["organization"],
            addresses=_addresses(fields["addresses"]),
            root=fields["root"].encode(),
            chain=fields["chain"].encode(),
            leaf_key=fields["leaf_key"].encode(),
            identity_certificate=fields["identity_certificate"].encode(),
            identity_key=fields["identity_key"].encode(),
        )
    except (KeyError, ConfigError, IdentityError, UnicodeEncodeError) as error:
        raise IdentityError(f"{path}: is damaged: {error}; restore it, or ask for a new join file") from error
    try:
        _check(credentials, now)
    except IdentityError as error:
        raise IdentityError(f"{path}: {error}") from error
    return credentials


def _check(credentials: Credentials, now: float) -> None:
    chain = read_chain(credentials.chain, "the certificate")
    if len(chain) != 2:
        raise IdentityError(f"a chain of {len(chain)} certificates, expected leaf and issuer")
    leaf, issuer = chain
    if now > expires_at(leaf):
        raise IdentityError(
            f"the certificate of {credentials.peer.name} expired on {when(expires_at(leaf))}; it is {when(now)}."
            f" Ask the operator of {credentials.peer.federation} for a new join file, and join with a new folder"
        )
    peer = check_chain(leaf, issuer, read_certificate(credentials.root, "the root"), now)
    identity = read_certificate(credentials.identity_certificate, "the identity certificate")
    check_issued(identity, issuer, "the identity certificate")
    check_validity(identity, "the identity certificate", now)
    for named in (peer, peer_of(identity)):
        if named != credentials.peer:
            raise IdentityError(f"a certificate is {named}'s, expected {credentials.peer}'s")
    if not is_for_clients(leaf):
        raise IdentityError("the certificate is not a client's")
    if not is_key_of(leaf, read_key(credentials.leaf_key, "the key")):
        raise IdentityError("the key does not fit the certificate")
    if not is_key_of(identity, read_identity_key(credentials.identity_key, "the identity key")):
        raise IdentityError("the identity key does not fit its certificate")


def _keys_document(keys: JoinKeys) -> bytes:
    return _document(
        {
            "invitation": keys.invitation,
            "leaf_key": keys.leaf_key.decode(),
            "identity_key": keys.identity_key.decode(),
            "signing_request": base64.b64encode(keys.signing_request).decode(),
        }
    )


def _credentials_document(credentials: Credentials) -> bytes:
    return _document(
        {
            "peer": str(credentials.peer),
            "organization": credentials.organization,
            "addresses": " ".join(credentials.addresses),
            "root": credentials.root.decode(),
            "chain": credentials.chain.decode(),
            "leaf_key": credentials.leaf_key.decode(),
            "identity_certificate": credentials.identity_certificate.decode(),
            "identity_key": credentials.identity_key.decode(),
        }
    )


def _document(fields: dict[str, str]) -> bytes:
    return json.dumps({"version": str(_VERSION)} | fields, indent=1).encode() + b"\n"


def _read_keys(path: Path) -> JoinKeys:
    fields = _read_document(path)
    try:
        keys = JoinKeys(
            fields["invitation"],
            fields["leaf_key"].encode(),
            fields["identity_key"].encode(),
            base64.b64decode(fields["signing_request"], validate=True),
        )
        asked_for = x509.load_der_x509_csr(keys.signing_request).public_key()
        is_whole = read_key(keys.leaf_key, "the key").public_key() == asked_for
        read_identity_key(keys.identity_key, "the identity key")
    except (KeyError, ValueError, IdentityError) as error:
        raise IdentityError(f"{path}: is damaged; delete it and ask for a new join file") from error
    if not is_whole:
        raise IdentityError(f"{path}: is damaged; delete it and ask for a new join file")
    return keys


def _addresses(text: str) -> tuple[str, ...]:
    addresses = [Address.parse(item) for item in text.split()]
    if not addresses or not all(address.port for address in addresses):
        raise IdentityError("the director's addresses are not host:port")
    return tuple(map(str, addresses))


def _read_document(path: Path) -> dict[str, str]:
    """A flat object of texts.

    Raises:
        IdentityError: it is not that, or not of this version.
    """
    raw = read_private_file(path)
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{path}: is damaged: not JSON; restore it, or ask for a new join file") from error
    if not isinstance(document, dict) or not all(isinstance(value, str) for value in document.values()):
        raise IdentityError(f"{path}: is damaged: not an object of texts; restore it, or ask for a new join file")
    if document.get("version") != str(_VERSION):
        raise IdentityError(f"{path}: is of another version; this software reads version {_VERSION}")
    return document
