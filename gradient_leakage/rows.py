"""Where the benchmark keeps what it found: one SQLite file with a table of runs and one of rows.

A run is written as it ends, in a transaction of its own; a row is computed from runs and can be computed again. One
process writes at a time.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Self, TypeAlias, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import StorageError
from ..utils.tensors import Digest, canonical_json
from .cells import Cell

FILE_NAME = "leakage.sqlite"

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one run gave. Its arrays hold images of public benchmark data, never a site's own.

    | array | what |
    |---|---|
    | `truth`, `labels` | the attacked batch: float32 (count, channels, height, width), int64 (count,) |
    | `patients` | whose images: text (count,), or (0,) where nobody knows |
    | `found` | the reconstruction, each picture beside its image, in its shape; absent where none was sought |
    | `is_found` | bool (count,): had a picture; where not, `found` is mid-grey |
    | `found_labels` | int64, in no order; absent where none was sought |
    | `frames`, `frame_iterations` | the first image as it emerged: uint8 (moments, channels, height, width), int64 |
    """

    key: Digest
    spec: Mapping[str, object]
    arrays: Arrays = field(repr=False)
    loss: float | None  # the attacker's own; None where nothing was optimised
    cpu_seconds: float  # of the attack alone
    wall_seconds: float
    peak_mb: float  # of the process, in 1e6 bytes
    trace: tuple[tuple[int, float], ...] = ()  # (iteration, the attacker's loss)
    error: str = ""  # why it could not be attacked
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One run as a line of a table; None where a figure cannot be had (no image sought, nobody to compare with).

    The figures are means over the images of the batch. PSNR in dB; shares and SSIM up to 1.
    """

    key: str
    run: str  # key of the run it was computed from
    case: str
    model: str
    state: str
    batch: int
    local_steps: int
    defense: str
    attack: str
    adaptive: bool
    psnr: float | None
    ssim: float | None
    null_ssim: float | None  # of the same attack on another patient's update of the same class
    reid_rank1: float | None  # share of the images that pick their original from the gallery, by pixels
    cpu_seconds: float
    mse: float | None
    psnr_best: float | None  # of the image of the batch that was found best
    pictured: float | None  # share of the images that got a picture; the others count as mid-grey
    null_psnr: float | None
    baseline_psnr: float | None  # of the mean of the attacker's public images
    baseline_ssim: float | None
    reid_rank5: float | None
    network_rank1: float | None  # as reid_rank1, by the verification network
    network_rank5: float | None
    gallery: int  # images to pick from, the original among them
    label_recovery: float | None
    knowledge: str  # what the threat model grants, with commas
    options: str  # of the attack, as JSON
    learning_rate: float
    dtype: str
    targets: int  # of the cell
    skip: int  # targets of the case before them
    target: int  # which of the case's targets
    seed: int
    patients: str  # whose images, with commas
    loss: float | None
    wall_seconds: float
    peak_mb: float
    error: str

    def cell(self) -> Cell:
        """The cell that it belongs to."""
        return Cell(
            case=self.case,
            model=self.model,
            attack=self.attack,
            knowledge=tuple(name for name in self.knowledge.split(",") if name),
            options=tuple(json.loads(self.options).items()),
            state=self.state,
            batch=self.batch,
            local_steps=self.local_steps,
            learning_rate=self.learning_rate,
            defense=self.defense,
            adaptive=self.adaptive,
            dtype=self.dtype,
            targets=self.targets,
            skip=self.skip,
            gallery=self.gallery,
            seed=self.seed,
        )

    def as_json(self) -> dict[str, object]:
        """For a JSON file; infinities and NaN, which JSON lacks, as None."""
        return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in asdict(self).items()}


# Column names are those of the two dataclasses; quoted, since `case` is a word of SQL.
_RUN_COLUMNS = {
    "key": "TEXT PRIMARY KEY",
    "spec": "TEXT NOT NULL",  # canonical JSON
    "arrays": "BLOB NOT NULL",  # a compressed npz
    "loss": "REAL",
    "cpu_seconds": "REAL NOT NULL",
    "wall_seconds": "REAL NOT NULL",
    "peak_mb": "REAL NOT NULL",
    "trace": "TEXT NOT NULL",  # JSON
    "error": "TEXT NOT NULL",
    "versions": "TEXT NOT NULL",  # JSON
}
_SQL_TYPES = {str: "TEXT", int: "INTEGER", bool: "INTEGER", float: "REAL"}
_ROW_COLUMNS = {
    name: next(_SQL_TYPES[t] for t in (kind, *get_args(kind)) if t in _SQL_TYPES)
    for name, kind in get_type_hints(Row).items()
}
_NAMES = {
    table: ", ".join(f'"{name}"' for name in columns)
    for table, columns in (("runs", _RUN_COLUMNS), ("rows", _ROW_COLUMNS))
}
_PLACES = {table: ", ".join("?" * (names.count(",") + 1)) for table, names in _NAMES.items()}


class RunStore:
    """One file. Closing it lets another process write."""

    def __init__(self, folder: Path, *, writing: bool) -> None:
        path = folder / FILE_NAME
        if not writing and not path.exists():
            raise StorageError(f"there is no {path}: `fedveil attack bench --out {folder}` makes it")
        self._path, self._lock = path, _lock(folder) if writing else None
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            with _storage_errors(path):
                if writing:
                    self._prepare()
                self._connection.execute("SELECT count(*) FROM rows")
        except StorageError:
            self.close()
            raise

    def keys(self) -> set[str]:
        """Of all runs that ended."""
        return {key for (key,) in self._connection.execute("SELECT key FROM runs")}

    def row_keys(self) -> set[str]:
        """Of all rows."""
        return {key for (key,) in self._connection.execute("SELECT key FROM rows")}

    def add(self, outcome: Outcome) -> None:
        """Keep a run for good. One that is there already stays as it is."""
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **outcome.arrays)
        values = (
            outcome.key,
            canonical_json(outcome.spec).decode(),
            packed.getvalue(),
            outcome.loss if outcome.loss is not None and math.isfinite(outcome.loss) else None,
            outcome.cpu_seconds,
            outcome.wall_seconds,
            outcome.peak_mb,
            json.dumps(outcome.trace),
            outcome.error,
            canonical_json(outcome.versions).decode(),
        )
        with _storage_errors(self._path):
            self._connection.execute(
                f"INSERT OR IGNORE INTO runs ({_NAMES['runs']}, created)"  # noqa: S608 - our own names
                f" VALUES ({_PLACES['runs']}, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))",
                values,
            )

    def outcome(self, key: str) -> Outcome | None:
        """A run by its key; None where it has not ended."""
        query = f"SELECT {_NAMES['runs']} FROM runs WHERE key = ?"  # noqa: S608 - our own names
        found = self._connection.execute(query, (key,)).fetchone()
        if found is None:
            return None
        _, spec, packed, loss, cpu, wall, peak, trace, error, versions = found
        with np.load(io.BytesIO(packed), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        points = tuple((int(iteration), float(value)) for iteration, value in json.loads(trace))
        return Outcome(
            Digest(key), json.loads(spec), arrays, loss, cpu, wall, peak, points, error, json.loads(versions)
        )

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Write rows, or write them again; all or none."""
        statement = f"INSERT OR REPLACE INTO rows ({_NAMES['rows']}) VALUES ({_PLACES['rows']})"  # noqa: S608
        with _storage_errors(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(statement, [astuple(row) for row in rows])

    def rows(self) -> tuple[Row, ...]:
        """All of them, those of a cell side by side."""
        order = '"case", model, state, batch, local_steps, defense, attack, options, knowledge, targets, target, "key"'
        found = self._connection.execute(f"SELECT {_NAMES['rows']} FROM rows ORDER BY {order}")  # noqa: S608
        named = (dict(zip(_ROW_COLUMNS, values, strict=True)) for values in found)
        return tuple(Row(**values | {"adaptive": bool(values["adaptive"])}) for values in named)

    def close(self) -> None:
        """Let others in."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        """Make the tables. Rows of an older version of this module go: they are computed from runs again."""
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")  # outlives a killed process, if not a power cut
        self._connection.execute(_created("runs", _RUN_COLUMNS | {"created": "TEXT NOT NULL"}))
        there = [column[1] for column in self._connection.execute("PRAGMA table_info(rows)")]
        if there and there != list(_ROW_COLUMNS):
            self._connection.execute("DROP TABLE rows")
        self._connection.execute(_created("rows", _ROW_COLUMNS | {"key": "TEXT PRIMARY KEY"}))


def _created(table: str, columns: Mapping[str, str]) -> str:
    described = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    return f"CREATE TABLE IF NOT EXISTS {table} ({described})"


def _lock(folder: Path) -> int:
    """An open file that this process alone holds; the system lets go of it however the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "bench.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        raise StorageError(f"another benchmark is writing in {folder}: wait for it, or name another --out") from error
    return file


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}") from error
