"""Bodies that come in pieces, before they are posted: one file each, resumable, bounded and forgotten after a day.

For bodies that are too large for one request, or for lines that break. The file's length is how far it came; what it is
for lies beside it, so a director that was killed knows it again. What the bytes mean is for whoever takes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..utils.errors import (
    ChangedMeanwhileError,
    LengthMismatchError,
    MalformedMessageError,
    StorageError,
    TooManyCallsError,
    UnknownEntityError,
)
from ..utils.private_files import write_private_file

MAX_OPEN = 8
"""Of one organization at once."""
KEEP_SECONDS = 86_400.0
_ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class BodyUpload:
    """One body on its way in."""

    id: str
    organization: str
    length: int  # bytes, announced
    began_at: float  # seconds since 1970
    offset: int = 0  # bytes that are here

    @property
    def expires_at(self) -> float:
        """When it is forgotten."""
        return self.began_at + KEEP_SECONDS


class BodyUploads:
    """A folder of them; safe to share between threads and processes.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, id_: str, organization: str, length: int, now: float) -> BodyUpload:
        """Make room for a body.

        Raises:
            TooManyCallsError: the organization has as many under way as it may.
            StorageError: so many bytes do not fit the disk.
        """
        made = BodyUpload(id_, organization, length, now)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self.sweep(now)
                if sum(one.organization == organization for one in self._all()) >= MAX_OPEN:
                    raise TooManyCallsError(f"{MAX_OPEN} uploads of this organization are open: end one, or wait")
                if length > shutil.disk_usage(self._folder).free:
                    raise StorageError(f"an upload of {length} bytes does not fit the director's disk")
                about = {name: value for name, value in asdict(made).items() if name != "offset"}
                write_private_file(self._about(id_), json.dumps(about).encode())
                os.close(os.open(self.path(id_), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be written: {error.strerror}") from error
        return made

    def get(self, id_: str, now: float) -> BodyUpload:
        """One of them, as far as it came.

        Raises:
            UnknownEntityError: there is none, or its time is over.
        """
        found = self._read(id_) if _ID.fullmatch(id_) else None
        if found is None or found.expires_at <= now:
            raise UnknownEntityError("there is no such upload, or it was forgotten: begin another")
        return found

    def put(self, upload: BodyUpload, offset: int, content: bytes) -> BodyUpload:
        """Add a piece behind those that are here.

        Raises:
            ChangedMeanwhileError: it is for another place than where the body ends; the message says where.
            LengthMismatchError: more than was announced.
            StorageError: the disk is full; what came before stays.
        """
        try:
            with self.path(upload.id).open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                here = file.seek(0, os.SEEK_END)
                if offset != here:
                    raise ChangedMeanwhileError(f"a piece for byte {offset}, and {here} are here: go on from there")
                if here + len(content) > upload.length:
                    raise LengthMismatchError(f"{upload.length} bytes were announced, {here + len(content)} came")
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(here)
                    raise
        except FileNotFoundError as error:
            raise UnknownEntityError("there is no such upload: begin another") from error
        except OSError as error:
            raise StorageError(f"the upload cannot be written: {error.strerror}") from error
        return BodyUpload(upload.id, upload.organization, upload.length, upload.began_at, here + len(content))

    def whole(self, upload: BodyUpload) -> Path:
        """The file of a body that is all here.

        Raises:
            MalformedMessageError: it is not.
        """
        if upload.offset != upload.length:
            raise MalformedMessageError(f"the upload has {upload.offset} of {upload.length} bytes; send the rest first")
        return self.path(upload.id)

    def drop(self, id_: str) -> None:
        """Forget one, if it is here."""
        for path in (self.path(id_), self._about(id_)):
            with contextlib.suppress(OSError):
                path.unlink()

    def sweep(self, now: float) -> None:
        """Forget those whose time is over."""
        for one in self._all():
            if one.expires_at <= now:
                self.drop(one.id)

    def path(self, id_: str) -> Path:
        """Where the bytes of one lie."""
        return self._folder / f"{id_}.body"

    def _about(self, id_: str) -> Path:
        return self._folder / f"{id_}.json"

    def _all(self) -> list[BodyUpload]:
        found = (self._read(path.stem) for path in sorted(self._folder.glob("*.json")) if _ID.fullmatch(path.stem))
        return [one for one in found if one is not None]

    def _read(self, id_: str) -> BodyUpload | None:
        try:
            said = json.loads(self._about(id_).read_bytes())
            return BodyUpload(**said, offset=self.path(id_).stat().st_size)
        except (OSError, ValueError, TypeError):
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
