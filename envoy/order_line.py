"""The line between an envoy and the child that runs a plan's code: JSON objects, and open files handed over with them.

What is handed over by its descriptor needs no name in the child's view of the file system, so nothing has to be
mounted, listed or found there. Lines are read in pieces; descriptors belong to the line that they came with.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any

DATA = "data"  # the name under which the exposed dataset is handed over
_DESCRIPTORS = "descriptors"
_MOST_AT_ONCE = 16
_PIECE = 1 << 20


def send(connection: socket.socket, document: Mapping[str, Any], descriptors: Mapping[str, int]) -> None:
    """Send one object, and copies of open files under these names.

    Raises:
        OSError: the other side is gone.
    """
    line = json.dumps({**document, _DESCRIPTORS: list(descriptors)}).encode() + b"\n"
    sent = socket.send_fds(connection, [line], list(descriptors.values()))
    connection.sendall(line[sent:])


class OrderLine:
    """The child's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting = bytearray()
        self._files: list[int] = []

    def next(self) -> tuple[dict[str, Any], dict[str, int]] | None:
        """The next object, and the open files that came with it, which are the caller's now; None at the end."""
        while b"\n" not in self._waiting:
            piece, files, _, _ = socket.recv_fds(self._connection, _PIECE, _MOST_AT_ONCE)
            self._files += files
            if not piece:
                return None
            self._waiting += piece
        line, _, rest = bytes(self._waiting).partition(b"\n")
        self._waiting = bytearray(rest)
        document = json.loads(line)
        names = document.pop(_DESCRIPTORS)
        held, self._files = self._files[: len(names)], self._files[len(names) :]
        for file in held:
            os.set_inheritable(file, False)
        return document, dict(zip(names, held, strict=True))

    def answer(self, document: Mapping[str, Any]) -> None:
        """Send one object back."""
        self._connection.sendall(json.dumps(document).encode() + b"\n")
