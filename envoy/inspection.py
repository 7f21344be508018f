"""A first look at a dataset, and later ones: every example is read once, and what cannot be used is set aside.

Classes and splits are fixed here. Only the site sees what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import DatasetError
from . import image_folder, npz, table
from .records import (
    DataOptions,
    DatasetFormat,
    DatasetIndex,
    DatasetRecord,
    Example,
    Found,
    Quarantined,
    Report,
    Scan,
)
from .splits import Split, assign


@dataclass(frozen=True, slots=True)
class Inspection:
    """What looking at a dataset gives: ``registry.add(record, index)`` keeps it, the report is shown."""

    record: DatasetRecord
    index: DatasetIndex
    report: Report


def inspect(name: str, path: Path, options: DataOptions, now: float) -> Inspection:
    """Look at every example of a dataset once, and fix its classes and splits.

    What cannot be read, or has a label outside the classes, is put in quarantine and the rest goes on.

    Raises:
        DatasetError: the path is no dataset, the options do not fit it, or no example is left.
    """
    path = path.resolve()
    format_ = _format_of(path)
    scan = _scan(path, format_, options)
    classes, values = _classes(scan.found, options, format_)
    placed = [(example, values[_fold(example)]) for example in scan.found if _fold(example) in values]
    outside = (Quarantined(one.id, "label outside the classes") for one in scan.found if _fold(one) not in values)
    quarantined = (*scan.quarantined, *outside)
    if not placed:
        reasons = f": {len(quarantined)} in quarantine, the first for: {quarantined[0].reason}" if quarantined else ""
        raise DatasetError(f"dataset {name} is empty, no image or row under {path} can be used{reasons}")
    splits = assign(name, [(example.patient or example.digest, example.split) for example, _ in placed], options.rule)
    numbers: dict[str | None, int] = {}
    index = DatasetIndex(
        tuple(
            Example(example.id, label, split, example.size, example.digest, _number(example.patient, numbers))
            for (example, label), split in zip(placed, splits, strict=True)
        ),
        quarantined,
    )
    record = DatasetRecord(
        name=name,
        path=str(path),
        format=format_,
        classes=classes,
        num_train=splits.count(Split.TRAIN),
        num_validation=splits.count(Split.VALIDATION),
        num_test=splits.count(Split.TEST),
        num_quarantined=len(quarantined),
        digest=index.digest,
        added_at=now,
        options=options,
        columns=scan.columns,
        has_deep_pixels=scan.has_deep_pixels,
        source_digest=scan.source_digest,
    )
    patients = {example.id: example.patient for example, _ in placed if example.patient is not None}
    warnings = (*scan.warnings, *_warnings(index, patients))
    return Inspection(record, index, Report(name, len(placed), quarantined, warnings))


def check(record: DatasetRecord, index: DatasetIndex) -> Report:
    """Compare a dataset with its record: what is missing, changed or new. Images are read, not decoded.

    Raises:
        DatasetError: the folder or file is gone, or no dataset any more.
    """
    path = Path(record.path)
    scan = _scan(path, record.format, record.options, decodes=False)
    values = _values(record.options, record.format, record.classes)
    now = {example.id: (example.digest, values.get(_fold(example))) for example in scan.found}
    aside = {one.id for one in scan.quarantined}
    known = {example.id for example in index.examples} | {one.id for one in index.quarantined}
    changed = (
        example.id
        for example in index.examples
        if example.id in aside
        or now.get(example.id, (example.digest, example.label)) != (example.digest, example.label)
    )
    return Report(
        record.name,
        len(index.examples),
        index.quarantined,
        missing=tuple(e.id for e in index.examples if e.id not in now and e.id not in aside),
        changed=tuple(changed),
        new=tuple(id_ for id_ in now if id_ not in known),
    )


def _format_of(path: Path) -> DatasetFormat:
    if path.is_dir():
        return DatasetFormat.IMAGE_FOLDER
    if not path.is_file():
        raise DatasetError(f"{path} is not there")
    suffix = path.suffix.lower()
    if suffix in table.TABLE_SUFFIXES:
        return DatasetFormat.TABLE
    formats = {".zip": DatasetFormat.ZIP, ".npz": DatasetFormat.NPZ}
    if suffix not in formats:
        known = ", ".join(sorted({*formats, *table.TABLE_SUFFIXES}))
        raise DatasetError(f"{path} is no dataset that is known here: expected a folder of images, or a file {known}")
    return formats[suffix]


def _scan(path: Path, format_: DatasetFormat, options: DataOptions, *, decodes: bool = True) -> Scan:
    if format_ is DatasetFormat.TABLE:
        return table.scan(path, options)
    if format_ is DatasetFormat.NPZ:
        return npz.scan(path, options)
    return image_folder.scan(path, options, decodes=decodes)


def _number(patient: str | None, numbers: dict[str | None, int]) -> int | None:
    """The patient's number in the order in which they are met: the index needs no name to tell patients apart."""
    return None if patient is None else numbers.setdefault(patient, len(numbers))


def _fold(example: Found) -> str:
    """The label as it is compared: NORMAL is normal."""
    return example.label.casefold()


def _classes(
    found: Iterable[Found], options: DataOptions, format_: DatasetFormat
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """The classes in order, and which one each label stands for: as the site said, else every label that was found."""
    names = options.class_names()
    if not names:
        labels = {example.label.casefold(): example.label for example in sorted(found, key=lambda one: one.label)}
        is_whole = all(label.isdecimal() for label in labels)
        names = tuple(sorted(labels.values(), key=int if is_whole else str.casefold))
    return names, _values(options, format_, names)


def _values(options: DataOptions, format_: DatasetFormat, names: Sequence[str]) -> Mapping[str, int]:
    """Which class each label stands for; in an npz the numbers 0, 1, ... do where the site says nothing else."""
    if not options.classes:
        return {name.casefold(): label for label, name in enumerate(names)}
    values: dict[str, int] = {}
    for label, (text, (_, stated)) in enumerate(zip(options.classes, options.class_values(), strict=True)):
        by_number = format_ is DatasetFormat.NPZ and "=" not in text
        values |= {value.casefold(): label for value in ((str(label),) if by_number else stated)}
    return values


def _warnings(index: DatasetIndex, patients: Mapping[str, str]) -> Iterable[str]:
    """What a site should know before it trains on this."""
    copies = _gathered((example.digest, example) for example in index.examples)
    num_copies = sum(len(same) - 1 for same in copies)
    num_across = sum(len({example.split for example in same}) > 1 for same in copies)
    num_torn = sum(len({example.label for example in same}) > 1 for same in copies)
    persons = _gathered((patients[e.id], e) for e in index.examples if e.id in patients)
    num_persons = sum(len({example.split for example in same}) > 1 for same in persons)
    if num_copies:
        yield f"{num_copies} examples are copies of others"
    if num_across:
        yield f"{num_across} contents are in more than one split: what is tested was trained on"
    if num_torn:
        yield f"{num_torn} contents are in more than one class"
    if num_persons:
        yield f"{num_persons} patients are in more than one of the given splits"
    for split in Split:
        if not any(example.split is split for example in index.examples):
            yield f"no {split.word} examples"
    if len({example.label for example in index.examples}) == 1:
        yield "all examples are of one class"


def _gathered(pairs: Iterable[tuple[str, Example]]) -> list[list[Example]]:
    """The examples of each key."""
    groups: dict[str, list[Example]] = {}
    for key, example in pairs:
        groups.setdefault(key, []).append(example)
    return list(groups.values())
