"""From proxy updates to a codec of the wanted size."""

import time

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.blocks import Dense, TwoSided
from fedveil.gradient_leakage.vae.codec import Basis, codec_bytes
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.gradient_leakage.vae.two_sided import Candidate, allot
from fedveil.utils.errors import ConfigError
from fedveil.utils.tensors import Layout, Role
from fedveil.utils.vision import models
from hypothesis import given, settings
from hypothesis import strategies as st


def updates_of(layout: Layout, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, layout.size), np.float32)


def kept(codec, updates: np.ndarray) -> float:
    """Share of the energy that coding keeps."""
    coded = np.stack([codec.decode(codec.encode(update)) for update in updates])
    return float(np.square(coded).sum() / np.square(updates).sum())


@pytest.mark.parametrize("ratio", [1, 2, 17.3, 20, 60])
def test_the_payload_is_at_least_as_many_times_smaller_as_was_asked(small, ratio):
    for codec in (fit(small, updates_of(small, 700), ratio), seeded(small, ratio)):
        assert codec.compression >= ratio
        assert codec.size == int(small.size / ratio) or ratio == 1


@pytest.mark.parametrize("ratio", [20, 61.7, 400])
def test_large_models_meet_the_ratio_too_with_fewer_parameters_than_the_model(large, ratio):
    codec = fit(large, updates_of(large, 6), ratio)
    assert ratio <= codec.compression <= 1.1 * ratio
    assert codec.num_parameters <= large.size


def test_a_ratio_that_the_buffers_do_not_allow_is_refused_with_the_one_that_can_be_reached(small):
    with pytest.raises(ConfigError, match=r"9 of them are buffers.* at most 66\.9"):
        fit(small, updates_of(small, 30), 70)
    with pytest.raises(ConfigError, match=r"at most 66\.9"):
        seeded(small, 1000)
    assert seeded(small, 66.9).size == 10


def test_fewer_updates_than_directions_give_a_shorter_code_and_none_that_is_made_up(small):
    codec = fit(small, updates_of(small, 7), 10)
    assert codec.code_size <= 7
    assert codec.compression > 10


def test_updates_within_the_learned_space_come_through_whole(small):
    basis = updates_of(small, 5)
    mixed = np.random.default_rng(1).standard_normal((40, 5), np.float32) @ basis
    codec = fit(small, mixed, 20, noise_variance=0.0)
    assert codec.code_size == 5
    assert kept(codec, mixed) == pytest.approx(1, abs=1e-5)


def test_a_dense_code_keeps_as_much_as_the_singular_values_say(small):
    updates = updates_of(small, 60)
    codec = fit(small, updates, 20, noise_variance=0.0)
    values = np.linalg.svd(updates[:, :660], compute_uv=False) ** 2
    expected = (values[: codec.code_size].sum() + np.square(updates[:, 660:]).sum()) / np.square(updates).sum()
    assert kept(codec, updates) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def separable(large: Layout) -> np.ndarray:
    """Updates whose matrices lie in one pair of row and column spaces, and nothing else changes."""
    rng = np.random.default_rng(0)
    updates = np.zeros((12, large.size), np.float32)
    for entry in large.entries:
        if len(entry.shape) > 1:
            rows, columns = entry.shape[0], entry.size // entry.shape[0]
            left, right = rng.standard_normal((rows, 4)), rng.standard_normal((6, columns))
            for update in updates:
                update[entry.offset : entry.offset + entry.size] = (left @ rng.standard_normal((4, 6)) @ right).ravel()
    return updates


def test_matrices_of_one_row_and_column_space_are_coded_without_loss(large, separable):
    codec = fit(large, separable, 60)
    assert kept(codec, separable) == pytest.approx(1, abs=1e-4)
    two_sided = {block.name: block.variances.shape for block in codec.blocks if isinstance(block, TwoSided)}
    assert two_sided == {"conv": (4, 6), "w": (4, 6), "head": (4, 6)}


def test_two_sided_bases_keep_what_an_exact_alternation_keeps(large):
    rng = np.random.default_rng(5)
    entry = large.entries[0]
    rows, columns = 64, 288
    decay = np.exp(-np.arange(columns) / 20)[None, :] * np.exp(-np.arange(rows) / 10)[:, None]
    left, right = (
        np.linalg.qr(rng.standard_normal((rows, rows)))[0],
        np.linalg.qr(rng.standard_normal((columns, columns)))[0],
    )
    updates = np.zeros((10, large.size), np.float32)
    matrices = [left @ (decay * rng.standard_normal((rows, columns))) @ right for _ in updates]
    for update, matrix in zip(updates, matrices, strict=True):
        update[: entry.size] = matrix.ravel()
    block = fit(large, updates, 200).blocks[0]
    assert isinstance(block, TwoSided)
    p, q = block.variances.shape
    exact = np.eye(columns)[:, :q]
    for _ in range(30):
        basis = np.linalg.eigh(sum(m @ exact @ exact.T @ m.T for m in matrices))[1][:, -p:]
        exact = np.linalg.eigh(sum(m.T @ basis @ basis.T @ m for m in matrices))[1][:, -q:]
    best = sum(np.square(basis.T @ m @ exact).sum() for m in matrices)
    ours = sum(np.square(block.left.T @ m @ block.right).sum() for m in matrices)
    assert ours >= 0.99 * best


