"""Codes shared out tensor by tensor."""

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.blocks import Dense, TwoSided
from fedveil.gradient_leakage.vae.codec import Basis
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.gradient_leakage.vae.layered import Option, fit_layered, share_out
from fedveil.utils.errors import ConfigError
from fedveil.utils.tensors import Layout, Role
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUT = Layout.of(
    [
        ("conv.weight", (8, 20, 3, 3), Role.PARAMETER),
        ("conv.bias", (8,), Role.PARAMETER),
        ("wide.weight", (40, 60), Role.PARAMETER),
        ("head.weight", (2, 40), Role.PARAMETER),
    ]
)


def updates(count, seed=0, *, loud=100.0):
    """Of low rank in every tensor, with a little noise; the first tensor has nearly all of the energy."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).standard_normal((12, LAYOUT.size))
    rows = rng.standard_normal((count, 12)) @ shared + 0.01 * rng.standard_normal((count, LAYOUT.size))
    first = LAYOUT.entries[0]
    rows[:, first.offset : first.offset + first.size] *= loud
    return rows.astype(np.float32)


def kept_of(codec, name, rows):
    entry = next(entry for entry in LAYOUT.entries if entry.name == name)
    place = slice(entry.offset, entry.offset + entry.size)
    found = np.stack([codec.decode(codec.encode(row))[place] for row in rows])
    return 1 - np.square(rows[:, place] - found).sum() / np.square(rows[:, place]).sum()


def test_small_tensors_are_one_block_and_each_large_one_has_its_own():
    codec = fit_layered(LAYOUT, updates(60), 100)
    assert [block.names for block in codec.blocks] == [("conv.bias", "head.weight"), ("conv.weight",), ("wide.weight",)]
    assert all(isinstance(block, Dense) for block in codec.blocks)
    assert codec.size <= LAYOUT.size / 100
    assert not codec.passed


def test_a_loud_tensor_does_not_take_the_numbers_of_quiet_ones():
    rows, unseen = updates(60), updates(20, seed=1)
    fair, greedy = fit_layered(LAYOUT, rows, 100), fit(LAYOUT, rows, 100)
    for name in ("head.weight", "wide.weight"):
        assert kept_of(fair, name, unseen) > 0.9
    layouts = kept_of(greedy, "conv.weight", unseen), kept_of(fair, "conv.weight", unseen)
    assert min(layouts) > 0.9


def test_tensors_that_follow_the_same_few_directions_get_about_as_many_numbers():
    sizes = [block.size for block in fit_layered(LAYOUT, updates(60, loud=1.0), 160).blocks]
    assert max(sizes) <= 2 * min(sizes)


def test_two_sided_codes_take_fewer_parameters_and_the_small_group_stays_dense():
    dense, sided = (fit_layered(LAYOUT, updates(60), 50, two_sided=flag) for flag in (False, True))
    assert [type(block) for block in sided.blocks] == [Dense, TwoSided, TwoSided]
    assert sided.num_parameters < dense.num_parameters / 3
    assert sided.size <= LAYOUT.size / 50


@settings(deadline=None, max_examples=15)
@given(st.floats(3, 500), st.booleans(), st.integers(0, 3))
def test_the_wanted_compression_is_reached_and_a_code_is_a_projection(ratio, two_sided, seed):
    codec = fit_layered(LAYOUT, updates(30, seed), ratio, two_sided=two_sided)
    assert codec.compression >= ratio
    payload = np.random.default_rng(seed).standard_normal(codec.size).astype(np.float32)
    np.testing.assert_allclose(codec.encode(codec.decode(payload)), payload, atol=1e-4)


def test_a_share_of_fresh_directions_is_drawn_each_round():
    codec = fit_layered(LAYOUT, updates(60), 50, seeded_share=0.5)
    assert codec.is_drawn_each_round
    assert codec.size <= LAYOUT.size / 50
    assert sum(block.fresh for block in codec.blocks) >= 0.4 * codec.size
    row = updates(1, seed=3)[0]
    one, other = (codec.for_round(bytes([number]) * 32).encode(row) for number in (1, 2))
    assert not np.array_equal(one, other)


def test_a_history_says_so():
    assert fit_layered(LAYOUT, updates(5), 100, basis=Basis.HISTORY).basis is Basis.HISTORY


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ratio": 5000.0}, "ask for a ratio"),
        ({"ratio": 0.5}, "ask for a ratio"),
        ({"updates": updates(0)}, "expected \\(at least 1"),
        ({"updates": updates(4)[:, :-1]}, "expected \\(at least 1"),
        ({"updates": np.full((4, LAYOUT.size), np.nan, np.float32)}, "NaN"),
        ({"updates": np.zeros((4, LAYOUT.size), np.float32)}, "nothing can be learned"),
        ({"seeded_share": 1.0}, "seeded_share is 1.0"),
        ({"seeded_share": 0.5, "two_sided": True}, "two-sided"),
        ({"basis": Basis.SEEDED}, "learns from no updates"),
        ({"layout": Layout.of([("a", (9, 9), Role.PARAMETER), ("mean", (9,), Role.BUFFER)])}, "buffers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, complaint):
    given_ = {"layout": LAYOUT, "updates": updates(8), "ratio": 100.0, **change}
    with pytest.raises(ConfigError, match=complaint):
        fit_layered(**given_)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)
def test_sharing_out_is_the_best_of_all_ways(groups, more):
    options = [[Option(size, kept) for size, kept in group] for group in groups]
    budget = sum(min(size for size, _ in group) for group in groups) + more

    def best(left, budget):
        if not left:
            return 0.0
        fits = (o.kept + best(left[1:], budget - o.size) for o in left[0] if o.size <= budget)
        return max(fits, default=float("-inf"))

    chosen = share_out(options, budget)
    assert sum(option.size for option in chosen) <= budget
    assert sum(option.kept for option in chosen) == pytest.approx(best(options, budget))
