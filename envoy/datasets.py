"""The datasets of a site: kept in a registry, checked, and loaded for training.

Only the site sees records, indexes and reports. An error of ``load`` may reach the director, so it names classes,
columns and counts, never a file, a row or a value. No torch here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..utils.data_spec import DataKind, DataSpec
from ..utils.errors import DatasetError, StorageError
from ..utils.tensors import digest_of
from . import image_folder, npz, table
from .inspection import Inspection, check, inspect
from .pictures import Pixels
from .records import (
    DataOptions,
    DatasetFormat,
    DatasetIndex,
    DatasetRecord,
    Example,
    LoadedDataset,
    Quarantined,
    Report,
    describe,
)
from .sources import file_digest
from .splits import GivenSplits, Split, SplitRule

__all__ = [
    "DataOptions",
    "DatasetFormat",
    "DatasetIndex",
    "DatasetRecord",
    "DatasetRegistry",
    "GivenSplits",
    "Inspection",
    "LoadedDataset",
    "Quarantined",
    "Report",
    "Split",
    "SplitRule",
    "check",
    "describe",
    "inspect",
    "load",
    "read_index",
]


class DatasetRegistry:
    """The datasets of one site, in its state directory: a record and an index each, written whole or not at all.

    ``NAME.json`` is the record; it names by its digest the index beside it, so that the two always fit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, record: DatasetRecord, index: DatasetIndex, *, replace: bool = False) -> None:
        """Keep a dataset.

        Raises:
            DatasetError: the name is taken, and it is not to be replaced.
            StorageError: it cannot be written.
            ValueError: the index is not the record's.
        """
        if index.digest != record.digest:
            raise ValueError("the index is not the one that the record was made with")
        if not replace and record.name in self._names():
            raise DatasetError(f"dataset {record.name} is already here; remove or replace it, or choose another name")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self.index_path(record), index.to_json())
            _write(self._folder / f"{record.name}.json", record.to_json())
            self._sweep(record.name, kept=self.index_path(record))
        except OSError as error:
            raise StorageError(
                f"dataset {record.name} cannot be written to {self._folder}: {error.strerror}"
            ) from error

    def get(self, name: str) -> DatasetRecord:
        """The record of a dataset.

        Raises:
            DatasetError: no such dataset; the message lists those that are here.
            StorageError: its record is damaged.
        """
        names = self._names()
        if name not in names:
            raise DatasetError(f"no dataset {name} here; known: {', '.join(names) or 'none'}")
        record = DatasetRecord.from_json(self._read(self._folder / f"{name}.json"))
        if record.name != name:
            raise StorageError(f"the record of dataset {name} says that it is {record.name}; add it again")
        return record

    def index(self, name: str) -> DatasetIndex:
        """The index of a dataset: its examples and their splits, as they were recorded.

        Raises:
            DatasetError: no such dataset.
            StorageError: the index is damaged, or not the one that was recorded.
        """
        record = self.get(name)
        raw = self._read(self.index_path(record))
        if digest_of(raw) != record.digest:
            raise StorageError(f"the index of dataset {name} is not the one that was recorded; add the dataset again")
        return DatasetIndex.from_json(raw)

    def index_path(self, record: DatasetRecord) -> Path:
        """Where the index of a record lies: the training child reads it there."""
        return self._folder / f"{record.name}.{record.digest}.jsonl"

    def list(self) -> tuple[DatasetRecord, ...]:
        """Every record, by name."""
        return tuple(map(self.get, self._names()))

    def check(self, name: str) -> Report:
        """Compare a dataset with its record.

        Raises:
            DatasetError: no such dataset, or its folder or file is gone.
            StorageError: its record or index is damaged.
        """
        return check(self.get(name), self.index(name))

    def remove(self, name: str) -> None:
        """Forget a dataset; its files stay where they are.

        Raises:
            DatasetError: no such dataset.
            StorageError: it cannot be removed.
        """
        if name not in self._names():
            self.get(name)
        try:
            (self._folder / f"{name}.json").unlink()
            self._sweep(name, kept=None)
        except OSError as error:
            raise StorageError(f"dataset {name} cannot be removed from {self._folder}: {error.strerror}") from error

    def _names(self) -> Sequence[str]:
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def _sweep(self, name: str, kept: Path | None) -> None:
        """Drop indexes that no record names any more."""
        digest_length = 64
        for path in self._folder.glob(f"{name}.{'?' * digest_length}.jsonl"):
            if path != kept:
                path.unlink()

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}; add the dataset again") from error


