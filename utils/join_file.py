"""The one file that carries a site into a federation: addresses, the root itself, a one-time certificate.

It holds the root, so there is no trust on first use, and a bootstrap key that is good for one ``Join`` call, so it
travels like a password. The issuer signs all of it: a file that was damaged or edited is refused. One that somebody
else made as a whole can only be told by the root's fingerprint, read out over the phone (``fingerprint``).

This module writes and checks files; it knows neither who was invited nor what a join answers.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from .addresses import Address
from .certificates import Authority, is_key_of, read_key
from .errors import ConfigError, IdentityError, JoinFileError
from .identity import PeerId, Role, check_chain, check_name, expires_at, is_for_clients, read_certificate, when
from .private_files import write_private_file
from .tensors import canonical_json

SUFFIX = ".join"
VERSION = 1
MAX_JOIN_FILE_BYTES = 64 << 10
INVITED_ROLES = (Role.ENVOY, Role.OPERATOR)

_SIGNED_CONTEXT = b"fedveil join file\n"  # an issuer also signs certificates: those start with another byte
_TEXTS = ("federation", "name", "organization", "role", "root", "issuer", "bootstrap", "bootstrap_key", "signature")
_KEYS = frozenset({"version", "addresses", "expires_at", *_TEXTS})


@dataclass(frozen=True, slots=True)
class JoinFile:
    """What a site gets to join with; good once, until ``expires_at``."""

    federation: str
    name: str
    organization: str
    role: Role
    addresses: tuple[str, ...]  # host:port, tried in this order
    root: bytes  # PEM
    issuer: bytes  # PEM
    bootstrap: bytes  # PEM, spiffe://FEDERATION/join/ID
    bootstrap_key: bytes = field(repr=False)  # PEM
    expires_at: int  # seconds since 1970
    signature: bytes = field(default=b"", repr=False)  # ECDSA by the issuer

    @property
    def chain(self) -> bytes:
        """What to show when calling ``Join``: the bootstrap certificate, then the issuer's."""
        return self.bootstrap + self.issuer

    @property
    def peer(self) -> PeerId:
        """Who the site will be."""
        return PeerId(self.federation, self.role, self.name)


def sign_join_file(join: JoinFile, issuer: Authority) -> JoinFile:
    """The same file with the issuer's signature."""
    return replace(join, signature=issuer.key.sign(_signed_bytes(join), ec.ECDSA(hashes.SHA256())))


def write_join_file(path: Path, join: JoinFile) -> None:
    """Write a join file for its owner's eyes alone.

    Raises:
        StorageError: it cannot be written.
        ValueError: another suffix than ``.join``.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"a join file ends with {SUFFIX}, not {path.suffix!r}")
    write_private_file(path, join_file_text(join).encode())


def join_file_text(join: JoinFile) -> str:
    """A join file as it stands on disk; it holds a key."""
    document = _document(join) | {"signature": base64.b64encode(join.signature).decode()}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def read_join_file(path: Path, now: float) -> JoinFile:
    """Read a join file and check all of it.

    Raises:
        JoinFileError: it cannot be read, is damaged, was changed, or is too old; the message says which.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JOIN_FILE_BYTES + 1)
    except OSError as error:
        raise JoinFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_JOIN_FILE_BYTES:
        raise JoinFileError(f"{path}: is longer than {MAX_JOIN_FILE_BYTES} bytes, so it is no join file")
    try:
        join = _from_document(raw)
        _check(join, now)
    except (IdentityError, ConfigError) as error:
        raise JoinFileError(f"{path}: {error}") from error
    return join


