"""A site's privacy ledger: what of each data set was ever released, in rows that are only ever added.

One SQLite file in the envoy's folder. Each row holds the hash of the one before it, so a row that was altered or taken
out is found when the ledger is read; rows cut off at its end are not, which takes somebody who holds an earlier
``head``. Every row is on the disk before the call that made it returns. Several threads and processes may share the
file: a reservation is decided and written in one transaction.

reserve -> train -> settle: what was reserved counts as spent from then on, whatever becomes of the training.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..utils.errors import ConfigError, PrivacyError, StorageError
from ..utils.messages import TaskKind, TaskRef
from ..utils.privacy.accounting import published
from ..utils.privacy.events import Release
from ..utils.privacy.values import PublishedEpsilon
from ..utils.tensors import canonical_json
from .privacy_books import Book, Books, Budget, may_replace

LEDGER_FILE = "privacy.sqlite"
FIRST_HEAD = "0" * 64
"""What the first row has in place of an earlier row's hash."""
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE ledger (
    number INTEGER PRIMARY KEY,  -- from 1, without gaps
    at REAL NOT NULL,            -- seconds since 1970
    body TEXT NOT NULL,          -- canonical JSON
    hash TEXT NOT NULL           -- SHA-256 of the hash before, number, at and body
) STRICT;
CREATE TRIGGER ledger_is_not_altered BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
CREATE TRIGGER ledger_is_not_cut BEFORE DELETE ON ledger BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;
"""
_PATIENCE_SECONDS = 60.0  # while another process decides


@dataclass(frozen=True, slots=True)
class Reservation:
    """A task that may be done: what it releases counts as spent already."""

    row: int
    dataset: str
    has_budget: bool


class PrivacyLedger:
    """One file; safe to share between threads, and between processes that open it each.

    Args:
        path: the file; made where there is none.
        clock: seconds since 1970.

    Raises:
        StorageError: it is of a newer fedveil, damaged, or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._books, self._last, self._head = Books(), 0, FIRST_HEAD
        try:
            self._database = sqlite3.connect(
                path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise StorageError(f"the privacy ledger {path} cannot be used: {error}") from error
        with self._transaction() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise StorageError(f"{path} was written by a newer fedveil; use that one")
            if version < _SCHEMA_VERSION:
                for statement in _SCHEMA.strip().split("\nCREATE "):
                    database.execute(statement if statement.startswith("CREATE") else f"CREATE {statement}")
                database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def reserve(
        self,
        dataset: str,
        ref: TaskRef,
        kind: TaskKind,
        releases: tuple[Release, ...],
        *,
        is_bare: bool,
        delta: float | None = None,
        participants: int = 0,
    ) -> Reservation:
        """Before the data is touched: count what a task will release of it as spent.

        Args:
            dataset: by its name at this site.
            ref: the task; each start of it is another spending.
            kind: of the task.
            releases: what its answer releases.
            is_bare: something leaves beside them without a guarantee.
            delta: that the plan asks for; said where the data set has no budget.
            participants: sites that the task asks.

        Raises:
            BudgetExhaustedError: there is not enough left; the refusal is in the ledger.
            PrivacyError: no guarantee, or one of another unit; likewise.
            StorageError: the ledger is damaged, or cannot be written.
        """
        what = {"dataset": dataset, "run": ref.run, "round": ref.round, "attempt": ref.attempt, "plan": ref.plan}
        what |= {"task": kind.value, "releases": [release.to_json() for release in releases], "is_bare": is_bare}
        what |= {"participants": participants}
        refusal: PrivacyError | None = None
        with self._transaction() as database:
            self._read(database)
            book = self._books.of(dataset)
            try:
                order = book.admit(ref, releases, is_bare=is_bare)
                row = self._append(database, {"row": "reserve", **what, "delta": delta, "order": order})
            except PrivacyError as error:
                self._append(database, {"row": "refuse", **what, "reason": type(error).__name__})
                refusal = error
        if refusal is not None:
            raise refusal
        return Reservation(row, dataset, book.budget is not None)

    def settle(self, reservation: Reservation) -> None:
        """The work was done, and its answer is ready.

        Raises:
            StorageError: as ``reserve``.
        """
        with self._transaction() as database:
            self._read(database)
            self._append(database, {"row": "settle", "dataset": reservation.dataset, "reserve": reservation.row})

    def set_budget(self, dataset: str, budget: Budget, by: str, sign: Callable[[bytes], bytes] | None = None) -> Book:
        """Give a data set a budget, or another one; the book as it stands then.

        Args:
            dataset: by its name at this site.
            budget: the new one.
            by: who says so.
            sign: by the site's identity key; None leaves the budget unsigned.

        Raises:
            PrivacyError: it counts another unit than the one that was spent from.
            StorageError: as ``reserve``.
        """
        said = {
            "row": "budget",
            "dataset": dataset,
            "epsilon": budget.epsilon,
            "delta": budget.delta,
            "unit": budget.unit.value,
            "without_guarantee": budget.without_guarantee.value,
            "by": by,
        }
        with self._transaction() as database:
            self._read(database)
            may_replace(self._books.of(dataset), budget)
            signature = sign(_signed(self._head, said)).hex() if sign is not None else ""
            self._append(database, said | {"signature": signature})
            return self._books.of(dataset)

    def signed_budgets(self, key: bytes) -> frozenset[str]:
        """The data sets whose budget, as it stands, is signed by an Ed25519 key, for its place in this ledger.

        Raises:
            StorageError: as ``books``.
        """
        found, before = dict[str, bool](), FIRST_HEAD
        with self._transaction() as database:
            self._read(database)
            for body, digest in database.execute("SELECT body, hash FROM ledger ORDER BY number").fetchall():
                row = json.loads(body)
                if row["row"] == "budget":
                    signature = bytes.fromhex(row.pop("signature"))
                    found[row["dataset"]] = _is_signed_by(key, signature, _signed(before, row))
                before = digest
        return frozenset(name for name, is_right in found.items() if is_right)

    def books(self) -> Books:
        """All that is in it, after its rows were checked one by one.

        Raises:
            StorageError: a row was altered or taken out.
        """
        with self._transaction() as database:
            self._read(database)
            return self._books

    @property
    def head(self) -> str:
        """The hash of the last row that was read or written here; whoever keeps it can tell a ledger that was cut."""
        return self._head

    def published(self, ref: TaskRef) -> PublishedEpsilon | None:
        """What is told outside with the answer to a task: all that its data set had spent by then.

        None where no epsilon covers it: no budget and no differential privacy, or something left without a guarantee.
        """
        found = self.books().find(ref)
        if found is None:
            return None
        book, spending = found
        if book.budget is not None:
            delta, unit = book.budget.delta, book.budget.unit
        elif spending.delta is not None and spending.releases:
            delta, unit = spending.delta, spending.releases[0].unit
        else:
            return None
        if book.uncovered(unit, until=spending.row):
            return None
        return published(book.history(unit, until=spending.row), delta, unit)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    # ------------------------------------------------------------ rows

    def _read(self, database: sqlite3.Connection) -> None:
        """Take in the rows that others wrote, and check that each follows from the one before."""
        rows = database.execute(
            "SELECT number, at, body, hash FROM ledger WHERE number > ? ORDER BY number", (self._last,)
        )
        for number, at, body, digest in rows.fetchall():
            if number != self._last + 1 or digest != _hash(self._head, number, at, body):
                raise StorageError(
                    f"the privacy ledger {self._path} was altered: row {self._last + 1} does not follow from the one"
                    " before it. Nothing is released from its data sets; get the file back from where it was kept"
                )
            self._take(number, at, json.loads(body), digest)

    def _append(self, database: sqlite3.Connection, row: Mapping[str, Any]) -> int:
        number, at, body = self._last + 1, self._clock(), canonical_json(row).decode()
        digest = _hash(self._head, number, at, body)
        database.execute("INSERT INTO ledger VALUES (?, ?, ?, ?)", (number, at, body, digest))
        self._take(number, at, row, digest)
        return number

    def _take(self, number: int, at: float, row: Mapping[str, Any], digest: str) -> None:
        try:
            self._books = self._books.with_row(number, at, row)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise StorageError(f"the privacy ledger {self._path}: row {number} cannot be read: {error}") from error
        self._last, self._head = number, digest

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            kept = self._books, self._last, self._head
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                self._books, self._last, self._head = kept
                if self._database.in_transaction:
                    self._database.rollback()
                if isinstance(error, sqlite3.Error):
                    raise StorageError(f"the privacy ledger {self._path} cannot be written: {error}") from error
                raise


def _hash(before: str, number: int, at: float, body: str) -> str:
    return hashlib.sha256(canonical_json(["fedveil/privacy-ledger/1", before, number, at, body])).hexdigest()


def _signed(before: str, row: Mapping[str, Any]) -> bytes:
    """What is signed of a budget: all of it, and the row that it follows."""
    return b"fedveil/privacy-budget/1\0" + canonical_json([before, row])


def _is_signed_by(key: bytes, signature: bytes, text: bytes) -> bool:
    """Ed25519; a key that is none has signed nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True
