"""What lies in a backup: a tar of plain files. ``about.json`` comes first, ``manifest.json`` with all SHA-256s last.

Written and read in one pass, so that a backup may be larger than memory. A name that leads out of the folder, a link, a
device, a file twice or one too many is refused; so is content that is not the manifest's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...utils.errors import MalformedMessageError, StorageError
from ...utils.private_files import FILE_MODE, FOLDER_MODE
from ...utils.tensors import canonical_json
from .sealing import Sink, Source

ABOUT, MANIFEST, DATABASE, FOLDER = "about.json", "manifest.json", "database.sqlite", "folder"
_MAX_ABOUT_BYTES, _MAX_MANIFEST_BYTES = 1 << 16, 256 << 20
_MAX_NAME_BYTES = 1000
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class About:
    """What a backup says of itself."""

    backup: str  # its own name, by lot; stands in the audit logs of the one it is of and the one made from it
    federation: str
    software: str
    schema: str  # revision of the database
    made_at: float  # seconds since 1970
    database: str  # sqlite or postgresql: what it was read from

    @classmethod
    def read(cls, raw: bytes) -> About:
        """From JSON.

        Raises:
            MalformedMessageError: it is not.
        """
        try:
            about = cls(**json.loads(raw))
        except (ValueError, TypeError) as error:
            raise MalformedMessageError("about.json is not that of a backup that this version knows") from error
        texts = (about.backup, about.federation, about.software, about.schema, about.database)
        if not all(isinstance(one, str) for one in texts) or not isinstance(about.made_at, int | float):
            raise MalformedMessageError("about.json is not that of a backup that this version knows")
        return about


class ArchiveWriter:
    """Puts files into a backup, one after the other."""

    def __init__(self, sink: Sink, about: About) -> None:
        self._sink, self._time = sink, about.made_at
        self._tar = tarfile.TarFile.open(mode="w|", fileobj=cast("BinaryIO", sink), format=tarfile.PAX_FORMAT)
        self._digests: dict[str, str] = {}
        self.add(ABOUT, canonical_json(asdict(about)))

    def add(self, name: str, content: bytes) -> None:
        """One that is in memory."""
        self._put(name, len(content), BytesIO(content))

    def add_file(self, name: str, path: Path) -> str:
        """One that is on disk, as long as it is now. Gives its SHA-256.

        Raises:
            StorageError: it is gone, or gets shorter meanwhile.
        """
        try:
            with path.open("rb") as file:
                return self._put(name, os.fstat(file.fileno()).st_size, file)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error

    def finish(self) -> int:
        """All is in. Gives how many files."""
        manifest = canonical_json(self._digests)
        self._put(MANIFEST, len(manifest), BytesIO(manifest))
        self._tar.close()
        self._sink.close()
        return len(self._digests)

    def _put(self, name: str, length: int, file: BinaryIO) -> str:
        _check_name(name)
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = length, FILE_MODE, int(self._time)
        hashing = _Hashing(file)
        self._tar.addfile(member, cast("BinaryIO", hashing))
        self._digests[name] = hashing.sha.hexdigest()
        return self._digests[name]


class _Hashing:
    """Reads on, and hashes what is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha = file, hashlib.sha256()

    def read(self, length: int = -1) -> bytes:
        content = self._file.read(length)
        self.sha.update(content)
        return content


def unpack(source: Source, folder: Path, check: Callable[[About], None] = lambda _: None) -> About:
    """Write what is in a backup into an empty folder: ``database.sqlite`` and ``folder/``. All of it, or an error.

    Args:
        source: the backup.
        folder: empty; what is in it after an error is of no use.
        check: told what the backup says of itself before anything is written; may raise.

    Raises:
        MalformedMessageError, StorageError: damaged, no backup, or the disk is full.
    """
    digests: dict[str, str] = {}
    about, manifest = None, None
    try:
        with tarfile.open(mode="r|", fileobj=cast("BinaryIO", source)) as tar:
            for member in tar:
                content = _opened(tar, member, digests, manifest)
                if about is None:
                    about = _about(member, content, digests)
                    check(about)
                elif member.name == MANIFEST:
                    manifest = _manifest(member, content)
                else:
                    digests[member.name] = _write(folder / member.name, content)
        while source.read(_PIECE_BYTES):  # what is behind the tar must be whole too
            pass
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise StorageError(f"the backup is damaged: {error}") from error
    if about is None or manifest is None or manifest != digests:
        raise StorageError("the backup is damaged: its files are not those of its manifest")
    return about


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo, before: Mapping[str, str], manifest: object) -> BinaryIO:
    _check_name(member.name)
    content = tar.extractfile(member) if member.isreg() else None
    if content is None or member.name in before or manifest is not None:
        raise StorageError(f"the backup is damaged: {member.name!r} is no plain file, or not at its place")
    return cast("BinaryIO", content)


def _about(member: tarfile.TarInfo, content: BinaryIO, digests: dict[str, str]) -> About:
    if member.name != ABOUT or member.size > _MAX_ABOUT_BYTES:
        raise StorageError("this is no backup of a director")
    raw = content.read()
    digests[ABOUT] = hashlib.sha256(raw).hexdigest()
    return About.read(raw)


def _manifest(member: tarfile.TarInfo, content: BinaryIO) -> dict[str, Any]:
    if member.size > _MAX_MANIFEST_BYTES:
        raise StorageError("the backup is damaged: its manifest is too long")
    try:
        return dict(json.loads(content.read()))
    except (ValueError, TypeError) as error:
        raise StorageError("the backup is damaged: its manifest is no JSON") from error


def _write(path: Path, content: BinaryIO) -> str:
    """Write one file so that it survives a power cut. Gives its SHA-256."""
    sha = hashlib.sha256()
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
            while piece := content.read(_PIECE_BYTES):
                sha.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    return sha.hexdigest()


def _check_name(name: str) -> None:
    parts = name.split("/")
    top = parts[0] in {ABOUT, MANIFEST, DATABASE} and len(parts) == 1
    inner = parts[0] == FOLDER and len(parts) > 1
    if not (top or inner) or {"", ".", ".."} & set(parts) or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
        raise StorageError(f"{name[:100]!r} is no name for a file in a backup")
