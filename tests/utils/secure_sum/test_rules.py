"""A site's own rules: thresholds that let one survivor set through, repeated rounds, and sums that differ by few."""

from dataclasses import replace

import pytest
from fedveil.utils.errors import ConfigError, StorageError, SumRefusedError
from fedveil.utils.messages import RunId, TaskRef
from fedveil.utils.roster import Roster
from fedveil.utils.secure_sum.rehearsal import cast_of
from fedveil.utils.secure_sum.rules import (
    Promise,
    Promises,
    SumFloors,
    check_cohort,
    check_differencing,
    check_suite,
    check_survivors,
    colluders_of,
    is_threshold,
    settle_retry,
    threshold_of,
)
from fedveil.utils.secure_sum.terms import Suite, SumTerms
from hypothesis import given
from hypothesis import strategies as st

RUN = RunId("lungs-1")
NAMES = tuple(f"s{place}" for place in range(10))
ROSTER = cast_of(NAMES).roster
FLOORS = SumFloors()
organizations = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def ref(round_=1, attempt=1):
    return TaskRef(RUN, round_, attempt, "ab" * 32)


def promise(attempt=1, round_=1, **fields):
    kept = {"transcript": bytes([attempt]) * 32, "cohort": NAMES, "threshold": 7, "colluders": 1, "masked": True}
    return Promise(round_, attempt, **(kept | fields))


@pytest.mark.parametrize(
    ("envoys", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (8, 6), (9, 7), (10, 7), (20, 14), (100, 67)]
)
def test_the_threshold_of_as_many_organizations(envoys, threshold):
    assert threshold_of([1] * envoys, 1, 2) == threshold


def test_envoys_of_one_organization_raise_the_threshold():
    assert threshold_of([1] * 6, 1, 2) == 5
    assert threshold_of([2, 1, 1, 1, 1], 1, 2) == 5
    assert threshold_of([3, 1, 1, 1], 1, 2) == 5
    assert threshold_of([4, 1, 1], 1, 2) == 6
    assert threshold_of([5, 1], 1, 2) is None
    assert threshold_of([1, 1], 1, 2) is None


@given(organizations, st.integers(0, 3), st.integers(2, 4))
def test_two_sets_of_consents_always_share_an_honest_envoy(envoys_of, colluding, honest):
    n, k = sum(envoys_of), colluders_of(envoys_of, colluding)
    for threshold in range(1, n + 1):
        if is_threshold(threshold, n, k, honest):
            in_both = 2 * threshold - n  # at least, by counting
            assert in_both > k
            assert threshold - k >= honest


@given(organizations, st.integers(0, 3), st.integers(2, 4))
def test_the_threshold_is_the_least_that_is_one(envoys_of, colluding, honest):
    n, k = sum(envoys_of), colluders_of(envoys_of, colluding)
    found = threshold_of(envoys_of, colluding, honest)
    right = [t for t in range(1, n + 1) if is_threshold(t, n, k, honest)]
    assert found == (right[0] if right else None)
    assert right == list(range(right[0], n + 1)) if right else True


@given(organizations, st.integers(0, 3), st.integers(2, 4), st.data())
def test_an_attempt_that_enough_gave_up_can_be_opened_by_nobody(envoys_of, colluding, honest, data):
    """Of the voices at most k lie; those who may still reveal a share are then fewer than the threshold."""
    n, k = sum(envoys_of), colluders_of(envoys_of, colluding)
    threshold = threshold_of(envoys_of, colluding, honest)
    if threshold is None:
        return
    one = promise(cohort=tuple(f"x{i:02d}" for i in range(n)), threshold=threshold, colluders=k)
    if one.aborts_needed > n:
        return
    voices = data.draw(st.integers(one.aborts_needed, n))
    lying = data.draw(st.integers(0, k))
    honest_and_silent = voices - lying
    assert n - honest_and_silent < threshold


@pytest.mark.parametrize(
    "fields",
    [
        {"min_organizations": 2},
        {"colluding": -1},
        {"honest": 1},
        {"suites": ()},
        {"max_differing_sums": -1},
    ],
)
def test_floors_that_make_no_sum_are_refused(fields):
    with pytest.raises(ConfigError):
        SumFloors(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"bounds": ()},
        {"bounds": (0.0,)},
        {"bounds": (float("inf"),)},
        {"bounds": (float("nan"),)},
        {"max_weight": 0},
        {"max_weight": 1 << 21},
        {"equal_weights": True},
        {"aggregator": "Not A Name"},
    ],
)
def test_terms_that_make_no_sum_are_refused(fields):
    with pytest.raises(ConfigError):
        SumTerms(**fields)


def test_a_cohort_is_counted_in_organizations():
    assert check_cohort(FLOORS, ROSTER, "s0", NAMES, 7) == 1
    clinic = cast_of(NAMES, {"s1": "clinic", "s2": "Clinic "}).roster
    assert check_cohort(FLOORS, clinic, "s0", NAMES, 7) == 2
    with pytest.raises(SumRefusedError, match="a threshold of 3 for 4"):
        check_cohort(FLOORS, clinic, "s0", NAMES[:4], 3)
    with pytest.raises(SumRefusedError, match="2 organizations"):
        check_survivors(FLOORS, clinic, "s1", ("s1", "s2", "s3"), NAMES, 3)
    with pytest.raises(SumRefusedError, match="this site accepts mlkem768-x25519"):
        check_suite(FLOORS, Suite.X25519)


