"""What data a plan declares, and a site offers: both must read the same words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import PlanError


class DataKind(Enum):
    """What one example is."""

    IMAGES = "images"  # shape (channels, height, width), features in [0, 1] when a plan sees them
    TABLE = "table"  # shape (columns,)
    NONE = "none"  # the plan reads no data (toy plans, the benchmark)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """The dataset a plan asks for: its name at the sites, what one example is, and its classes.

    Raises:
        PlanError: a shape that does not fit the kind, or a class named twice.
    """

    name: str
    kind: DataKind
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()  # of a table, in this order

    def __post_init__(self) -> None:
        extents = {DataKind.IMAGES: 3, DataKind.TABLE: 1, DataKind.NONE: 0}[self.kind]
        if len(self.shape) != extents or any(extent < 1 for extent in self.shape):
            raise PlanError(f"data {self.name}: shape {self.shape} does not fit {self.kind.value}")
        if len(set(self.classes)) != len(self.classes):
            raise PlanError(f"data {self.name}: a class is named twice: {', '.join(self.classes)}")
        if self.columns and self.shape != (len(self.columns),):
            raise PlanError(f"data {self.name}: {len(self.columns)} columns named, shape {self.shape}")
