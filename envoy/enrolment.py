"""How a site joins, and what it then holds: keys that are made here and never leave.

    joining.json        keys and signing request of a join that was not answered yet
    credentials.json    certificates and keys of a site that joined

The keys are on disk before the director is asked, so that a join whose answer was lost is repeated with the very same
request, which alone the director answers again. Each file is one, so that key and certificate change together. The
call itself is ``client``'s; this module only prepares it and checks its answer.

A renewal replaces ``credentials.json`` as a whole (``renewal``); the roster that the site accepted is a file beside it
(``accepted_roster``). A leaf that expired is no reason not to read the file: what else is there is still needed, and
the leaf can be renewed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
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
    Role,
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
from ..utils.renewal import join_text
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
    renewal_key: bytes = field(default=b"", repr=False)  # PEM, P-256; empty where the join was prepared before renewals
    renewal_request: bytes = b""  # PKCS#10, DER

    def request(self) -> JoinRequest:
        """What the director gets; the same keys always give the same request."""
        identity = read_identity_key(self.identity_key, "the identity key")
        proof = identity.sign(join_text(self.signing_request, self.renewal_request))
        return JoinRequest(self.signing_request, public_bytes(identity.public_key()), proof, self.renewal_request)


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
    renewal_chain: bytes = b""  # PEM: renewal certificate, issuer; of an older member empty until its first renewal
    renewal_key: bytes = field(default=b"", repr=False)  # PEM

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that opens connections."""
        return read_chain(self.chain, "the certificate")[0]

    @property
    def renewal_certificate(self) -> x509.Certificate | None:
        """The certificate that opens a connection to renew by, once the leaf expired."""
        return read_chain(self.renewal_chain, "the renewal certificate")[0] if self.renewal_chain else None

    @property
    def expires_at(self) -> float:
        """The last second a connection can be opened, in seconds since 1970."""
        return expires_at(self.leaf)

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
    return prepare_keys(folder, digest_of(join.bootstrap))


def prepare_keys(folder: Path, invitation: str) -> tuple[JoinRequest, JoinKeys]:
    """Likewise, for whatever a join is asked by: the digest tells one join from another.

    Raises:
        IdentityError, StorageError: as ``prepare_join``.
    """
    if (folder / CREDENTIALS_FILE).exists():
        raise IdentityError(f"{folder} holds the credentials of a member already; join with another folder")
    path = folder / JOINING_FILE
    keys = _read_keys(path) if path.exists() else None
    if keys is None or keys.invitation != invitation:
        keys = _new_keys(invitation)
        make_private_folder(folder)
        write_private_file(path, _keys_document(keys))
    return keys.request(), keys


def make_keys(join: JoinFile) -> JoinKeys:
    """New keys and the signing request for a join file."""
    return _new_keys(digest_of(join.bootstrap))


def _new_keys(invitation: str) -> JoinKeys:
    (leaf_key, signing_request), (renewal_key, renewal_request) = new_request(), new_request()
    identity_key = key_pem(Ed25519PrivateKey.generate())
    return JoinKeys(invitation, leaf_key, identity_key, signing_request, renewal_key, renewal_request)


def new_request() -> tuple[bytes, bytes]:
    """A new P-256 key (PEM), and the signing request for it (PKCS#10, DER)."""
    key = make_key()
    # Empty on purpose: the name in the certificate is the registrar's to give.
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return key_pem(key), builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


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
    return keep_answer(folder, join.peer, join.organization, join.addresses, join.root, keys, reply, now)


def keep_answer(
    folder: Path,
    peer: PeerId,
    organization: str,
    addresses: tuple[str, ...],
    root: bytes,
    keys: JoinKeys,
    reply: JoinReply,
    now: float,
) -> Credentials:
    """Likewise, of a member that joined without a file.

    Args:
        folder: the envoy's.
        peer: who it is now.
        organization: whose it is.
        addresses: host:port of the director.
        root: PEM of the federation's root, as the site came to believe it.
        keys: that it made.
        reply: the director's answer to them.
        now: seconds since 1970.

    Raises:
        IdentityError, StorageError: as ``save_credentials``.
    """
    credentials = Credentials(
        peer=peer,
        organization=organization,
        addresses=addresses,
        root=root,
        chain=certificate_pem(*read_chain(reply.chain, "the answer")),
        leaf_key=keys.leaf_key,
        identity_certificate=certificate_pem(read_certificate(reply.identity_certificate, "the answer")),
        identity_key=keys.identity_key,
        renewal_chain=renewal_chain_of(reply),
        renewal_key=keys.renewal_key if reply.renewal_certificate else b"",
    )
    keep_credentials(folder, credentials, now)
    (folder / JOINING_FILE).unlink(missing_ok=True)
    return credentials


