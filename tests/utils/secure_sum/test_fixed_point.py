"""Numbers become ring elements without bias and without overflow, the same whatever the cut."""

import itertools
import json
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fedveil.utils.errors import EmptyRoundError, MalformedMessageError, NonFiniteUpdateError
from fedveil.utils.secure_sum.fixed_point import LEVELS, FixedPoint
from fedveil.utils.secure_sum.masks import Masker
from hypothesis import given, settings
from hypothesis import strategies as st

VECTORS = json.loads((Path(__file__).parent / "vectors" / "fixed_point.json").read_text("utf-8"))["cases"]
KEY = bytes(range(32))
finite = st.floats(-20, 20, width=32)


def encoded(numbers, vector, weight, key=KEY, start=0):
    out, clipped = np.empty(len(vector), np.uint32), np.zeros(len(numbers.sizes), np.int64)
    numbers.encode(np.asarray(vector, np.float32), start, weight, key, out, clipped)
    return out, clipped


def decoded(numbers, total, weight):
    out = np.empty(numbers.size, np.float32)
    numbers.decode(total, weight, out)
    return out


def single(bound):
    return struct.unpack("<f", struct.pack("<f", bound))[0]


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case):
    numbers = FixedPoint(tuple(case["sizes"]), tuple(case["bounds"]), case["max_total"])
    out, clipped = encoded(numbers, case["values"], case["weight"], bytes.fromhex(case["rounding_key"]))
    assert out.tolist() == case["elements"]
    assert clipped.tolist() == case["clipped"]
    assert decoded(numbers, out, case["weight"]).tolist() == case["mean_of_this_site_alone"]


def test_worked_numbers():
    # one site with all the weight, bound 1: one half is 2^29, and the bound itself 2^30
    numbers = FixedPoint((4,), (1.0,), 10)
    out, clipped = encoded(numbers, [0.5, 1.0, -1.0, 7.0], 10)
    assert out.tolist() == [1 << 29, 1 << 30, 2**32 - (1 << 30), 1 << 30]
    assert clipped.tolist() == [1]
    assert decoded(numbers, out, 10).tolist() == [0.5, 1.0, -1.0, 1.0]


SIZES, BOUNDS = (3, 0, 40_000, 1, 5), (0.5, 1.0, 2.0, 2.0, 8.0)


@given(st.lists(st.integers(0, sum(SIZES)), max_size=5), st.sampled_from([(4.0,), BOUNDS]), st.integers(0, 70))
@settings(deadline=None, max_examples=40)
def test_any_cut_gives_the_integers_and_counts_of_the_whole(cuts, bounds, weight):
    numbers = FixedPoint(SIZES, bounds, 300)
    vector = (np.random.default_rng(weight).standard_normal(numbers.size) * 2).astype(np.float32)
    whole, counts = encoded(numbers, vector, weight)
    edges = [0, *sorted(cuts), numbers.size]
    parts = [encoded(numbers, vector[a:b], weight, start=a) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate([part for part, _ in parts]), whole)
    assert np.array_equal(sum(count for _, count in parts), counts)
    mean = decoded(numbers, whole, 1)
    out = np.empty_like(mean)
    for a, b in itertools.pairwise(edges):
        numbers.decode_part(whole[a:b], a, 1, out[a:b])
    assert np.array_equal(mean, out)


def test_cut_numbers_are_counted_in_their_tensor():
    numbers = FixedPoint(SIZES, BOUNDS, 1)
    vector = np.zeros(numbers.size, np.float32)
    vector[[0, 2]] = 0.51  # tensor 0
    vector[3] = -2.5  # the first of tensor 2, whose bound is 2
    vector[40_003] = 2.0  # tensor 3: at its bound, not beyond
    vector[-1] = 8.5  # tensor 4
    _, clipped = encoded(numbers, vector, 1)
    assert clipped.tolist() == [2, 0, 1, 0, 1]


@given(st.lists(st.tuples(st.lists(finite, min_size=3, max_size=3), st.integers(0, 50)), min_size=1, max_size=12))
@settings(deadline=None)
def test_the_sum_is_off_by_less_than_one_step_a_site(sites):
    """Against exact fractions: the sum of weight * number, in steps of bound / LEVELS of the whole weight."""
    numbers = FixedPoint((3,), (8.0,), 50 * len(sites))
    total, exact = np.zeros(3, np.uint32), [Fraction(0)] * 3
    for nth, (values, weight) in enumerate(sites):
        total += encoded(numbers, values, weight, bytes([nth]) * 32)[0]
        for at, value in enumerate(values):
            cut = min(max(Fraction(value), Fraction(-8)), Fraction(8))
            exact[at] += cut * weight * LEVELS / (8 * numbers.max_total)
    for got, wanted in zip(total.view(np.int32).tolist(), exact, strict=True):
        assert abs(got - wanted) < len(sites)


@given(st.integers(1, 2000))
@settings(deadline=None, max_examples=30)
def test_sites_that_all_send_the_bound_do_not_overflow(sites):
    numbers = FixedPoint((2,), (0.1,), 65536 * sites)
    one, _ = encoded(numbers, [0.1, -0.1], 65536)
    total = (one.astype(np.uint64) * sites).astype(np.uint32)
    assert decoded(numbers, total, 65536 * sites) == pytest.approx([0.1, -0.1], rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1 / 3, 0.5, 0.9, 2.0**-12])
