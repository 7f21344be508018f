"""The guarantees of a codec, of every sort that can be made."""

import hashlib
import json

import numpy as np
import pytest
from fedveil.gradient_leakage.vae.blocks import Dense, complement_reflector
from fedveil.gradient_leakage.vae.codec import Basis, Codec, codec_of, round_seed
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.utils.errors import LayoutMismatchError, MalformedMessageError, NonFiniteUpdateError
from fedveil.utils.messages import RunId, TaskRef
from fedveil.utils.tensors import Digest, Layout, Role
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn(codec: Codec, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(codec.layout.size, np.float32) * np.float32(scale)


def near(left: np.ndarray, right: np.ndarray, scale: float = 1.0) -> None:
    """Equal up to float32 rounding of sums of a few hundred numbers of that scale."""
    np.testing.assert_allclose(left, right, rtol=0, atol=3e-5 * scale)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(3))
def test_the_decoded_sum_of_payloads_is_the_sum_of_the_decoded_payloads(codec, seed, scale):
    payloads = [codec.encode(drawn(codec, 10 * seed + k, scale)) for k in range(5)]
    near(codec.decode(np.sum(payloads, axis=0)), np.sum([codec.decode(p) for p in payloads], axis=0), 5 * scale)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_encoding_never_lengthens_an_update(codec, scale):
    for seed in range(5):
        update = drawn(codec, seed, scale)
        assert np.linalg.norm(codec.encode(update)) <= np.linalg.norm(update) * (1 + 1e-5)


def test_the_longest_payload_is_as_long_as_its_update(codec):
    update = codec.decode(np.ones(codec.size, np.float32))
    assert np.linalg.norm(update) == pytest.approx(np.sqrt(codec.size), rel=1e-4)
    near(codec.encode(update), np.ones(codec.size))


@given(st.integers(0, 2**32), st.floats(-6, 6))
@settings(max_examples=25, deadline=None)
def test_a_payload_comes_back_from_what_it_stands_for(codecs, seed, exponent):
    scale = 10**exponent
    for codec in codecs.values():
        payload = np.random.default_rng(seed).standard_normal(codec.size, np.float32) * np.float32(scale)
        near(codec.encode(codec.decode(payload)), payload, scale)


def test_coding_twice_is_coding_once(codec):
    once = codec.decode(codec.encode(drawn(codec)))
    near(codec.decode(codec.encode(once)), once)


def test_the_error_of_coding_is_orthogonal_to_what_is_sent(codec):
    update = drawn(codec)
    coded = codec.decode(codec.encode(update))
    assert abs(np.dot(update - coded, coded)) < 1e-4 * np.dot(update, update)


def test_entries_that_pass_come_through_to_the_bit(codec):
    update = drawn(codec)
    coded = codec.decode(codec.encode(update))
    assert {entry.role for entry in codec.passed} >= {Role.BUFFER}
    for entry in codec.passed:
        where = slice(entry.offset, entry.offset + entry.size)
        assert np.array_equal(coded[where], update[where])


def test_the_payload_has_the_code_first_and_then_what_passes(codec):
    layout = codec.payload_layout
    assert layout.size == codec.size
    assert [e.name for e in layout.entries] == ["code", *(e.name for e in codec.passed)]
    assert layout.entries[0].size == codec.code_size
    update = drawn(codec)
    assert np.array_equal(
        codec.encode(update)[layout.slice_of(Role.BUFFER)], update[codec.layout.slice_of(Role.BUFFER)]
    )


def test_decoding_writes_every_element_of_what_it_is_given(codec):
    payload = codec.encode(drawn(codec))
    out = np.full(codec.layout.size, np.nan, np.float32)
    assert codec.decode(payload, out) is out
    assert np.array_equal(out, codec.decode(payload))


def test_a_place_to_decode_into_must_be_one_piece_of_the_right_length(codec):
    payload = codec.encode(drawn(codec))
    for out in (np.empty(2 * codec.layout.size, np.float32)[::2], np.empty(3, np.float32)):
        with pytest.raises(ValueError, match="expected"):
            codec.decode(payload, out)


