"""What the rows of a site's privacy ledger add up to: for each data set a budget, and what was spent of it.

Pure: rows in, books out. ``privacy_ledger`` keeps the rows, and decides nothing that is not decided here.

Neither a training that failed nor one that was killed is ever taken back: nobody can know what of it left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from ..utils.errors import BudgetExhaustedError, ConfigError, PrivacyError
from ..utils.messages import RunId, TaskKind, TaskRef
from ..utils.privacy import renyi
from ..utils.privacy.accounting import published, reported, stopping
from ..utils.privacy.events import Mechanism, Release
from ..utils.privacy.values import Epsilon, Unit, rounded_up
from ..utils.tensors import Digest


class WithoutGuarantee(Enum):
    """What becomes of a task that would release something of the data with no epsilon: metrics, an update as it is."""

    REFUSE = "refuse"
    ALLOW = "allow"  # counted; the books then say that no epsilon covers the data set as a whole


@dataclass(frozen=True, slots=True)
class Budget:
    """What a site's data manager lets out of one data set, over all studies, directors and kinds of task.

    Raises:
        ConfigError: numbers that are no budget.
    """

    epsilon: float
    delta: float
    unit: Unit
    without_guarantee: WithoutGuarantee = WithoutGuarantee.REFUSE

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"the budget's epsilon is {self.epsilon:g}, expected above 0")
        if not 0 < self.delta < 1:
            raise ConfigError(f"the budget's delta is {self.delta:g}, expected in (0, 1), and far below 1 / patients")

    def __str__(self) -> str:
        return f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g} per {self.unit.value}"


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """What a data manager lets the runs of one proposal spend of a data set, within its budget."""

    epsilon: float
    runs: frozenset[RunId]  # of that proposal, the one that asks among them


@dataclass(frozen=True, slots=True)
class Spending:
    """What one start of a task released, or may have released, of one data set."""

    row: int
    at: float  # seconds since 1970
    ref: TaskRef
    kind: TaskKind
    releases: tuple[Release, ...]
    is_bare: bool  # something left beside them that no epsilon covers
    delta: float | None = None  # that the plan asked for; of a budget it is the budget's
    order: int | None = None  # by which the budget is kept from here on
    participants: int = 0  # sites that the task asked
    is_settled: bool = False  # the work was done; else it runs, or was killed


@dataclass(frozen=True, slots=True)
class Book:
    """One data set's."""

    dataset: str
    budget: Budget | None = None
    spendings: tuple[Spending, ...] = ()
    refused: int = 0

    @property
    def order(self) -> int | None:
        """The one order by which the budget is kept: fixed by the first task that came under it."""
        return next((one.order for one in self.spendings if one.order is not None), None)

    def history(self, unit: Unit, *, run: RunId | None = None, until: int | None = None) -> tuple[Mechanism, ...]:
        """What was released, as mechanisms that protect ``unit``; what says nothing of it is ``uncovered``."""
        return tuple(
            release.protecting(unit)
            for one in self._chosen(run, until)
            for release in one.releases
            if _says_something_of(unit, release)
        )

    def uncovered(self, unit: Unit, *, run: RunId | None = None, until: int | None = None) -> int:
        """Tasks that released something to which no epsilon of ``unit`` applies."""
        return sum(
            one.is_bare or not all(_says_something_of(unit, release) for release in one.releases)
            for one in self._chosen(run, until)
        )

    def spent(self, run: RunId | None = None) -> Epsilon | None:
        """By privacy loss distributions, of all or of one study; None without a budget.

        Raises:
            ConfigError: the extra ``dp`` is not installed.
        """
        budget = self.budget
        return None if budget is None else reported(self.history(budget.unit, run=run), budget.delta, budget.unit)

    def stopping(self) -> Epsilon | None:
        """By the rule that stops; None without a budget."""
        budget = self.budget
        if budget is None:
            return None
        found = stopping(history := self.history(budget.unit), budget.delta, budget.unit)
        if history and self.order is not None:
            place = renyi.ORDERS.index(self.order)
            found = replace(found, value=float(renyi.epsilons(renyi.curve(history), budget.delta)[place]))
        return found

    def admit(self, ref: TaskRef, releases: tuple[Release, ...], *, is_bare: bool) -> int | None:
        """May this be released? Asked before the data is touched.

        Returns:
            The order by which the budget is kept, None without one.

        Raises:
            BudgetExhaustedError: it would go beyond the budget.
            PrivacyError: it has no guarantee, or one of another unit.
        """
        budget = self.budget
        if budget is None:
            return None
        if is_bare and budget.without_guarantee is WithoutGuarantee.REFUSE:
            raise PrivacyError(
                f"{ref} would release something without a guarantee per {budget.unit.value}; this site's data has a"
                " privacy budget: train with differential privacy, or with clip and noise on the update"
            )
        if not releases:
            return self.order
        history, next_, place = self._weighed(budget, releases)
        after = float(renyi.epsilons(history + next_, budget.delta)[place])
        if after > budget.epsilon:
            before = float(renyi.epsilons(history, budget.delta)[place])
            public = published(self.history(budget.unit), budget.delta, budget.unit)
            raise BudgetExhaustedError(
                f"{ref}: the privacy budget of this site's data is exhausted; spent: {public}",
                f"data set {self.dataset}: budget {budget}; spent {rounded_up(before)}, left"
                f" {rounded_up(max(0.0, budget.epsilon - before))}; {ref} would take it to {rounded_up(after)}"
                f" (Renyi divergence, over {len(self.spendings)} tasks, those that crashed among them). It does not"
                " renew by itself: `envoy privacy plan` says what fits, `envoy privacy budget` sets another",
            )
        return renyi.ORDERS[place]

    def check_limit(
        self,
        ref: TaskRef,
        limit: SpendingLimit,
        releases: tuple[Release, ...],
        *,
        is_bare: bool,
        delta: float | None = None,
    ) -> None:
        """Does a task keep within what its proposal may spend? Counted by Renyi divergence, at the best order.

        The unit and delta are the budget's, and the plan's where the data set has none.

        Raises:
            BudgetExhaustedError: it does not.
            PrivacyError: nothing bounds what it would release.
        """
        unit, at = (releases[0].unit, delta) if releases else (None, None)
        if self.budget is not None:
            unit, at = self.budget.unit, self.budget.delta
        if is_bare or unit is None or at is None or not releases:
            raise PrivacyError(
                f"{ref} was approved up to an epsilon, which covers no metrics and nothing without noise; with a budget"
                " of the data set metrics stay here: `envoy privacy budget`"
            )
        before = [one for one in self.spendings if one.ref.run in limit.runs]
        mine = [release for one in before for release in one.releases if _says_something_of(unit, release)]
        if any(one.is_bare for one in before) or len(mine) < sum(len(one.releases) for one in before):
            raise PrivacyError(f"{ref}: its proposal's runs released something that no epsilon covers")
        after = stopping([release.protecting(unit) for release in (*mine, *releases)], at, unit).value
        if after > limit.epsilon:
            raise BudgetExhaustedError(
                f"{ref}: what this site approved of epsilon for this proposal is spent",
                f"data set {self.dataset}: {ref} would take its proposal to {rounded_up(after)} at delta {at:g};"
                f" approved were {rounded_up(limit.epsilon)}. `envoy plan approve --epsilon` approves another limit",
            )

    def rounds_left(self, releases: tuple[Release, ...]) -> int | None:
        """How many tasks that release this still fit; None without a budget, or where nothing is released."""
        budget = self.budget
        if budget is None:
            return None
        if not releases:
            return None
        history, next_, place = self._weighed(budget, releases)
        return renyi.repetitions(history, next_, budget.epsilon, budget.delta, place)

    def _weighed(self, budget: Budget, releases: tuple[Release, ...]) -> tuple[renyi.Curve, renyi.Curve, int]:
        """What was spent, what this would add, and the place of the order by which the budget is kept."""
        history = renyi.curve(self.history(budget.unit))
        next_ = renyi.curve(release.protecting(budget.unit) for release in releases)
        if self.order is not None:
            return history, next_, renyi.ORDERS.index(self.order)
        return history, next_, renyi.filter_order(history, next_, budget.epsilon, budget.delta)

    def _chosen(self, run: RunId | None, until: int | None) -> Iterable[Spending]:
        return (
            one for one in self.spendings if (run is None or one.ref.run == run) and (until is None or one.row <= until)
        )


