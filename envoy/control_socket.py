"""The Unix socket in the envoy's folder, through which commands speak to the envoy that runs there.

One JSON object a line is asked, ``{"ask": "status"}``, and one is answered: ``{"answer": {...}}``, or
``{"error": CLASS, "message": TEXT}`` with the class of an error of ours. Who asks is what the kernel says of the other
end, never a field of the request; the socket's mode lets its owner alone connect. What may be asked is given by
whoever opens the socket: this module knows of no question but the status.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..utils import errors
from ..utils.errors import FederationError, MalformedMessageError, StorageError, UnreachableError
from .session import EnvoyStatus

_NAME = "envoy.sock"
_SECONDS = 5.0  # a request that is not whole by then is not answered
ANSWER_SECONDS = 30.0
_MAX_LINE_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid

Json: TypeAlias = Mapping[str, Any]
Question: TypeAlias = Callable[[Json, str], Json]
"""Answers one request of somebody, by the name of their account at this machine; raises ``FederationError``."""


class ControlSocket:
    """Answers one request a connection, each in a thread of its own.

    Args:
        folder: the envoy's.
        questions: what may be asked, by the request's ``ask``.

    Raises:
        StorageError: another envoy runs in this folder.
    """

    def __init__(self, folder: Path, questions: Mapping[str, Question]) -> None:
        self._path, self._questions = folder / _NAME, dict(questions)
        if is_running(folder):
            raise StorageError(f"another envoy runs in {folder}; stop it, or use another folder")
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(folder) as short:
            self._socket.bind(short)
        self._path.chmod(0o600)
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True, name="envoy-control").start()

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
            threading.Thread(target=self._speak, args=(connection,), daemon=True, name="envoy-answer").start()

    def _speak(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # whoever hung up needs no answer
            connection.settimeout(_SECONDS)
            line = _line_from(connection)
            if line:
                connection.sendall(json.dumps(self._answer(line, _asker(connection))).encode() + b"\n")

    def _answer(self, line: bytes, by: str) -> Json:
        try:
            request = _object(line, "request")
            question = self._questions.get(str(request.get("ask")))
            if question is None:
                known = ", ".join(sorted(self._questions))
                raise MalformedMessageError(f"asked {str(request.get('ask'))[:80]!r}, expected one of {known}")
            return {"answer": question(request, by)}
        except FederationError as error:
            return {"error": type(error).__name__, "message": str(error)}


def ask(folder: Path, request: Json) -> Json:
    """Ask the envoy that runs in this folder.

    Raises:
        UnreachableError: none runs there, or it does not answer.
        MalformedMessageError: it answers something else.
        FederationError: what it refuses, as the class it was.
    """
    try:
        with _short(folder) as short, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(short)
            with contextlib.suppress(BrokenPipeError):  # it may have answered already
                connection.sendall(json.dumps(request).encode() + b"\n")
            line = _line_from(connection)
    except TimeoutError as error:
        raise UnreachableError(f"the envoy in {folder} did not answer within {ANSWER_SECONDS:g} s") from error
    except OSError as error:
        raise UnreachableError(f"no envoy runs in {folder}; start it with `envoy start`") from error
    reply = _object(line, "answer")
    if "error" in reply:
        name = str(reply["error"])
        kind = getattr(errors, name) if name in errors.__all__ else FederationError
        raise kind(str(reply.get("message", "")))
    return _fields(reply.get("answer"), f"the envoy in {folder} answered something that is no answer of ours")


def ask_status(folder: Path) -> EnvoyStatus:
    """What the envoy that runs in this folder does.

    Raises:
        UnreachableError: none runs there.
        MalformedMessageError: it answers something else.
    """
    answer = ask(folder, {"ask": "status"})
    try:
        return EnvoyStatus(**answer)
    except TypeError as error:
        raise MalformedMessageError(f"the envoy in {folder} answered something that is no status") from error


def is_running(folder: Path) -> bool:
    """Does an envoy run in this folder? One that is too busy to answer does."""
    try:
        with _short(folder) as short, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(short)
    except OSError:
        return False
    return True


def _line_from(connection: socket.socket) -> bytes:
    """Up to the line's end, or to the end of what is said."""
    pieces = bytearray()
    while not pieces.endswith(b"\n") and (piece := connection.recv(1 << 16)):
        pieces += piece
        if len(pieces) > _MAX_LINE_BYTES:
            break
    return bytes(pieces)


def _object(line: bytes, what: str) -> Json:
    if len(line) > _MAX_LINE_BYTES:
        raise MalformedMessageError(f"a {what} of more than {_MAX_LINE_BYTES} bytes")
    try:
        whole = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"a {what} that is no JSON") from error
    return _fields(whole, f"a {what} that is no JSON object")


def _fields(value: object, complaint: str) -> Json:
    if not isinstance(value, dict):
        raise MalformedMessageError(complaint)
    return value


def _asker(connection: socket.socket) -> str:
    """The account at the other end, as the kernel knows it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return account_of(uid)


def account_of(uid: int) -> str:
    """An account's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path to the socket within the 108 bytes that a socket's address may have."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)
