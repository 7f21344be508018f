"""Server optimizers: the papers' numbers, parameters alone, and a state that survives the disk bit by bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from fedveil.director.server_optimizer import (
    OptimizerName,
    ServerOptimizer,
    State,
    initial_state,
    state_from_bytes,
    state_pieces,
    step,
)
from fedveil.utils.errors import ConfigError, LayoutMismatchError, NonFiniteUpdateError
from fedveil.utils.tensors import Layout, Role, Vector
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

PLAIN = ServerOptimizer()
MOMENTUM = ServerOptimizer(momentum=0.5)
HALF = ServerOptimizer(learning_rate=0.5)
ADAGRAD = ServerOptimizer(OptimizerName.FEDADAGRAD, learning_rate=0.1)
ADAM = ServerOptimizer(OptimizerName.FEDADAM, learning_rate=0.1)
YOGI = ServerOptimizer(OptimizerName.FEDYOGI, learning_rate=0.1)
EVERY = (PLAIN, MOMENTUM, HALF, ADAGRAD, ADAM, YOGI)
ADAPTIVE = (ADAGRAD, ADAM, YOGI)

ONE = Layout.of([("w", (1,), Role.PARAMETER)])
MIXED = Layout.of([("w", (3,), Role.PARAMETER), ("var", (2,), Role.BUFFER), ("c", (2,), Role.CONTROL)])


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def walk(optimizer: ServerOptimizer, start: float, means: list[float]) -> list[float]:
    """The one parameter after each of these means."""
    model, state, seen = vector(start), initial_state(optimizer, ONE), []
    for mean in means:
        model, state = step(optimizer, ONE, model, vector(mean), state)
        seen.append(float(model[0]))
    return seen


def oracle(optimizer: ServerOptimizer, model: NDArray[np.float64], means: list[Vector]) -> NDArray[np.float64]:
    """Algorithm 2 of Reddi et al. 2021 as it is printed, in float64."""
    first, second = np.zeros_like(model), np.full_like(model, optimizer.floor**2)
    for mean in means:
        delta = mean.astype(np.float64)
        if not optimizer.is_adaptive:
            first = optimizer.decay * first + delta
            model = model + optimizer.rate * first
            continue
        first = optimizer.decay * first + (1 - optimizer.decay) * delta
        if optimizer.name is OptimizerName.FEDADAGRAD:
            second = second + delta**2
        elif optimizer.name is OptimizerName.FEDADAM:
            second = optimizer.second_decay * second + (1 - optimizer.second_decay) * delta**2
        else:
            second = second - (1 - optimizer.second_decay) * delta**2 * np.sign(second - delta**2)
        model = model + optimizer.rate * first / (np.sqrt(second) + optimizer.floor)
    return model


def test_plain_fedavg_adds_the_mean() -> None:
    assert walk(PLAIN, 10.0, [1.0, -3.0]) == [11.0, 8.0]


def test_a_learning_rate_scales_the_mean() -> None:
    assert walk(HALF, 10.0, [1.0, -3.0]) == [10.5, 9.0]


def test_momentum_carries_half_of_the_last_step_on() -> None:
    assert walk(MOMENTUM, 0.0, [4.0, 2.0, 0.0]) == [4.0, 8.0, 10.0]


def test_fedadagrad_by_hand() -> None:
    # v = 1 + 8 = 9 + ... with tau = 1: v0 = 1; D = sqrt(8): v = 9, step = sqrt(8) / (3 + 1).
    optimizer = ServerOptimizer(OptimizerName.FEDADAGRAD, learning_rate=1.0, tau=1.0)
    assert walk(optimizer, 0.0, [8.0**0.5]) == pytest.approx([8.0**0.5 / 4], rel=1e-6)


def test_fedadam_by_hand() -> None:
    # tau = 1, v0 = 1, D = 5: m = 0.5 * 5 = 2.5; v = 0.5 + 0.5 * 25 = 13; no bias correction.
    optimizer = ServerOptimizer(OptimizerName.FEDADAM, learning_rate=1.0, beta1=0.5, beta2=0.5, tau=1.0)
    assert walk(optimizer, 0.0, [5.0]) == pytest.approx([2.5 / (13**0.5 + 1)], rel=1e-6)


def test_fedyogi_by_hand() -> None:
    # v0 = 1, D^2 = 9 is more: v = 1 + 0.5 * 9 = 5.5; then D = 0: D^2 is less: v = 5.5 - 0.
    optimizer = ServerOptimizer(OptimizerName.FEDYOGI, learning_rate=1.0, beta1=0.0, beta2=0.5, tau=1.0)
    assert walk(optimizer, 0.0, [3.0, 0.0]) == pytest.approx([3 / (5.5**0.5 + 1)] * 2, rel=1e-6)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_many_rounds_agree_with_the_algorithm_in_float64(optimizer: ServerOptimizer) -> None:
    rng = np.random.default_rng(7)
    size = (1 << 16) + 5  # more than one block
    layout = Layout.of([("w", (size,), Role.PARAMETER)])
    model = rng.standard_normal(size, dtype=np.float32)
    means = [rng.standard_normal(size, dtype=np.float32) * np.float32(0.01) for _ in range(6)]
    expected = oracle(optimizer, model.astype(np.float64), means)
    state = initial_state(optimizer, layout)
    for mean in means:
        model, state = step(optimizer, layout, model, mean.copy(), state)
    assert np.allclose(model, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_buffers_and_controls_get_the_plain_mean(optimizer: ServerOptimizer) -> None:
    model = vector(1, 2, 3, 0.01, 4, 5, 6)
    new, _ = step(optimizer, MIXED, model, vector(1, 1, 1, -0.005, 1, 2, -2), initial_state(optimizer, MIXED))
    assert np.allclose(new[3:], [0.005, 5, 7, 4])


@settings(deadline=None, max_examples=60)
@given(
    optimizer=st.sampled_from(EVERY),
    now=st.floats(0.001, 1000),
    locals_=st.lists(st.floats(0, 1000), min_size=1, max_size=5),
)
def test_no_optimizer_drives_a_running_variance_below_zero(
    optimizer: ServerOptimizer, now: float, locals_: list[float]
) -> None:
    model = vector(0, 0, 0, now, now, 0, 0)
    state = initial_state(optimizer, MIXED)
    for local in locals_:
        mean = vector(-1, -1, -1, 0, 0, 0, 0)
        mean[3:5] = np.float32(local) - model[3:5]
        model, state = step(optimizer, MIXED, model, mean, state)
        assert (model[3:5] >= -1e-4 * now).all()
        assert np.allclose(model[3:5], local, atol=1e-3)


def test_fedadam_on_a_buffer_would_drive_it_negative_so_the_roles_matter() -> None:
    as_parameter = Layout.of([("var", (1,), Role.PARAMETER)])
    new, _ = step(ADAM, as_parameter, vector(0.01), vector(-0.005), initial_state(ADAM, as_parameter))
    assert new[0] < 0


@pytest.mark.parametrize("optimizer", EVERY, ids=str)
def test_the_step_is_made_in_the_means_memory_and_changes_nothing_else(optimizer: ServerOptimizer) -> None:
    model, mean = vector(1, 2, 3, 4, 5, 6, 7), vector(*[0.5] * 7)
    state = initial_state(optimizer, MIXED)
    before = [v.copy() for v in (model, *state.vectors)]
    new, after = step(optimizer, MIXED, model, mean, state)
    assert new is mean
    assert all(map(np.array_equal, before, (model, *state.vectors)))
    again, repeated = step(optimizer, MIXED, model, vector(*[0.5] * 7), state)
    assert again.tobytes() == new.tobytes()
    assert [v.tobytes() for v in repeated.vectors] == [v.tobytes() for v in after.vectors]


def test_plain_fedavg_takes_no_memory() -> None:
    size = 1 << 20
    layout = Layout.of([("w", (size,), Role.PARAMETER)])
    model, mean = np.zeros(size, np.float32), np.ones(size, np.float32)
    state = initial_state(PLAIN, layout)
    tracemalloc.start()
    try:
        step(PLAIN, layout, model, mean, state)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("optimizer", [MOMENTUM, *ADAPTIVE], ids=str)
def test_a_state_read_back_goes_on_bit_by_bit(optimizer: ServerOptimizer) -> None:
    rng = np.random.default_rng(1)
    model, state = rng.standard_normal(7, dtype=np.float32), initial_state(optimizer, MIXED)
    for _ in range(3):
        model, state = step(optimizer, MIXED, model, rng.standard_normal(7, dtype=np.float32), state)
    raw = b"".join(bytes(piece) for piece in state_pieces(state))
    back = state_from_bytes(optimizer, MIXED, raw)
    assert back.step == 3
    mean = rng.standard_normal(7, dtype=np.float32)
    one, one_state = step(optimizer, MIXED, model, mean.copy(), state)
    two, two_state = step(optimizer, MIXED, model, mean.copy(), back)
    assert one.tobytes() == two.tobytes()
    assert state_pieces(one_state)[1:] == state_pieces(two_state)[1:]
    named = safetensors.numpy.load(raw)
    assert np.array_equal(named["first_moment"], state.vectors[0])


def test_plain_fedavg_has_nothing_to_keep() -> None:
    state = initial_state(PLAIN, MIXED)
    assert state == State(0, ())
    assert state_pieces(state) == []
    assert state_from_bytes(PLAIN, MIXED, b"") == state


def test_a_state_of_another_model_or_optimizer_is_refused() -> None:
    raw = b"".join(bytes(piece) for piece in state_pieces(initial_state(ADAM, MIXED)))
    for optimizer, layout in ((ADAM, ONE), (MOMENTUM, MIXED)):
        with pytest.raises(LayoutMismatchError):
            state_from_bytes(optimizer, layout, raw)
    with pytest.raises(LayoutMismatchError):
        state_from_bytes(ADAM, MIXED, raw[:-1])


def test_a_moment_that_overflows_is_an_error_and_not_a_parameter_that_stands_still_for_ever() -> None:
    state = initial_state(ADAM, ONE)
    with pytest.raises(NonFiniteUpdateError, match="a moment of fedadam"):
        step(ADAM, ONE, vector(0), vector(1e30), state)
    assert np.isfinite(state.vectors[1]).all()


def test_vectors_of_another_layout_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="do not fit one layout"):
        step(PLAIN, ONE, vector(1), vector(1, 2), initial_state(PLAIN, ONE))
    with pytest.raises(ValueError, match="do not fit one layout"):
        step(ADAM, ONE, vector(1), vector(1), initial_state(ADAM, MIXED))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"beta1": 0.9}, "beta1 is given, and fedavg has none"),
        ({"name": OptimizerName.FEDADAM, "momentum": 0.9}, "momentum is given, and fedadam has none"),
        ({"name": OptimizerName.FEDADAGRAD, "beta2": 0.9}, "beta2 is given, and fedadagrad has none"),
        ({"momentum": 1.0}, "momentum is 1, expected at least 0 and less than 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0, expected more than 0"),
        ({"name": OptimizerName.FEDYOGI, "tau": -1.0}, "tau is -1"),
    ],
)
def test_contradictory_settings_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServerOptimizer(**keys)  # type: ignore[arg-type]


def test_defaults_are_those_of_the_paper() -> None:
    assert (ADAM.decay, ADAM.second_decay, ADAM.floor) == (0.9, 0.99, 1e-3)
    assert (ADAGRAD.decay, PLAIN.rate, PLAIN.decay) == (0.0, 1.0, 0.0)
    assert ServerOptimizer(OptimizerName.FEDYOGI).rate == 0.01
