"""``director restore``: a backup becomes a director's folder and database again, whole or not at all.

Everything is unpacked and checked beside the folder first, and the folder takes its name in one step at the end. A
database elsewhere is filled in one transaction before that; a restore that was killed between the two is simply called
again, and finds its own work. What sites saw of the audit log after the backup was made is not in it: see the README.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from ...utils.audit_chain import Entry, verify
from ...utils.certificates import public_bytes, read_identity_key
from ...utils.errors import ConfigError, StorageError, SuspectLogError
from ...utils.private_files import read_private_file, write_private_file
from ..audit import KEY_FILE, LOG_FILE, DirectorAudit, verify_log
from ..config import CONFIG_FILE, load_config
from ..database import HEAD, DirectorLock
from .archive import DATABASE, FOLDER, About, unpack
from .scratch import scratch_folder, sync_folders
from .sealing import source_of
from .snapshot import check_snapshot, fill_database

IN_THE_FOLDER = "sqlite"
"""In place of a database's URL: a file in the director's folder."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back."""

    about: About
    entries: int  # of the audit log, with the one that says so
    revoked_since: tuple[str, ...]  # named in the newer log, where one was given


def restore(
    file: Path,
    folder: Path,
    by: str,
    now: float,
    passphrase: bytes | None,
    *,
    database_url: str | None = None,
    newer_log: Path | None = None,
) -> Restored:
    """Make a director of a backup.

    Args:
        file: the backup.
        folder: of the director; not there yet, or empty.
        by: who asks, for the audit log.
        now: seconds since 1970.
        passphrase: of the backup, if it is encrypted.
        database_url: in place of the one in the backup's director.toml; ``sqlite`` is a file in the folder.
        newer_log: the audit log as it was last, where it was saved: the sites then see none that went back.

    Raises:
        PassphraseError: not the backup's.
        StorageError: damaged or newer; the folder or the database holds something; a director runs with it.
        SuspectLogError: the audit log is not whole, or the newer one does not go on from it.
        MalformedMessageError: no backup of a director.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise StorageError(f"{folder}: is not empty; a director is restored to an empty folder, or a new one")
    folder = folder.absolute()
    with scratch_folder(folder.with_name(f".{folder.name}.restoring")) as scratch:
        about = _unpacked(file, scratch, passphrase)
        inner = scratch / FOLDER
        if database_url is not None:
            _set_database(inner / CONFIG_FILE, "" if database_url == IN_THE_FOLDER else database_url)
        config = load_config(inner)
        if config.federation != about.federation:
            raise StorageError(f"the backup is damaged: it is of {about.federation}, director.toml of another")
        later = _later_entries(inner, newer_log)
        snapshot = check_snapshot(scratch / DATABASE)
        log = DirectorAudit.open(inner, config.federation, clock=lambda: now)
        try:
            log.restored(about.backup, about.made_at, by)
            entries = log.head.number + 1
        finally:
            log.close()
        _put_in_place(snapshot, config.database.url, inner, folder)
    revoked = tuple(str(one.event.get("name")) for one in later if one.event.get("what") == "revoked")
    return Restored(about, entries, revoked)


def _unpacked(file: Path, scratch: Path, passphrase: bytes | None) -> About:
    try:
        with file.open("rb") as content:
            return unpack(source_of(content, passphrase), scratch, _refuse_newer)
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror or error}") from error


def _refuse_newer(about: About) -> None:
    if not re.fullmatch(r"\d{4}", about.schema) or about.schema > HEAD:
        raise StorageError(
            f"the backup was made by a newer version ({about.software}, schema {about.schema}; this one knows up to"
            f" {HEAD}): restore it with that"
        )


def _later_entries(inner: Path, newer_log: Path | None) -> list[Entry]:
    """Check the log of the backup; take the newer one in its place, and give what it has beyond."""
    entries = verify_log(inner).entries
    if newer_log is None:
        return []
    try:
        newer, older = newer_log.read_bytes(), (inner / LOG_FILE).read_bytes()
    except OSError as error:
        raise StorageError(f"{newer_log}: cannot be read: {error.strerror}") from error
    if not newer.startswith(older):
        raise SuspectLogError(f"{newer_log}: does not go on from the backup's audit log: it is another, or older")
    key = read_identity_key(read_private_file(inner / KEY_FILE), KEY_FILE)
    write_private_file(inner / LOG_FILE, newer[: newer.rfind(b"\n") + 1])
    later: list[Entry] = []
    verify(inner / LOG_FILE, public_bytes(key.public_key()), see=later.append)
    return later[entries:]


def _put_in_place(snapshot: Engine, url: str, inner: Path, folder: Path) -> None:
    try:
        if url:
            with DirectorLock(url):
                fill_database(snapshot, url)
                snapshot.dispose()
                (inner.parent / DATABASE).unlink()  # no copy of it stays, whatever happens next
                _name(inner, folder)
            return
        snapshot.dispose()
        (inner.parent / DATABASE).rename(inner / "director.sqlite")
        _name(inner, folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be put in its place: {error.strerror}") from error
    finally:
        snapshot.dispose()


def _name(inner: Path, folder: Path) -> None:
    sync_folders(inner)
    inner.chmod(0o700)
    inner.rename(folder)
    sync = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(sync)
    finally:
        os.close(sync)


def _set_database(path: Path, url: str) -> None:
    """Change ``database.url`` in director.toml, and nothing else, comments included.

    Raises:
        ConfigError: it stands there in a form that is not recognised.
    """
    text = path.read_text("utf-8")
    wanted = tomllib.loads(text)
    wanted.setdefault("database", {})["url"] = url
    line = f"url = {json.dumps(url)}"
    table = re.compile(r"(?m)^\[database\][^\n]*\n(?:(?!\[)[^\n]*\n)*?url *=[^\n#]*")
    if "database" not in tomllib.loads(text):
        changed = f"{text.rstrip()}\n\n[database]\n{line}\n"
    elif table.search(text):
        changed = table.sub(lambda found: found[0][: found[0].rindex("url")] + line + " ", text, count=1)
    else:
        changed = re.sub(r"(?m)^\[database\][^\n]*\n", lambda found: f"{found[0]}{line}\n", text, count=1)
    try:
        is_right = tomllib.loads(changed) == wanted
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise ConfigError("director.toml in the backup says its database in a way that cannot be changed by itself")
    path.unlink()
    write_private_file(path, changed.encode())