def renewal_chain_of(reply: JoinReply) -> bytes:
    """The renewal certificate of an answer with its issuer, as PEM; empty where there is none.

    Raises:
        IdentityError: no PEM certificates.
    """
    if not reply.renewal_certificate:
        return b""
    issuers = read_chain(reply.chain, "the answer")[1:]
    return certificate_pem(read_certificate(reply.renewal_certificate, "the answer"), *issuers)


def keep_credentials(
    folder: Path, credentials: Credentials, now: float, write_down: Callable[[], None] = lambda: None
) -> None:
    """Check credentials, and put them in the place of those that were there; a crash leaves the one or the other.

    Args:
        folder: the envoy's.
        credentials: to be kept.
        now: seconds since 1970.
        write_down: puts it into the audit log, once they are known to be good and before they are kept.

    Raises:
        IdentityError: their parts do not belong together, or the leaf is not good now; nothing was kept.
        StorageError: they cannot be written; what was there stays.
    """
    _check(credentials, now)
    check_validity(credentials.leaf, "the certificate", now)
    write_down()
    write_private_file(folder / CREDENTIALS_FILE, _credentials_document(credentials))


def load_credentials(folder: Path, now: float) -> Credentials:
    """What a member holds, checked. Its leaf may have expired: ``renewing`` gets another.

    Raises:
        IdentityError: there is nothing, it is damaged or readable by others, the identity expired, or its parts do not
            belong together; the message says what to do.
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
            renewal_chain=fields.get("renewal_chain", "").encode(),
            renewal_key=fields.get("renewal_key", "").encode(),
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
    peer = check_chain(leaf, issuer, read_certificate(credentials.root, "the root"), min(now, expires_at(leaf)))
    identity = read_certificate(credentials.identity_certificate, "the identity certificate")
    check_issued(identity, issuer, "the identity certificate")
    if now > expires_at(identity):
        raise IdentityError(
            f"the identity of {credentials.peer.name} expired on {when(expires_at(identity))}; it is {when(now)}."
            f" Ask the operator of {credentials.peer.federation} for a new join file (`director revoke`, then"
            " `director invite --reinstate`), and join with a new folder"
        )
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
    if credentials.renewal_chain:
        _check_renewal(credentials, now)


def _check_renewal(credentials: Credentials, now: float) -> None:
    chain = read_chain(credentials.renewal_chain, "the renewal certificate")
    if len(chain) != 2:
        raise IdentityError(f"a chain of {len(chain)} certificates to renew by, expected two")
    leaf, issuer = chain
    peer = check_chain(leaf, issuer, read_certificate(credentials.root, "the root"), min(now, expires_at(leaf)))
    expected = PeerId(credentials.peer.federation, Role.RENEW, credentials.peer.name)
    if peer != expected:
        raise IdentityError(f"the renewal certificate is {peer}'s, expected {expected}'s")
    if not is_for_clients(leaf) or not is_key_of(leaf, read_key(credentials.renewal_key, "the renewal key")):
        raise IdentityError("the renewal certificate is not a client's, or its key does not fit")


def _keys_document(keys: JoinKeys) -> bytes:
    return _document(
        {
            "invitation": keys.invitation,
            "leaf_key": keys.leaf_key.decode(),
            "identity_key": keys.identity_key.decode(),
            "signing_request": base64.b64encode(keys.signing_request).decode(),
            "renewal_key": keys.renewal_key.decode(),
            "renewal_request": base64.b64encode(keys.renewal_request).decode(),
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
            "renewal_chain": credentials.renewal_chain.decode(),
            "renewal_key": credentials.renewal_key.decode(),
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
            fields.get("renewal_key", "").encode(),
            base64.b64decode(fields.get("renewal_request", ""), validate=True),
        )
        is_whole = _asks_for(keys.signing_request, keys.leaf_key)
        if keys.renewal_request:
            is_whole = is_whole and _asks_for(keys.renewal_request, keys.renewal_key)
        read_identity_key(keys.identity_key, "the identity key")
    except (KeyError, ValueError, IdentityError) as error:
        raise IdentityError(f"{path}: is damaged; delete it and ask for a new join file") from error
    if not is_whole:
        raise IdentityError(f"{path}: is damaged; delete it and ask for a new join file")
    return keys


def _asks_for(signing_request: bytes, key: bytes) -> bool:
    return x509.load_der_x509_csr(signing_request).public_key() == read_key(key, "the key").public_key()


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
