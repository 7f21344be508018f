"""Aggregation: the right numbers, the same to the last bit, in little memory, and hard to bend."""

from __future__ import annotations

import doctest
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from fedveil.utils import aggregation
from fedveil.utils.aggregation import Aggregation, Method, aggregate, is_finite
from fedveil.utils.errors import ConfigError, EmptyRoundError, NoQuorumError
from fedveil.utils.messages import EnvoyName
from fedveil.utils.tensors import Layout, Role, Vector
from hypothesis import given, settings
from hypothesis import strategies as st

MEAN = Aggregation()
MEDIAN = Aggregation(Method.COORDINATE_MEDIAN)
TRIMMED = Aggregation(Method.TRIMMED_MEAN, trim_fraction=0.2)
KRUM = Aggregation(Method.KRUM, byzantine=1)
MULTI_KRUM = Aggregation(Method.MULTI_KRUM, byzantine=1)
BOUNDED = Aggregation(Method.NORM_BOUNDING, max_norm=1.0)
EVERY_RULE = (MEAN, MEDIAN, TRIMMED, KRUM, MULTI_KRUM, BOUNDED)
ROBUST_RULES = (MEDIAN, TRIMMED, KRUM, MULTI_KRUM)


@dataclass(frozen=True, slots=True)
class Held:
    envoy: EnvoyName
    num_examples: int
    vector: Vector

    def read(self, start: int, out: Vector) -> None:
        out[:] = self.vector[start : start + out.size]


def flat(size: int) -> Layout:
    return Layout.of([("w", (size,), Role.PARAMETER)])


def held(*rows: Sequence[float], examples: Sequence[int] | None = None) -> list[Held]:
    counts = examples or [1] * len(rows)
    return [
        Held(EnvoyName(f"site-{nth:03}"), count, np.array(row, np.float32))
        for nth, (row, count) in enumerate(zip(rows, counts, strict=True))
    ]


def result(
    rule: Aggregation, updates: Sequence[Held], layout: Layout | None = None, *, block: int = 7, share: float = 1.0
) -> Vector:
    layout = layout or flat(updates[0].vector.size)
    out = np.full(layout.size, np.nan, np.float32)
    aggregate(rule, layout, updates, out, participation=share, block=block)
    return out


def crowd(count: int, size: int, seed: int = 0) -> list[Held]:
    rng = np.random.default_rng(seed)
    return [
        Held(EnvoyName(f"site-{nth:03}"), int(rng.integers(1, 2000)), rng.standard_normal(size, dtype=np.float32))
        for nth in range(count)
    ]


def test_the_mean_is_weighted_by_examples() -> None:
    updates = held([1, 10], [4, 20], examples=[3, 1])
    assert result(MEAN, updates).tolist() == [1.75, 12.5]
    assert aggregate(MEAN, flat(2), updates, np.empty(2, np.float32)) == 4


def test_one_update_is_its_own_mean_exactly() -> None:
    updates = crowd(1, 50)
    assert np.array_equal(result(MEAN, updates), updates[0].vector)


def test_an_update_without_examples_counts_nothing() -> None:
    assert result(MEAN, held([1], [100], examples=[2, 0])).tolist() == [1]


def test_controls_get_their_plain_mean_times_the_share_that_took_part() -> None:
    layout = Layout.of([("w", (1,), Role.PARAMETER), ("b", (1,), Role.BUFFER), ("c", (2,), Role.CONTROL)])
    updates = held([0, 0, 2, 4], [4, 8, 6, 8], examples=[1, 3])
    assert result(MEAN, updates, layout, share=0.5).tolist() == [3, 6, 2, 3]
    assert result(MEDIAN, updates, layout, share=0.5).tolist() == [2, 4, 2, 3]


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_the_mean_is_within_its_stated_bound_of_the_float64_one(count: int) -> None:
    updates = crowd(count, 1000, seed=count)
    weights = np.array([u.num_examples for u in updates], np.float64)
    weights /= weights.sum()
    rows = np.stack([u.vector for u in updates]).astype(np.float64)
    bound = (count + 2) * 2.0**-24 * (weights @ np.abs(rows))
    assert (np.abs(result(MEAN, updates, block=300) - weights @ rows) <= bound).all()


def test_the_median_of_three_and_of_four() -> None:
    assert result(MEDIAN, held([1, 9], [5, 7], [3, -8])).tolist() == [3, 7]
    assert result(MEDIAN, held([1], [5], [3], [100])).tolist() == [4]


