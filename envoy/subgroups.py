"""The subgroups by which a site evaluates its held-out examples, and the table ``[fairness]`` that says so.

A subgroup is a column of a table, an array beside the images of an npz file, or, for image folders, a pattern on the
image's path. It is read by the process that reads data sets: a plan's process gets numbers for held-out examples, never
a subgroup's name or value, and nothing of the examples that it trains on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import ConfigError, DatasetError
from ..utils.fairness import LEAST_MIN_CELL, MAX_MIN_CELL, MAX_SUBGROUPS, MAX_VALUES, MIN_CELL, named
from . import npz, suppression, table
from .records import DatasetFormat, DatasetIndex, DatasetRecord, Example, LoadedDataset
from .splits import Split
from .suppression import Scheme

NOT_GIVEN = "not given"
"""Those of whom the data set does not say it: a cell like any other, else it could be worked out."""


@dataclass(frozen=True, slots=True)
class FairnessPolicy:
    """The table ``[fairness]``: what this site tells of how well models do on its own held-out examples.

    Raises:
        ConfigError: a subgroup that is none or comes twice, or a number out of range.
    """

    publish: bool = False  # the director is told; else nothing is evaluated by subgroups at all
    subgroups: tuple[str, ...] = ()  # columns, or NAME=PATTERN with a group on paths of images
    min_cell: int = MIN_CELL  # people in what is told, at least; the federation may ask for more

    def __post_init__(self) -> None:
        if not LEAST_MIN_CELL <= self.min_cell <= MAX_MIN_CELL:
            raise ConfigError(f"min_cell is {self.min_cell}, expected {LEAST_MIN_CELL} to {MAX_MIN_CELL}")
        if len(self.subgroups) > MAX_SUBGROUPS:
            raise ConfigError(f"subgroups names {len(self.subgroups)}, expected {MAX_SUBGROUPS} at most")
        names = [name_of(text) for text in self.subgroups]
        if len(set(names)) < len(names):
            raise ConfigError("subgroups names one twice")
        for text in self.subgroups:
            pattern_of(text)


NOTHING_TOLD = FairnessPolicy()
"""Of a site whose ``envoy.toml`` says nothing of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be told of one data set: part of an order, and never told to the plan's process."""

    subgroups: tuple[str, ...]
    min_cell: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"subgroups": list(self.subgroups), "min_cell": self.min_cell}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Asked:
        """Read what ``to_json`` made."""
        return cls(tuple(document["subgroups"]), document["min_cell"])


def name_of(text: str) -> str:
    """A subgroup's name.

    Raises:
        ConfigError: it has none that could be told.

    >>> name_of("sex=_([FM])_"), name_of("age_band")
    ('sex', 'age_band')
    """
    try:
        return named(text.partition("=")[0].strip())
    except ValueError as error:
        raise ConfigError(f"subgroups: {text[:80]!r} has no name that can be told: {error}") from error


def pattern_of(text: str) -> re.Pattern[str] | None:
    """The pattern on paths, where one is given.

    Raises:
        ConfigError: no regular expression with a group.
    """
    _, sign, pattern = text.partition("=")
    if not sign:
        return None
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"subgroups: {text[:80]!r} has no regular expression behind its =: {error}") from error
    if found.groups != 1:
        raise ConfigError(f"subgroups: {text[:80]!r} needs one group in its pattern, as in sex=_([FM])_")
    return found


def divided(
    loaded: LoadedDataset, record: DatasetRecord, index: DatasetIndex, asked: Asked
) -> tuple[LoadedDataset, Scheme, tuple[str, ...]]:
    """The data set with its held-out examples by subgroups, what may be told of them, and the subgroups it has not.

    Args:
        loaded: as ``datasets.load`` gave it.
        record: of it.
        index: of it.
        asked: which subgroups.
    """
    examples = sorted(index.examples, key=lambda example: example.split)  # as they are loaded
    split = Split.TEST if any(one.split is Split.TEST for one in examples) else Split.VALIDATION
    held = loaded.split == split
    attributes: list[tuple[str, tuple[str, ...], NDArray[np.uint8]]] = []
    left_out = []
    for text in asked.subgroups:
        try:
            attributes.append((name_of(text), *_coded(_texts(record, examples, text), held)))
        except (DatasetError, ValueError):
            left_out.append(name_of(text))
    known = [example.patient for example in examples if example.patient is not None]
    by_patient = len(known) == len(examples)
    people = np.array(known, np.int64) if by_patient else np.arange(len(examples), dtype=np.int64)
    scheme = suppression.plan(
        split.word,
        "patients" if by_patient else "examples",
        people[held],
        loaded.labels[held],
        [(name, values, codes[held]) for name, values, codes in attributes],
        asked.min_cell,
    )
    groups = np.zeros((len(examples), len(attributes)), np.uint8)
    for place, (_, _, codes) in enumerate(attributes):
        groups[:, place] = codes
    return replace(loaded, groups=groups), scheme, tuple(left_out)


def _coded(texts: Sequence[str | None], held: NDArray[np.bool_]) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """The values of the held-out examples in order, and each example's number among them from 1 on; 0 if not held out.

    Raises:
        ValueError: too many values, or one that could not be told.
    """
    said = [text if text is not None else NOT_GIVEN for text in texts]
    values = sorted({said[place] for place in np.flatnonzero(held)})
    if len(values) > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values; make bands of them")
    numbers = {named(value): number for number, value in enumerate(values, start=1)}
    codes = np.array([numbers.get(text, 0) for text in said], np.uint8)
    return tuple(values), np.where(held, codes, np.uint8(0))


def _texts(record: DatasetRecord, examples: Sequence[Example], text: str) -> list[str | None]:
    """What the data set says of each example.

    Raises:
        DatasetError: it says nothing of that name.
    """
    path, pattern = Path(record.path), pattern_of(text)
    if record.format is DatasetFormat.TABLE:
        return table.texts(path, examples, name_of(text), record.options.header)
    if record.format is DatasetFormat.NPZ:
        return npz.texts(path, examples, name_of(text))
    if pattern is None:
        raise DatasetError("a folder of images has no columns; give a pattern, as in sex=_([FM])_")
    found = [pattern.search(example.id) for example in examples]
    return [match.group(1) if match else None for match in found]
