"""Uploads on disk: one file an envoy, overwritten round after round.

    64 bytes: SHA-256 of the task's name (32) · bytes that are valid so far (8) · zeros      then the update's bytes

The header tells after a kill -9 how far an upload came and for which task, so it is resumed and not repeated. The
file is not truncated between rounds: writing over pages that the system already holds costs a fraction of writing
into fresh ones. What is written survives a kill -9 of this process (the page cache does); ``durable`` adds an fsync
before a receipt is given, for power cuts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..utils.aggregation import is_finite
from ..utils.errors import (
    DigestMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    StorageError,
    UnsendableUpdateError,
)
from ..utils.messages import PART_BYTES, EnvoyName, TaskRef
from ..utils.tensors import FLOAT_BYTES, Digest, Vector, bytes_of, canonical_json, digest_of

HEADER_BYTES = 64


class Spool:
    """One envoy's upload of one task.

    Args:
        path: the envoy's file; made if it is not there.
        ref: the task. What the file holds of another task is forgotten.
        length: bytes of the whole update.
        durable: fsync before ``finish`` returns.
        is_masked: its words are those of a secure sum, and no numbers.

    Raises:
        StorageError: the file cannot be made.
    """

    def __init__(self, path: Path, ref: TaskRef, length: int, *, durable: bool, is_masked: bool = False) -> None:
        self._task = bytes.fromhex(digest_of(canonical_json([ref.run, ref.round, ref.attempt, ref.plan])))
        self._length, self._durable, self._path, self._is_masked = length, durable, path, is_masked
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _storage_error(error, path) from error
        header = os.pread(self._fd, HEADER_BYTES, 0)
        valid = int.from_bytes(header[32:40], "little") if header[:32] == self._task else 0
        held = os.fstat(self._fd).st_size - HEADER_BYTES
        self.offset = min(valid, max(held, 0), length) // FLOAT_BYTES * FLOAT_BYTES
        self._sha = hashlib.sha256()
        for piece in self._pieces(self.offset):
            self._sha.update(piece)

    def write(self, content: memoryview | bytes) -> None:
        """Append some bytes.

        Raises:
            LengthMismatchError: more than the update announced.
            MalformedMessageError: not whole numbers.
            NonFiniteUpdateError: NaN or infinity.
            StorageError: the disk is full; what came before stays, and the upload can be resumed.
        """
        end = self.offset + len(content)
        if end > self._length:
            raise LengthMismatchError(f"an update of {self._length} bytes was announced, at least {end} came")
        if len(content) % FLOAT_BYTES:
            raise MalformedMessageError(
                f"a part of {len(content)} bytes; an update is whole float32 numbers, a masked one whole words"
            )
        if not self._is_masked and not is_finite(np.frombuffer(content, np.float32)):
            raise NonFiniteUpdateError("the update holds NaN or infinity; it was not taken")
        try:
            written = 0
            while written < len(content):
                piece = memoryview(content)[written:]
                written += os.pwrite(self._fd, piece, HEADER_BYTES + self.offset + written)
            self._sha.update(content)
            self.offset = end
            self._write_header()
        except OSError as error:
            raise _storage_error(error, self._path) from error

    def finish(self, digest: Digest) -> None:
        """Check the whole.

        Raises:
            LengthMismatchError: it is shorter than announced.
            DigestMismatchError: it is not what the envoy sent; the spool starts anew.
            StorageError: it cannot be made durable.
        """
        if self.offset != self._length:
            raise LengthMismatchError(f"an update of {self._length} bytes was announced, {self.offset} came")
        if self._sha.hexdigest() != digest:
            self.reset()
            raise DigestMismatchError(f"the update's SHA-256 is not {digest[:12]}…, as announced; send it again")
        if self._durable:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise _storage_error(error, self._path) from error

    def reset(self) -> None:
        """Forget what came."""
        self.offset, self._sha = 0, hashlib.sha256()
        with contextlib.suppress(OSError):
            self._write_header()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def _write_header(self) -> None:
        header = self._task + self.offset.to_bytes(8, "little")
        os.pwrite(self._fd, header.ljust(HEADER_BYTES, b"\0"), 0)

    def _pieces(self, end: int) -> Iterator[bytes]:
        for start in range(0, end, PART_BYTES):
            yield os.pread(self._fd, min(PART_BYTES, end - start), HEADER_BYTES + start)


class SpooledUpdate:
    """A whole update on disk, read block by block for the sum."""

    def __init__(self, path: Path, envoy: EnvoyName, num_examples: int) -> None:
        self.envoy, self.num_examples = envoy, num_examples
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._lost() from error

    def read(self, start: int, out: Vector | NDArray[np.uint32]) -> None:
        """Fill ``out`` with the update's elements from ``start`` on; with words, where it is masked.

        Raises:
            UnsendableUpdateError: the file is gone, shorter than it was, or cannot be read.
        """
        try:
            read = os.preadv(self._fd, [out.data.cast("B")], HEADER_BYTES + start * FLOAT_BYTES)
        except OSError as error:
            raise self._lost() from error
        if read != out.nbytes:
            raise self._lost()

    def digest(self, length: int) -> Digest:
        """SHA-256 of the update's bytes, read again.

        Raises:
            UnsendableUpdateError: as ``read``.
        """
        sha, block = hashlib.sha256(), np.empty(PART_BYTES // FLOAT_BYTES, np.float32)
        for start in range(0, length // FLOAT_BYTES, block.size):
            piece = block[: min(block.size, length // FLOAT_BYTES - start)]
            self.read(start, piece)
            sha.update(bytes_of(piece))
        return Digest(sha.hexdigest())

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def _lost(self) -> UnsendableUpdateError:
        return UnsendableUpdateError(f"what {self.envoy} had sent is damaged or gone from the director's disk")


def _storage_error(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(f"the director's disk is full ({path.parent}); make room, the upload then goes on")
    return StorageError(f"the director cannot write {path.name}: {error.strerror}")