def test_an_update_that_never_left_may_be_in_any_attempt():
    before = Promises(RUN, (promise(masked=False),))
    assert settle_retry(before, ref(attempt=2), NAMES[:4], 3, []) == before


@pytest.mark.parametrize("voices", range(11))
def test_other_cohorts_take_five_voices_of_ten(voices):
    before = Promises(RUN, (promise(),))
    given_up = [(name, bytes([1]) * 32) for name in NAMES[:voices]]
    if voices < 5:
        with pytest.raises(SumRefusedError, match=f"which {voices} of its 10 envoys gave up and 5 must"):
            settle_retry(before, ref(attempt=2), NAMES[:9], 7, given_up)
    else:
        assert settle_retry(before, ref(attempt=2), NAMES[:9], 7, given_up).records[0].dead


def test_a_voice_counts_once_for_its_own_attempt_and_from_its_own_cohort():
    before = Promises(RUN, (promise(),))
    doubled = [("s0", bytes([1]) * 32)] * 9
    of_another = [(name, bytes([9]) * 32) for name in NAMES]
    of_strangers = [(f"t{place}", bytes([1]) * 32) for place in range(9)]
    for given_up in (doubled, of_another, of_strangers):
        with pytest.raises(SumRefusedError):
            settle_retry(before, ref(attempt=2), NAMES[:9], 7, given_up)


def test_the_same_cohort_may_try_again_and_another_threshold_may_not():
    before = Promises(RUN, (promise(unmasked=True),))
    assert settle_retry(before, ref(attempt=2), NAMES, 7, []) == before
    with pytest.raises(SumRefusedError):
        settle_retry(before, ref(attempt=2), NAMES, 8, [])


def test_an_attempt_that_came_later_counts_like_one_that_came_before():
    before = Promises(RUN, (promise(attempt=3),))
    with pytest.raises(SumRefusedError):
        settle_retry(before, ref(attempt=2), NAMES[:9], 7, [])


def test_a_round_has_one_survivor_set_unless_the_other_attempt_is_dead():
    consented = promise(consented=NAMES)
    for before, passes in ((consented, False), (replace(consented, dead=True), True)):
        promises = Promises(RUN, (before,))
        check_differencing(FLOORS, ROSTER, promises, ref(attempt=2), NAMES)
        if passes:
            check_differencing(FLOORS, ROSTER, promises, ref(attempt=2), NAMES[:9])
        else:
            with pytest.raises(SumRefusedError, match="a second one would tell them apart"):
                check_differencing(FLOORS, ROSTER, promises, ref(attempt=2), NAMES[:9])


def test_sets_of_a_run_that_differ_by_few_organizations_are_counted():
    floors = SumFloors(max_differing_sums=1)
    first, second = promise(round_=1, consented=NAMES), promise(round_=2, consented=NAMES[:9])
    check_differencing(floors, ROSTER, Promises(RUN, (first,)), ref(2), NAMES[:9])
    both = Promises(RUN, (first, second))
    for again in (NAMES, NAMES[:9]):
        check_differencing(floors, ROSTER, both, ref(3), again)
    with pytest.raises(SumRefusedError, match="max_differing_sums"):
        check_differencing(floors, ROSTER, both, ref(3), NAMES[:8])
    check_differencing(floors, ROSTER, both, ref(3), NAMES[:6])  # far from both: three organizations at least
    none = SumFloors(max_differing_sums=0)
    with pytest.raises(SumRefusedError):
        check_differencing(none, ROSTER, Promises(RUN, (first,)), ref(2), NAMES[:9])


def test_envoys_of_one_organization_differ_as_one():
    roster = cast_of(NAMES, dict.fromkeys(NAMES[6:], "chain")).roster
    before = Promises(RUN, (promise(round_=1, consented=NAMES),))
    none = SumFloors(max_differing_sums=0)
    check_differencing(none, ROSTER, before, ref(2), NAMES[:6])  # four organizations
    with pytest.raises(SumRefusedError):
        check_differencing(none, roster, before, ref(2), NAMES[:6])  # one


def test_who_left_the_roster_still_counts_in_what_was_consented_to_before():
    left = Roster(ROSTER.federation, ROSTER.entries[:9])
    before = Promises(RUN, (promise(round_=1, consented=NAMES),))
    with pytest.raises(SumRefusedError):
        check_differencing(SumFloors(max_differing_sums=0), left, before, ref(2), NAMES[:9])


names = st.lists(st.sampled_from(NAMES), unique=True, max_size=10).map(sorted).map(tuple)
promises_ = st.builds(
    Promise,
    st.integers(1, 99),
    st.integers(1, 9),
    st.binary(min_size=32, max_size=32),
    names,
    st.integers(1, 10),
    st.integers(0, 3),
    st.booleans(),
    st.none() | names,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@given(promises_)
def test_a_promise_is_read_as_it_was_kept(one):
    assert Promise.from_json(one.to_json()) == one


@given(st.text(max_size=50) | st.sampled_from(["{}", "[]", "null", '{"consented":3,"cohort":[]}']))
def test_a_promise_that_cannot_be_read_is_no_promise_that_was_never_made(text):
    with pytest.raises(StorageError):
        Promise.from_json(text)


def test_promises_of_another_run_are_a_callers_mistake():
    with pytest.raises(ValueError, match="promises of lungs-1"):
        Promises(RUN).of(TaskRef(RunId("other"), 1, 1, "ab" * 32))