@pytest.mark.parametrize("whole", [0, 5, -(1 << 20)])
def test_rounding_goes_up_as_often_as_the_fraction_says(fraction, whole):
    """A million draws: a mean within five standard errors, and only the two neighbours."""
    count = 1 << 20
    numbers = FixedPoint((count,), (1.0,), 1 << 24)  # y = x * 2^30 * weight / 2^24
    number = np.float32((whole + fraction) / 2**26)
    steps = float(number) * 2**26
    out, _ = encoded(numbers, np.full(count, number), 1 << 20, os.urandom(32))
    values = out.view(np.int32)
    assert set(np.unique(values)) <= {int(np.floor(steps)), int(np.ceil(steps))}
    share = steps - np.floor(steps)
    assert values.mean() == pytest.approx(steps, abs=5 * np.sqrt(share * (1 - share) / count) + 1e-9)


def test_masked_and_unmasked_sums_are_equal_to_the_bit():
    sites, size = 5, 30_000
    numbers = FixedPoint((size,), (1.0,), 100 * sites)
    pairs = {(low, high): os.urandom(32) for high in range(sites) for low in range(high)}
    own = [os.urandom(32) for _ in range(sites)]
    plain, masked = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    for site in range(sites):
        vector = np.random.default_rng(site).standard_normal(size).astype(np.float32)
        out, _ = encoded(numbers, vector, 10 * site + 7, bytes([site]) * 32)
        plain += out
        plus = [own[site], *(key for (low, _), key in pairs.items() if low == site)]
        Masker(plus, [key for (_, high), key in pairs.items() if high == site]).apply(out)
        masked += out
    Masker([], own).apply(masked)
    assert np.array_equal(plain, masked)


def test_without_a_key_numbers_are_rounded_to_the_nearest_and_halves_to_even():
    numbers = FixedPoint((6,), (1.0,), 1)
    steps = np.array([0.5, 1.5, -0.5, 2.49, 2.51, -7.0])
    out, _ = encoded(numbers, steps / LEVELS, 1, None)
    assert out.view(np.int32).tolist() == [0, 2, 0, 2, 3, -7]


def test_a_sum_can_be_decoded_where_it_stands():
    numbers = FixedPoint((40_000,), (1.0,), 30)
    total, _ = encoded(numbers, np.random.default_rng(0).standard_normal(40_000) / 9, 7)
    elsewhere = decoded(numbers, total, 7)
    numbers.decode(total, 7, total.view(np.float32))
    assert np.array_equal(total.view(np.float32), elsewhere)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 9_000, 20_000])
def test_nan_and_infinity_are_refused(bad, at):
    vector = np.zeros(20_001, np.float32)
    vector[at] = bad
    with pytest.raises(NonFiniteUpdateError):
        encoded(FixedPoint((20_001,), (1.0,), 1), vector, 1)


def test_peaks_are_shares_of_the_bound_in_the_mean():
    numbers = FixedPoint((2, 0, 3), (1.0, 1.0, 4.0), 40)
    total, _ = encoded(numbers, [0.25, -0.5, 0, 1.0, -3.0], 10)
    assert numbers.peaks(total, 10) == pytest.approx((0.5, 0.0, 0.75))


def test_a_weight_that_sites_cannot_have_together_is_no_sum():
    numbers = FixedPoint((1,), (1.0,), 40)
    with pytest.raises(EmptyRoundError):
        decoded(numbers, np.zeros(1, np.uint32), 0)
    for weight in (41, 2**63):
        with pytest.raises(MalformedMessageError, match="expected at most 40"):
            decoded(numbers, np.zeros(1, np.uint32), weight)


def test_an_evaluation_has_no_numbers_to_encode():
    numbers = FixedPoint((), (8.0,), 4)
    out, clipped = encoded(numbers, [], 1)
    assert numbers.size == out.size == clipped.size == 0
    assert numbers.peaks(out, 1) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: FixedPoint((1, 2), (1.0, 2.0, 3.0), 1),
        lambda: FixedPoint((1, -2), (1.0,), 1),
        lambda: FixedPoint((1,), (0.0,), 1),
        lambda: FixedPoint((1,), (1e-60,), 1),
        lambda: FixedPoint((1,), (float("nan"),), 1),
        lambda: FixedPoint((1,), (1.0,), 0),
        lambda: encoded(FixedPoint((1,), (1.0,), 1), [1.0], 2),
        lambda: encoded(FixedPoint((1,), (1.0,), 1), [1.0, 2.0], 1),
        lambda: encoded(FixedPoint((1,), (1.0,), 1), [1.0], 1, b"short"),
        lambda: encoded(FixedPoint((1,), (1.0,), 1), [1.0], 1, start=1),
        lambda: FixedPoint((1,), (1.0,), 1).encode(np.zeros(1), 0, 1, KEY, np.zeros(1, np.uint32), np.zeros(1, int)),
        lambda: decoded(FixedPoint((1,), (1.0,), 1), np.zeros(2, np.uint32), 1),
    ],
)
def test_our_own_callers_mistakes_are_value_errors(wrong):
    with pytest.raises(ValueError), np.errstate(all="ignore"):
        wrong()


def test_bounds_are_read_as_float32():
    assert FixedPoint((1,), (0.1,), 1) == FixedPoint((1,), (0.1,), 1)
    out, clipped = encoded(FixedPoint((1,), (0.1,), 1), [single(0.1)], 1)
    assert (out.tolist(), clipped.tolist()) == ([LEVELS], [0])


@pytest.mark.parametrize("bound", [1e35, 1e-17, 1e-25, 1e-38])
def test_any_bound_cuts_and_counts(bound):
    numbers = FixedPoint((3,), (bound,), 1)
    out, clipped = encoded(numbers, [bound / 2, -2 * bound, bound / 4], 1)
    assert clipped.tolist() == [1]
    assert decoded(numbers, out, 1) / bound == pytest.approx([0.5, -1.0, 0.25], rel=1e-5)
