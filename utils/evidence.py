"""A bundle of evidence: one zip of files that somebody signed as a whole, which anybody can check without a federation.

``manifest.json`` says whose it is and names every member with its length and SHA-256; ``manifest.sig`` is the Ed25519
signature over it by the key of the audit log inside. Members are stored, not compressed, under fixed names and with one
fixed date: what is in the bundle decides its bytes, and nothing in it can unfold to more than the file holds. Whoever
reads one believes nothing of the zip but what the manifest confirms: no path leads out, no link, no name twice, nothing
that the manifest does not name. What the members mean is not known here.
"""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .certificates import public_bytes
from .errors import MalformedMessageError, StorageError, SuspectLogError
from .private_files import write_private_file
from .tensors import canonical_json, digest_of

SCHEMA = "fedveil.evidence/1"
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_BUNDLE_BYTES = 1 << 30
MAX_MEMBERS = 20_000
_MAX_MANIFEST_BYTES = 8 << 20
_CONTEXT = b"fedveil-evidence/1\0"
_DATE = (1980, 1, 1, 0, 0, 0)  # a zip's first; when it was made stands in the manifest
_PIECE = r"[a-z0-9][a-z0-9._-]{0,79}"
_NAMES = re.compile(
    r"about\.txt|root\.pem|audit\.jsonl"
    r"|(federation|members|runs|agreements|leakage|fairness|approvals|ledger|roster)\.json"
    r"|(organizations|permits|organization-agreements|remarks|tasks)\.json"
    rf"|settings/{_PIECE}\.toml|plans/[0-9a-f]{{64}}\.json|proposals/[0-9a-f]{{64}}(\.signature)?\.json"
    rf"|patches/{_PIECE}/[0-9]{{4}}(\.signature)?\.json"
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A bundle that is what its maker signed."""

    about: Mapping[str, Any]  # whose, made when and with what
    key: bytes  # Ed25519 public key that signed it, 32 bytes
    members: Mapping[str, bytes]


def write_evidence(path: Path, members: Mapping[str, bytes], about: Mapping[str, Any], key: Ed25519PrivateKey) -> None:
    """Write a bundle, readable by its owner alone; the same arguments give the same bytes.

    Raises:
        StorageError: it cannot be written, or is larger than anybody would read.
        ValueError: a name that no bundle has.
    """
    for name in members:
        if not _NAMES.fullmatch(name):
            raise ValueError(f"{name!r} is no member of a bundle")
    manifest = canonical_json(
        {
            "schema": SCHEMA,
            "about": dict(about),
            "key": public_bytes(key.public_key()).hex(),
            "members": {
                name: {"bytes": len(content), "sha256": digest_of(content)} for name, content in members.items()
            },
        }
    )
    whole = {MANIFEST: manifest, SIGNATURE: key.sign(_CONTEXT + manifest)} | dict(sorted(members.items()))
    if len(whole) > MAX_MEMBERS or sum(map(len, whole.values())) > MAX_BUNDLE_BYTES:
        raise StorageError(f"{path}: more than {MAX_MEMBERS} members or {MAX_BUNDLE_BYTES} bytes of evidence")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in whole.items():
            member = zipfile.ZipInfo(name, _DATE)
            member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o600) << 16
            archive.writestr(member, content)
    write_private_file(path, file.getvalue())


def is_evidence(path: Path) -> bool:
    """Does the file begin as a zip does?"""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read_evidence(path: Path) -> Evidence:
    """Read a bundle, and believe nothing of it that its manifest does not confirm.

    Raises:
        MalformedMessageError: no bundle, or one that no fedveil made: a path that leads out, a link, a compressed,
            unknown or repeated member, too many of them.
        SuspectLogError: its signature or the digest of a member is wrong: it was changed after it was signed.
        StorageError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BUNDLE_BYTES + (MAX_MEMBERS << 9):
            raise MalformedMessageError(f"{path}: {size} bytes; no bundle has more than {MAX_BUNDLE_BYTES} of evidence")
        with zipfile.ZipFile(path) as archive:
            names = _checked_names(path, archive, size)
            manifest, signature = archive.read(MANIFEST), archive.read(SIGNATURE)
            whole = _read_manifest(path, manifest, signature)
            if names != {MANIFEST, SIGNATURE, *whole["members"]}:
                odd = sorted(names.symmetric_difference({MANIFEST, SIGNATURE, *whole["members"]}))
                raise SuspectLogError(f"{path}: {odd[0]!r} is in the manifest or in the zip, and not in both")
            members = {name: archive.read(name) for name in sorted(whole["members"])}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise MalformedMessageError(f"{path}: is no bundle of evidence: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    for name, content in members.items():
        said = whole["members"][name]
        if said != {"bytes": len(content), "sha256": digest_of(content)}:
            raise SuspectLogError(f"{path}: {name} is not what was signed; it was changed")
    return Evidence(whole["about"], bytes.fromhex(whole["key"]), members)


def _checked_names(path: Path, archive: zipfile.ZipFile, size: int) -> set[str]:
    """Look at the list of members alone: nothing is read before it is known to be harmless."""
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise MalformedMessageError(f"{path}: {len(listed)} members; no bundle has more than {MAX_MEMBERS}")
    names = {one.filename for one in listed}
    if len(names) != len(listed):
        raise MalformedMessageError(f"{path}: a name stands in it twice")
    for one in listed:
        name = one.filename
        if name not in (MANIFEST, SIGNATURE) and not _NAMES.fullmatch(name):
            raise MalformedMessageError(f"{path}: {name!r} is no member of a bundle")
        if one.flag_bits & 1 or one.compress_type != zipfile.ZIP_STORED or one.compress_size != one.file_size:
            raise MalformedMessageError(f"{path}: {name!r} is compressed or encrypted; members of a bundle are stored")
        if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG):
            raise MalformedMessageError(f"{path}: {name!r} is no plain file")
    if sum(one.file_size for one in listed) > size:
        raise MalformedMessageError(f"{path}: its members say that they are longer than the file")
    for needed, most in ((MANIFEST, _MAX_MANIFEST_BYTES), (SIGNATURE, 64)):
        if needed not in names or archive.getinfo(needed).file_size > most:
            raise MalformedMessageError(f"{path}: has no {needed}, or one that is too long")
    return names


def _read_manifest(path: Path, manifest: bytes, signature: bytes) -> dict[str, Any]:
    try:
        whole: dict[str, Any] = json.loads(manifest)
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(whole["key"]))
        is_right = (
            whole.keys() == {"schema", "about", "key", "members"}
            and whole["schema"] == SCHEMA
            and canonical_json(whole) == manifest
            and isinstance(whole["about"], dict)
            and isinstance(whole["members"], dict)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedMessageError(f"{path}: {MANIFEST} is none") from error
    if not is_right:
        raise MalformedMessageError(f"{path}: {MANIFEST} is not one of {SCHEMA}")
    try:
        key.verify(signature, _CONTEXT + manifest)
    except InvalidSignature as error:
        raise SuspectLogError(f"{path}: {MANIFEST} is not signed by the key it names; it was changed") from error
    return whole
