"""Rows that are only ever added, in SQLite: each holds the hash of the one before it.

A row that was altered or taken out is found when it is read; rows cut off at the end are not, which takes somebody who
holds an earlier hash (the audit log has one). Every row is on the disk before the call that made it returns. Several
threads and processes may share the file: what is decided upon its rows is decided and written in one transaction.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..utils.errors import FederationError, StorageError
from ..utils.tensors import canonical_json

FIRST_HEAD = "0" * 64
"""What the first row has in place of an earlier row's hash."""
_SCHEMA_VERSION = 1
_SCHEMA = (
    "CREATE TABLE chain (number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TRIGGER chain_is_not_altered BEFORE UPDATE ON chain BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
    "CREATE TRIGGER chain_is_not_cut BEFORE DELETE ON chain BEGIN SELECT RAISE(ABORT, 'rows are only added'); END",
)
_State = TypeVar("_State")
_PATIENCE_SECONDS = 30.0  # while another process writes


class RowChain(Generic[_State]):
    """One file of rows, and what they add up to.

    Args:
        path: the file; made, readable by its owner alone, where there is none.
        name: what it is, for messages.
        first: what no rows add up to.
        with_row: what they add up to with one more row, given the hash before it; raises ``FederationError``,
            ``KeyError``, ``TypeError`` or ``ValueError`` where it is none.

    Raises:
        StorageError: it is of a newer fedveil, damaged, or cannot be written.
    """

    def __init__(
        self, path: Path, name: str, first: _State, with_row: Callable[[_State, Mapping[str, Any], str], _State]
    ) -> None:
        self._path, self._name, self._with_row = path, name, with_row
        self._state = first
        self._lock = threading.RLock()
        self._last, self._head = 0, FIRST_HEAD
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._database = sqlite3.connect(
                path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{name} {path} cannot be used: {error}") from error
        with self.transaction():
            pass

    @property
    def head(self) -> str:
        """The hash of the last row that was read or written here."""
        return self._head

    @property
    def state(self) -> _State:
        """What the rows add up to that were read or written here."""
        return self._state

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Read what others added, and keep them out meanwhile; what is added inside is written at the end, or nothing.

        Raises:
            StorageError: a row was altered or taken out, or there is no room.
        """
        with self._lock:
            kept = self._state, self._last, self._head
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._migrate()
                self._read()
                yield
                self._database.execute("COMMIT")
            except BaseException as error:
                self._state, self._last, self._head = kept
                if self._database.in_transaction:
                    self._database.rollback()
                if isinstance(error, sqlite3.Error):
                    raise StorageError(f"{self._name} {self._path} cannot be written: {error}") from error
                raise

    def read(self) -> _State:
        """What the rows add up to, with those that others added; cheap where there are none.

        Raises:
            StorageError: as ``transaction``.
        """
        with self._lock:
            try:
                self._read()
            except sqlite3.Error as error:
                raise StorageError(f"{self._name} {self._path} cannot be read: {error}") from error
            return self._state

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row, inside a ``transaction``: taken in at once, and on the disk when that is over."""
        number, body = self._last + 1, canonical_json(row).decode()
        digest = _hash(self._head, number, body)
        self._database.execute("INSERT INTO chain VALUES (?, ?, ?)", (number, body, digest))
        self._state = self._with_row(self._state, row, self._head)
        self._last, self._head = number, digest

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _migrate(self) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise StorageError(f"{self._path} was written by a newer fedveil; use that one")
        if version < _SCHEMA_VERSION:
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _read(self) -> None:
        rows = self._database.execute(
            "SELECT number, body, hash FROM chain WHERE number > ? ORDER BY number", (self._last,)
        )
        for number, body, digest in rows.fetchall():
            if number != self._last + 1 or digest != _hash(self._head, number, body):
                raise StorageError(
                    f"{self._name} {self._path} was altered: row {self._last + 1} does not follow from the one before"
                    " it. Nothing runs by it; get the file back from where it was kept"
                )
            try:
                self._state = self._with_row(self._state, json.loads(body), self._head)
            except (KeyError, TypeError, ValueError, FederationError) as error:
                raise StorageError(f"{self._name} {self._path}: row {number} cannot be read: {error}") from error
            self._last, self._head = number, digest


def _hash(before: str, number: int, body: str) -> str:
    return hashlib.sha256(canonical_json(["fedveil/row-chain/1", before, number, body])).hexdigest()
