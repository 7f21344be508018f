"""The envoy's memory of its work: what was trained and protected, what it promised, what the director has.

SQLite through the standard library: an envoy starts quickly and keeps little. With it, a finished training is never
repeated and its noise never drawn again, whether the line broke or the envoy was killed. What it records as an answer
is in the outbox at once (``outbox``). What binds this site in secure sums (``promises``) is on the disk itself before
the message that says it leaves: a power cut does not undo a promise.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..utils.errors import StorageError
from ..utils.messages import PayloadKind, RunId, TaskRef
from ..utils.tensors import Digest
from . import outbox, promises
from .orders import WorkResult, result_from_json, result_to_json

DATABASE_FILE = "envoy.sqlite"
_SCHEMA_VERSION = 4
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
    model TEXT NOT NULL DEFAULT '', -- that the round began with
    trained INTEGER NOT NULL DEFAULT 0, -- the attempt that did the work; 0: its own
    score REAL,                     -- of the leak test
    has_noise INTEGER NOT NULL DEFAULT 0,
    is_summed INTEGER NOT NULL DEFAULT 0, -- it leaves in a secure sum, never as it is
    masked_digest TEXT NOT NULL DEFAULT '', -- SHA-256 of the masked words that left
    masked_length INTEGER NOT NULL DEFAULT 0,
    noise_secret BLOB NOT NULL DEFAULT x'', -- of its noise in a secure sum; gone with the payload
    PRIMARY KEY (run, round, attempt, plan)
) STRICT, WITHOUT ROWID;
{outbox.SCHEMA}
{promises.SCHEMA}
"""
_FROM_VERSION_1 = f"""
DELETE FROM work WHERE received_at IS NULL; -- it passed no chain
ALTER TABLE work ADD COLUMN kind TEXT NOT NULL DEFAULT 'plain';
ALTER TABLE work ADD COLUMN codec TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN chain TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN file TEXT NOT NULL DEFAULT '';
{outbox.SCHEMA}
"""  # noqa: S608 - constants
_FROM_VERSION_2 = f"""
ALTER TABLE work ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN trained INTEGER NOT NULL DEFAULT 0;
ALTER TABLE work ADD COLUMN score REAL;
ALTER TABLE work ADD COLUMN has_noise INTEGER NOT NULL DEFAULT 0;
ALTER TABLE work ADD COLUMN is_summed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE work ADD COLUMN masked_digest TEXT NOT NULL DEFAULT '';
ALTER TABLE work ADD COLUMN masked_length INTEGER NOT NULL DEFAULT 0;
{promises.SCHEMA}
"""
_FROM_VERSION_3 = "ALTER TABLE work ADD COLUMN noise_secret BLOB NOT NULL DEFAULT x'';"
_CHANGES = {
    0: _SCHEMA,
    1: _FROM_VERSION_1 + _FROM_VERSION_2 + _FROM_VERSION_3,
    2: _FROM_VERSION_2 + _FROM_VERSION_3,
    3: _FROM_VERSION_3,
}
_COLUMNS = (
    "run, round, attempt, plan, result, digest, length, finished_at, received_at, kind, codec, chain, file, model,"
    " trained, score, has_noise, is_summed, masked_digest, masked_length, noise_secret"
)
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
    model: Digest | None = None  # that the round began with
    trained: int = 0  # the attempt that did the work; 0: its own
    is_summed: bool = False  # it leaves in a secure sum: nothing of it is ever said in the clear
    masked_digest: Digest | None = None  # of the masked words, once they left
    masked_length: int = 0
    noise_secret: bytes | None = field(default=None, repr=False)  # 32 bytes, for its noise in a secure sum

    @property
    def is_withheld(self) -> bool:
        """Zeros leave, instead of an update."""
        return self.digest is not None and not self.result.num_examples

    @property
    def trained_ref(self) -> TaskRef:
        """The task whose training this is: another attempt's, where a secure sum was tried again."""
        return replace(self.ref, attempt=self.trained or self.ref.attempt)


