"""From the mean of the updates to the new model: FedAvg with momentum, FedAdagrad, FedAdam, FedYogi.

Pure, in numpy. Only parameters are stepped: a server optimizer would drive a running variance below zero, so
buffers, and SCAFFOLD's control variates, get ``model + mean`` whatever the optimizer.

With D the mean of the updates, g the learning rate, and all powers and roots element by element:

| name       | first moment m          | second moment v                               | model                   |
|------------|-------------------------|-----------------------------------------------|-------------------------|
| fedavg     | momentum m + D          |                                               | x + g m                 |
| fedadagrad | beta1 m + (1 - beta1) D | v + D^2                                       | x + g m / (sqrt(v) + tau) |
| fedadam    | the same                | beta2 v + (1 - beta2) D^2                     | the same                |
| fedyogi    | the same                | v - (1 - beta2) D^2 sign(v - D^2)             | the same                |

Sources: Reddi et al. 2021 (arXiv:2003.00295), algorithm 2, with m = 0 and v = tau^2 at the start. As there, no bias
correction is made (Adam on one machine has one). Momentum: Hsu et al. 2019 (arXiv:1909.06335). Defaults are the
paper's where it has any; its learning rates are tuned for each task, so ours for the adaptive ones is a cautious
first guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..utils.aggregation import is_finite
from ..utils.errors import ConfigError, NonFiniteUpdateError
from ..utils.tensors import ExactEntry, Layout, Role, Vector, bytes_of, model_header, read_model

_BLOCK = 1 << 16
_ADAPTIVE_KEYS = ("beta1", "beta2", "tau")


class OptimizerName(Enum):
    """Which rule makes the new model."""

    FEDAVG = "fedavg"
    FEDADAGRAD = "fedadagrad"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """The server optimizer of a run; what is left out has its default, and what the rule does not use is refused.

    Raises:
        ConfigError: a key is out of range, or of another optimizer.
    """

    name: OptimizerName = OptimizerName.FEDAVG
    learning_rate: float | None = None  # > 0; fedavg: 1, the others: 0.01
    momentum: float | None = None  # fedavg alone, in [0, 1): 0
    beta1: float | None = None  # in [0, 1): 0.9, and 0 for fedadagrad
    beta2: float | None = None  # fedadam and fedyogi, in [0, 1): 0.99
    tau: float | None = None  # > 0: 0.001; the smaller, the more adaptive

    def __post_init__(self) -> None:
        foreign = {
            OptimizerName.FEDAVG: _ADAPTIVE_KEYS,
            OptimizerName.FEDADAGRAD: ("momentum", "beta2"),
            OptimizerName.FEDADAM: ("momentum",),
            OptimizerName.FEDYOGI: ("momentum",),
        }[self.name]
        for key in foreign:
            if getattr(self, key) is not None:
                raise ConfigError(f"{key} is given, and {self.name.value} has none; leave it out")
        for key in ("momentum", "beta1", "beta2"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{key} is {value:g}, expected at least 0 and less than 1")
        for key in ("learning_rate", "tau"):
            value = getattr(self, key)
            if value is not None and not 0 < value < np.inf:
                raise ConfigError(f"{key} is {value:g}, expected more than 0")

    @property
    def is_adaptive(self) -> bool:
        """It keeps a second moment."""
        return self.name is not OptimizerName.FEDAVG

    @property
    def rate(self) -> float:
        """The learning rate, or its default."""
        return (0.01 if self.is_adaptive else 1.0) if self.learning_rate is None else self.learning_rate

    @property
    def decay(self) -> float:
        """How much of the first moment stays: momentum or beta1, or their default."""
        given = self.beta1 if self.is_adaptive else self.momentum
        default = 0.9 if self.name in {OptimizerName.FEDADAM, OptimizerName.FEDYOGI} else 0.0
        return default if given is None else given

    @property
    def second_decay(self) -> float:
        """beta2, or its default."""
        return 0.99 if self.beta2 is None else self.beta2

    @property
    def floor(self) -> float:
        """tau, or its default."""
        return 1e-3 if self.tau is None else self.tau

    @property
    def moments(self) -> tuple[str, ...]:
        """Which vectors the state holds; none for plain FedAvg."""
        first = ("first_moment",) if self.is_adaptive or self.decay else ()
        return (*first, "second_moment") if self.is_adaptive else first


@dataclass(frozen=True, slots=True)
class State:
    """What an optimizer remembers between rounds; the vectors are never written to again.

    Plain FedAvg remembers nothing: its state has no vectors and stays at step 0.
    """

    step: int
    vectors: tuple[Vector, ...]  # as ``ServerOptimizer.moments``; float32, one element a parameter


def initial_state(settings: ServerOptimizer, layout: Layout) -> State:
    """The state before the first round."""
    size = _parameters(layout)
    start = {"first_moment": 0.0, "second_moment": settings.floor**2}
    return State(0, tuple(np.full(size, start[name], np.float32) for name in settings.moments))


def step(settings: ServerOptimizer, layout: Layout, model: Vector, mean: Vector, state: State) -> tuple[Vector, State]:
    """The new model, **written into the memory of** ``mean``, and the new state.

    ``model`` and ``state`` stay as they are, so a step whose result could not be kept may be made again. Plain
    FedAvg takes no memory; the others take that of their new moments and three small blocks.

    Args:
        settings: the run's.
        layout: of both vectors.
        model: the present model, shape (layout.size,).
        mean: the aggregate of the updates (local minus global), same shape; used up.
        state: from ``initial_state`` or the step before.

    Raises:
        NonFiniteUpdateError: a moment left the range of float32.
    """
    size = _parameters(layout)
    if model.shape != mean.shape or any(vector.shape != (size,) for vector in state.vectors):
        raise ValueError(f"model {model.shape}, mean {mean.shape} and state do not fit one layout")
    fresh = tuple(np.empty_like(vector) for vector in state.vectors)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for at the end, all at once
        if fresh or settings.rate != 1.0:
            for start in range(0, size, _BLOCK):
                at = slice(start, min(start + _BLOCK, size))
                _direction(settings, mean[at], [v[at] for v in state.vectors], [v[at] for v in fresh])
        np.add(model, mean, out=mean)
    if not all(map(is_finite, fresh)):
        raise NonFiniteUpdateError(f"a moment of {settings.name.value} holds NaN or infinity after this round's mean")
    return mean, State(state.step + 1, fresh) if fresh else state


def state_pieces(state: State) -> list[bytes | memoryview]:
    """The state as pieces of one safetensors file, without a copy; none where there is nothing to remember."""
    if not state.vectors:
        return []
    layout = _state_layout(len(state.vectors), state.vectors[0].size)
    return [model_header(layout), *map(bytes_of, state.vectors), state.step.to_bytes(8, "little")]


def state_from_bytes(settings: ServerOptimizer, layout: Layout, raw: bytes | memoryview) -> State:
    """Read what ``state_pieces`` gave; the vectors are views into ``raw``.

    Raises:
        LayoutMismatchError: the state of another model, or of an optimizer with other moments.
    """
    if not settings.moments:
        return initial_state(settings, layout)
    size = _parameters(layout)
    flat, count = read_model(_state_layout(len(settings.moments), size), raw)
    return State(int.from_bytes(count, "little"), tuple(flat.reshape(len(settings.moments), size)))


def _direction(settings: ServerOptimizer, mean: Vector, old: Sequence[Vector], new: Sequence[Vector]) -> None:
    """Turn one block of the mean into the step to take, and fill the new moments."""
    if old:
        np.multiply(old[0], np.float32(settings.decay), out=new[0])
        share = np.float32(1 - settings.decay if settings.is_adaptive else 1)
        np.add(new[0], mean * share, out=new[0])
    if settings.is_adaptive:
        np.multiply(mean, mean, out=mean)
        _second_moment(settings, mean, old[1], new[1])
        np.sqrt(new[1], out=mean)
        np.add(mean, np.float32(settings.floor), out=mean)
        np.divide(new[0], mean, out=mean)
    elif old:
        mean[:] = new[0]
    np.multiply(mean, np.float32(settings.rate), out=mean)


def _second_moment(settings: ServerOptimizer, squared: Vector, old: Vector, new: Vector) -> None:
    if settings.name is OptimizerName.FEDADAGRAD:
        np.add(old, squared, out=new)
        return
    share = np.float32(1 - settings.second_decay)
    if settings.name is OptimizerName.FEDYOGI:
        sign = np.sign(old - squared)
        np.multiply(sign, squared, out=sign)
        np.multiply(sign, share, out=sign)
        np.subtract(old, sign, out=new)
        return
    np.multiply(old, np.float32(settings.second_decay), out=new)
    np.add(new, squared * share, out=new)


def _parameters(layout: Layout) -> int:
    """Parameters come first in every layout, so this is also where they end."""
    return int(layout.slice_of(Role.PARAMETER).stop)


def _state_layout(moments: int, size: int) -> Layout:
    names = ("first_moment", "second_moment")[:moments]
    return Layout.of([(name, (size,), Role.PARAMETER) for name in names], [ExactEntry("step", (), "I64")])
