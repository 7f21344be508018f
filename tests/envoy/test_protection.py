"""The chain: whatever an update is, what leaves is bounded, finite, of the right length, or zeros."""

from __future__ import annotations

import numpy as np
import pytest
from fedveil.envoy.orders import WorkResult
from fedveil.envoy.policy import OPEN_POLICY, Measures, ProtectionPolicy, Step
from fedveil.envoy.protection import Closed, Off, Open, chain_of, check, protect
from fedveil.gradient_leakage.vae.codec import Codec, round_seed
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.errors import (
    ConfigError,
    FederationError,
    LengthMismatchError,
    NonFiniteUpdateError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import PayloadKind, RunId, TaskRef
from fedveil.utils.metrics import mean_of
from fedveil.utils.tensors import Digest, Layout, Role
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

LAYOUT = Layout.of([("w", (20, 10), Role.PARAMETER), ("b", (10,), Role.PARAMETER), ("mean", (6,), Role.BUFFER)])
RESULT = WorkResult(17, (mean_of("loss", 1.0, 17), mean_of("auc", 1.0, 2), mean_of("age", 71.0, 1)))
CHECK, ENCODE, CLIP, NOISE, AUDIT = Step
PLAIN = Measures((CHECK,), None, 0.0)
REF = TaskRef(RunId("lungs-1"), 1, 1, Digest("ab" * 32))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def learned(seed: int = 0) -> Codec:
    return fit(LAYOUT, rng(seed).standard_normal((12, LAYOUT.size)).astype(np.float32), 20.0)


def drawn(number: int) -> Codec:
    codec = seeded(LAYOUT, 10.0)
    return codec.for_round(round_seed(TaskRef(REF.run, number, 1, REF.plan), REF.plan, codec.digest))


def through(update, measures, **others):
    given_ = {"policy": OPEN_POLICY, "codec": None, "rng": rng(), "gate": Off, "residual": None} | others
    policy = given_.pop("policy")
    return protect(update, RESULT, LAYOUT, policy, measures, **given_)


updates = arrays(np.float32, LAYOUT.size, elements=st.floats(-1e8, 1e8, width=32)).filter(lambda update: update.any())
LEARNED = learned()


@settings(deadline=None)
@given(updates, st.floats(1e-9, 1e6), st.booleans())
def test_code_and_passed_entries_are_clipped_together_whatever_the_update(update, bound, encodes):
    measures = Measures((CHECK, ENCODE, CLIP) if encodes else (CHECK, CLIP), bound, 0.0)
    before = update.copy()
    out = through(update, measures, codec=LEARNED if encodes else None)
    assert np.linalg.norm(out.payload.astype(np.float64)) <= bound * (1 + 1e-5)
    assert np.array_equal(update, before)


@settings(deadline=None)
@given(arrays(np.float32, LAYOUT.size, elements=st.floats(width=32)), st.booleans(), st.sampled_from([None, 1.0]))
def test_whatever_comes_out_is_finite_and_of_its_length_or_an_error(update, encodes, bound):
    steps = (CHECK, *((ENCODE,) if encodes else ()), *((CLIP,) if bound else ()))
    codec = LEARNED if encodes else None
    try:
        out = through(update, Measures(steps, bound, 0.0), codec=codec)
    except UnsendableUpdateError:
        return
    assert np.isfinite(out.payload).all()
    assert out.payload.shape == (codec.size if codec else LAYOUT.size,)
    assert out.payload.dtype == np.float32


def test_nothing_is_copied_where_nothing_is_changed():
    update = rng(1).standard_normal(LAYOUT.size).astype(np.float32)
    assert through(update, PLAIN).payload is update
    assert through(update, Measures((CHECK, CLIP), 1e6, 0.0)).payload is update


def test_the_order_is_encode_then_clip_then_noise():
    """A worked case: the code's norm is clipped, not the update's, and the noise is measured by the bound."""
    update = 100 * rng(2).standard_normal(LAYOUT.size).astype(np.float32)
    measures = Measures((CHECK, ENCODE, CLIP, NOISE), 2.0, 1e-6)
    payload = through(update, measures, codec=LEARNED).payload
    code = LEARNED.encode(update)
    np.testing.assert_allclose(payload, code * (2.0 / np.linalg.norm(code)), atol=2e-5)


def test_noise_has_the_scale_of_the_bound_and_is_never_the_same():
    update = rng(3).standard_normal(LAYOUT.size).astype(np.float32)
    measures = Measures((CHECK, CLIP, NOISE), 0.5, 4.0)
    source = rng(4)
    drawn_ = np.stack([through(update, measures, rng=source).payload for _ in range(200)])
    assert len({row.tobytes() for row in drawn_}) == 200
    assert drawn_.std(axis=0).mean() == pytest.approx(2.0, rel=0.02)
    clipped = update * (0.5 / np.linalg.norm(update))
    assert np.abs(drawn_.mean(axis=0) - clipped).max() < 5 * 2.0 / np.sqrt(200)


def test_metrics_and_examples_leave_as_the_policy_says():
    update = np.ones(LAYOUT.size, np.float32)
    out = through(update, PLAIN, policy=ProtectionPolicy((CHECK,)))
    assert [metric.name for metric in out.metrics] == ["loss", "auc"]
    assert (out.num_examples, out.kind, out.is_withheld, out.score) == (17, PayloadKind.PLAIN, False, None)


@pytest.mark.parametrize("encodes", [False, True])
def test_where_the_gate_is_closed_zeros_of_weight_zero_leave_without_metrics(encodes):
    update = np.ones(LAYOUT.size, np.float32)
    measures = Measures((CHECK, ENCODE, CLIP, NOISE, AUDIT) if encodes else (CHECK, CLIP, NOISE, AUDIT), 1.0, 1.0)
    codec = LEARNED if encodes else None
    out = through(update, measures, codec=codec, gate=lambda: Closed("it leaks"))
    assert out.is_withheld
    assert (out.num_examples, out.metrics, out.score) == (0, (), None)
    assert not out.payload.any()
    open_ = through(update, measures, codec=codec, gate=lambda: Open(0.01))
    assert (open_.payload.shape, open_.kind) == (out.payload.shape, out.kind)
    assert (open_.score, open_.num_examples) == (0.01, 17)


def test_an_audit_that_nobody_does_lets_nothing_out():
    update = np.ones(LAYOUT.size, np.float32)
    assert through(update, Measures((CHECK, AUDIT), None, 0.0), gate=Off).is_withheld
    assert not through(update, PLAIN, gate=Off).is_withheld


def test_a_model_that_is_refused_closes_the_gate_also_without_an_audit():
    assert through(np.ones(LAYOUT.size, np.float32), PLAIN, gate=lambda: Closed("built to remember")).is_withheld


@pytest.mark.parametrize("number", [0, -1])
def test_an_update_of_no_example_is_not_passed_off_as_a_withheld_one(number):
    update = np.ones(LAYOUT.size, np.float32)
    with pytest.raises(UnsendableUpdateError, match="names no example"):
        protect(update, WorkResult(number, ()), LAYOUT, OPEN_POLICY, PLAIN, codec=None, rng=rng(), gate=Off)


def spoilt(place: int, value: float) -> np.ndarray:
    update = np.ones(LAYOUT.size, np.float32)
    update[place] = value
    return update


@pytest.mark.parametrize(
    ("update", "error", "words"),
    [
        (spoilt(0, np.nan), NonFiniteUpdateError, "NaN or infinity"),
        (spoilt(215, -np.inf), NonFiniteUpdateError, "NaN or infinity"),
        (np.full(LAYOUT.size, 3e38, np.float32), UnsendableUpdateError, "norm is beyond"),
        (np.zeros(LAYOUT.size, np.float32), UnsendableUpdateError, "all zeros"),
        (np.full(LAYOUT.size, -0.0, np.float32), UnsendableUpdateError, "all zeros"),
        (np.ones(LAYOUT.size - 1, np.float32), LengthMismatchError, "860 bytes, the plan's layout 864"),
        (np.ones(LAYOUT.size, np.float64), LengthMismatchError, "the plan's layout"),
        (np.ones((LAYOUT.size, 1), np.float32), LengthMismatchError, "the plan's layout"),
    ],
)
@pytest.mark.parametrize("measures", [PLAIN, Measures((CHECK, CLIP, NOISE, AUDIT), 1.0, 1.0)])
def test_what_is_no_update_does_not_leave_whatever_the_chain(update, error, words, measures):
    with pytest.raises(error, match=words):
        through(update, measures, gate=lambda: Open(0.0))


def test_an_update_so_small_that_its_square_is_nothing_is_no_update_of_zeros():
    check(np.full(LAYOUT.size, 1e-40, np.float32), LAYOUT)


def test_the_codec_of_another_model_fails_and_nothing_comes_out():
    other = Layout.of([("w", (30, 10), Role.PARAMETER)])
    codec = fit(other, rng().standard_normal((12, other.size)).astype(np.float32), 20.0)
    with pytest.raises(FederationError, match=r"update of shape .*216"):
        through(np.ones(LAYOUT.size, np.float32), Measures((CHECK, ENCODE), None, 0.0), codec=codec)


@pytest.mark.parametrize(("encodes", "codec"), [(True, None), (False, LEARNED)])
def test_a_codec_is_there_exactly_where_updates_are_encoded(encodes, codec):
    with pytest.raises(ConfigError, match="a codec is needed exactly where"):
        chain_of(Measures((CHECK, ENCODE) if encodes else (CHECK,), None, 0.0), codec)


def test_what_a_drawn_code_loses_comes_back_in_later_rounds():
    """The sum of what is decoded stays within one residual of the sum of the updates: Karimireddy et al. 2019."""
    measures, update = Measures((CHECK, ENCODE), None, 0.0), rng(5).standard_normal(LAYOUT.size).astype(np.float32)
    residual, decoded, without = np.zeros(LAYOUT.size, np.float32), 0.0, 0.0
    rounds = 60
    for number in range(1, rounds + 1):
        codec = drawn(number)
        out = through(update, measures, codec=codec, residual=residual)
        residual, decoded = out.residual, decoded + codec.decode(out.payload)
        without = without + codec.decode(codec.encode(update))
        np.testing.assert_allclose(decoded + residual, number * update, atol=1e-3)
    clipped = through(update, Measures((CHECK, ENCODE, CLIP), 1e-3, 0.0), codec=drawn(1), residual=0 * update)
    np.testing.assert_array_equal(clipped.residual, update - drawn(1).decode(drawn(1).encode(update)))
    wanted = rounds * update
    assert np.linalg.norm(decoded - wanted) < 0.5 * np.linalg.norm(without - wanted)
