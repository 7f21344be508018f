"""Tables: CSV, TSV and Parquet, through pyarrow. A row is an example, a numeric column a feature.

A row with a missing value, or one that is no number, in a feature column is put in quarantine; nothing is filled in.
For training only the columns that the plan declares are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.errors import DatasetError
from ..utils.tensors import digest_of
from .records import DataOptions, Example, Found, Quarantined, Scan
from .sources import file_digest
from .splits import split_named

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".data", ".parquet"})
_MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None")


def scan(path: Path, options: DataOptions) -> Scan:
    """Look at every row once.

    Raises:
        DatasetError: no readable table, no label column, or a column that is not there (the message lists the others).
    """
    if options.label_column is None:
        raise DatasetError(f"{path} is a table: say which column is the label")
    source_digest = file_digest(path)
    named = [column for column in (options.label_column, options.patient, options.split_column) if column]
    table, torn = _read(path, options.header, texts=named)
    _require(table, [*named, *options.columns])
    columns, warnings = _feature_columns(table, options, named)
    matrix = np.column_stack([_numbers(table, name) for name in columns])
    labels = _texts(table, options.label_column)
    patients = _texts(table, options.patient) if options.patient else None
    splits = _texts(table, options.split_column) if options.split_column else None
    found: list[Found] = []
    quarantined = torn
    for row, unusable in enumerate(_unusable(table, columns, matrix)):
        label, patient = labels[row], patients[row] if patients else None
        split = split_named(splits[row] or "") if splits else None
        if label is None:
            quarantined.append(Quarantined(_id(row), f"{options.label_column}: missing"))
        elif patients and patient is None:
            quarantined.append(Quarantined(_id(row), f"{options.patient}: missing"))
        elif splits and split is None:
            quarantined.append(Quarantined(_id(row), f"{options.split_column}: neither train, val nor test"))
        elif unusable:
            quarantined.append(Quarantined(_id(row), unusable))
        else:
            raw = matrix[row].data.cast("B")
            found.append(Found(_id(row), label, len(raw), digest_of(raw), patient, split))
    return Scan(tuple(found), tuple(quarantined), warnings, tuple(columns), source_digest=source_digest)


def load(
    path: Path, examples: Sequence[Example], columns: Sequence[str], header: tuple[str, ...]
) -> tuple[NDArray[np.float32], int]:
    """The examples' values in those columns, in that order, and how many examples are not as they were recorded.

    Raises:
        DatasetError: no readable table, or a column that is not there.
    """
    table, _ = _read(path, header, only=columns)
    _require(table, columns)
    matrix = _single(np.column_stack([_numbers(table, name) for name in columns]))
    rows = np.array([int(example.id.removeprefix("row ")) - 1 for example in examples], np.int64)
    is_there = rows < len(matrix)
    features = matrix[np.where(is_there, rows, 0)] if len(matrix) else np.zeros((len(rows), len(columns)), np.float32)
    return features, int(np.count_nonzero(~(is_there & np.isfinite(features).all(axis=1))))


def texts(path: Path, examples: Sequence[Example], name: str, header: tuple[str, ...]) -> list[str | None]:
    """A column's value for each example, as text; None where it is missing.

    Raises:
        DatasetError: no readable table, or no such column.
    """
    table, _ = _read(path, header, texts=[name], only=[name])
    _require(table, [name])
    values = _texts(table, name)
    rows = [int(example.id.removeprefix("row ")) - 1 for example in examples]
    return [values[row] if row < len(values) else None for row in rows]


def _id(row: int) -> str:
    return f"row {row + 1}"


def _read(
    path: Path, header: tuple[str, ...], texts: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[Any, list[Quarantined]]:
    """The table, or only some of its columns, and the rows with too few or too many values."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    torn: list[Quarantined] = []

    def set_aside(row: Any) -> str:
        reason = f"{row.actual_columns} values, expected {row.expected_columns}"
        torn.append(Quarantined(f"torn row {len(torn) + 1}", reason))
        return "skip"

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path, columns=list(only) or None, partitioning=None), torn
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=list(header) or None, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=_delimiter(path), invalid_row_handler=set_aside),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.string() for name in texts},
                include_columns=list(only) or None,
                null_values=list(_MISSING),
                strings_can_be_null=True,
            ),
        )
        table.column_names  # noqa: B018 - decodes the names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a table that can be read with the columns asked for") from error
    return table, torn


def _delimiter(path: Path) -> str:
    """A tab by the file's name, else a comma or semicolon by its first line."""
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    with path.open("rb") as file:
        first = file.readline(2**16)
    return ";" if first.count(b";") > first.count(b",") else ","


def _require(table: Any, columns: Sequence[str]) -> None:
    names = table.column_names
    if len(set(names)) != len(names):
        raise DatasetError("two columns of the table have one name")
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise DatasetError(f"the table has no column {', '.join(lacking)}; it has {', '.join(names)}")


def _feature_columns(table: Any, options: DataOptions, named: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The columns that the site chose, else every numeric one; and what to tell about the others."""
    both = [name for name in options.columns if name in named]
    if both:
        raise DatasetError(f"{', '.join(both)}: a feature cannot be the label, the patient or the split as well")
    if options.columns:
        return list(options.columns), ()
    from pyarrow import types

    is_number = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    others = [name for name in table.column_names if name not in named]
    columns = [name for name in others if any(is_one(table.schema.field(name).type) for is_one in is_number)]
    if not columns:
        raise DatasetError(f"the table has no numeric column besides {', '.join(named)}")
    left_out = [name for name in others if name not in columns]
    return columns, ((f"not numeric, left out: {', '.join(left_out)}",) if left_out else ())


def _numbers(table: Any, name: str) -> NDArray[np.float64]:
    """A column as float64; NaN where there is no number."""
    values = table.column(name).to_pylist()
    return np.array([_number(value) for value in values], np.float64)


def _number(value: object) -> float:
    if value is None:
        return float("nan")
    try:
        return float(str(value)) if not isinstance(value, bool) else float(value)
    except ValueError:
        return float("nan")


def _texts(table: Any, name: str) -> list[str | None]:
    """A column of labels, patients or splits as text; whole numbers without a decimal point."""
    texts: list[str | None] = []
    for value in table.column(name).to_pylist():
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        texts.append(None if value is None or text in _MISSING else text)
    return texts


def _unusable(table: Any, columns: Sequence[str], matrix: NDArray[np.float64]) -> list[str | None]:
    """For each row the first feature that is no number, and how; None where all are."""
    is_bad = ~np.isfinite(_single(matrix))
    first = is_bad.argmax(axis=1)
    is_null = {name: table.column(name).is_null().to_numpy() for name in columns}
    reasons: list[str | None] = [None] * len(matrix)
    for row in np.flatnonzero(is_bad.any(axis=1)):
        name = columns[first[row]]
        reasons[row] = f"{name}: {'missing' if is_null[name][row] else 'not a finite number'}"
    return reasons


def _single(matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """As float32; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return matrix.astype(np.float32)
