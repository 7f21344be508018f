"""Which cells of a site's held-out examples may be told, so that none that is too small can be worked out. Pure.

A cell holds the examples with one value of an attribute; the cells of an attribute are the whole, taken apart. One that
holds fewer than ``min_cell`` people is suppressed. Alone, it would still be the whole less its siblings, so there are
always at least two suppressed cells, which together hold ``min_cell`` people or more (secondary suppression, as in
Duncan, Elliot and Salazar-Gonzalez, "Statistical Confidentiality", 2011, chapter 4). For metrics that compare classes,
the same must hold of the people of each class. What is decided follows from counts alone, so it is the same for every
model and round of one data set; ``tellable`` then holds the rounded values against an attacker who knows every count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..utils.fairness import WHOLE, Cell, FairnessTable, Measured, count_range, measured
from ..utils.metrics import MetricKind, MetricSum

_LARGEST = 1e12  # of a metric that is told


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell that may be told, before its metrics are known; it never leaves the site."""

    attribute: int  # -1: the whole
    code: int  # in ``LoadedDataset.groups``; 0 of the whole
    value: str
    people: int
    ranks: bool  # metrics that compare classes may be told too


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute, taken apart."""

    place: int  # among the columns of ``LoadedDataset.groups``
    name: str
    examples: tuple[int, ...]  # of each cell, whether it is told or not, in the order of the codes from 1 on
    cells: tuple[PlannedCell, ...]  # those that may be told


@dataclass(frozen=True, slots=True)
class Scheme:
    """What may be told of one data set; it never leaves the site."""

    split: str
    unit: str
    min_cell: int
    num_examples: int
    whole: PlannedCell | None  # None: too few people; nothing is told
    attributes: tuple[Attribute, ...] = ()

    @property
    def cells(self) -> tuple[PlannedCell, ...]:
        """All that may be told, the whole first."""
        return () if self.whole is None else (self.whole, *(one for a in self.attributes for one in a.cells))

    def to_json(self) -> dict[str, Any]:
        """As JSON values, from the process that reads data sets to the envoy."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scheme:
        """Read what ``to_json`` made; both are this program."""
        whole = document["whole"]
        attributes = (
            Attribute(one["place"], one["name"], tuple(one["examples"]), tuple(PlannedCell(**c) for c in one["cells"]))
            for one in document["attributes"]
        )
        return cls(
            **dict(document)
            | {"whole": None if whole is None else PlannedCell(**whole), "attributes": tuple(attributes)}
        )


class People:
    """Held-out examples, and who and what class they are of.

    Args:
        people: shape (examples,), a number for each person.
        labels: shape (examples,), the class.
        min_cell: people in a cell that is told.
    """

    def __init__(self, people: NDArray[np.int64], labels: NDArray[np.int64], min_cell: int) -> None:
        self._people, self._labels, self._min_cell = people, labels, min_cell
        self._classes = np.unique(labels)

    def count(self, chosen: NDArray[np.bool_]) -> int:
        """People among these examples."""
        return len(np.unique(self._people[chosen]))

    def is_large(self, chosen: NDArray[np.bool_]) -> bool:
        """Enough people?"""
        return self.count(chosen) >= self._min_cell

    def ranks(self, chosen: NDArray[np.bool_]) -> bool:
        """Enough people of each class that there is, and two classes?"""
        counts = [self.count(chosen & (self._labels == one)) for one in self._classes]
        return len(counts) > 1 and min(counts) >= self._min_cell


def plan(
    split: str,
    unit: str,
    people: NDArray[np.int64],
    labels: NDArray[np.int64],
    attributes: Sequence[tuple[str, Sequence[str], NDArray[np.uint8]]],
    min_cell: int,
) -> Scheme:
    """What may be told of some held-out examples.

    Args:
        split: which they are.
        unit: what ``people`` numbers.
        people: shape (examples,).
        labels: shape (examples,).
        attributes: name, the values of the codes from 1 on, and codes of shape (examples,).
        min_cell: people in a cell that is told, at least.

    Guarantees (property-tested): a told cell has ``min_cell`` people; the suppressed cells of an attribute are none or
    at least two, which together have ``min_cell`` people, or all of them; likewise of each class for ranked metrics.
    """
    crowd, everybody = People(people, labels, min_cell), np.ones(len(people), np.bool_)
    if not crowd.is_large(everybody):
        return Scheme(split, unit, min_cell, len(people), None)
    whole = PlannedCell(-1, 0, WHOLE, crowd.count(everybody), crowd.ranks(everybody))
    taken = tuple(
        _attribute(place, name, values, codes, crowd)
        for place, (name, values, codes) in enumerate(attributes)
        if len(values) > 1
    )
    return Scheme(split, unit, min_cell, len(people), whole, taken)


def _attribute(place: int, name: str, values: Sequence[str], codes: NDArray[np.uint8], crowd: People) -> Attribute:
    members = {code: codes == code for code in range(1, len(values) + 1)}
    order = sorted(members, key=lambda code: (crowd.count(members[code]), code))
    small = _closed([code for code in order if not crowd.is_large(members[code])], order, members, crowd, ranked=False)
    mixed = {code for code in order if not crowd.ranks(members[code])}
    unranked = _closed([code for code in order if code in small | mixed], order, members, crowd, ranked=True)
    cells = tuple(
        PlannedCell(place, code, value, crowd.count(members[code]), code not in unranked)
        for code, value in enumerate(values, start=1)
        if code not in small
    )
    return Attribute(place, name, tuple(int(members[code].sum()) for code in sorted(members)), cells)


