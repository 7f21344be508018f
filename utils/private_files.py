"""Files that hold private keys: mode 0600 from their first byte on, written whole or not at all.

Both sides keep keys on disk and must not disagree about how. This module knows nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from .errors import IdentityError, StorageError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
MAX_PRIVATE_BYTES = 1 << 20


def write_private_file(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; one that is there already is replaced at once.

    Raises:
        StorageError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def read_private_file(path: Path) -> bytes:
    """Read a file that must be readable by its owner alone.

    Raises:
        IdentityError: it is not there, too long, or others may read it too; the message says what to do.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_PRIVATE_BYTES + 1)
    except FileNotFoundError as error:
        raise IdentityError(f"{path}: there is no such file") from error
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}") from error
    if os.name == "posix" and mode & 0o077:
        raise IdentityError(f"{path}: holds a private key and others may read it (mode {mode:04o}); chmod 600 it")
    if len(content) > MAX_PRIVATE_BYTES:
        raise IdentityError(f"{path}: is longer than {MAX_PRIVATE_BYTES} bytes, so it is no key file of ours")
    return content


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter; one that is there already stays as it is.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where folders can be opened at all."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
