"""The terms of a run's sums: bounds follow public sums, and what cannot be summed is refused with the reason."""

from __future__ import annotations

import pytest
from fedveil.director.experiments import ExperimentSettings, RoundSettings
from fedveil.director.sum_settings import SecureAggregation, SecureSumSettings
from fedveil.director.sum_terms import check_summable, first_bounds, next_bounds, terms_of
from fedveil.utils.aggregation import Aggregation, Method
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import AskedProtection
from fedveil.utils.secure_sum.terms import NoiseTerms, Suite, SumTerms
from fedveil.utils.tensors import Layout, Role
from hypothesis import given
from hypothesis import strategies as st

ROUNDS = RoundSettings(max_rounds=3, min_participants=3)
SCAFFOLD = Layout.of([("w", (2,), Role.PARAMETER), ("control/w", (2,), Role.CONTROL)])


def settings(**asked: object) -> ExperimentSettings:
    return ExperimentSettings("toy", ROUNDS, secure_sum=SecureSumSettings(**asked))


@pytest.mark.parametrize(
    ("clipped", "peak", "then"),
    [
        (0, 0.5, 8.0),
        (0, 0.0625, 8.0),
        (0, 0.0624, 4.0),  # nobody needs so much room
        (4, 0.01, 8.0),  # but somebody did
        (4, 0.9, 8.0),  # a thousandth
        (5, 0.9, 16.0),  # more
        (4000, 0.01, 16.0),
    ],
)
def test_a_bound_doubles_where_more_than_a_thousandth_is_cut_and_halves_where_nothing_comes_near(
    clipped: int, peak: float, then: float
):
    assert next_bounds((8.0,), (1000,), (clipped,), (peak,), 4, 8.0) == (then,)


def test_each_tensor_has_its_own_bound_and_one_for_all_follows_all():
    assert next_bounds((8.0, 2.0), (10, 10), (0, 9), (0.01, 0.9), 1, 8.0) == (4.0, 4.0)
    assert next_bounds((8.0,), (10, 10), (0, 9), (0.01, 0.9), 1, 8.0) == (16.0,)
    assert first_bounds(settings(clip=2.0), 3) == (2.0, 2.0, 2.0)
    assert first_bounds(settings(clip=2.0), 70_000) == (2.0,)


@given(st.lists(st.sampled_from([(0, 0.0), (1000, 1.0)]), max_size=200))
def test_a_bound_stays_in_reach_whatever_happens(rounds: list[tuple[int, float]]):
    bounds: tuple[float, ...] = (8.0,)
    for clipped, peak in rounds:
        bounds = next_bounds(bounds, (1000,), (clipped,), (peak,), 1, 8.0)
        assert 8.0 / 2**20 <= bounds[0] <= 8.0 * 2**20
        SumTerms(bounds=bounds)


def test_the_terms_are_those_of_the_experiment():
    asked = settings(suite=Suite.X25519, max_examples=100)
    assert terms_of(asked, (4.0, 2.0)) == SumTerms(Suite.X25519, (4.0, 2.0), 100)
    equal = settings(equal_weights=True)
    assert terms_of(equal, (4.0,)) == SumTerms(bounds=(4.0,), max_weight=1, equal_weights=True)
    many = ExperimentSettings("toy", RoundSettings(max_rounds=3, min_participants=20))
    assert terms_of(many, (4.0,)).histogram
    assert not terms_of(asked, (4.0,)).histogram


def test_no_rule_over_groups_shields_scaffolds_control_variates():
    rounds = RoundSettings(max_rounds=3, min_participants=9)
    asked = SecureSumSettings(groups=3, equal_weights=True)
    grouped = ExperimentSettings("toy", rounds, aggregation=Aggregation(Method.COORDINATE_MEDIAN), secure_sum=asked)
    with pytest.raises(ConfigError, match="no rule over groups shields them"):
        check_summable(grouped, SCAFFOLD)
    check_summable(grouped, Layout.of([("w", (2,), Role.PARAMETER)]))


def test_scaffold_needs_equal_weights_or_updates_in_the_clear():
    with pytest.raises(ConfigError, match="control variates are averaged without weights"):
        check_summable(settings(), SCAFFOLD)
    check_summable(settings(equal_weights=True), SCAFFOLD)
    check_summable(ExperimentSettings("toy", ROUNDS, secure_aggregation=SecureAggregation.OFF), SCAFFOLD)


def noised(participants: int, **asked: object) -> ExperimentSettings:
    rounds = RoundSettings(max_rounds=3, min_participants=participants)
    sums = SecureSumSettings(equal_weights=True, noise_multiplier=1.5, **asked)  # type: ignore[arg-type]
    return ExperimentSettings("toy", rounds, secure_sum=sums, protection=AskedProtection(0.25))


@pytest.mark.parametrize(
    ("participants", "asked", "parts"),
    [(3, {}, 2), (4, {}, 2), (7, {}, 4), (10, {}, 6), (10, {"colluding": 3}, 4), (10, {"honest": 9}, 9)],
)
def test_noise_is_in_as_many_parts_as_the_smallest_sum_has_honest_sites(
    participants: int, asked: dict[str, object], parts: int
) -> None:
    """Whatever the bounds of the run are, those of the noise follow from the norm: 32 times it."""
    noise = NoiseTerms(0.25, 1.5, parts)
    expected = SumTerms(bounds=(8.0,), max_weight=1, equal_weights=True, noise=noise)
    assert terms_of(noised(participants, **asked), (3.0, 4.0)) == expected


def test_running_statistics_get_no_noise_and_are_refused_with_the_reason() -> None:
    layout = Layout.of([("w", (2,), Role.PARAMETER), ("mean", (2,), Role.BUFFER)])
    with pytest.raises(ConfigError, match="a variance below 0 is none"):
        check_summable(noised(3), layout)
    check_summable(noised(3), SCAFFOLD)
    check_summable(settings(), layout)