def _closed(
    suppressed: Collection[int],
    order: Sequence[int],
    members: Mapping[int, NDArray[np.bool_]],
    crowd: People,
    *,
    ranked: bool,
) -> frozenset[int]:
    """These and as many more, the smallest first, as hide them: none, or two or more that are large together."""
    if not suppressed:
        return frozenset()
    held, is_large = list(suppressed), crowd.ranks if ranked else crowd.is_large
    for code in (*(c for c in order if c not in suppressed), None):
        if len(held) > 1 and is_large(np.any([members[c] for c in held], axis=0)):
            return frozenset(held)
        if code is not None:
            held.append(code)
    return frozenset(order)


def table(scheme: Scheme, found: Mapping[tuple[int, int], Sequence[MetricSum]]) -> FairnessTable | None:
    """What is told: rounded metrics of the cells that may be, without those by which a suppressed cell is known.

    Args:
        scheme: what may be told.
        found: the metrics of each cell, by attribute and code.

    Returns:
        None where there is nothing to tell.
    """
    if scheme.whole is None:
        return None
    rounded = {(c.attribute, c.code): _rounded(c, found.get((c.attribute, c.code), ())) for c in scheme.cells}
    kept = tellable(scheme, rounded)
    cells = [_cell(WHOLE, scheme.whole, kept)]
    suppressed = {}
    for attribute in scheme.attributes:
        told = [_cell(attribute.name, one, kept) for one in attribute.cells]
        cells += [one for one in told if one.measured]
        missing = len(attribute.examples) - sum(bool(one.measured) for one in told)
        if missing:
            suppressed[attribute.name] = missing
    if not cells[0].measured:
        return None
    return FairnessTable(scheme.split, scheme.unit, scheme.min_cell, tuple(cells), suppressed)


Rounded = Mapping[tuple[int, int], tuple[Measured, ...]]


def tellable(scheme: Scheme, rounded: Rounded) -> Rounded:
    """The rounded metrics without those by which a suppressed cell's value would be known.

    The attacker knows all counts, the grid, and that a metric is a share of its examples; all linear relations are then
    the sums of attributes, which meet in the whole alone, so that ranges found by passing bounds along them are exact.
    Where a suppressed cell is left but one value, its attribute is not told for that metric.
    """
    kept = {place: list(metrics) for place, metrics in rounded.items()}
    for name in sorted({m.name for metrics in rounded.values() for m in metrics}):
        while (pinned := _pinned(scheme, kept, name)) is not None:
            for place, metrics in kept.items():
                if place[0] == pinned:
                    kept[place] = [m for m in metrics if m.name != name]
    return {place: tuple(metrics) for place, metrics in kept.items()}


def _pinned(scheme: Scheme, kept: Mapping[tuple[int, int], Sequence[Measured]], name: str) -> int | None:
    """An attribute that tells something, with a suppressed cell whose numerator can be but one number."""
    told = {place: m for place, metrics in kept.items() for m in metrics if m.name == name and m.kind == "mean"}
    if any(not 0 <= one.value <= 1 for one in told.values()):
        return None  # no share of examples
    ranges = {
        one.place: [_numerators(told.get((one.place, code)), n) for code, n in enumerate(one.examples, start=1)]
        for one in scheme.attributes
    }
    low, high = _numerators(told.get((-1, 0)), scheme.num_examples)
    low = max([low, *(sum(a for a, _ in one) for one in ranges.values())])
    high = min([high, *(sum(b for _, b in one) for one in ranges.values())])
    for place, one in ranges.items():
        shown = [(place, code) in told for code in range(1, len(one) + 1)]
        if not any(shown):
            continue
        for cell, (a, b) in enumerate(one):
            least = max(a, low - sum(other for i, (_, other) in enumerate(one) if i != cell))
            most = min(b, high - sum(other for i, (other, _) in enumerate(one) if i != cell))
            if not shown[cell] and most <= least:
                return place
    return None


def _numerators(told: Measured | None, examples: int) -> tuple[int, int]:
    """How many of so many examples it can be."""
    if told is None:
        return 0, examples
    low, high = told.bounds
    return max(0, math.ceil(low * examples - 1e-9)), min(examples, math.floor(high * examples + 1e-9))


def _rounded(cell: PlannedCell, found: Sequence[MetricSum]) -> tuple[Measured, ...]:
    least, _ = count_range(cell.people)
    return tuple(
        measured(metric.name, metric.kind.value, metric.value, least)
        for metric in found
        if metric.value is not None and abs(metric.value) < _LARGEST
        if cell.ranks or metric.kind is not MetricKind.AUC
    )


def _cell(name: str, cell: PlannedCell, kept: Rounded) -> Cell:
    return Cell(name, cell.value, *count_range(cell.people), kept[cell.attribute, cell.code])