def test_small_tensors_pass_where_they_are_few_and_join_the_code_where_they_would_outweigh_it(large):
    names = {entry.name for entry in fit(large, updates_of(large, 6), 20).passed}
    assert names == {"conv.b", "w.b", "running"}
    codec = fit(large, updates_of(large, 6), 100)
    assert {entry.name for entry in codec.passed} == {"running"}
    (dense,) = (block for block in codec.blocks if isinstance(block, Dense))
    assert dense.names == ("conv.b", "w.b")


@given(st.integers(0, 2**32), st.integers(3, 300), st.integers(3, 4000))
@settings(max_examples=60, deadline=None)
def test_an_allotment_stays_within_its_budgets(seed, budget, parameters):
    rng = np.random.default_rng(seed)
    candidates = [
        Candidate(rng.random(shape), int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        for shape in ((5, 9), (1, 1), (30, 4))
    ]
    sizes = allot(candidates, budget, parameters)
    assert all(p >= 1 and q >= 1 for p, q in sizes)
    assert all(p <= c.energy.shape[0] and q <= c.energy.shape[1] for c, (p, q) in zip(candidates, sizes, strict=True))
    assert sum(p * q for p, q in sizes) <= budget
    stored = sum(p * (c.row_cost + q) + q * c.column_cost for c, (p, q) in zip(candidates, sizes, strict=True))
    assert stored <= max(parameters, sum(c.row_cost + c.column_cost + 1 for c in candidates))


def test_numbers_go_where_the_energy_is():
    loud, quiet = Candidate(np.full((10, 10), 9.0), 1, 1), Candidate(np.full((10, 10), 1.0), 1, 1)
    (p, q), other = allot([loud, quiet], 60, 10_000)
    assert p * q >= 50
    assert other[0] * other[1] <= 10  # what no further row or column of the loud one would fit in


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan"), float("inf")])
def test_a_ratio_that_is_none_is_refused(small, ratio):
    with pytest.raises(ConfigError, match="expected at least 1"):
        seeded(small, ratio)


def test_scaffolds_control_variates_are_refused_with_the_reason(small):
    layout = Layout.of([*((e.name, e.shape, e.role) for e in small.entries), ("c", (2,), Role.CONTROL)])
    for made in (lambda: seeded(layout, 4), lambda: fit(layout, updates_of(layout, 3), 4)):
        with pytest.raises(ConfigError, match="SCAFFOLD"):
            made()


@pytest.mark.parametrize(
    ("settings_", "what"),
    [
        ({"basis": Basis.SEEDED}, "use `seeded`"),
        ({"seeded_share": 1.0}, "expected 0 to 1"),
        ({"noise_variance": 1e9}, "all collapse"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(small, settings_, what):
    with pytest.raises(ConfigError, match=what):
        fit(small, updates_of(small, 9), 10, **settings_)


def test_proxy_updates_that_are_none_are_refused(small, large):
    with pytest.raises(ConfigError, match="expected"):
        fit(small, updates_of(large, 2), 10)
    with pytest.raises(ConfigError, match="they are all 0"):
        fit(small, np.zeros((3, small.size), np.float32), 10)
    with pytest.raises(ConfigError, match="NaN"):
        fit(small, np.full((3, small.size), np.nan, np.float32), 10)
    with pytest.raises(ConfigError, match="seeded_share is for updates of at most 65536"):
        fit(large, updates_of(large, 2), 20, seeded_share=0.5)


def test_fitting_again_gives_the_same_bytes(small, large):
    for layout in (small, large):
        first, second = (fit(layout, updates_of(layout, 6), 20) for _ in range(2))
        assert codec_bytes(first) == codec_bytes(second)


@pytest.mark.slow
def test_a_resnet_18_is_coded_within_its_budgets():
    network = models.resnet18(num_classes=2)
    tensors = [(name, tuple(each.shape), Role.PARAMETER) for name, each in network.named_parameters()]
    buffers = [(n, tuple(b.shape), Role.BUFFER) for n, b in network.named_buffers() if b.is_floating_point()]
    layout = Layout.of([*tensors, *buffers])
    updates = updates_of(layout, 4)
    for codec in (fit(layout, updates, 100), seeded(layout, 100).for_round(b"1")):
        assert 100 <= codec.compression < 102
        assert codec.num_parameters <= layout.size
        seconds = []
        for update in updates[:3]:
            start = time.process_time()
            codec.decode(codec.encode(update))
            seconds.append(time.process_time() - start)
        assert min(seconds) * 1e7 / layout.size < 0.3