@pytest.mark.parametrize("count", range(1, 20))
def test_median_and_trimmed_mean_agree_with_numpy(count: int) -> None:
    updates = crowd(count, 101, seed=count)
    rows = np.stack([u.vector for u in updates]).astype(np.float64)
    assert np.allclose(result(MEDIAN, updates), np.median(rows, axis=0), rtol=1e-6, atol=1e-7)
    if count >= 5:
        cut = count // 5
        expected = np.sort(rows, axis=0)[cut : count - cut].mean(axis=0)
        assert np.allclose(result(TRIMMED, updates), expected, rtol=1e-5, atol=1e-6)


def test_the_trimmed_mean_of_five_drops_one_at_each_end() -> None:
    assert result(TRIMMED, held([0], [1], [2], [6], [1000])).tolist() == [3]


def test_krum_keeps_the_update_in_the_densest_place() -> None:
    updates = held([0.0], [1.0], [1.5], [4.0], [100.0])
    # With f = 1 each score sums the 2 nearest: 0 -> 1 + 2.25, 1 -> 0.25 + 1, 1.5 -> 0.25 + 2.25, 4 -> 6.25 + 9.
    assert result(KRUM, updates).tolist() == [1.0]
    assert result(MULTI_KRUM, updates).tolist() == [1.25]


def test_krum_takes_the_first_name_among_equals() -> None:
    same = held([2.0], [2.0], [2.0], [2.0], [7.0])
    assert result(KRUM, same).tolist() == [2.0]


def test_krum_agrees_with_its_definition() -> None:
    updates = crowd(9, 60, seed=3)
    rows = np.stack([u.vector for u in updates]).astype(np.float64)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    scores = [np.sort(np.delete(squared[at], at))[: 9 - 1 - 2].sum() for at in range(9)]
    order = np.argsort(scores)
    assert np.array_equal(result(KRUM, updates), rows[order[0]].astype(np.float32))
    assert np.allclose(result(MULTI_KRUM, updates), rows[order[:6]].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_norm_bounding_scales_only_what_is_longer_than_the_bound() -> None:
    assert np.allclose(result(BOUNDED, held([3, 4], [0.3, 0.4])), [(0.6 + 0.3) / 2, (0.8 + 0.4) / 2], rtol=1e-6)
    assert result(BOUNDED, held([0, 0])).tolist() == [0, 0]


@settings(deadline=None, max_examples=50)
@given(
    rule=st.sampled_from(EVERY_RULE),
    count=st.integers(5, 9),
    size=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_result_does_not_depend_on_who_answers_first(
    rule: Aggregation, count: int, size: int, seed: int, shuffle: object
) -> None:
    updates = crowd(count, size, seed)
    mixed = list(updates)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert result(rule, updates).tobytes() == result(rule, mixed).tobytes()


FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, max_examples=100)
@given(
    rule=st.sampled_from((MEAN, MEDIAN, TRIMMED)),
    rows=st.integers(1, 30).flatmap(
        lambda size: st.lists(st.lists(FINITE, min_size=size, max_size=size), min_size=5, max_size=8)
    ),
    block=st.integers(1, 31),
)
def test_the_result_does_not_depend_on_the_size_of_the_blocks(
    rule: Aggregation, rows: list[list[float]], block: int
) -> None:
    updates = held(*rows)
    assert result(rule, updates, block=block).tobytes() == result(rule, updates, block=1 << 17).tobytes()


@settings(deadline=None, max_examples=60)
@given(
    rule=st.sampled_from(ROBUST_RULES),
    seed=st.integers(0, 10**6),
    huge=FINITE.filter(lambda x: abs(x) > 1e3),
    at=st.integers(0, 6),
)
def test_one_bad_update_cannot_leave_the_range_of_the_good_ones(
    rule: Aggregation, seed: int, huge: float, at: int
) -> None:
    good = crowd(7, 20, seed)
    bad = Held(good[at].envoy, 10**9, np.full(20, huge, np.float32))
    honest = np.stack([u.vector for nth, u in enumerate(good) if nth != at])
    bent = result(rule, [bad if nth == at else update for nth, update in enumerate(good)])
    margin = 1e-5 + 1e-6 * np.abs(honest).max(axis=0)
    assert (bent >= honest.min(axis=0) - margin).all()
    assert (bent <= honest.max(axis=0) + margin).all()


def test_the_plain_mean_is_bent_by_one_bad_update_so_the_tests_of_the_rules_mean_something() -> None:
    assert result(MEAN, held([0.0], [0.0], [0.0], [0.0], [1e9]))[0] > 1e8


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), huge=st.floats(1e3, 1e18))
def test_norm_bounding_bounds_what_one_envoy_can_do(seed: int, huge: float) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal(30) * 0.01 for _ in range(4)]
    honest = held(*rows, np.zeros(30))
    bent = held(*rows, rng.standard_normal(30) * huge)
    moved = np.linalg.norm(result(BOUNDED, bent) - result(BOUNDED, honest))
    assert moved <= 1.0 / 5 * (1 + 1e-5)


