"""Where the bytes of a dataset lie: a folder, a zip file read without unpacking, or one file.

Nothing here knows what the bytes mean, and nothing is written.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Protocol

from ..utils.errors import DatasetError
from ..utils.tensors import Digest

MAX_FILE_BYTES = 256 * 2**20
"""A larger image file is not read."""


class SourceFiles(Protocol):
    """Files by name, wherever they lie; several threads may read at once."""

    def names(self) -> list[str]:
        """Every file, with forward slashes, relative to the dataset, in order."""
        ...

    def read(self, name: str) -> bytes:
        """One file whole.

        Raises:
            DatasetError: that cannot be; the reason in a few words, without the name.
        """
        ...


@contextmanager
def open_files(path: Path) -> Iterator[SourceFiles]:
    """The files of a folder, or of a zip file.

    Raises:
        DatasetError: there is no such folder or zip file, or it is damaged.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is neither a folder nor a readable zip file") from error
    with archive:
        yield _Zip(archive)


def file_digest(path: Path) -> Digest:
    """SHA-256 of a file, read in pieces.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        return sorted(_walk(self._root))

    def read(self, name: str) -> bytes:
        try:
            with (self._root / name).open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise DatasetError(f"cannot be read: {error.strerror}") from error
        if len(raw) > MAX_FILE_BYTES:
            raise DatasetError(f"larger than {MAX_FILE_BYTES} bytes")
        return raw


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return sorted({entry.filename for entry in self._archive.infolist() if not entry.is_dir()})

    def read(self, name: str) -> bytes:
        try:
            if self._archive.getinfo(name).file_size > MAX_FILE_BYTES:
                raise DatasetError(f"larger than {MAX_FILE_BYTES} bytes")
            return self._archive.read(name)  # stops at the size that the zip's directory states
        except KeyError as error:
            raise DatasetError("not in the zip") from error
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise DatasetError("damaged in the zip") from error
        except RuntimeError as error:  # NotImplementedError among them
            raise DatasetError("encrypted in the zip, or packed in an unknown way") from error


def _walk(root: Path) -> Iterator[str]:
    """Every file under a folder, links followed, each folder once."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse_folder):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in files)


def _refuse_folder(error: OSError) -> NoReturn:
    """A folder that cannot be listed is no small thing: part of the dataset would be missing in silence."""
    raise DatasetError(f"{error.filename} cannot be listed: {error.strerror}") from error
