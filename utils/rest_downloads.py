"""A file from the REST API, by its SHA-256: gone on with where it broke off, and there only when it is whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from .errors import DigestMismatchError, StorageError, UnreachableError
from .rest_calls import RestCalls
from .tensors import Digest

_ATTEMPTS = 3
_PARTIAL_STATUS = 206


def download(calls: RestCalls, path: str, target: Path, sha256: Digest) -> None:
    """Fetch a file; a line that breaks is opened again, from where it broke.

    What came lies beside the target, as ``.NAME.SHA256.partial``, until it is whole: an attempt that was killed is gone
    on with by the next one.

    Args:
        calls: to the director.
        path: of the file, from the first slash on.
        target: where it is to lie; what is there is replaced.
        sha256: of the whole file.

    Raises:
        DigestMismatchError: what came is not it, and was thrown away.
        StorageError: it cannot be written.
        FederationError: as the director refused it.
        UnreachableError: the line broke more than twice.
    """
    partial = target.with_name(f".{target.name}.{sha256[:16]}.partial")
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _fetch(calls, path, partial, sha256)
                break
            except UnreachableError:
                if attempt == _ATTEMPTS:
                    raise
        if _sha256(partial) != sha256:
            partial.unlink()
            raise DigestMismatchError(f"the download of {target.name} is not the file with SHA-256 {sha256}; try again")
        partial.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror}") from error


def _fetch(calls: RestCalls, path: str, partial: Path, sha256: Digest) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    if have and _sha256(partial) == sha256:
        return  # it was whole, and its name alone was missing
    asked = {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {}
    with calls.open("GET", path, headers=asked) as answer, _opened(partial) as file:
        if answer.status_code != _PARTIAL_STATUS:
            file.truncate(0)
            have = 0
        file.seek(have)
        for piece in answer.iter_bytes():
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _opened(partial: Path) -> BinaryIO:
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
    return os.fdopen(descriptor, "r+b")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
