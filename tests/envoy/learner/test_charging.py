"""Noise by hand is counted before it leaves: once, within the budget, and only where the round has no account."""

import numpy as np
import pytest
from fedveil import DataKind, DataSpec, DifferentialPrivacy
from fedveil.envoy.learner.charging import charged, content_of, require_sendable
from fedveil.envoy.learner.checks import Finding, ValidationReport
from fedveil.envoy.privacy_books import Budget, WithoutGuarantee
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.utils import messages as m
from fedveil.utils.errors import (
    BudgetExhaustedError,
    LayoutMismatchError,
    NonFiniteUpdateError,
    UnsendableUpdateError,
)
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind
from fedveil.utils.privacy.events import Gaussian, Release
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import digest_of

REF = m.TaskRef(m.RunId("study-1"), 1, 1, digest_of(b"plan"))
TASK = m.Task(REF, m.TaskKind.TRAIN, digest_of(b"m"), 1, digest_of(b"l"), bytes(32), 60.0, 1, (m.EnvoyName("a"),))
GRADIENTS = {"w": np.ones(4, np.float32)}


def manifest(kind=DataKind.IMAGES):
    files = tuple(PlanFile(path, 1, "0" * 64) for path in ("plan.py", "layout.json", "initial.safetensors"))
    data = DataSpec("xrays", kind, (1, 8, 8) if kind is DataKind.IMAGES else ())
    return Manifest("Plan", PlanKind.ARRAY, "plan.py:Plan", files, {}, "1" * 64, data, "0", None)


def noise(epsilon=1.0, mechanism="gaussian"):
    return DifferentialPrivacy(epsilon=epsilon, mechanism=mechanism).add_noise_to_gradients(GRADIENTS).noise


@pytest.fixture
def ledger(tmp_path):
    made = PrivacyLedger(tmp_path / LEDGER_FILE)
    made.set_budget("xrays", Budget(3.0, 1e-5, Unit.SITE, WithoutGuarantee.ALLOW), "anna")
    yield made
    made.close()


def test_what_was_added_by_hand_is_in_the_books_and_settled_once_it_was_handed_in(ledger, tmp_path):
    ledger.reserve("xrays", REF, m.TaskKind.TRAIN, (), is_bare=True)
    charge = charged(tmp_path, TASK, manifest(), noise())
    assert (charge.epsilon, charge.delta) == (1.0, 1e-5)
    book = ledger.books().of("xrays")
    assert [one.is_settled for one in book.spendings] == [False, False]
    charge.settle()
    assert ledger.books().of("xrays").spendings[1].is_settled
    assert 0.9 < book.stopping().value < 1.6
    assert book.uncovered(Unit.SITE) == 1


def test_more_than_the_budget_has_is_refused_and_the_refusal_is_in_the_ledger(ledger, tmp_path):
    with pytest.raises(BudgetExhaustedError):
        charged(tmp_path, TASK, manifest(), noise(epsilon=30.0))
    book = ledger.books().of("xrays")
    assert (book.refused, book.spendings) == (1, ())


def test_a_round_that_has_its_own_account_is_not_counted_twice(ledger, tmp_path):
    ledger.reserve("xrays", REF, m.TaskKind.TRAIN, (Release(Gaussian(4.0), Unit.SITE),), is_bare=False)
    assert charged(tmp_path, TASK, manifest(), noise()).epsilon is None
    assert len(ledger.books().of("xrays").spendings) == 1


@pytest.mark.parametrize("case", ["none", "laplace", "no data"])
def test_what_the_ledger_has_no_account_of_is_not_said_to_be_counted(ledger, tmp_path, case):
    given = None if case == "none" else noise(mechanism="laplace" if case == "laplace" else "gaussian")
    kind = DataKind.NONE if case == "no data" else DataKind.IMAGES
    charge = charged(tmp_path, TASK, manifest(kind), given)
    charge.settle()
    assert charge.epsilon is None
    assert ledger.books().of("xrays").spendings == ()


def test_a_site_without_a_ledger_counts_nothing(tmp_path):
    assert charged(tmp_path, TASK, manifest(), noise()).epsilon is None


def test_the_same_arrays_are_the_same_submission_in_whatever_order_they_come():
    one, other = np.ones(3, np.float32), np.zeros(2, np.float32)
    assert content_of({"a": one, "b": other}) == content_of({"b": other.copy(), "a": one})
    assert content_of({"a": one}) != content_of({"a": one.reshape(3, 1)})
    assert content_of({"a": one}) != content_of({"b": one})
    for bad in (None, [one], {"a": [1.0]}, {1: one}, {"a": np.array([object()])}):
        with pytest.raises(LayoutMismatchError, match="something else came"):
            content_of(bad)


def test_all_that_is_wrong_is_in_the_refusal():
    faults = (Finding("bounds_check", "w is missing"), Finding("bounds_check", "b is float64"))
    with pytest.raises(UnsendableUpdateError, match="w is missing; b is float64"):
        require_sendable(ValidationReport(("bounds_check",), faults))
    with pytest.raises(NonFiniteUpdateError, match="w holds NaN"):
        require_sendable(ValidationReport(("nan_check",), (Finding("nan_check", "w holds NaN"),)))
    require_sendable(ValidationReport(("nan_check",), (Finding("nan_check", "denormal", is_failure=False),)))
