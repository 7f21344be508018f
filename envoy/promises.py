"""What this site promised in secure sums, as rows of the envoy's own database; ``journal`` writes them.

A row is one attempt of one round. What it says is ``utils.secure_sum.rules``' to read; here it is text.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from ..utils.messages import RunId

SCHEMA = """
CREATE TABLE promises (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    said_at REAL NOT NULL,  -- seconds since 1970, of the last change
    model TEXT NOT NULL,    -- that the round began with
    payload TEXT NOT NULL,  -- SHA-256 of what is, or will be, under the masks
    promise TEXT NOT NULL,  -- JSON: cohort, threshold, what was sent, consented to, unmasked or given up
    PRIMARY KEY (run, round, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX promises_payload ON promises (payload);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One attempt."""

    run: RunId
    round: int
    attempt: int
    model: str
    payload: str
    promise: str


def put(database: sqlite3.Connection, row: Row, now: float) -> None:
    """Write a promise, in place of what the attempt had promised before."""
    database.execute(
        "INSERT OR REPLACE INTO promises VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row.run, row.round, row.attempt, now, row.model, row.payload, row.promise),
    )


def select_repeats(database: sqlite3.Connection, payload: str, run: RunId, number: int) -> list[Row]:
    """What was promised of the very same payload in any other round, of any run."""
    query = (
        "SELECT run, round, attempt, model, payload, promise FROM promises"
        " WHERE payload = ? AND NOT (run = ? AND round = ?) ORDER BY said_at"
    )
    return [Row(RunId(name), *rest) for name, *rest in database.execute(query, (payload, run, number)).fetchall()]


def select(database: sqlite3.Connection, run: RunId) -> list[Row]:
    """All promises of a run, the oldest round first."""
    query = "SELECT run, round, attempt, model, payload, promise FROM promises WHERE run = ? ORDER BY round, attempt"
    return [Row(RunId(name), *rest) for name, *rest in database.execute(query, (run,)).fetchall()]
