"""What this site told by subgroups of each data set: told once by one set of subgroups, it is told by no other.

Two overlapping sets of subgroups, or two states of a data set that differ by a few people, can be subtracted from each
other, and what one suppresses comes out. So the subgroups and the least cell of a data set stay as they were when it
was first told of, and of a changed data set nothing is told until ``min_cell`` of its held-out examples are others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..utils.errors import StorageError
from ..utils.tensors import canonical_json
from .records import DatasetIndex, DatasetRecord
from .splits import Split
from .subgroups import Asked

BOOK_FILE = "fairness.json"
_SCHEMA = "fedveil.fairness-book/1"
_MARK = 16  # digits of an example's digest that tell it from others


class FairnessBook:
    """One file of an envoy's folder, replaced whole; used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / BOOK_FILE

    def enter(self, record: DatasetRecord, index: DatasetIndex, asked: Asked) -> str:
        """Note what is about to be told of a data set, for good.

        Returns:
            Why it may not be told, in words for the site; empty where it may.

        Raises:
            StorageError: the book cannot be read or written; nothing may be told then.
        """
        held = sorted(one.digest[:_MARK] for one in index.examples if one.split is not Split.TRAIN)
        entry: dict[str, Any] = {"digest": record.digest, "held": held} | asked.to_json()
        book = self._read()
        known = book.get(record.name)
        if known == entry:
            return ""
        if known is not None:
            if (known["subgroups"], known["min_cell"]) != (entry["subgroups"], entry["min_cell"]):
                return (
                    f"data set {record.name} was told of by {', '.join(known['subgroups']) or 'no subgroup'} with at"
                    f" least {known['min_cell']} people a cell; what is told by other cells could be subtracted from"
                    " that. Set [fairness] back, or add the data under another name once it has other people"
                )
            changed = len(set(held) ^ set(known["held"]))
            if 0 < changed < asked.min_cell:
                return (
                    f"{changed} held-out examples of data set {record.name} are others than when it was told of;"
                    f" of fewer than {asked.min_cell} the difference would tell. With more it is told of again"
                )
        self._write(book | {record.name: entry})
        return ""

    def _read(self) -> dict[str, Any]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read: {error.strerror}") from error
        try:
            document = json.loads(raw)
            return dict({_SCHEMA: document["datasets"]}[document["schema"]])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StorageError(f"{self._path} is damaged; nothing is told by subgroups until it is put back") from error

    def _write(self, datasets: dict[str, Any]) -> None:
        fresh = self._path.with_name(f".{BOOK_FILE}.{os.getpid()}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(canonical_json({"schema": _SCHEMA, "datasets": datasets}))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise StorageError(f"{self._path}: cannot be written: {error.strerror}") from error