def read_index(record: DatasetRecord, path: Path | None) -> DatasetIndex:
    """The index of a record, from its file.

    Raises:
        DatasetError: the record has none.
        StorageError: it cannot be read, or is another record's.
    """
    if path is None:
        raise DatasetError(f"dataset {record.name} has no index; add it again with: envoy data add")
    try:
        index = DatasetIndex.from_json(path.read_bytes())
    except OSError as error:
        raise StorageError(f"the index of dataset {record.name} cannot be read: {error.strerror}") from error
    if index.digest != record.digest:
        raise StorageError(f"the index of dataset {record.name} is not the one of its record; add the dataset again")
    return index


def load(record: DatasetRecord | None, index: DatasetIndex | None, spec: DataSpec) -> LoadedDataset:
    """Everything that a plan asks for, in memory; the examples of a split lie together.

    Raises:
        DatasetError: there is no such dataset, it is not what the plan declares, or it changed since it was added.
    """
    if spec.kind is DataKind.NONE:
        return LoadedDataset.empty()
    if record is None or index is None:
        raise DatasetError(f"the plan asks for dataset {spec.name}, which is not here: envoy data add {spec.name} PATH")
    if (record.format is DatasetFormat.TABLE) != (spec.kind is DataKind.TABLE):
        raise DatasetError(
            f"dataset {record.name} is of format {record.format.value}; the plan asks for {spec.kind.value}"
        )
    if spec.modality and spec.modality != record.modality:
        raise DatasetError(
            f"dataset {record.name} is of modality {record.modality or 'unknown'}, the plan asks for {spec.modality}"
        )
    if spec.kind is DataKind.IMAGES and spec.shape[0] not in (1, 3):
        raise DatasetError(f"the plan asks for images of {spec.shape[0]} channels; 1 or 3 can be given")
    if index.digest != record.digest:
        raise DatasetError(f"dataset {record.name}: its index is not the one that was recorded; add the dataset again")
    class_of = _class_map(record, spec)
    columns = _columns(record, spec) if spec.kind is DataKind.TABLE else ()
    examples = sorted(index.examples, key=lambda example: example.split)
    try:
        features, num_changed = _features(record, examples, spec, columns)
    except DatasetError as error:  # its words name a path
        raise DatasetError(
            f"dataset {record.name} cannot be read as it was recorded; run `envoy data check {record.name}` at the site"
        ) from error
    if num_changed:
        raise DatasetError(
            f"dataset {record.name}: {num_changed} of {len(examples)} examples are missing or changed since it was "
            f"added; run `envoy data check {record.name}` at the site, and add it again"
        )
    labels = np.array([class_of[example.label] for example in examples], np.int64)
    split = np.array([example.split for example in examples], np.uint8)
    return LoadedDataset(features, labels, split, _patients(examples))


def _patients(examples: Sequence[Example]) -> NDArray[np.int64] | None:
    """The patient of each example; None where one is not known."""
    known = [example.patient for example in examples if example.patient is not None]
    return np.array(known, np.int64) if len(known) == len(examples) else None


def _features(
    record: DatasetRecord, examples: Sequence[Example], spec: DataSpec, columns: Sequence[str]
) -> tuple[Pixels, int]:
    """The examples' features, and how many examples are not as they were recorded."""
    path = Path(record.path)
    if record.source_digest is not None and file_digest(path) != record.source_digest:
        raise DatasetError("another file than the one that was added")
    if record.format is DatasetFormat.TABLE:
        return table.load(path, examples, columns, record.options.header)
    reader = npz.load if record.format is DatasetFormat.NPZ else image_folder.load
    return reader(path, examples, spec.shape, is_deep=record.has_deep_pixels)


def _columns(record: DatasetRecord, spec: DataSpec) -> Sequence[str]:
    """The columns that the plan declares, in its order; the site must have added all of them as features."""
    if not spec.columns:
        raise DatasetError(
            f"the plan names no columns of dataset {record.name}, so it sees none: columns=(...) in its DataSpec"
        )
    lacking = [name for name in spec.columns if name not in record.columns]
    if lacking:
        raise DatasetError(f"dataset {record.name} has no feature {', '.join(lacking)}, which the plan asks for")
    return spec.columns


def _class_map(record: DatasetRecord, spec: DataSpec) -> list[int]:
    """The plan's label for each of the site's; classes are the same if their names are, upper or lower case."""
    if not spec.classes:
        return list(range(len(record.classes)))
    planned = {name.casefold(): label for label, name in enumerate(spec.classes)}
    unknown = [name for name in record.classes if name.casefold() not in planned]
    if unknown:
        raise DatasetError(
            f"dataset {record.name} has class {', '.join(unknown)}, the plan knows {', '.join(spec.classes)}; "
            "add the dataset again with classes named as in the plan"
        )
    return [planned[name.casefold()] for name in record.classes]


def _write(path: Path, raw: bytes) -> None:
    """Replace a file whole, readable by its owner alone."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
