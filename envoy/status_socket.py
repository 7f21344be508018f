"""The Unix socket in the envoy's folder, through which ``envoy status`` asks the running envoy what it does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from ..utils.errors import MalformedMessageError, StorageError, UnreachableError
from .session import EnvoyStatus

_NAME = "envoy.sock"
_SECONDS = 5.0


class StatusSocket:
    """Answers every connection with the status, as one JSON object.

    Raises:
        StorageError: another envoy runs in this folder.
    """

    def __init__(self, folder: Path, status: Callable[[], EnvoyStatus]) -> None:
        self._path, self._status = folder / _NAME, status
        with contextlib.suppress(UnreachableError):
            ask_status(folder)
            raise StorageError(f"another envoy runs in {folder}; stop it, or use another folder")
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(folder) as short:
            self._socket.bind(short)
        self._path.chmod(0o600)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True, name="envoy-status").start()

    def close(self) -> None:
        """Answer no more."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                connection.sendall(json.dumps(asdict(self._status())).encode())


def ask_status(folder: Path) -> EnvoyStatus:
    """What the envoy that runs in this folder does.

    Raises:
        UnreachableError: none runs there.
        MalformedMessageError: it answers something else.
    """
    pieces = []
    try:
        with _short(folder) as short, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(short)
            while piece := connection.recv(1 << 16):
                pieces.append(piece)
    except OSError as error:
        raise UnreachableError(f"no envoy runs in {folder}; start it with `envoy start`") from error
    try:
        return EnvoyStatus(**json.loads(b"".join(pieces)))
    except (ValueError, TypeError) as error:
        raise MalformedMessageError(f"the envoy in {folder} answered something that is no status") from error


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path to the socket within the 108 bytes that a socket's address may have."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)
