"""What was released of a data set is never forgotten, and never more than its budget."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.envoy.privacy_books import Budget, WithoutGuarantee
from fedveil.envoy.privacy_ledger import FIRST_HEAD, PrivacyLedger
from fedveil.utils.errors import BudgetExhaustedError, ConfigError, PrivacyError, StorageError
from fedveil.utils.messages import RunId, TaskKind, TaskRef
from fedveil.utils.privacy.accounting import reported, stopping
from fedveil.utils.privacy.events import Gaussian, Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import Digest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROUND = SampledGaussian(0.1, 2.0, 5)
TRAINING = (Release(ROUND, Unit.PATIENT),)
BUDGET = Budget(1.5, 1e-5, Unit.PATIENT)


def ref(number=1, run="lungs", attempt=1):
    return TaskRef(RunId(run), number, attempt, Digest("ab" * 32))


def train(ledger, number=1, releases=TRAINING, dataset="x-rays", **options):
    bare = {"is_bare": False} | options
    return ledger.reserve(dataset, ref(number), TaskKind.TRAIN, releases, **bare)


def until_exhausted(ledger, releases=TRAINING, start=1):
    """How many rounds fit."""
    for number in range(start, 1000):
        try:
            ledger.settle(train(ledger, number, releases))
        except BudgetExhaustedError:
            return number - start
    raise AssertionError("the budget never ends")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "privacy.sqlite"


@pytest.fixture
def ledger(path):
    made = PrivacyLedger(path)
    made.set_budget("x-rays", BUDGET, "the data manager")
    yield made
    made.close()


def test_rounds_are_admitted_until_the_budget_is_spent_and_the_sum_never_passes_it(ledger):
    count = until_exhausted(ledger)
    book = ledger.books().of("x-rays")
    assert count > 3
    assert book.spent().value <= book.stopping().value <= BUDGET.epsilon
    assert stopping([ROUND.scaled(count + 1)], 1e-5, Unit.PATIENT).value > BUDGET.epsilon
    assert book.spent().value == pytest.approx(reported([ROUND.scaled(count)], 1e-5, Unit.PATIENT).value)


def test_the_rounds_that_are_said_to_be_left_are_those_that_fit(ledger):
    said = ledger.books().of("x-rays").rounds_left(TRAINING)
    train(ledger)
    assert ledger.books().of("x-rays").rounds_left(TRAINING) == said - 1
    assert until_exhausted(ledger, start=2) == said - 1
    assert ledger.books().of("x-rays").rounds_left(TRAINING) == 0


def test_the_refusal_tells_the_director_public_numbers_alone_and_the_site_what_is_left_and_why(ledger):
    until_exhausted(ledger)
    with pytest.raises(BudgetExhaustedError) as caught:
        train(ledger, 100)
    assert "exhausted; spent: epsilon" in str(caught.value)
    assert "at delta 1e-05 per patient" in str(caught.value)
    assert "x-rays" not in str(caught.value)
    for word in ("x-rays", "left", "would take it to", "budget epsilon 1.5 at delta 1e-05 per patient"):
        assert word in caught.value.site_text


def test_what_was_reserved_is_spent_whatever_becomes_of_the_training(ledger, path):
    train(ledger)  # never settled
    again = PrivacyLedger(path)
    (held,) = again.books().of("x-rays").spendings
    assert (held.is_settled, held.releases) == (False, TRAINING)
    assert again.books().of("x-rays").spent().value > 0
    again.close()


def test_the_same_task_started_again_is_a_second_release(ledger):
    before = train(ledger)
    train(ledger)
    assert [one.row for one in ledger.books().of("x-rays").spendings] == [before.row, before.row + 1]


def test_one_budget_is_spent_from_by_all_studies_and_kinds_of_task(ledger):
    ledger.reserve("x-rays", ref(1, "lungs"), TaskKind.TRAIN, TRAINING, is_bare=False)
    ledger.reserve("x-rays", ref(1, "hearts"), TaskKind.EVALUATE, TRAINING, is_bare=False)
    book = ledger.books().of("x-rays")
    assert len(book.history(Unit.PATIENT)) == 2
    assert book.spent(RunId("lungs")).value < book.spent().value


def test_another_data_set_has_a_budget_of_its_own(ledger):
    until_exhausted(ledger)
    assert train(ledger, 1, dataset="scans").has_budget is False
    ledger.set_budget("scans", BUDGET, "the data manager")
    assert train(ledger, 2, dataset="scans").has_budget


def test_what_was_released_before_there_was_a_budget_counts_too(path):
    ledger = PrivacyLedger(path)
    for number in range(1, 4):
        train(ledger, number)
    ledger.set_budget("x-rays", BUDGET, "the data manager")
    assert len(ledger.books().of("x-rays").history(Unit.PATIENT)) == 3
    fresh = PrivacyLedger(path.with_name("other.sqlite"))
    fresh.set_budget("x-rays", BUDGET, "the data manager")
    assert until_exhausted(ledger, start=4) == until_exhausted(fresh) - 3


def test_a_task_without_a_guarantee_is_refused_where_there_is_a_budget(ledger):
    with pytest.raises(PrivacyError, match="without a guarantee per patient"):
        train(ledger, 1, (), is_bare=True)
    assert ledger.books().of("x-rays").refused == 1
    assert ledger.books().of("x-rays").spendings == ()


def test_where_the_site_allows_it_the_books_say_that_no_epsilon_covers_it(ledger):
    ledger.set_budget("x-rays", Budget(1.5, 1e-5, Unit.PATIENT, WithoutGuarantee.ALLOW), "the data manager")
    train(ledger, 1, (), is_bare=True)
    assert ledger.books().of("x-rays").uncovered(Unit.PATIENT) == 1
    assert ledger.published(ref(1)) is None


def test_a_guarantee_of_another_unit_is_refused(ledger):
    with pytest.raises(PrivacyError, match="says nothing of each patient"):
        train(ledger, 1, (Release(ROUND, Unit.RECORD),))


def test_noise_on_the_update_counts_for_each_patient_with_half_its_multiplier(ledger):
    train(ledger, 1, (Release(Gaussian(20.0), Unit.SITE),))
    assert ledger.books().of("x-rays").history(Unit.PATIENT) == (Gaussian(10.0),)


def test_only_epsilon_delta_and_unit_are_published_and_the_same_at_every_resend(ledger):
    train(ledger, 1)
    first = ledger.published(ref(1))
    train(ledger, 2)
    assert ledger.published(ref(1)) == first
    assert ledger.published(ref(2)).epsilon > first.epsilon
    assert first.to_json() == {"epsilon": first.epsilon, "delta": 1e-5, "unit": "patient"}
    assert ledger.published(ref(3)) is None


def test_without_a_budget_the_plans_own_delta_is_published(path):
    ledger = PrivacyLedger(path)
    train(ledger, 1, delta=1e-6)
    assert ledger.published(ref(1)).delta == 1e-6
    train(ledger, 2, (), is_bare=True)
    assert ledger.published(ref(2)) is None
    train(ledger, 3, delta=1e-6)
    assert ledger.published(ref(3)) is None  # what left before has no epsilon


def test_a_budget_may_be_raised_and_lowered_and_keeps_what_was_spent(ledger):
    count = until_exhausted(ledger)
    ledger.set_budget("x-rays", Budget(3.0, 1e-5, Unit.PATIENT), "the data manager")
    train(ledger, 500)
    ledger.set_budget("x-rays", Budget(0.1, 1e-5, Unit.PATIENT), "the data manager")
    with pytest.raises(BudgetExhaustedError):
        train(ledger, 501)
    assert len(ledger.books().of("x-rays").spendings) == count + 1


def test_a_budget_that_was_spent_from_keeps_its_unit(ledger):
    train(ledger)
    with pytest.raises(PrivacyError, match="would forget that"):
        ledger.set_budget("x-rays", Budget(9.0, 1e-5, Unit.RECORD), "the data manager")


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (float("inf"), 1e-5), (1, 0), (1, 1)])
def test_a_budget_that_is_none_is_refused(epsilon, delta):
    with pytest.raises(ConfigError):
        Budget(epsilon, delta, Unit.PATIENT)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 1), st.floats(0.5, 30), st.integers(1, 20)).map(lambda one: SampledGaussian(*one)),
        min_size=1,
        max_size=25,
    ),
    st.floats(0.3, 8),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_order_of_plans_passes_the_budget(tmp_path_factory, plans, epsilon):
    ledger = PrivacyLedger(tmp_path_factory.mktemp("ledger") / "privacy.sqlite")
    ledger.set_budget("x-rays", Budget(epsilon, 1e-5, Unit.PATIENT), "the data manager")
    orders = set()
    for number, plan in enumerate(plans, 1):
        with contextlib.suppress(BudgetExhaustedError):
            train(ledger, number, (Release(plan, Unit.PATIENT),))
        orders.add(ledger.books().of("x-rays").order)
    book = ledger.books().of("x-rays")
    assert stopping(book.history(Unit.PATIENT), 1e-5, Unit.PATIENT).value <= epsilon
    assert len(orders - {None}) <= 1  # the order by which it is kept never changes
    ledger.close()


def test_threads_cannot_overspend_together(ledger):
    allowed = ledger.books().of("x-rays").rounds_left(TRAINING)
    barrier, won = threading.Barrier(8), []

    def work(place):
        barrier.wait()
        for number in range(allowed):
            try:
                won.append(train(ledger, 1 + place * allowed + number).row)
            except BudgetExhaustedError:
                return

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == allowed == len(set(won))


SPENDER = """
import sys
from pathlib import Path
from fedveil.envoy.privacy_ledger import PrivacyLedger
from fedveil.utils.errors import BudgetExhaustedError
from fedveil.utils.messages import RunId, TaskKind, TaskRef
from fedveil.utils.privacy.events import Release, SampledGaussian
from fedveil.utils.privacy.values import Unit
from fedveil.utils.tensors import Digest

