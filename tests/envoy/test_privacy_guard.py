"""A task meets the data set's budget before it meets the data."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fedveil.envoy.orders import WorkResult
from fedveil.envoy.outbox import Departure
from fedveil.envoy.policy import Measures, Step
from fedveil.envoy.privacy_books import Budget, SpendingLimit, WithoutGuarantee
from fedveil.envoy.privacy_guard import PrivacyGuard, releases_of
from fedveil.envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from fedveil.envoy.privacy_report import report
from fedveil.envoy.refusals import refusal_of
from fedveil.utils import messages as m
from fedveil.utils.data_spec import DataKind
from fedveil.utils.differential_privacy import DifferentialPrivacy
from fedveil.utils.errors import BudgetExhaustedError, PrivacyError
from fedveil.utils.metrics import mean_of
from fedveil.utils.privacy.accounting import stopping
from fedveil.utils.privacy.events import Gaussian, Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.secure_sum.terms import NoiseTerms, SumTerms
from fedveil.utils.tensors import Digest

PRIVATE = DifferentialPrivacy(Unit.PATIENT, 1.0, 2.0, 0.1, units=500, steps=5)
PLAIN, NOISED = Measures((Step.CHECK,), None, 0.0), Measures((Step.CHECK, Step.CLIP, Step.NOISE), 1.0, 20.0)
RESULT = WorkResult(317, (mean_of("loss", 0.7, 317),))
BUDGET = Budget(2.0, 1e-5, Unit.PATIENT)


def manifest(privacy=None, kind=DataKind.IMAGES):
    return SimpleNamespace(privacy=privacy, data=SimpleNamespace(name="x-rays", kind=kind))


def task(number=1, kind=m.TaskKind.TRAIN):
    digest = Digest("ab" * 32)
    cohort = tuple(m.EnvoyName(name) for name in ("north", "south", "west"))
    return m.Task(m.TaskRef(m.RunId("lungs"), number, 1, digest), kind, digest, 10, digest, bytes(32), 60.0, 1, cohort)


@pytest.fixture
def guard(tmp_path):
    made = PrivacyGuard(tmp_path)
    yield made
    made.close()


@pytest.fixture
def budget(tmp_path):
    def give(budget=BUDGET):
        ledger = PrivacyLedger(tmp_path / LEDGER_FILE)
        ledger.set_budget("x-rays", budget, "the data manager")
        ledger.close()

    return give


@pytest.mark.parametrize(
    ("kind", "plan", "measures", "accounted", "is_bare"),
    [
        (m.TaskKind.TRAIN, manifest(PRIVATE), PLAIN, (Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT),), False),
        (m.TaskKind.TRAIN, manifest(PRIVATE), NOISED, (Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT),), False),
        (m.TaskKind.TRAIN, manifest(), NOISED, (Release(Gaussian(20.0), Unit.SITE),), True),
        (m.TaskKind.TRAIN, manifest(), PLAIN, (), True),
        (m.TaskKind.EVALUATE, manifest(), NOISED, (), True),
        (m.TaskKind.EVALUATE, manifest(PRIVATE), PLAIN, (), False),
        (m.TaskKind.TRAIN, manifest(kind=DataKind.NONE), PLAIN, (), False),
    ],
)
def test_what_a_task_releases_follows_from_public_numbers_alone(kind, plan, measures, accounted, is_bare):
    found = releases_of(kind, plan, measures)
    assert (found.accounted, found.is_bare) == (accounted, is_bare)


def test_an_approvals_epsilon_stops_a_proposals_runs_within_a_larger_budget(guard, budget, tmp_path):
    budget(Budget(100.0, 1e-5, Unit.PATIENT))
    once = stopping([Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT).protecting(Unit.PATIENT)], 1e-5, Unit.PATIENT)
    limit = SpendingLimit(once.value, frozenset({m.RunId("lungs")}))
    guard.reserve(task(), manifest(PRIVATE), PLAIN, limit=limit).settle(RESULT)
    with pytest.raises(BudgetExhaustedError, match="what this site approved of epsilon"):
        guard.reserve(task(2), manifest(PRIVATE), PLAIN, limit=limit)
    guard.reserve(task(2), manifest(PRIVATE), PLAIN).settle(RESULT)
    assert len(PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays").spendings) == 2


NOISE = NoiseTerms(0.5, 4.0, 6)
CLIPPED = Measures((Step.CHECK, Step.CLIP), 0.5, 0.0)


def summed(number=1, kind=m.TaskKind.TRAIN, noise=NOISE):
    return replace(
        task(number, kind), sum=SumTerms(bounds=(noise.bound,), max_weight=1, equal_weights=True, noise=noise)
    )


def test_noise_inside_the_sum_is_one_release_by_public_numbers_and_nothing_beside_it(guard, tmp_path):
    charge = guard.reserve(summed(), manifest(), CLIPPED, 10_000)
    assert charge.settle(RESULT) == WorkResult(1, ())
    (spent,) = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays").spendings
    (release,) = spent.releases
    assert (release.unit, spent.is_bare) == (Unit.SITE, False)
    steps = 1 << 18  # of the clip norm; 10,000 numbers, each rounded by half a step: 50 more
    assert release.mechanism.sensitivity_l2 == pytest.approx(steps + 50, rel=1e-5)
    assert release.mechanism.sensitivity_l1 == pytest.approx(100 * (steps + 50), rel=1e-5)
    assert release.mechanism.variance == pytest.approx((4.0 * steps) ** 2, rel=1e-6)
    site, patient = release.protecting(Unit.SITE), release.protecting(Unit.PATIENT)
    assert site.noise_multiplier == pytest.approx(2 * patient.noise_multiplier) == pytest.approx(4.0, rel=1e-3)


def test_an_evaluation_under_that_noise_releases_nothing_and_sends_nothing(guard, tmp_path):
    assert guard.reserve(summed(1, m.TaskKind.EVALUATE), manifest(), PLAIN).settle(RESULT) == WorkResult(1, ())
    assert not (tmp_path / LEDGER_FILE).exists()


def test_a_budget_takes_noise_inside_the_sum_until_it_is_spent_and_prints_what_was_spent(guard, budget, tmp_path):
    budget(Budget(3.0, 1e-5, Unit.PATIENT))
    guard.reserve(summed(1), manifest(), CLIPPED, 10_000).settle(RESULT)
    with pytest.raises(BudgetExhaustedError, match=r"spent: epsilon 2\.[0-9]+ at delta 1e-05 per patient"):
        guard.reserve(summed(2), manifest(), CLIPPED, 10_000)
    book = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays")
    assert str(book.spent()).startswith("epsilon ")
    assert "at delta 1e-05 per patient (one added or removed; Skellam in the secure sum; rdp)" in str(book.spent())
    # close to the Gaussian's of half the multiplier, and above it
    gaussian = stopping([Gaussian(2.0)], 1e-5, Unit.PATIENT).value
    assert gaussian < book.spent().value < 1.05 * gaussian


def test_a_director_that_says_little_noise_has_the_budget_against_it(guard, budget):
    budget()
    with pytest.raises(BudgetExhaustedError):
        guard.reserve(summed(noise=NoiseTerms(0.5, 0.01, 6)), manifest(), CLIPPED, 10_000)


def test_a_site_whose_own_chain_adds_noise_counts_that_alone(guard, budget, tmp_path):
    budget()
    assert guard.reserve(summed(), manifest(), NOISED, 10_000).settle(RESULT) == WorkResult(1, ())
    (spent,) = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays").spendings
    assert (spent.releases, spent.is_bare) == ((Release(Gaussian(20.0), Unit.SITE),), False)


def test_a_plan_without_data_never_opens_a_ledger(guard, tmp_path):
    charge = guard.reserve(task(), manifest(kind=DataKind.NONE), PLAIN)
    assert charge.settle(RESULT) == RESULT
    assert not (tmp_path / LEDGER_FILE).exists()
    assert guard.published(task().ref) is None


def test_without_a_budget_nothing_is_refused_nothing_stripped_and_all_is_counted(guard, tmp_path):
    assert guard.reserve(task(), manifest(), NOISED).settle(RESULT) == RESULT
    assert guard.reserve(task(2, m.TaskKind.EVALUATE), manifest(), PLAIN).settle(RESULT) == RESULT
    book = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays")
    assert [(len(one.releases), one.is_bare, one.is_settled) for one in book.spendings] == [
        (1, True, True),
        (0, True, True),
    ]
    assert book.uncovered(Unit.SITE) == 2
    assert guard.published(task().ref) is None


def test_a_private_plan_sends_no_metrics_and_no_count_of_examples_with_or_without_a_budget(guard, budget):
    stripped = WorkResult(1, ())
    assert guard.reserve(task(), manifest(PRIVATE), PLAIN).settle(RESULT) == stripped
    assert guard.reserve(task(1, m.TaskKind.EVALUATE), manifest(PRIVATE), PLAIN).settle(RESULT) == stripped
    budget()
    assert guard.reserve(task(2), manifest(PRIVATE), PLAIN).settle(RESULT) == stripped


def test_under_a_budget_noise_on_the_update_is_a_guarantee_and_nothing_else_leaves(guard, budget, tmp_path):
    budget()
    assert guard.reserve(task(), manifest(), NOISED).settle(RESULT) == WorkResult(1, ())
    book = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays")
    assert book.history(Unit.PATIENT) == (Gaussian(10.0),)
    assert book.uncovered(Unit.PATIENT) == 0
    assert guard.published(task().ref).unit is Unit.PATIENT


@pytest.mark.parametrize("kind", list(m.TaskKind))
def test_under_a_budget_a_task_without_a_guarantee_is_refused(guard, budget, kind):
    budget()
    with pytest.raises(PrivacyError, match="without a guarantee per patient"):
        guard.reserve(task(1, kind), manifest(), PLAIN)


def test_a_site_may_let_them_through_and_then_publishes_nothing(guard, budget):
    budget(replace(BUDGET, without_guarantee=WithoutGuarantee.ALLOW))
    assert guard.reserve(task(1, m.TaskKind.EVALUATE), manifest(), PLAIN).settle(RESULT) == RESULT
    guard.reserve(task(2), manifest(PRIVATE), PLAIN)
    assert guard.published(task(2).ref) is None


def exhaust(guard):
    for number in range(1, 1000):
        try:
            guard.reserve(task(number), manifest(PRIVATE), PLAIN)
        except BudgetExhaustedError as error:
            return error, number
    raise AssertionError("the budget never ends")


def test_an_exhausted_budget_is_told_to_the_director_in_public_numbers_and_to_the_sites_log_in_full(
    guard, budget, caplog
):
    budget()
    error, number = exhaust(guard)
    said = refusal_of(task(number).ref, error)
    assert said.error == "BudgetExhaustedError"
    assert "exhausted; spent: epsilon" in said.reason
    assert "x-rays" not in said.reason
    (record,) = caplog.records
    assert "data set x-rays: budget epsilon 2 at delta 1e-05 per patient" in record.getMessage()


def test_a_refused_task_is_not_a_spending(guard, budget, tmp_path):
    budget()
    _, number = exhaust(guard)
    book = PrivacyLedger(tmp_path / LEDGER_FILE).books().of("x-rays")
    assert (len(book.spendings), book.refused) == (number - 1, 1)


def departure(score=0.04, kind="masked"):
    return Departure(1.0, task().ref, kind, 40, Digest("cd" * 32), None, "check", True, score, (), 1)


def test_the_report_has_the_fields_that_were_promised_by_their_names(guard, budget, tmp_path):
    pytest.importorskip("dp_accounting")
    budget()
    guard.reserve(task(), manifest(PRIVATE), PLAIN).settle(RESULT)
    books = [*PrivacyLedger(tmp_path / LEDGER_FILE).books().books.values()]
    found = json.loads(json.dumps(report(books, [departure(), departure(0.02, "plain")])))
    assert 0 < found["total_epsilon"] < 2
    assert (found["delta"], found["unit"], found["mechanism"]) == (1e-5, "patient", "Poisson-sampled Gaussian")
    assert found["participants"] == 3
    assert found["secure_aggregation"]["state"] == "some"
    assert found["leakage_score"] == 0.04
    assert found["datasets"][0]["studies"]["lungs"]["total_epsilon"] == found["total_epsilon"]


def test_the_report_names_no_total_where_something_left_without_a_guarantee(guard, budget, tmp_path):
    pytest.importorskip("dp_accounting")
    budget(replace(BUDGET, without_guarantee=WithoutGuarantee.ALLOW))
    guard.reserve(task(), manifest(PRIVATE), PLAIN)
    guard.reserve(task(1, m.TaskKind.EVALUATE), manifest(), PLAIN)
    found = report([*PrivacyLedger(tmp_path / LEDGER_FILE).books().books.values()], [])
    assert found["total_epsilon"] is None
    assert found["mechanism"] == "1 without a guarantee"
    assert found["datasets"][0]["epsilon_of_what_is_covered"] > 0