@dataclass(frozen=True, slots=True)
class Books:
    """All of them, by data set."""

    books: Mapping[str, Book] = field(default_factory=dict)

    def of(self, dataset: str) -> Book:
        """That of a data set; an empty one where it was never heard of."""
        return self.books.get(dataset, Book(dataset))

    def find(self, ref: TaskRef) -> tuple[Book, Spending] | None:
        """The last start of a task."""
        found = [(book, one) for book in self.books.values() for one in book.spendings if one.ref == ref]
        return max(found, key=lambda pair: pair[1].row, default=None)

    def with_row(self, number: int, at: float, row: Mapping[str, Any]) -> Books:
        """After one more row.

        Raises:
            KeyError, TypeError, ValueError, ConfigError: it is no row of a ledger.
        """
        book = self.of(row["dataset"])
        match row["row"]:
            case "budget":
                rule = WithoutGuarantee(row["without_guarantee"])
                book = replace(book, budget=Budget(row["epsilon"], row["delta"], Unit(row["unit"]), rule))
            case "reserve":
                book = replace(book, spendings=(*book.spendings, _spending(number, at, row)))
            case "settle":
                held = [one.row for one in book.spendings]
                place = held.index(row["reserve"])
                settled = replace(book.spendings[place], is_settled=True)
                book = replace(book, spendings=(*book.spendings[:place], settled, *book.spendings[place + 1 :]))
            case "refuse":
                book = replace(book, refused=book.refused + 1)
            case other:
                raise ValueError(f"row {number} is a {other}")
        return Books({**self.books, book.dataset: book})


def may_replace(book: Book, budget: Budget) -> None:
    """May a data set get this budget?

    Raises:
        PrivacyError: it counts another unit than the one that was spent from.
    """
    if book.budget is not None and book.budget.unit is not budget.unit and book.history(book.budget.unit):
        raise PrivacyError(
            f"the budget counts each {book.budget.unit.value} and was spent from; one that counts each"
            f" {budget.unit.value} would forget that"
        )


def _says_something_of(unit: Unit, release: Release) -> bool:
    return release.unit in {unit, Unit.SITE}


def _spending(number: int, at: float, row: Mapping[str, Any]) -> Spending:
    return Spending(
        number,
        at,
        TaskRef(RunId(row["run"]), row["round"], row["attempt"], Digest(row["plan"])),
        TaskKind(row["task"]),
        tuple(Release.from_json(one) for one in row["releases"]),
        bool(row["is_bare"]),
        row["delta"],
        row["order"],
        row["participants"],
    )
