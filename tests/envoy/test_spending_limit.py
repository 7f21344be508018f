"""What an approval lets the runs of one proposal spend of a data set, beside the data set's own budget."""

from __future__ import annotations

import pytest
from fedveil.envoy.privacy_books import Book, Budget, Spending, SpendingLimit
from fedveil.utils.errors import BudgetExhaustedError, PrivacyError
from fedveil.utils.messages import RunId, TaskKind, TaskRef
from fedveil.utils.privacy.accounting import stopping
from fedveil.utils.privacy.events import Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import Digest
from hypothesis import given
from hypothesis import strategies as st

DELTA = 1e-5
STEP = (Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT),)
MINE, OTHERS = RunId("mine-1"), RunId("others-1")


def ref(run=MINE, number=1):
    return TaskRef(run, number, 1, Digest("ab" * 32))


def book(*spent, budget=None, is_bare=False):
    spendings = [
        Spending(row, 0.0, ref(run, row), TaskKind.TRAIN, STEP, is_bare, DELTA) for row, run in enumerate(spent, 1)
    ]
    return Book("x-rays", budget, tuple(spendings))


def epsilon_of(rounds):
    return stopping([one.protecting(Unit.PATIENT) for one in STEP] * rounds, DELTA, Unit.PATIENT).value


def check(of, epsilon, runs=(MINE,), releases=STEP, is_bare=False, delta=DELTA):
    of.check_limit(ref(), SpendingLimit(epsilon, frozenset(runs)), releases, is_bare=is_bare, delta=delta)


@given(st.integers(0, 6), st.integers(1, 6))
def test_as_many_rounds_run_as_the_epsilon_covers_and_not_one_more(spent, covered):
    limit, before = epsilon_of(covered), book(*[MINE] * spent)
    if spent < covered:
        check(before, limit)
    else:
        with pytest.raises(BudgetExhaustedError, match="what this site approved of epsilon for this proposal is spent"):
            check(before, limit)


def test_what_other_proposals_spent_does_not_count():
    check(book(OTHERS, OTHERS, OTHERS), epsilon_of(1))


def test_all_runs_of_the_proposal_count_together():
    with pytest.raises(BudgetExhaustedError):
        check(book(OTHERS, MINE), epsilon_of(2), runs=(MINE, OTHERS))


def test_the_budgets_delta_is_the_one_where_there_is_a_budget():
    strict = Budget(100.0, 1e-9, Unit.PATIENT)
    check(book(), epsilon_of(1))
    with pytest.raises(BudgetExhaustedError, match="is spent"):
        check(book(budget=strict), epsilon_of(1))


@pytest.mark.parametrize("how", [{"is_bare": True}, {"releases": ()}, {"delta": None}])
def test_under_an_epsilon_nothing_leaves_that_it_does_not_cover(how):
    with pytest.raises(PrivacyError, match="which covers no metrics and nothing without noise"):
        check(book(), 100.0, **how)


def test_a_run_that_released_something_bare_before_runs_no_more_under_an_epsilon():
    with pytest.raises(PrivacyError, match="released something that no epsilon covers"):
        check(book(MINE, is_bare=True), 100.0)