def test_encoding_leaves_the_update_as_it_was(codec):
    update = drawn(codec)
    before = update.copy()
    codec.encode(update)
    assert np.array_equal(update, before)


def test_the_posterior_mean_shrinks_each_learned_number_by_its_own_share(codecs):
    codec = codecs["dense"]
    (block,) = codec.blocks
    update, learned = drawn(codec), len(block.directions)
    expected = codec.encode(update)
    expected[:learned] *= 1 - codec.noise_variance / block.variances
    np.testing.assert_allclose(codec.encode_mean(update), expected, rtol=1e-5)
    weights = block.directions.T * np.sqrt(block.variances - codec.noise_variance)
    inner = np.linalg.inv(weights.T @ weights + codec.noise_variance * np.eye(learned))
    parameters = update[: block.length]
    near(codec.decode(codec.encode_mean(update))[: block.length], weights @ (inner @ (weights.T @ parameters)))


def test_samples_have_the_posteriors_mean_and_variance(codecs):
    codec, rng = codecs["dense"], np.random.default_rng(0)
    update, code = drawn(codec, scale=0.01), slice(0, codecs["dense"].code_size)
    samples = np.stack([codec.sample(update, rng) for _ in range(4000)])
    variance = codec.noise_variance * (1 - codec.noise_variance / codec.blocks[0].variances)
    np.testing.assert_allclose(samples[:, code].var(axis=0), variance, rtol=0.15)
    mean = codec.encode_mean(update)
    np.testing.assert_allclose(samples.mean(axis=0)[code], mean[code], atol=5 * np.sqrt(variance.max() / 4000))
    assert np.array_equal(samples[0, code.stop :], mean[code.stop :])


def test_without_noise_mean_sample_and_code_are_one(codecs):
    codec = codecs["seeded"]
    update = drawn(codec)
    assert np.array_equal(codec.encode_mean(update), codec.encode(update))
    assert np.array_equal(codec.sample(update, np.random.default_rng(0)), codec.encode(update))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_not_encoded(codec, bad):
    update = drawn(codec)
    update[-1] = bad
    with pytest.raises(NonFiniteUpdateError):
        codec.encode(update)


def test_another_length_is_refused_both_ways(codec):
    with pytest.raises(LayoutMismatchError, match="this codec is for"):
        codec.encode(np.zeros(codec.layout.size + 1, np.float32))
    with pytest.raises(LayoutMismatchError, match="this codec gives"):
        codec.decode(np.zeros(codec.size - 1, np.float32))
    with pytest.raises(LayoutMismatchError, match="float64"):
        codec.encode(np.zeros(codec.layout.size))


@pytest.mark.parametrize("name", ["fresh", "seeded", "seeded large"])
def test_each_round_draws_other_directions_and_the_same_round_the_same(codecs, name):
    codec = codecs[name]
    assert codec.is_drawn_each_round
    update = drawn(codec)
    again, other = codec.for_round(b"round 1"), codec.for_round(b"round 2")
    assert np.array_equal(again.encode(update), codec.encode(update))
    assert not np.allclose(other.encode(update), codec.encode(update))
    assert again.digest == other.digest == codec.digest


@pytest.mark.parametrize("name", ["dense", "two-sided", "two-sided with small ones"])
def test_a_codec_that_draws_nothing_is_the_same_in_every_round(codecs, name):
    assert not codecs[name].is_drawn_each_round
    assert codecs[name].for_round(b"any") is codecs[name]


def test_a_round_must_be_drawn_before_anything_is_encoded(small):
    codec = seeded(small, 20)
    with pytest.raises(ValueError, match="for_round"):
        codec.encode(drawn(codec))


def test_fresh_directions_are_orthogonal_to_the_learned_ones(codecs):
    codec = codecs["fresh"]
    (block,) = codec.blocks
    learned, rows = len(block.directions), np.eye(codec.size, dtype=np.float32)[: codec.code_size]
    decoded = np.stack([codec.decode(row) for row in rows])
    near(decoded @ decoded.T, np.eye(codec.code_size))
    near(decoded[:learned, : block.length], block.directions)
    assert block.fresh == codec.code_size - learned > 0