def _check(join: JoinFile, now: float) -> None:
    root = read_certificate(join.root, "the root")
    issuer = read_certificate(join.issuer, "the issuer")
    bootstrap = read_certificate(join.bootstrap, "the bootstrap certificate")
    _check_signature(join, issuer)
    if now > join.expires_at:
        raise JoinFileError(
            f"this invitation of {join.name} ended on {when(join.expires_at)}; it is {when(now)}. Ask for a new one"
        )
    peer = check_chain(bootstrap, issuer, root, now)
    if peer.role is not Role.JOIN or peer.federation != join.federation or not is_for_clients(bootstrap):
        raise JoinFileError(f"its certificate is {peer}'s, expected one to join {join.federation} with")
    if not is_key_of(bootstrap, read_key(join.bootstrap_key, "the bootstrap key")):
        raise JoinFileError("its key does not fit its certificate")
    if expires_at(bootstrap) != join.expires_at:
        raise JoinFileError("its certificate ends at another time than the invitation")


def _check_signature(join: JoinFile, issuer: x509.Certificate) -> None:
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise JoinFileError("the issuer's key is not P-256")
    try:
        key.verify(join.signature, _signed_bytes(join), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise JoinFileError("was damaged or changed: its signature does not fit. Ask for a new one") from error


def _document(join: JoinFile) -> dict[str, object]:
    return {
        "version": VERSION,
        "federation": join.federation,
        "name": join.name,
        "organization": join.organization,
        "role": join.role.value,
        "addresses": list(join.addresses),
        "root": join.root.decode("ascii"),
        "issuer": join.issuer.decode("ascii"),
        "bootstrap": join.bootstrap.decode("ascii"),
        "bootstrap_key": join.bootstrap_key.decode("ascii"),
        "expires_at": join.expires_at,
    }


def _signed_bytes(join: JoinFile) -> bytes:
    return _SIGNED_CONTEXT + canonical_json(_document(join))


def _from_document(raw: bytes) -> JoinFile:
    """The fields, each of its type; nothing is believed yet."""
    try:
        document = json.loads(raw, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise JoinFileError("is damaged, or no join file: not the JSON that it should be") from error
    if not isinstance(document, dict):
        raise JoinFileError("is damaged, or no join file: not a JSON object")
    if document.get("version") != VERSION or type(document["version"]) is not int:
        raise JoinFileError(f"is of another version; this software reads version {VERSION}")
    if set(document) != _KEYS:
        raise JoinFileError(f"is damaged: unknown or missing {', '.join(sorted(set(document) ^ _KEYS))}")
    texts = {key: _text(document[key], key) for key in _TEXTS}
    if texts["role"] not in {role.value for role in INVITED_ROLES}:
        raise JoinFileError(f"is damaged: nobody is invited as {texts['role'][:20]!r}")
    return JoinFile(
        federation=check_name("federation", texts["federation"]),
        name=check_name(texts["role"], texts["name"]),
        organization=texts["organization"],
        role=Role(texts["role"]),
        addresses=_addresses(document["addresses"]),
        root=_ascii(texts["root"], "root"),
        issuer=_ascii(texts["issuer"], "issuer"),
        bootstrap=_ascii(texts["bootstrap"], "bootstrap"),
        bootstrap_key=_ascii(texts["bootstrap_key"], "bootstrap_key"),
        expires_at=_seconds(document["expires_at"]),
        signature=_base64(texts["signature"]),
    )


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("one key twice")
    return document


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise JoinFileError(f"is damaged: {key} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise JoinFileError(f"is damaged: {key} is not text") from error
    return value


def _ascii(text: str, key: str) -> bytes:
    if not text.isascii():
        raise JoinFileError(f"is damaged: {key} is not PEM")
    return text.encode("ascii")


def _addresses(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise JoinFileError("is damaged: addresses is not a list of host:port")
    addresses = tuple(Address.parse(_text(item, "addresses")) for item in value)
    if not all(address.port for address in addresses):
        raise JoinFileError("is damaged: an address has no port")
    return tuple(map(str, addresses))


def _seconds(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 35:
        raise JoinFileError("is damaged: expires_at is no time")
    return value


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise JoinFileError("is damaged: its signature is not base64") from error