class Journal:
    """One file; safe to share between threads.

    Raises:
        StorageError: it is of a newer fedveil, damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            _keep_private(path)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise StorageError(f"{path} was written by a newer fedveil; use that one")
            if version < _SCHEMA_VERSION:
                change = _CHANGES[version]
                self._database.executescript(f"BEGIN; {change} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"the journal {path} cannot be used: {error}") from error

    def finish(self, done: FinishedWork, *, score: float | None = None, has_noise: bool = False) -> FinishedWork:
        """Work on a task is done, and its answer may leave from now on.

        What was done before it and not received is forgotten, as its file is overwritten; the outbox keeps its row.
        So is the secret of its noise in any case: as long as the payload can be summed again, and no longer.

        Args:
            done: the work.
            score: of the leak test.
            has_noise: noise was drawn for it.
        """
        now = time.time()
        with self._transaction() as database:
            database.execute("DELETE FROM work WHERE received_at IS NULL")
            database.execute("UPDATE work SET noise_secret = x'' WHERE noise_secret <> x''")
            _insert(database, done, now, score, has_noise=has_noise)
            if not done.is_summed:
                outbox.insert(database, _departure(done, now, score, has_noise=has_noise))
        return done

    def take_over(self, earlier: FinishedWork, ref: TaskRef) -> FinishedWork:
        """What was made ready for an earlier attempt of a secure sum serves another; it is not trained again."""
        done = replace(
            earlier,
            ref=ref,
            trained=earlier.trained_ref.attempt,
            is_received=False,
            masked_digest=None,
            masked_length=0,
        )
        with self._transaction() as database:
            found = database.execute(f"SELECT score, has_noise FROM work WHERE {_KEY}", _key(earlier.ref)).fetchone()  # noqa: S608
            score, has_noise = found or (None, 0)
            database.execute("DELETE FROM work WHERE received_at IS NULL")
            _insert(database, done, time.time(), score, has_noise=bool(has_noise))
        return done

    def depart(self, done: FinishedWork, num_bytes: int, words: str, promise: promises.Row) -> None:
        """The masked words of an answer are about to leave: the outbox's row, and the promise that goes with it.

        Args:
            done: what is under the masks.
            num_bytes: of the masked words.
            words: on the sum, behind what the chain says.
            promise: that a masked answer left in this attempt.
        """
        now = time.time()
        with self._transaction(is_durable=True) as database:
            found = database.execute(f"SELECT score, has_noise FROM work WHERE {_KEY}", _key(done.ref)).fetchone()  # noqa: S608
            score, has_noise = found or (None, 0)
            row = _departure(done, now, score, has_noise=bool(has_noise))
            kind = outbox.MASKED if done.digest is not None else outbox.MASKED_METRICS
            chain = f"{done.chain}, {words}" if done.chain else words
            outbox.insert(database, replace(row, kind=kind, num_bytes=num_bytes, chain=chain))
            promises.put(database, promise, now)

    def left_masked(self, ref: TaskRef, digest: Digest, length: int) -> None:
        """The director has the masked words; by their digest it is asked later whether they counted."""
        with self._transaction() as database:
            database.execute(
                f"UPDATE work SET masked_digest = ?, masked_length = ? WHERE {_KEY}",  # noqa: S608
                (digest, length, *_key(ref)),
            )

    def promise(self, row: promises.Row) -> None:
        """A promise, on the disk before this returns."""
        with self._transaction(is_durable=True) as database:
            promises.put(database, row, time.time())

    def last_sum(self) -> tuple[TaskRef, str] | None:
        """The last secure sum that something was promised in, if it has no receipt; and the promise."""
        query = (
            "SELECT run, round, attempt, plan, promise FROM promises JOIN work USING (run, round, attempt)"
            " WHERE is_summed AND received_at IS NULL ORDER BY said_at DESC LIMIT 1"
        )
        with self._lock:
            found = self._database.execute(query).fetchone()
        if found is None:
            return None
        run, number, attempt, plan, promise = found
        return TaskRef(RunId(run), number, attempt, Digest(plan)), promise

    def repeated(self, ref: TaskRef, payload: str) -> list[promises.Row]:
        """What was promised of the very same payload in other rounds, of any run."""
        with self._lock:
            return promises.select_repeats(self._database, payload, ref.run, ref.round)

    def promised(self, run: RunId) -> list[promises.Row]:
        """All that was promised in a run, the oldest round first."""
        with self._lock:
            return promises.select(self._database, run)

    def receive(self, ref: TaskRef) -> None:
        """The director has it."""
        now = time.time()
        with self._transaction() as database:
            database.execute(f"UPDATE work SET received_at = ? WHERE {_KEY}", (now, *_key(ref)))  # noqa: S608
            outbox.mark_received(database, ref, now)

    def forget(self, ref: TaskRef) -> None:
        """What was made ready for a task and has no receipt; the outbox keeps its row, and the promises stay."""
        with self._transaction() as database:
            database.execute(f"DELETE FROM work WHERE received_at IS NULL AND {_KEY}", _key(ref))  # noqa: S608

    def drew_noise(self, ref: TaskRef) -> bool:
        """Was noise drawn for a task already, also where the answer is forgotten?"""
        with self._lock:
            return outbox.drew_noise(self._database, ref)

    def leakage_score(self, ref: TaskRef) -> float | None:
        """What the leak test said of the plan of an answer that was made ready; None where none was made."""
        with self._lock:
            found = self._database.execute(f"SELECT score FROM work WHERE {_KEY}", _key(ref)).fetchone()  # noqa: S608
        return None if found is None else found[0]

    def departures(self) -> list[outbox.Departure]:
        """All that left, the oldest first."""
        with self._lock:
            return outbox.select(self._database)

    def finished(self, ref: TaskRef) -> FinishedWork | None:
        """What was done for a task, if it was."""
        return next(iter(self._select(_KEY, _key(ref))), None)

    def finished_before(self, ref: TaskRef, model: Digest) -> FinishedWork | None:
        """What was done in the latest earlier attempt of a round that began with the same model."""
        where = "run = ? AND round = ? AND plan = ? AND attempt < ? AND model = ? ORDER BY attempt DESC LIMIT 1"
        return next(iter(self._select(where, (ref.run, ref.round, ref.plan, ref.attempt, model))), None)

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

    def _transaction(self, *, is_durable: bool = False) -> _Transaction:
        return _Transaction(self._database, self._lock, self._path, is_durable=is_durable)


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
    """BEGIN ... COMMIT under the lock; a full disk becomes a ``StorageError``.

    What is durable has been through an fsync when it is over (``synchronous = FULL``); the rest survives a kill -9.
    """

    def __init__(self, database: sqlite3.Connection, lock: threading.Lock, path: Path, *, is_durable: bool) -> None:
        self._database, self._lock, self._path, self._is_durable = database, lock, path, is_durable

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if self._is_durable else 'NORMAL'}")
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


def _keep_private(path: Path) -> None:
    """Nobody else reads what was trained here, nor the secret of its noise; files beside it get the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _insert(
    database: sqlite3.Connection, done: FinishedWork, now: float, score: float | None, *, has_noise: bool
) -> None:
    row = (
        *_key(done.ref),
        json.dumps(result_to_json(done.result)),
        done.digest or "",
        done.length,
        now,
        None,
        done.kind.value,
        done.codec or "",
        done.chain,
        done.file,
        done.model or "",
        done.trained,
        score,
        int(has_noise),
        int(done.is_summed),
        done.masked_digest or "",
        done.masked_length,
        done.noise_secret or b"",
    )
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT OR REPLACE INTO work ({_COLUMNS}) VALUES ({marks})", row)  # noqa: S608 - constants


def _finished(row: tuple[Any, ...]) -> FinishedWork:
    run, number, attempt, plan, result, digest, length, _, received_at, kind, codec, chain, file, *more = row
    model, trained, _, _, is_summed, masked_digest, masked_length, noise_secret = more
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
        Digest(model) if model else None,
        trained,
        bool(is_summed),
        Digest(masked_digest) if masked_digest else None,
        masked_length,
        noise_secret or None,
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
        metrics=(*(metric.name for metric in done.result.metrics), *(["fairness"] if done.result.fairness else [])),
        num_examples=done.result.num_examples,
    )


def _key(ref: TaskRef) -> tuple[str, int, int, str]:
    return ref.run, ref.round, ref.attempt, ref.plan
