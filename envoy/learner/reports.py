"""What was spent: of the federation by the director's report, of this site by its own ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ...utils.errors import ConfigError, MalformedMessageError, UnknownEntityError
from ...utils.privacy.accounting import stopping
from ...utils.privacy.values import Unit, rounded_up
from ...utils.rest_calls import RestCalls
from ..privacy_books import Book, Books
from ..privacy_ledger import LEDGER_FILE, PrivacyLedger
from ..privacy_report import terms_of

REPORT_PATH, BUDGET_PATH = "/api/v1/federated/privacy-report", "/api/v1/federated/budget"


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """The federation's, as the director drew it up; ``document`` is all of it."""

    total_epsilon: float | None  # None: something left without a guarantee, or nothing private was trained
    participants: int
    document: Mapping[str, Any] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        """Every other field by its name."""
        if name.startswith("_") or name not in self.document:
            raise AttributeError(f"the privacy report has no {name}; it has {', '.join(sorted(self.document))}")
        return self.document[name]


class CurrentEpsilon(float):
    """An epsilon with its terms; infinite where something left that no epsilon covers."""

    __slots__ = ("covered", "dataset", "delta", "is_own", "uncovered", "unit")
    covered: float  # of what is covered
    dataset: str | None
    delta: float | None
    is_own: bool  # by this site's ledger; else by what the director was told
    uncovered: int  # tasks that released something without a guarantee
    unit: str | None

    @classmethod
    def of(
        cls,
        value: float,
        *,
        covered: float,
        uncovered: int = 0,
        delta: float | None = None,
        unit: str | None = None,
        dataset: str | None = None,
        is_own: bool = True,
    ) -> Self:
        """With all that belongs to it."""
        made = cls(value)
        made.covered, made.uncovered, made.delta, made.unit = covered, uncovered, delta, unit
        made.dataset, made.is_own = dataset, is_own
        return made

    def __str__(self) -> str:
        if self.delta is None:
            return (
                "no epsilon: nothing was released yet"
                if not self.uncovered
                else f"no epsilon covers {self.uncovered} tasks"
            )
        covered = f"epsilon {rounded_up(self.covered)} at delta {self.delta:g} per {self.unit}"
        return covered if not self.uncovered else f"{covered}, and {self.uncovered} tasks that no epsilon covers"


def privacy_report(calls: RestCalls, number: int | None) -> PrivacyReport:
    """The federation's report, of one round or of all.

    Raises:
        ConfigError: no number of a round.
        MalformedMessageError: the director's answer is no report.
        FederationError: what the director refuses.
    """
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigError(f"round {number!r}: expected a whole number from 1 on")
    document = calls.json("GET", REPORT_PATH, params={} if number is None else {"round": number})
    if not isinstance(document, dict):
        raise MalformedMessageError("the director's answer is no privacy report")
    total, participants = document.get("total_epsilon"), document.get("participants")
    if type(participants) is not int or not (total is None or isinstance(total, int | float)):
        raise MalformedMessageError("the director's answer is no privacy report: total_epsilon and participants")
    return PrivacyReport(None if total is None else float(total), participants, document)


def current_epsilon(folder: Path, calls: RestCalls, name: str, dataset: str | None) -> CurrentEpsilon:
    """What this site has spent of a data set, by the rule that stops (Renyi); of the worst one, where none is named.

    Where its ledger holds nothing, what the director says that it was told.

    Raises:
        StorageError: the ledger was altered.
        FederationError: what the director refuses.
    """
    books = _books(folder)
    chosen = [book for name, book in books.books.items() if dataset in {None, name}]
    found = [_of_book(book) for book in chosen if book.spendings]
    if found:
        return max(found)
    try:
        return _published(calls.json("GET", BUDGET_PATH), name, dataset)
    except UnknownEntityError:  # no task yet that this organization may see
        return CurrentEpsilon.of(0.0, covered=0.0, dataset=dataset, is_own=False)


def _published(document: Any, name: str, dataset: str | None) -> CurrentEpsilon:
    """What this site published last, as the director says it."""
    try:
        mine = next((one for one in document["envoys"] if one["envoy"] == name), None)
        if mine is None:
            return CurrentEpsilon.of(0.0, covered=0.0, dataset=dataset, is_own=False)
        value, delta, unit = float(mine["epsilon"]), float(mine["delta"]), str(mine["unit"])
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedMessageError("the director's answer is no budget") from error
    return CurrentEpsilon.of(value, covered=value, delta=delta, unit=unit, dataset=dataset, is_own=False)


def _books(folder: Path) -> Books:
    path = folder / LEDGER_FILE
    if not path.exists():
        return Books()
    ledger = PrivacyLedger(path)
    try:
        return ledger.books()
    finally:
        ledger.close()


def _of_book(book: Book) -> CurrentEpsilon:
    terms = terms_of(book)
    delta, unit = terms if terms is not None else (None, None)
    uncovered = book.uncovered(unit or Unit.SITE)
    covered = 0.0
    if delta is not None and unit is not None:
        held = book.stopping() if book.budget is not None else stopping(book.history(unit), delta, unit)
        covered = 0.0 if held is None else held.value
    value = math.inf if uncovered else covered
    word = None if unit is None else unit.value
    return CurrentEpsilon.of(value, covered=covered, uncovered=uncovered, delta=delta, unit=word, dataset=book.dataset)
