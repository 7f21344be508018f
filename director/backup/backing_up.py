"""``director backup``: everything that a director is, as it was at one instant, while it goes on.

The database is copied first, as it is at one instant. What else belongs to that instant is copied next: the answers of
the open round, checked against the SHA-256 that the database has of each, what was said in its secure sum, and keys. If
one of them changed meanwhile, all of it is done again; after ten times the backup goes without the open attempt's
answers and sum, and a restored director repeats that attempt. The audit log is copied after the database, so it never
knows less. Artifacts never change under their names, and none is discarded until the backup is made.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from ... import __version__
from ...utils.artifacts import held
from ...utils.errors import StorageError
from ...utils.messages import RunId, TaskRef
from ..audit import LOG_FILE, DirectorAudit
from ..config import DirectorConfig
from ..database import open_database, reading, try_database
from ..history import History
from ..records import RunState, SubmissionRecord
from ..server import ADDRESS_FILE, REST_ADDRESS_FILE
from ..sum_log import SUMMARY_FILE, log_folder
from ..tables import RUNS
from ..uploads import Uploads
from .archive import DATABASE, FOLDER, About, ArchiveWriter
from .scratch import empty, scratch_folder
from .sealing import COST, sink_to
from .snapshot import sqlite_file, take_snapshot

SCRATCH = ".backup"
_ATTEMPTS = 10
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BESIDE = ("", "-wal", "-shm", "-journal", ".lock")  # what SQLite and the director put beside a database
_NOT_COPIED = {ADDRESS_FILE, REST_ADDRESS_FILE, LOG_FILE}  # the log comes last
_ARTIFACTS, _UPLOADS, _SUMS = "artifacts", "uploads", "sums"


@dataclass(frozen=True, slots=True)
class Backup:
    """What was made."""

    about: About
    files: int
    answers: int  # of the open round, that are in it
    has_open_attempt: bool  # the open attempt goes on after a restore; else it is repeated
    damaged: tuple[str, ...]  # artifacts that are not what their names say, here already


def back_up(
    folder: Path, config: DirectorConfig, by: str, now: float, out: Path, passphrase: bytes | None, cost: int = COST
) -> Backup:
    """Write one file that a director can be made from again. Logged before; the director may run.

    Args:
        folder: the director's.
        config: of it.
        by: who asks, for the audit log.
        now: seconds since 1970.
        out: the file; whole or not at all, readable by its owner alone.
        passphrase: encrypts it; None leaves every key in it in the clear.
        cost: of one guess of the passphrase, as a power of two.

    Raises:
        StorageError: the file is there already or would lie in the folder; the disk is full.
    """
    _refuse_place(folder, out)
    url = config.database_url(folder)
    if try_database(url) is None:
        open_database(url, config.is_durable).dispose()  # never started: its keys are worth a backup too
    name = secrets.token_hex(8)
    log = DirectorAudit.open(folder, config.federation, clock=lambda: now)
    try:
        log.operator(by, "backed up", {"backup": name})
    finally:
        log.close()
    (folder / _ARTIFACTS).mkdir(exist_ok=True)
    with scratch_folder(folder / SCRATCH) as scratch, held(folder / _ARTIFACTS), _new_file(out) as partial:
        schema, answers, is_whole = _instant(folder, url, scratch)
        kind = "sqlite" if sqlite_file(url) else "postgresql"
        about = About(name, config.federation, f"fedveil {__version__}", schema, now, kind)
        try:
            with partial.open("wb") as file:
                writer = ArchiveWriter(sink_to(file, passphrase, cost), about)
                damaged = _write_all(writer, folder, scratch, url)
                files = writer.finish()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from error
    return Backup(about, files, answers, is_whole, damaged)


def _refuse_place(folder: Path, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise StorageError(f"{out}: is there already; nothing was overwritten")
    if not out.parent.is_dir():
        raise StorageError(f"{out.parent}: there is no such folder")
    if out.resolve().is_relative_to(folder.resolve()):
        raise StorageError(f"{out}: lies in the director's own folder, which a backup is to outlive")


@contextlib.contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """A file beside another that takes its name once it is whole."""
    partial = out.with_name(f".{out.name}.{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            yield partial
            partial.replace(out)
            folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from error


def _instant(folder: Path, url: str, scratch: Path) -> tuple[str, int, bool]:
    """Copy what belongs to one instant. Gives the schema, how many answers are in it, whether all that is open is."""
    for attempt in range(_ATTEMPTS):
        empty(scratch)
        before = _changing(folder)
        schema = take_snapshot(url, scratch / DATABASE)
        ref, answers = _open_attempt(scratch / DATABASE)
        found = scratch / FOLDER
        _copy(folder, found, [name for name in before if not name.startswith(f"{_SUMS}/")])
        if ref is not None and attempt < _ATTEMPTS - 1:
            _copy(folder, found, [name for name in before if _is_of(name, ref)])
            _copy(folder, found, [f"{_UPLOADS}/{one.spool}" for one in answers])
            kept = Uploads(found / _UPLOADS, 1, durable=False)
            if not all(kept.is_intact(one) for one in answers):
                continue
        if _changing(folder) == before:
            return schema, len(answers), True
    return schema, 0, ref is None


def _open_attempt(snapshot: Path) -> tuple[TaskRef | None, tuple[SubmissionRecord, ...]]:
    """The attempt that was open, and the answers to it that lie in files."""
    engine = open_database(f"sqlite:///{snapshot}", durable=False)
    try:
        with reading(engine) as connection:
            run = connection.execute(select(RUNS.c.id).where(RUNS.c.state == RunState.RUNNING.value)).scalar()
        history = History(engine)
        current = history.current_round(RunId(run)) if run is not None else None
        if current is None:
            return None, ()
        ref = current.round.ref
        return ref, tuple(one for one in history.submissions(ref) if one.spool)
    finally:
        engine.dispose()


def _is_of(name: str, ref: TaskRef) -> bool:
    """Is a file of what is said in one attempt's sum, or in those of its groups?"""
    place = log_folder(Path(_SUMS), ref).as_posix()
    return name.startswith((f"{place}/", f"{place}-"))


