"""The files of one order, opened by the envoy: a plan's process gets descriptors, never a name that it could replace.

So it writes to the update's file and to the state that it leaves, and to nothing else of the site; a link or a pipe in
the place of one of them is an error here, before the process hears of the order.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

from ..utils.errors import PlanError, StorageError
from ..utils.messages import TaskKind
from .orders import WorkOrder
from .sandbox.scratch import PREFIX
from .site_state import pending_path, state_before

_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class OrderFiles:
    """Open descriptors; None where the order has no such file."""

    model: int  # read
    update: int | None = None  # read and written
    codec: int | None = None  # read
    before: int | None = None  # the site's state, read
    after: int | None = None  # the site's new state, written; empty at first

    def named(self) -> dict[str, int]:
        """Those that are there."""
        held = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: descriptor for name, descriptor in held.items() if descriptor is not None}


@dataclass(frozen=True, slots=True)
class Opened:
    """The files of an order, and what becomes of the state that it leaves."""

    files: OrderFiles
    order: WorkOrder
    after: Path | None

    def keep_state(self) -> None:
        """The work is done: what it left of state is pending, until there is a receipt.

        Raises:
            StorageError: it cannot be kept.
        """
        if self.after is None or self.files.after is None or not os.fstat(self.files.after).st_size:
            return
        path = pending_path(self.order.state_folder, self.order.ref)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.after.replace(path)
        except OSError as error:
            raise StorageError(f"the site's state cannot be kept in {path.parent}: {error.strerror}") from error


@contextlib.contextmanager
def open_files(order: WorkOrder, *, wipes_update: bool = False) -> Iterator[Opened]:
    """Open an order's files; they are closed when the work is done, and a state that was not kept goes.

    Args:
        order: whose files they are.
        wipes_update: what lies in the update's place is another plan's, and not for this one to read: a new file is
            made, so that whoever has the old one open writes to nobody's either.

    Raises:
        PlanError: there is no model.
        StorageError: there is no room, or something else than a file lies in a file's place.
    """
    trains, after = order.kind is TaskKind.TRAIN, None
    with contextlib.ExitStack() as stack:
        try:
            model = _opened(stack, order.model_path, os.O_RDONLY)
        except StorageError as error:
            raise PlanError(str(error)) from error
        before = state_before(order.state_folder, order.ref)
        codec = None if order.codec is None else _opened(stack, order.codec.path, os.O_RDONLY)
        update = new = None
        if trains:
            if wipes_update:
                _remove(order.update_path)
            update = _opened(stack, order.update_path, os.O_RDWR | os.O_CREAT, makes_folder=True)
            new, after = _temporary(stack, order.state_folder)
        files = OrderFiles(
            model=model,
            update=update,
            codec=codec,
            before=None if before is None else _opened(stack, before, os.O_RDONLY),
            after=new,
        )
        yield Opened(files, order, after)


def contents(descriptor: int, what: str) -> memoryview:
    """A file's bytes as a read-only view, paged in as they are used.

    Raises:
        PlanError: it is empty.
    """
    try:
        return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise PlanError(f"{what} cannot be read: {error}") from error


def whole(descriptor: int, what: str) -> bytes:
    """All of a file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with _own(descriptor, "rb") as file:
            file.seek(0)
            return file.read()
    except OSError as error:
        raise StorageError(f"{what} cannot be read: {error.strerror}") from error


def write(descriptor: int, raw: bytes, what: str) -> None:
    """Put this into an empty file.

    Raises:
        StorageError: there is no room.
    """
    try:
        with _own(descriptor, "wb") as file:
            file.write(raw)
    except OSError as error:
        raise StorageError(f"{what} cannot be kept: {error.strerror}") from error


def _own(descriptor: int, mode: str) -> BinaryIO:
    file: BinaryIO = os.fdopen(os.dup(descriptor), mode)  # type: ignore[assignment]
    return file


def _opened(stack: contextlib.ExitStack, path: Path, flags: int, *, makes_folder: bool = False) -> int:
    try:
        if makes_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags | _CAREFULLY, 0o600)
    except OSError as error:
        room = "no room for an update: " if flags & os.O_CREAT else ""
        raise StorageError(f"{room}{path} cannot be read: {error.strerror}") from error
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise StorageError(f"{path} cannot be read: it is no file")
    return descriptor


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def _temporary(stack: contextlib.ExitStack, folder: Path) -> tuple[int, Path]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)
    except OSError as error:
        raise StorageError(f"no room for the site's state in {folder}: {error.strerror}") from error
    path = Path(name)
    stack.callback(path.unlink, missing_ok=True)
    stack.callback(os.close, descriptor)
    return descriptor, path
