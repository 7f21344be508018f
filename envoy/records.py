"""What a site remembers of a dataset: its record, the index of its examples, and what was found while looking.

Values alone, with their JSON. A record names the folder or file, never copies it; the index holds for each example
its place, content hash, class and split, so that a split once recorded stays. Both are the site's own and never
leave it. Nothing here reads an example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.data_spec import is_modality
from ..utils.errors import DatasetError, StorageError
from ..utils.tensors import Digest, canonical_json, digest_of
from .splits import GivenSplits, Split, SplitRule

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RECORD_SCHEMA = "fedveil.dataset/1"
_INDEX_SCHEMA = "fedveil.dataset-index/1"


class DatasetFormat(Enum):
    """How a dataset lies on the disk."""

    IMAGE_FOLDER = "image-folder"  # folder = class, with train, val and test folders above or not
    ZIP = "zip"  # an image folder in a zip file, read without unpacking
    NPZ = "npz"  # as MedMNIST's, or plain images and labels
    TABLE = "table"  # CSV, TSV or Parquet


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What a site says about a dataset when it adds it.

    Raises:
        DatasetError: a class that is named twice or not at all, or a patient pattern that is no regular expression.
    """

    classes: tuple[str, ...] = ()  # each "name", or "name=value|value" where the files call it otherwise
    patient: str | None = None  # a column (tables, npz), or a regular expression with a group (file names)
    label_column: str | None = None  # of a table
    columns: tuple[str, ...] = ()  # features of a table; empty: every numeric column
    header: tuple[str, ...] = ()  # names for a table that has no header row
    split_column: str | None = None  # of a table or npz that says itself what is train, validation and test
    modality: str = ""  # how images were made, in DICOM's words (CR, DX, MG, CT); the site's own word for it
    rule: SplitRule = field(default_factory=SplitRule)

    def __post_init__(self) -> None:
        values = [value for _, held in self.class_values() for value in held]
        for words in (self.class_names(), tuple(values)):
            folded = [word.casefold() for word in words]
            if len(set(folded)) != len(folded) or not all(folded):
                raise DatasetError(f"a class is empty or named twice: {', '.join(self.classes)}")
        if not is_modality(self.modality):
            raise DatasetError(f"modality {self.modality!r}: expected a word of capital letters and digits, like DX")

    def class_values(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each class with the values that stand for it.

        >>> DataOptions(classes=("healthy=0", "ill=1|2")).class_values()
        (('healthy', ('0',)), ('ill', ('1', '2')))
        """
        pairs = (text.partition("=") for text in self.classes)
        return tuple(
            (name.strip(), tuple(value.strip() for value in values.split("|")) if sign else (name.strip(),))
            for name, sign, values in pairs
        )

    def class_names(self) -> tuple[str, ...]:
        """The names alone."""
        return tuple(name for name, _ in self.class_values())

    def patient_pattern(self) -> re.Pattern[str] | None:
        """The patient source as a regular expression on file names.

        Raises:
            DatasetError: it is none, or it has no group.
        """
        if self.patient is None:
            return None
        try:
            pattern = re.compile(self.patient)
        except re.error as error:
            raise DatasetError(f"patient {self.patient!r} is not a regular expression: {error}") from error
        if not pattern.groups:
            raise DatasetError(f"patient {self.patient!r} has no group; write for instance (person\\d+)")
        return pattern


@dataclass(frozen=True, slots=True)
class Example:
    """One image or row: where it is and what it is for."""

    id: str  # path in the folder or zip, "train/12" in an npz, "row 12" in a table
    label: int  # index into the record's classes
    split: Split
    size: int  # bytes
    digest: Digest  # of its content: file bytes, pixels, or the feature values of a row
    patient: int | None = field(default=None, repr=False)  # number within the dataset; None: the site names no patients


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One image or row that is left out, and why; the reason names no value of it."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """One readable image or row, before it has a class and a split. Its repr holds no label and no patient."""

    id: str
    label: str = field(repr=False)  # as the files say it
    size: int
    digest: Digest
    patient: str | None = field(default=None, repr=False)
    split: Split | None = None  # the part that it came in


@dataclass(frozen=True, slots=True)
class Scan:
    """What a reader found in a folder or file."""

    found: tuple[Found, ...]
    quarantined: tuple[Quarantined, ...] = ()
    warnings: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # features of a table
    has_deep_pixels: bool = False
    source_digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """Every example of a dataset with its split, and what was left out: kept beside the record."""

    examples: tuple[Example, ...]
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes."""
        return digest_of(self.to_json())

    def num_patients(self, split: Split) -> int | None:
        """Patients with an example in this split; None where they are not known. It stays at the site."""
        patients = {example.patient for example in self.examples if example.split is split}
        return None if None in patients else len(patients)

    def to_json(self) -> bytes:
        """Canonical JSON lines: a header, the examples, what is in quarantine."""
        lines: list[object] = [
            {"schema": _INDEX_SCHEMA, "examples": len(self.examples), "quarantined": len(self.quarantined)}
        ]
        lines += (
            [e.id, e.size, e.digest, e.label, e.split.word, *([] if e.patient is None else [e.patient])]
            for e in self.examples
        )
        lines += ([q.id, q.reason] for q in self.quarantined)
        return b"".join(canonical_json(line) + b"\n" for line in lines)

    @classmethod
    def from_json(cls, raw: bytes) -> DatasetIndex:
        """Read what ``to_json`` wrote.

        Raises:
            StorageError: it is not the index of a dataset.
        """
        try:
            header, *lines = (json.loads(line) for line in raw.splitlines())
            count = header["examples"]
            _expect(_INDEX_SCHEMA, header["schema"], is_whole=len(lines) == count + header["quarantined"])
            examples = tuple(
                Example(str(id_), int(label), Split[word.upper()], int(size), Digest(digest), *map(int, patient))
                for id_, size, digest, label, word, *patient in lines[:count]
            )
            return cls(examples, tuple(Quarantined(str(id_), str(reason)) for id_, reason in lines[count:]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(f"the index of a dataset is damaged: {error}; add the dataset again") from error


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """One dataset of a site.

    Raises:
        DatasetError: a name that cannot be a file's.
    """

    name: str
    path: str
    format: DatasetFormat
    classes: tuple[str, ...]
    num_train: int
    num_validation: int
    num_test: int
    num_quarantined: int
    digest: Digest  # of the index: names, sizes, contents, labels, splits
    added_at: float  # seconds since 1970
    options: DataOptions = field(default_factory=DataOptions)
    columns: tuple[str, ...] = ()  # features of a table, in this order
    has_deep_pixels: bool = False  # more than 8 bits: loaded as float32 in [0, 1] instead of uint8
    source_digest: Digest | None = None  # SHA-256 of the file, where the dataset is one (npz, table)

    def __post_init__(self) -> None:
        require_name(self.name)

    @property
    def modality(self) -> str:
        """How its images were made, as the site said; empty where it said nothing."""
        return self.options.modality

    @property
    def num_examples(self) -> int:
        """Examples in all splits."""
        return self.num_train + self.num_validation + self.num_test

    def to_json(self) -> bytes:
        """Canonical bytes."""
        options, rule = self.options, self.options.rule
        return canonical_json(
            {
                "schema": _RECORD_SCHEMA,
                "name": self.name,
                "path": self.path,
                "format": self.format.value,
                "classes": self.classes,
                "num_examples": [self.num_train, self.num_validation, self.num_test],
                "num_quarantined": self.num_quarantined,
                "digest": self.digest,
                "added_at": self.added_at,
                "columns": self.columns,
                "has_deep_pixels": self.has_deep_pixels,
                "source_digest": self.source_digest,
                "options": {
                    "classes": options.classes,
                    "patient": options.patient,
                    "label_column": options.label_column,
                    "columns": options.columns,
                    "header": options.header,
                    "split_column": options.split_column,
                    "fractions": [rule.train, rule.validation, rule.test],
                    "seed": rule.seed,
                    "given": rule.given.value,
                    "modality": options.modality,
                },
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> DatasetRecord:
        """Read what ``to_json`` wrote.

        Raises:
            StorageError: it is not the record of a dataset.
        """
        try:
            document = json.loads(raw)
            _expect(_RECORD_SCHEMA, document.pop("schema"))
            train, validation, test = (int(count) for count in document.pop("num_examples"))
            return cls(
                num_train=train,
                num_validation=validation,
                num_test=test,
                format=DatasetFormat(document.pop("format")),
                options=_options(document.pop("options")),
                classes=tuple(document.pop("classes")),
                columns=tuple(document.pop("columns")),
                **document,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DatasetError) as error:
            raise StorageError(f"the record of a dataset is damaged: {error}; add the dataset again") from error


@dataclass(frozen=True, slots=True)
class Report:
    """What was found while a dataset was added or checked; shown at the site alone."""

    dataset: str
    num_examples: int = 0
    quarantined: tuple[Quarantined, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # since it was added
    changed: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Every recorded example is still there, with the same content and class; new ones do no harm."""
        return not (self.missing or self.changed)

    def lines(self, limit: int = 20) -> list[str]:
        """The report for a terminal, at most so many names of each sort."""
        lines = [f"{self.dataset}: {self.num_examples} examples", *(f"warning: {text}" for text in self.warnings)]
        listed: dict[str, list[str]] = {
            "quarantined": [f"{_printable(q.id)}: {q.reason}" for q in self.quarantined],
            "missing": [_printable(name) for name in self.missing],
            "changed": [_printable(name) for name in self.changed],
            "new": [_printable(name) for name in self.new],
        }
        for word, names in listed.items():
            if names:
                lines.append(f"{word}: {len(names)}")
                lines += (f"  {name}" for name in names[:limit])
                lines += [f"  and {len(names) - limit} more"] * (len(names) > limit)
        return lines


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LoadedDataset:
    """A dataset in memory, as the training child sees it. Its repr holds no value."""

    features: NDArray[np.uint8] | NDArray[np.float32]  # (N, channels, height, width), or (N, columns) float32
    labels: NDArray[np.int64]  # (N,), index into the plan's classes
    split: NDArray[np.uint8]  # (N,), the codes of ``Split``
    patients: NDArray[np.int64] | None = None  # (N,), numbers within the dataset; None where they are not known
    groups: NDArray[np.uint8] | None = None  # (N, attributes), held-out examples' subgroups by number; 0: in none

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.labels) == len(self.split):
            raise ValueError("one label and one split for each example")
        if self.patients is not None and len(self.patients) != len(self.labels):
            raise ValueError("one patient for each example, or none at all")
        if self.groups is not None and (self.groups.ndim != 2 or len(self.groups) != len(self.labels)):
            raise ValueError("a row of subgroups for each example, or none at all")

    @classmethod
    def empty(cls) -> LoadedDataset:
        """Of a plan that reads no data."""
        return cls(np.zeros((0,), np.float32), np.zeros(0, np.int64), np.zeros(0, np.uint8))

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"LoadedDataset({len(self)} examples, {self.features.dtype} {self.features.shape[1:]})"

    def part(self, split: Split) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.int64]]:
        """Features and labels of one split; views, not copies, as ``load`` lays the examples of a split together."""
        where = np.flatnonzero(self.split == split)
        if where.size and where[-1] - where[0] + 1 == where.size:
            place = slice(int(where[0]), int(where[-1]) + 1)
            return self.features[place], self.labels[place]
        return self.features[where], self.labels[where]

    def cell(self, split: int, place: int, code: int) -> NDArray[np.int64]:
        """Positions of the examples of a split with this number in that column of ``groups``; -1: all of the split."""
        held = self.split == split
        if place >= 0:
            held &= self.groups[:, place] == code if self.groups is not None else False
        return np.flatnonzero(held)


def describe(record: DatasetRecord, labels_of: DatasetIndex | None = None) -> list[tuple[str, str]]:
    """Rows for a table at the site. Counts of each class only where the index is given, on the site's own wish."""
    rule = record.options.rule
    drawn = f"{rule.train:g} / {rule.validation:g} / {rule.test:g}, seed {rule.seed}, given splits: {rule.given.value}"
    rows = [
        ("name", record.name),
        ("path", record.path),
        ("format", record.format.value),
        ("classes", ", ".join(record.classes)),
        ("examples", f"{record.num_train} train, {record.num_validation} validation, {record.num_test} test"),
        ("quarantined", str(record.num_quarantined)),
        ("patients by", record.options.patient or "not known: each example on its own"),
        ("split", drawn),
        ("digest", record.digest),
    ]
    if record.columns:
        rows.insert(4, ("columns", ", ".join(record.columns)))
    if record.modality:
        rows.insert(4, ("modality", record.modality))
    if labels_of is not None:
        counts = np.bincount([example.label for example in labels_of.examples], minlength=len(record.classes))
        rows += [(f"class {name}", str(count)) for name, count in zip(record.classes, counts, strict=True)]
    return rows


def require_name(name: str) -> None:
    """Can a dataset be called so?

    Raises:
        DatasetError: no; its record is a file of that name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DatasetError(
            f"a dataset cannot be called {str(name)[:80]!r}: 1 to 64 lower-case letters, digits, dots, dashes "
            "and underscores, the first a letter or digit"
        )


def _options(document: Mapping[str, Any]) -> DataOptions:
    train, validation, test = document["fractions"]
    return DataOptions(
        classes=tuple(document["classes"]),
        patient=document["patient"],
        label_column=document["label_column"],
        columns=tuple(document["columns"]),
        header=tuple(document["header"]),
        split_column=document["split_column"],
        modality=document.get("modality", ""),  # records of version 0.1.0 have none
        rule=SplitRule(train, validation, test, document["seed"], GivenSplits(document["given"])),
    )


def _expect(schema: str, came: object, *, is_whole: bool = True) -> None:
    if came != schema or not is_whole:
        raise ValueError(f"expected {schema}, whole")


def _printable(name: str) -> str:
    """A file name as a terminal may show it: control characters are escaped."""
    return name if name.isprintable() else ascii(name)
