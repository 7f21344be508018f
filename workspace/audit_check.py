"""Audit logs held against keys, kept heads and each other: from files alone, anywhere, without a federation.

What a log shows by itself is ``utils/audit_chain``'s: every byte that was changed, every entry that was taken out, put
in or moved. Whether its owner wrote it anew is shown by the other side's log: the director's heads that a site kept
must lie in the director's log, and that site's heads that the director kept in the site's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ..utils.audit_chain import SignedHead, Verified, check_heads, read_entries, verify
from ..utils.audit_witness import Witnesses
from ..utils.certificates import public_bytes
from ..utils.errors import IdentityError, SuspectLogError
from ..utils.roster import key_fingerprint
from ..utils.wire_fields import said

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_PEM_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Log:
    """A log that is whole, with the heads of other logs that stand in it."""

    path: Path
    found: Verified
    witnesses: Witnesses

    @property
    def site(self) -> str:
        """The name of the site whose log it is; empty: it is the director's."""
        return str(self.found.about.get("name", "")) if self.found.about.get("party") == "envoy" else ""

    @property
    def federation(self) -> str:
        """Whose federation it is of."""
        return str(self.found.about.get("federation"))

    @property
    def whose(self) -> str:
        """In words."""
        return said(f"{self.site or 'the director'} of {self.federation}")


def read_log(path: Path, heads: Iterable[SignedHead] = (), key: str = "") -> Log:
    """Read a whole log, and check all of it.

    Args:
        path: the log, or a copy.
        heads: of it, that others kept.
        key: that it must be signed with: 32 bytes in hexadecimal, their SHA-256, or a PEM file with the public key or
            its certificate; empty takes what entry 0 says.

    Raises:
        IdentityError: the key is none.
        SuspectLogError: the log is not whole, or of another key; the message names the first entry that is wrong.
        StorageError: it cannot be read.
    """
    witnesses = Witnesses()
    try:
        found = verify(path, heads=heads, see=witnesses.take)
    except SuspectLogError as error:
        raise error if str(error).startswith(str(path)) else SuspectLogError(f"{path}: {error}") from error
    if key and expected_key(key) not in (found.key, hashlib.sha256(found.key).digest()):
        raise SuspectLogError(
            f"{path}: entry 0 names the key {found.key.hex()} (fingerprint {key_fingerprint(found.key)}); another was"
            " expected: it is the log of somebody else, or was written anew with another key"
        )
    return Log(path, found, witnesses)


def expected_key(text: str) -> bytes:
    """A public key or the SHA-256 of one, from what somebody typed; see ``read_log``.

    Raises:
        IdentityError: neither, nor a file that holds one.
    """
    digits = re.sub(r"[\s:]", "", text).lower()
    if _DIGEST.fullmatch(digits):
        return bytes.fromhex(digits)
    try:
        with Path(text).open("rb") as file:
            pem = file.read(_MAX_PEM_BYTES)
        key = (
            x509.load_pem_x509_certificate(pem).public_key()
            if b"BEGIN CERTIFICATE" in pem
            else load_pem_public_key(pem)
        )
    except (OSError, ValueError) as error:
        raise IdentityError(
            f"--key {text}: expected 64 hexadecimal digits (the public key, or its fingerprint), or a PEM file of a"
            " public key or certificate"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(f"--key {text}: holds no Ed25519 key; audit logs are signed by such")
    return public_bytes(key)


def compare(one: Log, other: Log) -> list[str]:
    """Hold two logs against each other; what was found right, in lines.

    Raises:
        SuspectLogError: they contradict each other: one was forked, cut or written anew.
        StorageError: one cannot be read again.
    """
    if one.federation != other.federation:
        raise SuspectLogError(f"{one.path} is a log of {one.federation}, {other.path} of {other.federation}")
    if one.site == other.site:
        return [_compare_copies(one, other)]
    if one.site and other.site:
        raise SuspectLogError(
            f"{one.path} and {other.path} are both logs of sites; sites keep no heads of each other: hold each against"
            " the director's"
        )
    return [_holds(one, other), _holds(other, one)]


def _holds(log: Log, keeper: Log) -> str:
    heads = keeper.witnesses.of(log.site)
    if not heads:
        return f"{keeper.path} keeps no head of {log.whose}: nothing to compare"
    count = check_heads(log.path, log.found.key, heads)
    return f"{log.path} holds all {count} heads of it that {keeper.whose} kept"


def _compare_copies(one: Log, other: Log) -> str:
    """Two copies of one log: the shorter must be the beginning of the longer."""
    if one.found.key != other.found.key:
        raise SuspectLogError(f"{one.path} and {other.path} are both of {one.whose}, but signed by different keys")
    for first, second in zip(read_entries(one.path), read_entries(other.path), strict=False):
        if first.hash != second.hash:
            raise SuspectLogError(
                f"{one.path} and {other.path} have different entries {first.number}, both signed by the same key:"
                f" the log of {one.whose} was forked"
            )
    return f"{one.path} and {other.path} are one log, {one.found.entries} and {other.found.entries} entries of it"


def lines_of(log: Log) -> list[str]:
    """What a log turned out to be, for people."""
    found = log.found
    lines = [
        f"{log.path}: the log of {log.whose}; {found.entries} entries, from {found.begun} to {found.ended}; whole",
        f"signed by the key {found.key.hex()}, fingerprint {key_fingerprint(found.key)}; last {found.hash.hex()}",
    ]
    kept = log.witnesses
    if kept.count or kept.set_aside:
        aside = f", and {kept.set_aside} of logs that were then taken anew" if kept.set_aside else ""
        lines.append(f"{kept.count} heads of other logs in it, none that goes back{aside}")
    lines += [f"its owner found another log suspect: {one}" for one in kept.suspicions]
    return [said(line) for line in lines]
