"""What data a plan declares, and a site offers: both must read the same words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .errors import PlanError

MAX_COLUMNS = 10_000
MAX_FEATURES = 1 << 26  # numbers of one example
_MAX_NAME = 200
_MAX_MODALITY = 16
_FIELDS = frozenset({"name", "kind", "shape", "classes", "columns"})


class DataKind(Enum):
    """What one example is."""

    IMAGES = "images"  # shape (channels, height, width), features in [0, 1] when a plan sees them
    TABLE = "table"  # shape (columns,)
    NONE = "none"  # the plan reads no data (toy plans, the benchmark)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """The dataset a plan asks for: its name at the sites, what one example is, and its classes.

    Raises:
        PlanError: a shape that does not fit the kind, a class or column named twice or not at all, or a modality that
            is none.
    """

    name: str
    kind: DataKind
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of a table, in this order: the plan sees these and no others
    modality: str = ""  # DICOM's word for how images were made (CR, DX, MG, CT); empty: the plan asks for none

    def __post_init__(self) -> None:
        extents = {DataKind.IMAGES: 3, DataKind.TABLE: 1, DataKind.NONE: 0}[self.kind]
        if len(self.shape) != extents or any(extent < 1 for extent in self.shape):
            raise PlanError(f"data {self.name}: shape {self.shape} does not fit {self.kind.value}")
        if math.prod(self.shape) > MAX_FEATURES:
            raise PlanError(
                f"data {self.name}: shape {self.shape} is larger than the {MAX_FEATURES} numbers of an example"
            )
        if len(set(self.classes)) != len(self.classes):
            raise PlanError(f"data {self.name}: a class is named twice: {', '.join(self.classes)}")
        if len(set(self.columns)) != len(self.columns) or len(self.columns) > MAX_COLUMNS:
            raise PlanError(f"data {self.name}: a column is named twice, or there are more than {MAX_COLUMNS}")
        if not all(1 <= len(word) <= _MAX_NAME for word in (*self.classes, *self.columns)):
            raise PlanError(f"data {self.name}: a class or column has no name, or one of more than {_MAX_NAME} letters")
        if not is_modality(self.modality) or (self.modality and self.kind is not DataKind.IMAGES):
            raise PlanError(f"data {self.name}: modality {self.modality!r}, expected a word like DX, for images alone")
        if self.columns and self.shape != (len(self.columns),):
            raise PlanError(f"data {self.name}: {len(self.columns)} columns named, shape {self.shape}")

    def to_document(self) -> dict[str, Any]:
        """JSON values, as a manifest holds them; without a modality it has the bytes that it always had."""
        document: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind.value,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "columns": list(self.columns),
        }
        return document | ({"modality": self.modality} if self.modality else {})

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> DataSpec:
        """Read what ``to_document`` made, and nothing else.

        Raises:
            PlanError: another key, or a value of another type.
        """
        if set(document) - {"modality"} != _FIELDS or document.get("modality") == "":
            raise PlanError(f"data has fields {sorted(document)}, expected {sorted(_FIELDS)}")
        if not all(isinstance(document[name], list) for name in ("shape", "classes", "columns")):
            raise PlanError("data: shape, classes and columns are lists")
        texts = [document["name"], *document["classes"], *document["columns"], document.get("modality", "")]
        if not all(isinstance(text, str) for text in texts) or not all(type(one) is int for one in document["shape"]):
            raise PlanError("data: names are text, and a shape is whole numbers")
        return cls(
            name=document["name"],
            kind=DataKind(document["kind"]),
            shape=tuple(document["shape"]),
            classes=tuple(document["classes"]),
            columns=tuple(document["columns"]),
            modality=document.get("modality", ""),
        )


def is_modality(word: str) -> bool:
    """Empty, or a word of capital letters and digits.

    >>> is_modality("DX"), is_modality("x-ray")
    (True, False)
    """
    return not word or (len(word) <= _MAX_MODALITY and word.isascii() and word.isalnum() and word == word.upper())