def _changing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The files that have to be of one instant with the database, and what shows that one of them changed."""
    names = [name for name in _walk(folder) if name.endswith(".pem") or name.startswith(f"{_SUMS}/")]
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # a sum that ended
            status = (folder / name).stat()
            found[name] = status.st_size, status.st_mtime_ns, status.st_ino
    return found


def _copy(folder: Path, into: Path, names: list[str]) -> None:
    for name in names:
        target = into / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        except FileNotFoundError:  # it changed: this is done again
            continue
        except OSError as error:
            raise StorageError(f"{folder / name}: cannot be copied: {error.strerror}") from error


def _write_all(writer: ArchiveWriter, folder: Path, scratch: Path, url: str) -> tuple[str, ...]:
    """Everything into the archive. Gives the artifacts that are damaged here."""
    writer.add_file(DATABASE, scratch / DATABASE)
    copied = list(_walk(scratch / FOLDER))
    for name in copied:
        writer.add_file(f"{FOLDER}/{name}", scratch / FOLDER / name)
    log = (folder / LOG_FILE).read_bytes()
    writer.add(f"{FOLDER}/{LOG_FILE}", log[: log.rfind(b"\n") + 1])
    database = sqlite_file(url)
    left_out = {database.resolve().with_name(database.name + end) for end in _BESIDE} if database else set()
    for name in _walk(folder):
        top = name.partition("/")[0]
        is_elsewhere = name in _NOT_COPIED or top in {_ARTIFACTS, _UPLOADS} or name in copied
        if not is_elsewhere and (folder / name).resolve() not in left_out and _is_over(folder, name):
            writer.add_file(f"{FOLDER}/{name}", folder / name)
    artifacts = [path for path in sorted((folder / _ARTIFACTS).iterdir()) if _DIGEST.fullmatch(path.name)]
    found = {path.name: writer.add_file(f"{FOLDER}/{_ARTIFACTS}/{path.name}", path) for path in artifacts}
    return tuple(name for name, digest in found.items() if digest != name)


def _is_over(folder: Path, name: str) -> bool:
    """Of sums, those alone that ended and are kept for auditors."""
    return not name.startswith(f"{_SUMS}/") or (folder / name).with_name(SUMMARY_FILE).exists()


def _walk(folder: Path) -> Iterator[str]:
    """All files by their names in the folder, sorted; none that is hidden or being written."""

    def cannot(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place, inner, files in os.walk(folder, onerror=cannot):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in inner:
            if (Path(place) / name).is_symlink():
                raise StorageError(f"{Path(place) / name}: is a link to a folder, which a backup does not follow")
        for name in sorted(files):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()
