import pytest
from fedveil.utils.errors import ConfigError
from fedveil.utils.privacy.accounting import stopping
from fedveil.utils.privacy.events import SampledGaussian
from fedveil.utils.privacy.planning import noise_for, rounds_within
from fedveil.utils.privacy.values import Unit
from hypothesis import given, settings
from hypothesis import strategies as st


def a_round(noise):
    return SampledGaussian(0.05, noise, 20)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.6, 10), st.floats(0.3, 10))
def test_so_many_rounds_fit_and_not_one_more(noise, epsilon):
    count = rounds_within(a_round(noise), epsilon, 1e-5)
    if count:
        assert stopping([a_round(noise).scaled(count)], 1e-5, Unit.PATIENT).value <= epsilon * (1 + 1e-9)
    assert stopping([a_round(noise).scaled(count + 1)], 1e-5, Unit.PATIENT).value > epsilon * (1 - 1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 200), st.floats(0.3, 8))
def test_the_noise_that_was_found_is_the_least_to_a_part_in_ten_thousand(rounds, epsilon):
    noise = noise_for(a_round, rounds, epsilon, 1e-5)
    assert rounds_within(a_round(noise), epsilon, 1e-5) >= rounds
    assert rounds_within(a_round(noise * 0.999), epsilon, 1e-5) < rounds


def test_what_was_spent_leaves_less_room():
    assert rounds_within(a_round(1.0), 3.0, 1e-5, [a_round(1.0)]) == rounds_within(a_round(1.0), 3.0, 1e-5) - 1


def test_rounds_that_no_noise_lets_in_are_said_to_be_so():
    with pytest.raises(ConfigError, match="no noise multiplier up to"):
        noise_for(a_round, 1, 0.5, 1e-5, [SampledGaussian(1.0, 0.5)])


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (1, 0), (1, 1)])
def test_a_budget_that_is_none_is_refused(epsilon, delta):
    with pytest.raises(ConfigError):
        rounds_within(a_round(1.0), epsilon, delta)
