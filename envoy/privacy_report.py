"""A site's privacy report: what each data set, and each study of it, has spent, and what else is known of its leakage.

Everything in it is a public number or a count of tasks: no example, no label, no metric's value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.messages import RunId
from ..utils.privacy.accounting import Account, checked, reported, stopping
from ..utils.privacy.values import Epsilon, Unit, rounded_up
from .outbox import METRICS, Departure
from .privacy_books import Book

SCHEMA = "fedveil.privacy-report/1"


@dataclass(frozen=True, slots=True)
class Balance:
    """One data set, or one study of it."""

    tasks: int
    open: int  # reserved and never settled: at work, or killed there
    uncovered: int  # that released something no epsilon covers
    account: Account

    @property
    def total(self) -> Epsilon:
        """What is reported: infinite where something left without a guarantee."""
        found = self.account.reported
        if not self.uncovered:
            return found
        return Epsilon(float("inf"), found.delta, found.unit, f"{self.uncovered} without a guarantee", found.accountant)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        prv = self.account.prv
        return {
            **{f"{'total_' * (key == 'epsilon')}{key}": value for key, value in self.total.to_json().items()},
            "epsilon_of_what_is_covered": self.account.reported.value,
            "epsilon_rdp": self.account.rdp.value,
            "epsilon_prv": prv.value if prv else None,
            "tasks": self.tasks,
            "open": self.open,
            "without_guarantee": self.uncovered,
        }


def balance(book: Book, delta: float, unit: Unit, run: RunId | None = None) -> Balance:
    """What was spent: of a data set by all accountants; of one study without the cross-check, which takes a second.

    Raises:
        ConfigError: the extra ``dp`` is not installed.
        PrivacyError: two accountants disagree.
    """
    chosen = [one for one in book.spendings if run is None or one.ref.run == run]
    history = book.history(unit, run=run)
    account = (
        checked(history, delta, unit)
        if run is None
        else Account(reported(history, delta, unit), stopping(history, delta, unit), None)
    )
    return Balance(len(chosen), sum(not one.is_settled for one in chosen), book.uncovered(unit, run=run), account)


def terms_of(book: Book) -> tuple[float, Unit] | None:
    """Delta and unit in which a data set is reported: its budget's, else those of its last private plan."""
    if book.budget is not None:
        return book.budget.delta, book.budget.unit
    private = [one for one in book.spendings if one.delta is not None and one.releases]
    return (private[-1].delta or 0.0, private[-1].releases[0].unit) if private else None


def report(books: Sequence[Book], departures: Iterable[Departure], run: RunId | None = None) -> dict[str, Any]:
    """The report of a site, of all studies or of one.

    Raises:
        ConfigError, PrivacyError: as ``balance``.
    """
    left = [one for one in departures if run is None or one.ref.run == run]
    found = [_of_dataset(book, run) for book in books if run is None or any(s.ref.run == run for s in book.spendings)]
    scores = [one.score for one in left if one.score is not None]
    worst = max(found, key=_severity, default=None)
    return {
        "schema": SCHEMA,
        "run": run,
        **{key: None if worst is None else worst[key] for key in _HEADLINE},
        "participants": max(
            (s.participants for b in books for s in b.spendings if run in (None, s.ref.run)), default=0
        ),
        "secure_aggregation": _sums(left),
        "leakage_score": max(scores, default=None),
        "attack_used": "the worst attack of the site's leak test, on public canaries" if scores else None,
        "suppressed_cells": None,  # no analytics yet
        "datasets": found,
    }


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """A report in words: of a site with its data sets, or of a federation with its sites."""
    sums, score = found["secure_aggregation"], found["leakage_score"]
    attacked = "not measured" if score is None else f"{score:.3f}, {found['attack_used']}"
    parts = [(f"data set {one['dataset']}", one) for one in found.get("datasets", ())]
    parts += [*found.get("sites", {}).items()]
    bound = _bound(found)
    if found["total_epsilon"] is not None:
        bound += f" ({found['adjacency']}; {found['mechanism']}; {found['accountant']})"
    return [
        f"total_epsilon: {bound}",
        f"participants: {found['participants']}",
        f"secure_aggregation: {sums['state']} ({sums['masked']} answers masked, {sums['in_clear']} in the clear)",
        f"leakage_score: {attacked}",
        *(f"  {name}: {_bound(one)}" for name, one in parts),
    ]


def _bound(one: Mapping[str, Any]) -> str:
    if one["total_epsilon"] is None:
        return "none: something left without a guarantee, or nothing private was trained"
    return f"epsilon {rounded_up(one['total_epsilon'])} at delta {one['delta']:g} per {one['unit']}"


_HEADLINE = ("total_epsilon", "delta", "unit", "adjacency", "mechanism", "accountant")


def _of_dataset(book: Book, run: RunId | None) -> dict[str, Any]:
    terms, budget = terms_of(book), book.budget
    head: dict[str, Any] = {"dataset": book.dataset, "budget": None, "refused": book.refused}
    if budget is not None:
        head["budget"] = {"epsilon": budget.epsilon, "delta": budget.delta, "unit": budget.unit.value}
    if terms is None:
        return head | dict.fromkeys(_HEADLINE) | {"tasks": len(book.spendings), "studies": {}}
    studies = dict.fromkeys(one.ref.run for one in book.spendings if run in {None, one.ref.run})
    of_each = {one: balance(book, *terms, one).to_json() for one in studies}
    whole = of_each[run] if run is not None and run in of_each else balance(book, *terms).to_json()
    return head | whole | {"studies": of_each}


def _severity(found: dict[str, Any]) -> float:
    epsilon = found["total_epsilon"]
    return float("inf") if epsilon is None else float(epsilon)


def _sums(left: Sequence[Departure]) -> dict[str, Any]:
    """Which answers left under masks: an aggregator saw sums of them alone."""
    masked = sum(one.kind.startswith("masked") for one in left)
    metrics = sum(one.kind == METRICS for one in left)
    state = "none left" if not left else "all" if masked == len(left) else "some" if masked else "off"
    return {"state": state, "masked": masked, "in_clear": len(left) - masked, "metrics_in_clear": metrics}
