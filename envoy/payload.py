"""What is to leave, held where no plan can change it any more, and on disk for an envoy that is killed.

The plan's process keeps the update's file mapped, and may write to it at any time. So the update is read once into
this process's own memory; there it is checked, and from there it is sent. The file is only read again after a restart,
and then its digest decides whether it is still what was protected.

The update's own file serves as the copy on disk where protection changed nothing; else ``payload.f32`` is written.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from ..utils.errors import DigestMismatchError, LengthMismatchError, StorageError
from ..utils.tensors import FLOAT_BYTES, Digest, Vector, bytes_of, digest_of

UPDATE_FILE = "update.f32"  # written by training
PAYLOAD_FILE = "payload.f32"  # written here
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link or a pipe in a file's place is an error at once
_MOST_AT_ONCE = 1 << 30  # Linux reads and writes at most 2 GiB a call


class Payloads:
    """The payload at hand.

    Args:
        folder: the envoy's ``work/``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: Vector = np.empty(0, np.float32)  # memory that was used once is written nine times as fast
        self._digest: Digest | None = None
        self._ready: Vector = self._own

    @property
    def update_path(self) -> Path:
        """Where training leaves an update."""
        return self._folder / UPDATE_FILE

    def take_update(self, length: int) -> Vector:
        """The update as it is now, in memory of this process; good until the next.

        Raises:
            LengthMismatchError: it has not so many bytes.
            StorageError: it is no file, or cannot be read.
        """
        self._digest = None
        return self._read(UPDATE_FILE, length)

    def keep(self, payload: Vector, update: Vector) -> tuple[str, Digest]:
        """Hold a payload until the next, and see that it is on disk: in which file, and its digest.

        Raises:
            StorageError: there is no room for it.
        """
        is_changed = payload is not update
        if is_changed:
            self._write(payload)
        self._ready, self._digest = payload, digest_of(bytes_of(payload))
        return PAYLOAD_FILE if is_changed else UPDATE_FILE, self._digest

    def view(self, file: str, digest: Digest, length: int) -> memoryview:
        """The bytes that were kept, also by an earlier process.

        Raises:
            DigestMismatchError, LengthMismatchError, StorageError: they are lost.
        """
        if self._digest != digest:
            vector = self._read(file, length)
            if digest_of(bytes_of(vector)) != digest:
                raise DigestMismatchError(f"{file} is no longer what was to be sent")
            self._ready, self._digest = vector, digest
        return bytes_of(self._ready)

    def wipe(self) -> None:
        """Let go of all that was to leave, in memory and on disk.

        Raises:
            StorageError: a file cannot be deleted.
        """
        self._ready = self._own = np.empty(0, np.float32)
        self._digest = None
        try:
            for file in (UPDATE_FILE, PAYLOAD_FILE):
                (self._folder / file).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"what was to leave cannot be deleted: {error.strerror}") from error

    def _read(self, file: str, length: int) -> Vector:
        """Into this process's own memory, with no way for whoever holds the file to make it wait."""
        try:
            descriptor = os.open(self._folder / file, os.O_RDONLY | _CAREFULLY)
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{file} is no file")
            if status.st_size != length:
                raise LengthMismatchError(f"the update has {status.st_size} bytes, the plan's layout {length}")
            if self._own.size * FLOAT_BYTES != length:
                self._ready = self._own = np.empty(length // FLOAT_BYTES, np.float32)
            self._fill(descriptor, file)
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return self._own

    def _fill(self, descriptor: int, file: str) -> None:
        view, at = bytes_of(self._own), 0
        while at < len(view):
            count = os.preadv(descriptor, [view[at : at + _MOST_AT_ONCE]], at)
            if not count:
                raise LengthMismatchError(f"{file} became shorter while it was read")
            at += count

    def _write(self, payload: Vector) -> None:
        """Over what was there, whose pages are warm; until its digest is in the journal, nobody believes in it."""
        view, at = bytes_of(payload), 0
        path = self._folder / PAYLOAD_FILE
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | _CAREFULLY, 0o600)
            try:
                if os.fstat(descriptor).st_size > len(view):
                    os.ftruncate(descriptor, len(view))
                while at < len(view):
                    at += os.pwrite(descriptor, view[at : at + _MOST_AT_ONCE], at)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"no room for {len(view)} bytes that are to be sent: {error.strerror}") from error