ledger, run = PrivacyLedger(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 1000):
    ref = TaskRef(RunId(run), number, 1, Digest("ab" * 32))
    try:
        reserved = ledger.reserve(
            "x-rays", ref, TaskKind.TRAIN, (Release(SampledGaussian(0.1, 2.0, 5), Unit.PATIENT),), is_bare=False
        )
    except BudgetExhaustedError:
        break
    print(reserved.row, flush=True)
    if len(sys.argv) > 3:
        sys.stdin.readline()  # at work, for ever
"""


def spender(path, run, *more):
    command = [sys.executable, "-c", SPENDER, str(path), run, *more]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_envoy_processes_cannot_overspend_together(ledger, path):
    allowed = ledger.books().of("x-rays").rounds_left(TRAINING)
    processes = [spender(path, run) for run in ("lungs", "hearts")]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    rows = [row for process in processes for row in process.communicate(timeout=60)[0].split()]
    assert len(rows) == allowed == len(set(rows))
    assert ledger.books().of("x-rays").stopping().value <= BUDGET.epsilon


def test_a_process_that_is_killed_while_it_trains_has_spent_what_it_reserved(ledger, path):
    allowed = ledger.books().of("x-rays").rounds_left(TRAINING)
    process = spender(path, "lungs", "and wait")
    process.stdin.write("go\n")
    process.stdin.flush()
    row = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    again = PrivacyLedger(path)
    (held,) = again.books().of("x-rays").spendings
    assert (held.row, held.is_settled) == (row, False)
    assert again.books().of("x-rays").rounds_left(TRAINING) == allowed - 1
    again.close()


@pytest.mark.parametrize("change", ["body = replace(body, '5', '1')", "at = at + 1", "hash = hash || '0'"])
def test_a_row_that_was_altered_is_found_and_nothing_is_released_any_more(ledger, path, change):
    train(ledger, 1)
    train(ledger, 2)
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER ledger_is_not_altered")
        database.execute(f"UPDATE ledger SET {change} WHERE number = 2")
    with pytest.raises(StorageError, match="row 2 does not follow"):
        PrivacyLedger(path).reserve("x-rays", ref(3), TaskKind.TRAIN, TRAINING, is_bare=False)


def test_a_row_that_was_taken_out_is_found(ledger, path):
    train(ledger, 1)
    train(ledger, 2)
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER ledger_is_not_cut")
        database.execute("DELETE FROM ledger WHERE number = 2")
    with pytest.raises(StorageError, match="row 2 does not follow"):
        PrivacyLedger(path).books()


def test_a_budget_may_be_signed_and_a_signature_holds_for_its_place_alone(ledger):
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    assert ledger.signed_budgets(public) == frozenset()  # the fixture's is unsigned
    ledger.set_budget("x-rays", BUDGET, "the data manager", key.sign)
    ledger.set_budget("scans", BUDGET, "somebody", other.sign)
    assert ledger.signed_budgets(public) == {"x-rays"}
    ledger.set_budget("x-rays", Budget(9.0, 1e-5, Unit.PATIENT), "somebody")
    assert ledger.signed_budgets(public) == frozenset()  # the newest counts
    ledger.set_budget("x-rays", BUDGET, "the data manager", lambda text: key.sign(text.replace(b"1", b"2")))
    assert ledger.signed_budgets(public) == frozenset()


@pytest.mark.parametrize("statement", ["UPDATE ledger SET at = 0", "DELETE FROM ledger"])
def test_rows_are_only_added(ledger, path, statement):
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError, match="rows are only added"):
        database.execute(statement)


def test_the_head_changes_with_every_row(ledger):
    heads = [FIRST_HEAD, ledger.head]
    reservation = train(ledger)
    heads.append(ledger.head)
    ledger.settle(reservation)
    heads.append(ledger.head)
    assert len(set(heads)) == 4


def test_every_row_is_on_the_disk_before_the_call_returns(ledger):
    assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_ledger_of_a_newer_fedveil_is_refused(ledger, path):
    ledger._database.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageError, match="newer fedveil"):
        PrivacyLedger(path)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "privacy.sqlite").write_text("not a database at all, but longer than a header" * 10)
    with pytest.raises(StorageError, match="privacy ledger"):
        PrivacyLedger(tmp_path / "privacy.sqlite")