def test_the_last_layer_of_an_odd_size_and_several_blocks_is_whole() -> None:
    size = aggregation.BLOCK * 2 + 17
    updates = crowd(6, size)
    for rule in EVERY_RULE:
        out = np.full(size, np.nan, np.float32)
        aggregate(rule, flat(size), updates, out)
        assert is_finite(out)
        assert np.allclose(out[-40:], result(rule, updates, block=997)[-40:], rtol=1e-6)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.method.value)
def test_memory_does_not_grow_with_the_number_of_updates(rule: Aggregation) -> None:
    size = 1 << 20
    vector = np.ones(size, np.float32)
    out = np.empty(size, np.float32)

    def peak(count: int) -> int:
        updates = [Held(EnvoyName(f"site-{nth:03}"), 1, vector) for nth in range(count)]
        tracemalloc.start()
        try:
            aggregate(rule, flat(size), updates, out)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    limit = 6 << 20  # 4 MiB of rows, one block in float64, small things; 32 updates are 128 MiB
    assert peak(5) < limit
    assert peak(32) < limit


def test_nothing_to_average_is_an_error_and_no_silent_zero() -> None:
    with pytest.raises(EmptyRoundError, match="0 updates"):
        aggregate(MEAN, flat(1), [], np.empty(1, np.float32))
    with pytest.raises(EmptyRoundError, match="2 updates with no examples"):
        aggregate(MEDIAN, flat(1), held([1], [2], examples=[0, 0]), np.empty(1, np.float32))


def test_a_rule_refuses_fewer_updates_than_its_promise_needs() -> None:
    four = held([1], [2], [3], [4])
    for rule in (KRUM, MULTI_KRUM, TRIMMED):
        assert rule.min_updates == 5
        with pytest.raises(NoQuorumError, match="needs 5 updates as it is set, 4 came"):
            result(rule, four)
        assert result(rule, held([1], [2], [3], [4], [5])).size == 1


def test_a_callers_mistakes_are_its_own() -> None:
    twice = held([1])[0]
    with pytest.raises(ValueError, match="one update of an envoy"):
        result(MEAN, [twice, twice])
    with pytest.raises(ValueError, match="at least 0 examples"):
        result(MEAN, held([1], examples=[-1]))
    with pytest.raises(ValueError, match="out has shape"):
        aggregate(MEAN, flat(2), held([1, 2]), np.empty(1, np.float32))


@pytest.mark.parametrize(
    ("given_keys", "words"),
    [
        ({"method": Method.TRIMMED_MEAN}, "trim_fraction must be given with method trimmed_mean"),
        ({"method": Method.KRUM}, "byzantine must be given"),
        ({"method": Method.NORM_BOUNDING}, "max_norm must be given"),
        ({"method": Method.KRUM, "byzantine": 1, "trim_fraction": 0.1}, "trim_fraction belongs to trimmed_mean"),
        ({"max_norm": 1.0}, "max_norm belongs to norm_bounding, and the method is weighted_mean"),
        ({"byzantine": 1}, "byzantine belongs to krum and multi_krum"),
        ({"method": Method.TRIMMED_MEAN, "trim_fraction": 0.5}, "less than 0.5"),
        ({"method": Method.TRIMMED_MEAN, "trim_fraction": 0.0}, "more than 0"),
        ({"method": Method.KRUM, "byzantine": 0}, "at least 1"),
        ({"method": Method.NORM_BOUNDING, "max_norm": 0.0}, "more than 0"),
    ],
)
def test_contradictory_settings_are_refused_with_the_reason(given_keys: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Aggregation(**given_keys)  # type: ignore[arg-type]


def test_each_rule_says_what_it_needs() -> None:
    assert [rule.needs_all_updates for rule in EVERY_RULE] == [False, True, True, True, True, False]
    assert [rule.works_under_secure_aggregation for rule in EVERY_RULE] == [True] + [False] * 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 999, 300_000])
def test_one_nan_or_infinity_anywhere_is_found(bad: float, at: int) -> None:
    vector = np.ones(300_001, np.float32)
    assert is_finite(vector)
    vector[at] = bad
    assert not is_finite(vector)


def test_large_but_finite_values_are_finite() -> None:
    assert is_finite(np.full(1000, 3e38, np.float32))
    assert is_finite(np.array([], np.float32))


@given(st.integers(0, 9), st.lists(st.integers(-3, 3), min_size=10, max_size=10))
def test_the_comparators_sort(count: int, values: list[int]) -> None:
    values = values[:count]
    expected = sorted(values)
    for low, high in aggregation._comparators(count):
        values[low], values[high] = min(values[low], values[high]), max(values[low], values[high])
    assert values == expected


def test_doctests() -> None:
    assert doctest.testmod(aggregation).failed == 0
