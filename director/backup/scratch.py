"""A folder for what is half done: one process has it for itself, and what a killed one left is removed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...utils.errors import StorageError
from ...utils.private_files import FOLDER_MODE


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder, readable by its owner alone, that is gone afterwards.

    Raises:
        StorageError: another process has it, or it cannot be made.
    """
    try:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"{path}: another backup or restore is under way here") from error
        try:
            empty(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def empty(folder: Path) -> None:
    """Remove what is in a folder.

    Raises:
        StorageError: it cannot be.
    """
    try:
        for one in folder.iterdir():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: cannot be emptied: {error.strerror}") from error


def sync_folders(folder: Path) -> None:
    """Make the names in a folder, and in all below it, durable."""
    for place, _, _ in os.walk(folder):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
