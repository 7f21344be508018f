"""Content-addressed files: models, plans and blobs, each named by the SHA-256 of its bytes.

A file under its own name is whole: it is written beside, hashed on the way and renamed in one step, so that a
kill -9 at any instant leaves a whole artifact or none. One process owns a folder. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from .errors import DigestMismatchError, LengthMismatchError, StorageError, UnknownArtifactError
from .tensors import Digest, digest_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".part"
_LARGE_BYTES = 4 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ArtifactStore:
    """One folder of artifacts; safe to share between threads.

    ``turn`` is for those who decide what is discarded, and for those who write down that an artifact is to stay: each
    has it from its look at what there is until it is done.

    Args:
        folder: made if it is not there.
        durable: an artifact that is there also survives a power cut; otherwise a kill -9.
        clears: what an earlier process left half-written in it is removed; not beside a director that runs.

    Raises:
        StorageError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, durable: bool, *, clears: bool = True) -> None:
        self.folder = folder
        self.turn = threading.RLock()
        self._durable = durable
        self._spare = folder / f".spare{_PARTIAL}"  # no artifact any more: only its pages are of use
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f".*{_PARTIAL}") if clears else ():
                leftover.unlink()
        except OSError as error:
            raise _storage_error(folder, error) from error

    def put(self, pieces: Sequence[bytes | memoryview]) -> Digest:
        """Keep the pieces, one after the other, as one artifact.

        Large ones are hashed by a second thread while they are written, since a round waits for both, and written
        over the last one that was discarded: its pages, which the system holds already, are several times faster
        than fresh ones.

        Raises:
            StorageError: the disk is full or cannot be written; no trace of the artifact is left.
        """
        is_large = sum(memoryview(piece).nbytes for piece in pieces) >= _LARGE_BYTES
        with _PartialFile(self.folder, self._durable, self._spare if is_large else None) as partial:
            if not is_large:
                for piece in pieces:
                    partial.write(piece)
                return partial.keep()
            with ThreadPoolExecutor(1, "hash") as hashing:
                digest = hashing.submit(digest_of, *pieces)
                for piece in pieces:
                    partial.write_unhashed(piece)
            return partial.name(digest.result())

    def receive(self, expected: Digest, length: int) -> Receiving:
        """Take an artifact that comes in parts, of which digest and length were announced.

        >>> from tempfile import TemporaryDirectory
        >>> from fedveil.utils.tensors import digest_of
        >>> with TemporaryDirectory() as folder:
        ...     store = ArtifactStore(Path(folder), durable=False)
        ...     with store.receive(digest_of(b"abc"), 3) as receiving:
        ...         receiving.write(b"ab")
        ...         receiving.write(b"c")
        ...     store.read(digest_of(b"abc"))
        b'abc'

        Raises:
            UnknownArtifactError: `expected` is not a SHA-256.
            StorageError: so many bytes do not fit the disk.
        """
        _check_digest(expected)
        if length < 0:
            raise ValueError("an artifact has no negative length")
        free = shutil.disk_usage(self.folder).free
        if length > free:
            raise StorageError(
                f"{expected[:12]} needs {length} bytes in {self.folder}, {free} are free; make room and try again"
            )
        return Receiving(_PartialFile(self.folder, self._durable), expected, length)

    def path(self, digest: Digest) -> Path:
        """Where the artifact lies.

        Raises:
            UnknownArtifactError: it is not here, or its name is not a SHA-256.
        """
        path = self.folder / _check_digest(digest)
        if not path.is_file():
            raise UnknownArtifactError(f"there is no artifact {digest[:12]} here; it was never put, or was discarded")
        return path

    def read(self, digest: Digest) -> bytes:
        """The whole artifact, in memory.

        Raises:
            UnknownArtifactError: as ``path``.
        """
        return self.path(digest).read_bytes()

    def open(self, digest: Digest) -> BinaryIO:
        """The artifact as an unbuffered file, for whoever closes it; it stays whole if it is discarded meanwhile.

        Raises:
            UnknownArtifactError: as ``path``.
            StorageError: it cannot be read.
        """
        path = self.path(digest)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            self.path(digest)  # says so
            raise
        except OSError as error:
            raise _storage_error(self.folder, error) from error
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for a discarding that found nobody reading
        try:
            is_here = path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            is_here = False
        if not is_here:
            file.close()
            raise UnknownArtifactError(f"there is no artifact {digest[:12]} here; it was discarded just now")
        return file

    def has(self, digest: Digest) -> bool:
        """Whether the artifact is here."""
        return _DIGEST.fullmatch(digest) is not None and (self.folder / digest).is_file()

    def size(self, digest: Digest) -> int:
        """Bytes of the artifact.

        Raises:
            UnknownArtifactError: as ``path``.
        """
        return self.path(digest).stat().st_size

    def check(self, digest: Digest) -> None:
        """Hash the artifact again.

        Raises:
            UnknownArtifactError: as ``path``.
            DigestMismatchError: the file was damaged or changed.
        """
        with self.path(digest).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise DigestMismatchError(
                f"the artifact {digest[:12]} in {self.folder} is damaged (its bytes have digest {found[:12]}); "
                "delete the file and fetch it again"
            )

    def discard(self, digest: Digest) -> None:
        """Forget one artifact, if it is here and nobody holds them (``held``).

        The file of the last one is kept for the next large artifact.

        Who has it open reads on: such a file is not written over.

        Raises:
            StorageError: it cannot be renamed.
        """
        path = self.folder / _check_digest(digest)
        try:
            with _if_not_held(self.folder) as may:
                if may:
                    self._discard(path)
        except OSError as error:
            raise _storage_error(self.folder, error) from error

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                path.unlink()
            else:
                path.replace(self._spare)

    def discard_except(self, keep: Collection[Digest]) -> int:
        """Delete all artifacts but these, unless somebody holds them; what is being written meanwhile stays.

        Returns how many were deleted.
        """
        kept, deleted = frozenset(keep), 0
        with _if_not_held(self.folder) as may:
            for path in self.folder.iterdir() if may else ():
                if _DIGEST.fullmatch(path.name) and path.name not in kept:
                    path.unlink(missing_ok=True)
                    deleted += 1
        return deleted


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """No artifact of a folder is discarded meanwhile, by whichever process: for a copy that takes its time.

    What would have been stays until the next sweep. New ones may come.

    Raises:
        StorageError: there is no such folder.
    """
    try:
        file = _lock_file(folder)
    except OSError as error:
        raise _storage_error(folder, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _if_not_held(folder: Path) -> Iterator[bool]:
    """May something be discarded? If so, nobody begins to hold the folder meanwhile."""
    file = _lock_file(folder)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _lock_file(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the folder itself can be locked


class Receiving:
    """An artifact on its way in: used as a context, at whose end it is kept whole or not at all.

    A line that breaks and comes back may go on from ``received``.
    """

    def __init__(self, partial: _PartialFile, expected: Digest, length: int) -> None:
        self._partial = partial
        self._expected = expected
        self._length = length
        self.received = 0

    def write(self, part: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            LengthMismatchError: more than was announced; the part is not written.
            StorageError: the disk is full or cannot be written.
        """
        length = memoryview(part).nbytes
        if self.received + length > self._length:
            raise LengthMismatchError(
                f"{self._expected[:12]}: {self._length} bytes were announced, more than {self.received + length} came"
            )
        self._partial.write(part)
        self.received += length

    def close(self) -> None:
        """Check the whole and keep it; a second call does nothing.

        Raises:
            LengthMismatchError: less than was announced.
            DigestMismatchError: other bytes than were announced.
            StorageError: the disk is full or cannot be written.
        """
        if not self._partial.is_open:
            return
        try:
            if self.received != self._length:
                raise LengthMismatchError(
                    f"{self._expected[:12]}: {self._length} bytes were announced, {self.received} came"
                )
            self._partial.keep(self._expected)
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget what came so far; nothing happens to an artifact that is kept already."""
        self._partial.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        self.discard()


class _PartialFile:
    """A file under a name of its own that becomes an artifact, or vanishes."""

    def __init__(self, folder: Path, durable: bool, spare: Path | None = None) -> None:
        self._folder = folder
        self._durable = durable
        self._sha, self._length = hashlib.sha256(), 0
        try:
            self._file, name = tempfile.mkstemp(_PARTIAL, ".", folder)
            self._path = Path(name)
            if spare is not None:
                self._use(spare)
        except OSError as error:
            raise _storage_error(folder, error) from error
        self.is_open = True

    def _use(self, spare: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            spare.replace(self._path)
            os.close(self._file)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, piece: bytes | memoryview) -> None:
        self._sha.update(piece)
        self.write_unhashed(piece)

    def write_unhashed(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece)
        if not view.nbytes:
            return  # an empty view cannot be cast
        view = view.cast("B")
        try:
            while view:
                written = os.write(self._file, view)
                self._length += written
                view = view[written:]
        except OSError as error:
            raise _storage_error(self._folder, error) from error

    def keep(self, expected: Digest | None = None) -> Digest:
        digest = Digest(self._sha.hexdigest())
        if expected is not None and digest != expected:
            raise DigestMismatchError(f"bytes of digest {expected[:12]} were announced, those of {digest[:12]} came")
        return self.name(digest)

    def name(self, digest: Digest) -> Digest:
        try:
            os.ftruncate(self._file, self._length)  # what is written over may have been longer
            if self._durable:
                os.fsync(self._file)
            self._path.replace(self._folder / digest)
            if self._durable:
                _sync_folder(self._folder)
        except OSError as error:
            raise _storage_error(self._folder, error) from error
        self._close()
        return digest

    def discard(self) -> None:
        if self.is_open:
            self._close()
            self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        self.is_open = False
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def _check_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise UnknownArtifactError("an artifact is named by a SHA-256: 64 hexadecimal digits in lower case")
    return digest


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _storage_error(folder: Path, error: OSError) -> StorageError:
    if error.errno in _FULL:
        return StorageError(f"the disk of {folder} is full ({error.strerror}): make room there and start again")
    return StorageError(f"{folder} cannot be used: {error.strerror}; see that it is a folder that may be written")