def fed_back(codec: Codec, update: np.ndarray, rounds: int) -> float:
    """Share of a constant update that is still missing after rounds of error feedback."""
    residual, arrived = np.zeros_like(update), np.zeros_like(update)
    for number in range(rounds):
        coder = codec.for_round(number.to_bytes(2, "big"))
        sent = coder.decode(coder.encode(update + residual))
        residual, arrived = update + residual - sent, arrived + sent
    return float(np.linalg.norm(update * rounds - arrived) / np.linalg.norm(update * rounds))


def test_error_feedback_sends_nothing_of_its_residual_through_a_fixed_subspace_and_all_of_it_through_fresh_ones(codecs):
    update = drawn(codecs["dense"])
    missing = update - codecs["dense"].decode(codecs["dense"].encode(update))
    assert fed_back(codecs["dense"], update, 200) == pytest.approx(
        np.linalg.norm(missing) / np.linalg.norm(update), 1e-3
    )
    assert fed_back(codecs["dense"], update, 200) > 0.9
    assert fed_back(codecs["fresh"], update, 200) < 0.3
    assert fed_back(codecs["seeded"], update, 200) < 0.3


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_reflector_swaps_directions_and_axes(count, more, seed):
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((count + more, count)))[0].T.astype(np.float32)
    rows = complement_reflector(directions)
    reflection = np.eye(count + more) - rows.T @ rows
    near(reflection @ reflection.T, np.eye(count + more))
    near((reflection @ directions.T)[count:], np.zeros((more, count)))


def test_a_reflector_is_sound_where_directions_are_axes_already_or_their_opposite():
    for sign in (1, -1):
        directions = sign * np.eye(3, 7, dtype=np.float32)
        rows = complement_reflector(directions)
        reflection = np.eye(7) - rows.T @ rows
        near(reflection @ reflection, np.eye(7))
        near(np.abs(reflection), np.eye(7))


def test_the_seed_of_a_round_is_of_the_round_and_not_of_the_attempt():
    ref = TaskRef(RunId("run"), 3, 1, Digest("a" * 64))
    seed = round_seed(ref, Digest("b" * 64), Digest("c" * 64))
    said = json.dumps(["fedveil/codec-seed", "run", 3, "a" * 64, "b" * 64, "c" * 64], separators=(",", ":"))
    assert seed == hashlib.sha256(said.encode()).digest()
    assert seed == round_seed(TaskRef(RunId("run"), 3, 2, Digest("a" * 64)), Digest("b" * 64), Digest("c" * 64))
    others = [
        round_seed(TaskRef(RunId("run"), 4, 1, Digest("a" * 64)), Digest("b" * 64), Digest("c" * 64)),
        round_seed(ref, Digest("d" * 64), Digest("c" * 64)),
        round_seed(ref, Digest("b" * 64), Digest("d" * 64)),
    ]
    assert len({seed, *others}) == 4


def test_tensors_apart_are_coded_together(small):
    entries = [small.entries[0], small.entries[3]]
    directions = np.eye(2, 649, dtype=np.float32)
    codec = codec_of(small, Basis.LEARNED, (Dense.of(entries, directions, np.ones(2, np.float32)),))
    assert [entry.name for entry in codec.passed] == ["b", "scale", "mean"]
    update = drawn(codec)
    near(codec.decode(codec.encode(update))[650:], update[650:] * ([1] * 1 + [0] * 9 + [1] * 9))


def test_a_tensor_named_like_the_code_may_be_coded_but_not_pass():
    layout = Layout.of([("code", (30,), Role.PARAMETER)])
    assert seeded(layout, 3).size == 10
    with pytest.raises(MalformedMessageError, match="rename it"):
        seeded(Layout.of([("w", (30,), Role.PARAMETER), ("code", (2,), Role.BUFFER)]), 3)
