"""What a site publishes of how well a model does on its own held-out examples, as a whole and for each subgroup.

Values, the text that the site's identity key signs, and how counts and values are blurred: a count is told as a range,
a value on a grid that is the coarser the fewer people there are. Which cells are told at all is the site's to decide
(``envoy.suppression``); how sites are put beside each other, ``director.fairness_report``'s. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .errors import FederationError, IdentityError, MalformedMessageError
from .messages import EnvoyName, RunId, TaskRef
from .signed_document import MAX_DOCUMENT_BYTES, SignedDocument
from .tensors import Digest, canonical_json

SCHEMA = "fedveil.fairness/1"
LEAST_MIN_CELL, MIN_CELL = 5, 10
"""No federation's floor is below the first; the second is where none is set."""
MAX_MIN_CELL = 100_000
MAX_SUBGROUPS, MAX_VALUES, MAX_MEASURED = 8, 12, 16
WHOLE = ""
"""The attribute of the cell that holds all held-out examples."""
SPLITS, UNITS = ("validation", "test"), ("examples", "patients")
KINDS = ("mean", "auc")
_CONTEXT = b"fedveil-fairness/1\0"
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_FEWEST = 2  # people, whose share of a cell is the least step
_NAME = re.compile(r"[!-~]{1,32}")
_MAX_TEXT = 40
_MAX_COUNT = 1 << 40


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one cell."""

    name: str
    kind: str  # mean or auc
    value: float  # on the grid of ``step``
    step: float  # the true value lies within half of it

    @property
    def bounds(self) -> tuple[float, float]:
        """Where the value was before it was rounded."""
        return self.value - self.step / 2, self.value + self.step / 2


@dataclass(frozen=True, slots=True)
class Cell:
    """Some held-out examples of a site: all of them, or those with one value of an attribute."""

    attribute: str  # WHOLE: all
    value: str
    least: int  # people (or examples) are this many
    most: int  # to this many
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class FairnessTable:
    """What one site tells of one model. What is not told is not named."""

    split: str  # which examples: test, or validation at a site that has no test part
    unit: str  # what is counted: patients where the site knows them
    min_cell: int
    cells: tuple[Cell, ...]
    suppressed: Mapping[str, int] = field(default_factory=dict)  # by attribute: cells that are not told

    def only(self, names: Iterable[str]) -> FairnessTable | None:
        """The same with metrics of these names alone; None where there is nothing left to tell."""
        wanted = frozenset(names)
        cells = [replace(one, measured=tuple(m for m in one.measured if m.name in wanted)) for one in self.cells]
        kept = tuple(one for place, one in enumerate(cells) if one.measured or not place)
        gone = Counter(one.attribute for one in cells[1:] if not one.measured)
        suppressed = {name: gone[name] + self.suppressed.get(name, 0) for name in {**gone, **self.suppressed}}
        return replace(self, cells=kept, suppressed=suppressed) if any(one.measured for one in kept) else None

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "split": self.split,
            "unit": self.unit,
            "min_cell": self.min_cell,
            "cells": [
                {
                    "attribute": one.attribute,
                    "value": one.value,
                    "people": [one.least, one.most],
                    "metrics": [[m.name, m.kind, m.value, m.step] for m in one.measured],
                }
                for one in self.cells
            ],
            "suppressed": dict(self.suppressed),
        }

    @classmethod
    def from_document(cls, document: Any) -> FairnessTable:
        """Read strictly what ``to_document`` wrote.

        Raises:
            MalformedMessageError: it is none; the text repeats no value of it.
        """
        try:
            return _table(document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MalformedMessageError(
                f"a fairness table that cannot be read ({type(error).__name__}); expected the whole, subgroups, ranges"
                " of counts and rounded metrics"
            ) from error


@dataclass(frozen=True, slots=True)
class Statement:
    """A table, of whom and about which task."""

    federation: str
    site: EnvoyName
    ref: TaskRef
    table: FairnessTable

    def to_json(self) -> bytes:
        """Canonical: the same statement always has the same bytes."""
        ref = self.ref
        return canonical_json(
            {
                "schema": SCHEMA,
                "federation": self.federation,
                "site": self.site,
                "run": ref.run,
                "round": ref.round,
                "attempt": ref.attempt,
                "plan": ref.plan,
                "table": self.table.to_document(),
            }
        )


def sign(statement: Statement, key: Callable[[bytes], bytes]) -> SignedDocument:
    """By the site's identity key; the same statement always gives the same document."""
    content = statement.to_json()
    return SignedDocument(content, key(_CONTEXT + content), b"")


