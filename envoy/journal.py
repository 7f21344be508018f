"""The envoy's memory of its work: what was trained and protected, and what the director has a receipt for.

SQLite through the standard library: an envoy starts quickly and keeps little. With it, a finished training is never
repeated and its noise never drawn again, whether the line broke or the envoy was killed. What it records as an answer
is in the outbox at once (``outbox``).
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import StorageError
from ..utils.messages import PayloadKind, RunId, TaskRef
from ..utils.tensors import Digest
from . import outbox
from .orders import WorkResult, result_from_json, result_to_json

DATABASE_FILE = "envoy.sqlite"
_SCHEMA_VERSION = 2
_SCHEMA = f"""
CREATE TABLE work (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, plan TEXT NOT NULL,
    result TEXT NOT NULL,    -- number of examples and metrics, as they leave
    digest TEXT NOT NULL,    -- SHA-256 of the payload; empty for an evaluation
    length INTEGER NOT NULL, -- bytes
    finished_at REAL NOT NULL,
    received_at REAL,        -- the director's receipt
    kind TEXT NOT NULL DEFAULT 'plain',
    codec TEXT NOT NULL DEFAULT '',
    chain TEXT NOT NULL DEFAULT '', -- what it passed, in words
    file TEXT NOT NULL DEFAULT '',  -- that holds it, in work/
    PRIMARY KEY (run, round, attempt, plan)
) STRICT, WITHOUT ROWID;
{outbox.SCHEMA}
"""
_FROM_VERSION_1 = f"""
DELETE FROM work WHERE received_at IS NULL; -- it passed no chain
ALTER TABLE work ADD COLUMN kind TEXT NOT NULL DEFAULT 'plain';
ALTER TABLE work ADD COLUMN codec TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN chain TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN file TEXT NOT NULL DEFAULT '';
{outbox.SCHEMA}
"""  # noqa: S608 - constants
_COLUMNS = "run, round, attempt, plan, result, digest, length, finished_at, received_at, kind, codec, chain, file"
_KEY = "run = ? AND round = ? AND attempt = ? AND plan = ?"


@dataclass(frozen=True, slots=True)
class FinishedWork:
    """One task whose work is done, as its answer leaves."""

    ref: TaskRef
    result: WorkResult
    digest: Digest | None = None  # of the payload; None for an evaluation
    length: int = 0  # bytes
    kind: PayloadKind = PayloadKind.PLAIN
    codec: Digest | None = None
    chain: str = ""  # what it passed, in words
    file: str = ""  # that holds the payload
    is_received: bool = False

    @property
    def is_withheld(self) -> bool:
        """Zeros leave, instead of an update."""
        return self.digest is not None and not self.result.num_examples


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
            if version < _SCHEMA_VERSION:
                change = _FROM_VERSION_1 if version else _SCHEMA
                self._database.executescript(f"BEGIN; {change} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise StorageError(f"the journal {path} cannot be used: {error}") from error

    def finish(self, done: FinishedWork, *, score: float | None = None, has_noise: bool = False) -> FinishedWork:
        """Work on a task is done, and its answer may leave from now on.

        What was done before it and not received is forgotten, as its file is overwritten; the outbox keeps its row.

        Args:
            done: the work.
            score: of the leak test.
            has_noise: noise was drawn for it.
        """
        now = time.time()
        result = json.dumps(result_to_json(done.result))
        what = (done.kind.value, done.codec or "", done.chain, done.file)
        row = (*_key(done.ref), result, done.digest or "", done.length, now, None, *what)
        with self._transaction() as database:
            database.execute("DELETE FROM work WHERE received_at IS NULL")
            database.execute("INSERT OR REPLACE INTO work VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            outbox.insert(database, _departure(done, now, score, has_noise=has_noise))
        return done

    def receive(self, ref: TaskRef) -> None:
        """The director has it."""
        now = time.time()
        with self._transaction() as database:
            database.execute(f"UPDATE work SET received_at = ? WHERE {_KEY}", (now, *_key(ref)))  # noqa: S608
            outbox.mark_received(database, ref, now)

    def drew_noise(self, ref: TaskRef) -> bool:
        """Was noise drawn for a task already, also where the answer is forgotten?"""
        with self._lock:
            return outbox.drew_noise(self._database, ref)

    def departures(self) -> list[outbox.Departure]:
        """All that left, the oldest first."""
        with self._lock:
            return outbox.select(self._database)

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
        with self._lock:
            query = f"SELECT {_COLUMNS} FROM work WHERE {where}"  # noqa: S608 - constants
            rows = self._database.execute(query, values).fetchall()
        return [_finished(row) for row in rows]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database, self._lock, self._path)


def read_outbox(folder: Path) -> list[outbox.Departure]:
    """What left an envoy, by its folder; also while it runs.

    Raises:
        StorageError: there is no envoy's database, or it cannot be used.
    """
    path = folder / DATABASE_FILE
    if not path.exists():
        raise StorageError(f"{folder} has no {DATABASE_FILE}: no envoy has worked there yet")
    journal = Journal(path)
    try:
        return journal.departures()
    finally:
        journal.close()


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


def _finished(row: tuple[Any, ...]) -> FinishedWork:
    run, number, attempt, plan, result, digest, length, _, received_at, kind, codec, chain, file = row
    return FinishedWork(
        TaskRef(RunId(run), number, attempt, Digest(plan)),
        result_from_json(json.loads(result)),
        Digest(digest) if digest else None,
        length,
        PayloadKind(kind),
        Digest(codec) if codec else None,
        chain,
        file,
        received_at is not None,
    )


def _departure(done: FinishedWork, now: float, score: float | None, *, has_noise: bool) -> outbox.Departure:
    return outbox.Departure(
        ready_at=now,
        ref=done.ref,
        kind=done.kind.value if done.digest is not None else outbox.METRICS,
        num_bytes=done.length,
        digest=done.digest,
        codec=done.codec,
        chain=done.chain,
        has_noise=has_noise,
        score=score,
        metrics=tuple(metric.name for metric in done.result.metrics),
        num_examples=done.result.num_examples,
    )


def _key(ref: TaskRef) -> tuple[str, int, int, str]:
    return ref.run, ref.round, ref.attempt, ref.plan
