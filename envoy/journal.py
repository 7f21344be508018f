"""The envoy's memory of its work: what was trained, and what the director has a receipt for.

SQLite through the standard library, one table: an envoy starts quickly and keeps little. With it, a finished training
is never repeated, whether the line broke or the envoy was killed.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import StorageError
from ..utils.messages import RunId, TaskRef
from ..utils.tensors import Digest
from .orders import WorkResult, result_from_json, result_to_json

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE work (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, plan TEXT NOT NULL,
    result TEXT NOT NULL,    -- number of examples and metrics; stays at the site
    digest TEXT NOT NULL,    -- SHA-256 of the update; empty for an evaluation
    length INTEGER NOT NULL, -- bytes
    finished_at REAL NOT NULL,
    received_at REAL,        -- the director's receipt
    PRIMARY KEY (run, round, attempt, plan)
) STRICT, WITHOUT ROWID
"""
_KEY = "run = ? AND round = ? AND attempt = ? AND plan = ?"


@dataclass(frozen=True, slots=True)
class FinishedWork:
    """One task whose work is done."""

    ref: TaskRef
    result: WorkResult
    digest: Digest | None  # of the update; None for an evaluation
    length: int
    is_received: bool


class Journal:
    """One file; safe to share between threads.

    Raises:
        StorageError: it is of a newer fedveil, damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise StorageError(f"{path} was written by a newer fedveil; use that one")
            if not version:
                self._database.executescript(f"BEGIN; {_SCHEMA}; PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise StorageError(f"the journal {path} cannot be used: {error}") from error

    def finish(self, ref: TaskRef, result: WorkResult, digest: Digest | None, length: int) -> FinishedWork:
        """Work on a task is done; what was done before it and not received is forgotten, as its file is overwritten."""
        row = (*_key(ref), json.dumps(result_to_json(result)), digest or "", length, time.time())
        with self._transaction() as database:
            database.execute("DELETE FROM work WHERE received_at IS NULL")
            database.execute("INSERT OR REPLACE INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
        return FinishedWork(ref, result, digest, length, is_received=False)

    def receive(self, ref: TaskRef) -> None:
        """The director has it."""
        with self._transaction() as database:
            database.execute(f"UPDATE work SET received_at = ? WHERE {_KEY}", (time.time(), *_key(ref)))  # noqa: S608

    def finished(self, ref: TaskRef) -> FinishedWork | None:
        """What was done for a task, if it was."""
        return next(iter(self._select(_KEY, _key(ref))), None)

    def unreceived(self, run: RunId) -> list[FinishedWork]:
        """What was done for a run and, as far as is known here, has no receipt."""
        return self._select("run = ? AND received_at IS NULL", (run,))

    def count(self) -> tuple[int, float | None]:
        """How many tasks have a receipt, and when the last came (seconds since 1970)."""
        with self._lock:
            number, last = self._database.execute("SELECT count(received_at), max(received_at) FROM work").fetchone()
        return number, last

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _select(self, where: str, values: tuple[str | int, ...]) -> list[FinishedWork]:
        query = (
            "SELECT run, round, attempt, plan, result, digest, length, received_at FROM work "  # noqa: S608 - constants
            f"WHERE {where}"
        )
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [
            FinishedWork(
                TaskRef(RunId(run), number, attempt, Digest(plan)),
                result_from_json(json.loads(result)),
                Digest(digest) if digest else None,
                length,
                received_at is not None,
            )
            for run, number, attempt, plan, result, digest, length, received_at in rows
        ]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database, self._lock, self._path)


class _Transaction:
    """BEGIN ... COMMIT under the lock; a full disk becomes a ``StorageError``."""

    def __init__(self, database: sqlite3.Connection, lock: threading.Lock, path: Path) -> None:
        self._database, self._lock, self._path = database, lock, path

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._lock.release()
            raise StorageError(f"the journal {self._path} cannot be written: {error}") from error
        return self._database

    def __exit__(self, _: object, error: object, __: object) -> None:
        try:
            if error is None:
                self._database.execute("COMMIT")
        except sqlite3.Error as refused:
            error = refused
        finally:
            self._database.rollback()  # SQLite may have done it already: on a full disk, it says that alone
            self._lock.release()
        if isinstance(error, sqlite3.Error):
            raise StorageError(f"the journal {self._path} cannot be written: {error}") from error


def _key(ref: TaskRef) -> tuple[str, int, int, str]:
    return ref.run, ref.round, ref.attempt, ref.plan