def read(content: bytes) -> Statement:
    """What a document says, whoever signed it.

    Raises:
        MalformedMessageError: it is none.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise MalformedMessageError(f"a fairness report of {len(content)} bytes, expected {MAX_DOCUMENT_BYTES} at most")
    try:
        whole = json.loads(content)
        if whole.pop("schema") != SCHEMA:
            raise MalformedMessageError(f"a fairness report of another schema, expected {SCHEMA}")
        ref = TaskRef(RunId(whole.pop("run")), whole.pop("round"), whole.pop("attempt"), Digest(whole.pop("plan")))
        found = Statement(
            whole.pop("federation"), EnvoyName(whole.pop("site")), ref, FairnessTable.from_document(whole.pop("table"))
        )
    except FederationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedMessageError(f"a fairness report that cannot be read ({type(error).__name__})") from error
    if whole or found.to_json() != content:
        raise MalformedMessageError("a fairness report that is not written as fedveil writes it")
    return found


def check(
    document: SignedDocument, site: EnvoyName, ref: TaskRef, federation: str, key: bytes, floor: int
) -> Statement:
    """A document that may be kept: signed by this site, about this task, with no cell below the floor.

    Args:
        document: as it came.
        site: who sends it, by its certificate.
        ref: the task that it came with.
        federation: its name.
        key: the site's identity key, Ed25519, 32 bytes.
        floor: the federation's; people in a cell that is told.

    Raises:
        IdentityError: another key signed it, or it was changed.
        MalformedMessageError: it is none, another's, or about something else.
    """
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(document.signature, _CONTEXT + document.content)
    except (InvalidSignature, ValueError) as error:
        raise IdentityError(f"the fairness report of {site} is not signed by its identity key") from error
    said = read(document.content)
    if (said.federation, said.site, said.ref) != (federation, site, ref):
        raise MalformedMessageError(f"the fairness report that {site} sends with {ref} is about something else")
    if said.table.min_cell < floor or any(one.most < floor for one in said.table.cells):
        raise MalformedMessageError(f"the fairness report of {site} tells of cells of fewer than {floor}")
    return said


def count_range(count: int) -> tuple[int, int]:
    """The range that a count is told as: between the numbers 1, 2 and 5, times powers of ten.

    >>> [count_range(n) for n in (7, 10, 49, 50, 1999)]
    [(5, 9), (10, 19), (20, 49), (50, 99), (1000, 1999)]
    """
    if count < 1:
        raise ValueError("a range of nobody")
    power = 10 ** (len(str(count)) - 1)
    least, most = next((a, b) for a, b in ((5, 10), (2, 5), (1, 2)) if count >= a * power)
    return least * power, most * power - 1


def step_of(least: int) -> float:
    """The grid for the metrics of so many people at least: as wide as the share of two of them, or wider.

    >>> [step_of(n) for n in (5, 10, 20, 50, 100, 200, 5000)]
    [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01]
    """
    return next((step for step in _STEPS if step * least >= _FEWEST), _STEPS[-1])


def measured(name: str, kind: str, value: float, least: int) -> Measured:
    """A value on its grid; beyond 1 the grid grows with the value, so that it has no more digits.

    >>> measured("accuracy", "mean", 0.8437, 20)
    Measured(name='accuracy', kind='mean', value=0.8, step=0.1)
    """
    step = step_of(least) * 10 ** max(0, math.ceil(math.log10(abs(value)))) if abs(value) > 1 else step_of(least)
    return Measured(name, kind, round(round(value / step) * step, 6), step)


def is_better_lower(metric: str) -> bool:
    """Is less of it better? By its name alone: a loss or an error."""
    return any(word in metric.casefold() for word in ("loss", "error", "mse", "mae", "brier"))


def named(text: str) -> str:
    """An attribute or a value as it may be told.

    Raises:
        ValueError: too long, or not one printable line.
    """
    if not 1 <= len(text) <= _MAX_TEXT or not text.isprintable():
        raise ValueError(f"expected 1 to {_MAX_TEXT} printable characters")
    return text


def _table(document: dict[str, Any]) -> FairnessTable:
    known = {"split", "unit", "min_cell", "cells", "suppressed"}
    cells = tuple(map(_cell, document["cells"]))
    suppressed = {named(name): _whole(number, 1, MAX_VALUES + 1) for name, number in document["suppressed"].items()}
    places = [(one.attribute, one.value) for one in cells]
    if set(document) != known or document["split"] not in SPLITS or document["unit"] not in UNITS:
        raise ValueError("another form")
    if len(set(places)) < len(places) or len(suppressed) > MAX_SUBGROUPS:
        raise ValueError("a cell comes twice")
    if not places or places[0] != (WHOLE, WHOLE) or WHOLE in {attribute for attribute, _ in places[1:]}:
        raise ValueError("the whole comes first")
    if len({attribute for attribute, _ in places}) > MAX_SUBGROUPS + 1:
        raise ValueError("too many attributes")
    if any(sum(a == attribute for a, _ in places) > MAX_VALUES + 1 for attribute, _ in places):
        raise ValueError("too many values of one attribute")
    min_cell = _whole(document["min_cell"], LEAST_MIN_CELL, MAX_MIN_CELL)
    return FairnessTable(document["split"], document["unit"], min_cell, cells, suppressed)


def _cell(document: dict[str, Any]) -> Cell:
    if set(document) != {"attribute", "value", "people", "metrics"}:
        raise ValueError("another form")
    least, most = document["people"]
    if (least, most) != count_range(_whole(least, 1, _MAX_COUNT)):
        raise ValueError("not one of the ranges")
    attribute, value = document["attribute"], document["value"]
    if (attribute, value) != (WHOLE, WHOLE):
        named(attribute)
        named(value)
    found = tuple(_measured(row, least) for row in document["metrics"])
    if len({one.name for one in found}) < len(found) or len(found) > MAX_MEASURED:
        raise ValueError("a metric comes twice")
    return Cell(attribute, value, least, most, found)


def _measured(row: Iterable[Any], least: int) -> Measured:
    name, kind, value, step = row
    if not _NAME.fullmatch(name) or kind not in KINDS or type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("no metric")
    found = Measured(name, kind, float(value), float(step))
    if found.step < step_of(least) or not math.isfinite(found.step):
        raise ValueError("a value of more digits than so many people allow")
    return found


def _whole(number: Any, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError("not a whole number in its range")
    return number
