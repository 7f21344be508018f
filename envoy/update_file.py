"""The file that an update is written into: raw float32, mapped, and used again in the next round.

The room on the disk is taken before anything is written, so that a full disk is an error and not a signal; and
pages that were touched once stay warm (writing into fresh memory costs nine times as much).
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from ..utils.errors import StorageError
from ..utils.tensors import FLOAT_BYTES, Vector


class UpdateFile:
    """Keeps one file mapped from round to round; another file or length maps anew."""

    def __init__(self) -> None:
        self._key: tuple[int, int, int] | None = None
        self._vector: Vector = np.empty(0, np.float32)

    def vector(self, descriptor: int, size: int) -> Vector:
        """The file as a writable vector; it holds what an earlier round left there.

        Args:
            descriptor: open for reading and writing.
            size: elements, at least 1.

        Raises:
            StorageError: there is no room for it.
        """
        try:
            if self._key is None or self._key != _identity(descriptor, size):
                self._map(descriptor, size)
        except OSError as error:
            raise StorageError(f"no room for an update of {size * FLOAT_BYTES} bytes: {error.strerror}") from error
        return self._vector

    def close(self) -> None:
        """Let the mapping go once nothing uses its vector."""
        self._vector, self._key = np.empty(0, np.float32), None

    def _map(self, descriptor: int, size: int) -> None:
        self.close()
        os.ftruncate(descriptor, size * FLOAT_BYTES)
        os.posix_fallocate(descriptor, 0, size * FLOAT_BYTES)
        self._vector = np.frombuffer(mmap.mmap(descriptor, size * FLOAT_BYTES), np.float32)
        self._key = _identity(descriptor, size)


def _identity(descriptor: int, size: int) -> tuple[int, int, int] | None:
    status = os.fstat(descriptor)
    return (status.st_dev, status.st_ino, size) if status.st_size == size * FLOAT_BYTES else None
