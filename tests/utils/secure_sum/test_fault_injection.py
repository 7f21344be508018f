"""Envoys drop out at every step: up to n - t of them change nothing but who is in the sum; more end it cleanly."""

import random

import numpy as np
import pytest
from fedveil.utils.errors import SumAbortedError
from fedveil.utils.secure_sum.rehearsal import ENVOY_STEPS, Network, Step, plain_total, spec_for
from fedveil.utils.secure_sum.rules import SumFloors
from fedveil.utils.secure_sum.terms import Suite, SumTerms

AFTER_THE_COHORT = [step for step in ENVOY_STEPS if step is not Step.ADVERT]
IN_THE_SUM = (Step.CONSENT, Step.UNMASKING)  # whoever drops out then has its vector in the sum


def check_sum(attempt: Network, outcome) -> None:
    """The sum is that of everybody whose vector came, to the bit."""
    assert outcome.aborted is None
    assert outcome.refusals == {}
    here = tuple(n for n in attempt.cast.names if attempt.drops.get(n) in (None, *IN_THE_SUM))
    assert outcome.survivors == here
    expected = plain_total(outcome.opened.cohort, attempt.contributions, here, attempt.seed)
    assert np.array_equal(outcome.total, expected)


@pytest.mark.parametrize("step", ENVOY_STEPS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_ten_sites_any_three_may_drop_out_at_any_step(network, step, count):
    for start in (0, 4, 7):
        names = [f"site-{place % 10:02d}" for place in range(start, start + count)]
        attempt = network(10, drops=dict.fromkeys(names, step))
        check_sum(attempt, attempt.run())


@pytest.mark.parametrize("seed", range(40))
def test_of_ten_sites_three_may_drop_out_each_at_another_step(network, seed):
    drawn = random.Random(seed)
    names = drawn.sample([f"site-{place:02d}" for place in range(10)], drawn.randint(1, 3))
    attempt = network(10, drops={name: drawn.choice(AFTER_THE_COHORT) for name in names}, seed=bytes([seed]) * 32)
    check_sum(attempt, attempt.run())


@pytest.mark.parametrize("count", range(7))
def test_any_number_may_drop_out_before_the_cohort_closes(network, count):
    attempt = network(10, drops={f"site-{place:02d}": Step.ADVERT for place in range(count)})
    outcome = attempt.run()
    check_sum(attempt, outcome)
    assert len(outcome.opened.cohort.names) == 10 - count


def test_three_drop_out_of_the_cohort_of_those_who_were_left(network):
    drops = {"site-00": Step.ADVERT, "site-01": Step.ADVERT, "site-05": Step.SHARES, "site-07": Step.MASKED}
    attempt = network(12, drops=drops | {"site-11": Step.UNMASKING})
    outcome = attempt.run()
    assert outcome.opened.cohort.threshold == 7
    check_sum(attempt, outcome)


@pytest.mark.parametrize("step", AFTER_THE_COHORT)
def test_four_of_ten_end_the_sum_cleanly_and_the_next_attempt_with_all_back_succeeds(network, step):
    first = network(10, drops={f"site-{place:02d}": step for place in (1, 4, 5, 8)})
    outcome = first.run()
    assert isinstance(outcome.aborted, SumAbortedError)
    assert "6 of 10 envoys" in str(outcome.aborted)
    assert outcome.total is None
    again = network(10, spec=spec_for((23, 8), 10, attempt=2), promises=outcome.promises)
    check_sum(again, again.run())


@pytest.mark.parametrize("step", [Step.SHARES, Step.MASKED, Step.CONSENT])
def test_four_of_ten_may_stay_away_from_the_next_attempt_where_nothing_was_revealed(network, step):
    gone = [f"site-{place:02d}" for place in (1, 4, 5, 8)]
    outcome = network(10, drops=dict.fromkeys(gone, step)).run()
    again = network(
        10,
        spec=spec_for((23, 8), 10, attempt=2),
        promises=outcome.promises,
        drops=dict.fromkeys(gone, Step.ADVERT),
    )
    check_sum(again, again.run())


def test_where_shares_were_revealed_and_sites_stay_away_the_round_is_lost_and_nothing_else(network):
    gone = [f"site-{place:02d}" for place in (1, 4, 5, 8)]
    outcome = network(10, drops=dict.fromkeys(gone, Step.UNMASKING)).run()
    away = dict.fromkeys(gone, Step.ADVERT)
    spec = spec_for((23, 8), 10, attempt=2)
    again = network(10, spec=spec, promises=outcome.promises, drops=away).run()
    assert isinstance(again.aborted, SumAbortedError)
    assert len(again.refusals) == 6
    assert again.vectors == {}
    later = network(10, spec=spec_for((23, 8), 10, round_number=2), promises=again.promises, drops=away)
    check_sum(later, later.run())


@pytest.mark.parametrize("step", AFTER_THE_COHORT)
def test_of_four_sites_one_may_drop_out_and_of_three_none(network, step):
    attempt = network(4, drops={"site-02": step})
    check_sum(attempt, attempt.run())
    assert isinstance(network(3, drops={"site-02": step}).run().aborted, SumAbortedError)


@pytest.mark.parametrize("step", AFTER_THE_COHORT)
def test_a_drop_out_is_recovered_in_the_post_quantum_suite_too(network, step):
    hybrid = SumFloors(suites=(Suite.MLKEM768_X25519,))
    attempt = network(4, floors=hybrid, terms=SumTerms(bounds=(1.0,), max_weight=1000), drops={"site-01": step})
    check_sum(attempt, attempt.run())


def test_everybody_may_drop_out_once_in_a_run_of_rounds(network):
    promises, floors = {}, SumFloors(suites=tuple(Suite), max_differing_sums=10)
    for place in range(10):
        attempt = network(
            10,
            floors=floors,
            spec=spec_for((23, 8), 10, round_number=place + 1),
            drops={f"site-{place:02d}": Step.MASKED},
            promises=promises,
        )
        outcome = attempt.run()
        check_sum(attempt, outcome)
        promises = outcome.promises
