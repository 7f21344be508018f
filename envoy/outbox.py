"""What left this site: a row for each answer to a task, in the envoy's own database, before its first byte leaves.

It stays at the site and holds no value that was sent: kind, length, digest, the chain that it passed, and the names of
the metrics beside it. Refusals and heartbeats are not in it; the envoy's log has the refusals. ``Journal`` writes it,
in the transaction that makes the answer ready.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.messages import RunId, TaskRef
from ..utils.tensors import Digest

METRICS = "metrics"
"""The kind of an answer to an evaluation; of an update it is its ``PayloadKind``."""
MASKED = "masked"
"""An update in a secure sum; its digest is of what is under the masks, and of nothing that left."""
MASKED_METRICS = "masked metrics"

SCHEMA = """
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    ready_at REAL NOT NULL,    -- no byte left before
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, plan TEXT NOT NULL,
    kind TEXT NOT NULL,        -- plain, coded, metrics, masked or masked metrics
    bytes INTEGER NOT NULL,    -- of the update
    digest TEXT NOT NULL,      -- SHA-256 of the update; empty for metrics
    codec TEXT NOT NULL,       -- its digest, or empty
    chain TEXT NOT NULL,       -- what was done, in words
    has_noise INTEGER NOT NULL,
    score REAL,                -- of the leak test
    metrics TEXT NOT NULL,     -- names
    num_examples INTEGER NOT NULL, -- 0: withheld, or metrics
    received_at REAL           -- the director's receipt
) STRICT;
CREATE INDEX outbox_task ON outbox (run, round, attempt, plan);
"""
_COLUMNS = (
    "ready_at, run, round, attempt, plan, kind, bytes, digest, codec, chain, has_noise, score, metrics, num_examples,"
    " received_at"
)
_TASK = "run = ? AND round = ? AND attempt = ? AND plan = ?"


@dataclass(frozen=True, slots=True)
class Departure:
    """One answer. Times are seconds since 1970."""

    ready_at: float
    ref: TaskRef
    kind: str
    num_bytes: int
    digest: Digest | None
    codec: Digest | None
    chain: str
    has_noise: bool
    score: float | None
    metrics: tuple[str, ...]
    num_examples: int
    received_at: float | None = None

    @property
    def is_withheld(self) -> bool:
        """Zeros left, instead of an update."""
        return self.kind not in (METRICS, MASKED_METRICS) and self.num_examples == 0

    def row(self) -> tuple[str, ...]:
        """As ``envoy outbox`` shows it."""
        return (
            _when(self.ready_at),
            str(self.ref),
            "withheld" if self.is_withheld else self.kind,
            f"{self.num_bytes:,}",
            f"{self.digest[:12]}…" if self.digest else "",
            self.chain.replace(self.codec, f"{self.codec[:12]}…") if self.codec else self.chain,
            "" if self.score is None else f"{self.score:.3f}",
            " ".join(self.metrics),
            "no" if self.received_at is None else _when(self.received_at),
        )

    def to_json(self) -> dict[str, Any]:
        """As ``envoy outbox --json`` shows it."""
        return asdict(self) | {"metrics": list(self.metrics), "is_withheld": self.is_withheld}


def insert(database: sqlite3.Connection, departure: Departure) -> None:
    """Record what is about to leave."""
    values = (
        departure.ready_at,
        *_key(departure.ref),
        departure.kind,
        departure.num_bytes,
        departure.digest or "",
        departure.codec or "",
        departure.chain,
        int(departure.has_noise),
        departure.score,
        " ".join(departure.metrics),
        departure.num_examples,
        departure.received_at,
    )
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO outbox ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608 - constants


def mark_received(database: sqlite3.Connection, ref: TaskRef, now: float) -> None:
    """The director has the task's latest answer."""
    database.execute(
        f"UPDATE outbox SET received_at = ? WHERE number = (SELECT max(number) FROM outbox WHERE {_TASK})",  # noqa: S608
        (now, *_key(ref)),
    )


def drew_noise(database: sqlite3.Connection, ref: TaskRef) -> bool:
    """Was noise drawn for a task already?"""
    query = f"SELECT 1 FROM outbox WHERE {_TASK} AND has_noise LIMIT 1"  # noqa: S608
    return database.execute(query, _key(ref)).fetchone() is not None


def select(database: sqlite3.Connection) -> list[Departure]:
    """All that left, the oldest first."""
    rows = database.execute(f"SELECT {_COLUMNS} FROM outbox ORDER BY number").fetchall()  # noqa: S608
    return [_departure(row) for row in rows]


def _departure(row: tuple[Any, ...]) -> Departure:
    ready, run, number, attempt, plan, kind, size, digest, codec, chain, has_noise, score, names, examples, at = row
    ref = TaskRef(RunId(run), number, attempt, Digest(plan))
    return Departure(
        ready,
        ref,
        kind,
        size,
        Digest(digest) if digest else None,
        Digest(codec) if codec else None,
        chain,
        bool(has_noise),
        score,
        tuple(names.split()),
        examples,
        at,
    )


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(" ", "seconds")


def _key(ref: TaskRef) -> tuple[str, int, int, str]:
    return ref.run, ref.round, ref.attempt, ref.plan
