"""What plans print, copied from a pipe into a file of the site: none can read what another printed, or erase it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

from ..utils.errors import StorageError

_MAX_LOG_BYTES = 10 << 20  # then the file makes room for another; a process that prints more is heard no longer
_MOST_AT_ONCE = 1 << 20
_PIECE = 1 << 16


class WorkerLog:
    """The output of one process.

    Args:
        path: the file, which goes on; what was in it moves to ``NAME.1`` once it is too long.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
                path.replace(path.with_name(f"{path.name}.1"))
            self._file: BinaryIO = path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        self.readable, self.writable = os.pipe()
        os.set_blocking(self.readable, False)
        self._left, self._is_open = _MAX_LOG_BYTES, True

    def handed_over(self) -> None:
        """The process has its end; ours goes."""
        if self.writable >= 0:
            os.close(self.writable)
            self.writable = -1

    def copy(self) -> None:
        """Write down what has come, at most a megabyte."""
        for _ in range(_MOST_AT_ONCE // _PIECE):
            try:
                piece = os.read(self.readable, _PIECE)
            except BlockingIOError:
                return
            if not piece:
                self._is_open = False
                return
            kept, self._left = piece[: self._left], max(0, self._left - len(piece))
            with contextlib.suppress(OSError):  # a full disk stops no training; what prints would wait for ever
                self._file.write(kept)

    @property
    def may_say_more(self) -> bool:
        """Has any process still the other end?"""
        return self._is_open

    def close(self) -> None:
        """Write down the rest."""
        self.copy()
        self.handed_over()
        os.close(self.readable)
        self._file.close()
