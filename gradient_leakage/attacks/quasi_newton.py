"""L-BFGS for attacks that know their aim exactly: it runs until the loss has reached its floor, and tells where it was.

Nocedal and Wright 2006, section 7.2, with the inverse in one product of matrices; the line search is SciPy's. Why not a
whole one from a library (measured on LeNet at 28 pixels and batch 1, where the gradient costs 2 to 3 CPU-ms):

| | |
|---|---|
| torch's | 200 remembered steps cost 2.5 CPU-ms; an absolute bound on s y, 1e-10, stops it at 58 dB |
| SciPy's | 50 remembered steps cost 6 CPU-ms |
| this one | 200 remembered steps cost 0.3 CPU-ms |
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import line_search
from torch import Tensor

from ...utils.errors import AttackError, ConfigError
from ..threat_model import Candidate, Reconstruction, TracePoint, lowest_loss

Floats: TypeAlias = NDArray[np.float64]

_LEAST_CURVATURE = 1e-14  # cosine of step and slope change; below it, rounding is all there is
_PATIENCE = 50  # evaluations in which a walk must have gained
_LEAST_GAIN = 0.02  # of the loss
_PICTURES = 40  # kept in a trace
_FAILED = 1e-3  # a relative squared distance that no walk with a usable picture has


@dataclass(frozen=True, slots=True)
class Search:
    """How long to search.

    Raises:
        ConfigError: a number that no search has.
    """

    iterations: int  # evaluations of the loss a restart, at most
    restarts: int  # at most; a further one only where all before it plainly failed
    tolerance: float  # loss at which a restart is done
    trace_every: int  # evaluations; 0 for no trace
    history: int = 400  # steps that L-BFGS remembers: so many that it nearly is BFGS

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        if min(self.iterations, self.restarts, self.history) < 1 or self.trace_every < 0:
            raise ConfigError(
                f"iterations {self.iterations}, restarts {self.restarts}, history {self.history}, "
                f"trace_every {self.trace_every}: expected at least 1, 1, 1 and 0"
            )


@dataclass(frozen=True, slots=True)
class Problem:
    """What is sought, and how to tell whether it was found."""

    start: list[Tensor]
    loss: Callable[[Sequence[Tensor]], Tensor]  # of what is sought; relative, near 1 at the start, 0 at the aim
    images: Callable[[Sequence[Tensor]], Tensor]  # (count, channels, height, width)
    labels: Callable[[Sequence[Tensor]], Tensor]  # (count,) int64


def best_restart(attack: str, restart: Callable[[], Candidate], search: Search) -> Reconstruction:
    """The restart with the lowest loss.

    Raises:
        AttackError: every restart met NaN.
    """
    candidates: list[Candidate] = []
    while len(candidates) < search.restarts and not any(one.loss < _FAILED for one in candidates):
        candidates.append(restart())
    if all(math.isinf(one.loss) for one in candidates):
        raise AttackError(f"{attack}: every restart met NaN, this model's gradient is not finite at the images tried")
    return lowest_loss(tuple(candidates))


def walk(problem: Problem, search: Search) -> Candidate:
    """One restart; its loss is infinite where the first evaluation gave no number."""
    seen = _Seen(search, [variable.detach().clone() for variable in problem.start])

    def evaluate(point: Floats) -> tuple[float, Floats]:
        sought = [part.requires_grad_() for part in _parts(point, problem.start)]
        loss = problem.loss(sought)
        slopes = torch.autograd.grad(loss, sought)
        seen.note(float(loss.detach()), sought, problem)
        return float(loss.detach()), _flat(slopes)

    with suppress(_ArrivedError):
        _minimise(evaluate, _flat(problem.start), search.history)
    images = problem.images(seen.best).clamp(0, 1)
    return Candidate(images, problem.labels(seen.best), seen.loss, seen.trace())


def _minimise(evaluate: Callable[[Floats], tuple[float, Floats]], point: Floats, capacity: int) -> None:
    """Go down until ``evaluate`` raises, or no step goes down any more."""
    remembered = _Curvature(len(point), capacity)
    latest: list[tuple[Floats, float, Floats]] = []  # SciPy asks for loss and slope apart

    def at(asked: Floats) -> tuple[float, Floats]:
        if not latest or not np.array_equal(latest[-1][0], asked):
            latest[:] = [(asked.copy(), *evaluate(asked))]
        return latest[-1][1:]

    loss, slope = at(point)
    while True:
        direction = remembered.direction(slope)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that no step was found; answered below
            share, *_ = line_search(lambda x: at(x)[0], lambda x: at(x)[1], point, direction, slope, loss)
        if share is None and not remembered.count:
            return
        if share is None:
            remembered = _Curvature(len(point), capacity)
            continue
        reached = point + share * direction
        loss, new_slope = at(reached)
        remembered.add(reached - point, new_slope - slope)
        point, slope = reached, new_slope


class _Curvature:
    """The inverse Hessian as the last steps tell it: Byrd, Nocedal and Schnabel 1994, equation 3.1.

    In torch, which keeps to the threads that it was given: NumPy's products take all cores, and where other processes
    have these, wait for them (measured on two busy cores: 9.7 seconds for what torch does in 0.6).
    """

    def __init__(self, size: int, capacity: int) -> None:
        self.count = 0
        like = torch.float64
        self._steps, self._changes = torch.zeros(capacity, size, dtype=like), torch.zeros(capacity, size, dtype=like)
        self._products = torch.zeros(capacity, capacity, dtype=like)  # of each step s with each change y
        self._squares = torch.zeros(capacity, capacity, dtype=like)  # of changes with changes

    def add(self, step: Floats, change: Floats) -> None:
        """Remember one step and how the slope changed along it; forget the oldest quarter where it is full."""
        s, y = torch.from_numpy(step), torch.from_numpy(change)
        if not bool(s @ y > _LEAST_CURVATURE * s.norm() * y.norm()):
            return
        if self.count == len(self._steps):
            self._forget(-(-self.count // 4))
        now = self.count
        self._steps[now], self._changes[now] = s, y
        self.count += 1
        self._products[: self.count, now] = self._steps[: self.count] @ y
        self._squares[now, : self.count] = self._squares[: self.count, now] = self._changes[: self.count] @ y

    def direction(self, slope: Floats) -> Floats:
        """Where a Newton step would go."""
        slopes, m = torch.from_numpy(slope), self.count
        if not m:
            return -slope * min(1.0, 1 / float(slopes.abs().sum()))
        steps, changes = self._steps[:m], self._changes[:m]
        products, squares = self._products[:m, :m], self._squares[:m, :m]
        scale = products[-1, -1] / squares[-1, -1]
        inner = torch.linalg.solve_triangular(products, (steps @ slopes)[:, None], upper=True)[:, 0]
        outer = products.diagonal() * inner + scale * (squares @ inner - changes @ slopes)
        outer = torch.linalg.solve_triangular(products.T, outer[:, None], upper=False)[:, 0]
        along: Floats = (scale * (slopes - inner @ changes) + outer @ steps).numpy()
        return -along

    def _forget(self, oldest: int) -> None:
        kept = self.count - oldest
        for rows in (self._steps, self._changes):
            rows[:kept] = rows[oldest : self.count].clone()
        for square in (self._products, self._squares):
            square[:kept, :kept] = square[oldest : self.count, oldest : self.count].clone()
        self.count = kept


def _flat(parts: Sequence[Tensor]) -> Floats:
    joined: Floats = torch.cat([part.detach().reshape(-1) for part in parts]).double().cpu().numpy()
    return joined


def _parts(point: Floats, like: Sequence[Tensor]) -> list[Tensor]:
    flat = torch.from_numpy(point.copy()).split([part.numel() for part in like])  # type: ignore[no-untyped-call]
    return [one.reshape(part.shape).to(part) for one, part in zip(flat, like, strict=True)]


class _ArrivedError(Exception):
    """There is nothing left to gain."""


@dataclass(slots=True)
class _Seen:
    """Where one walk has been."""

    search: Search
    best: list[Tensor]
    loss: float = math.inf  # there
    _losses: list[float] = field(default_factory=list)  # the best so far, after each evaluation
    _points: list[TracePoint] = field(default_factory=list)

    def note(self, loss: float, sought: Sequence[Tensor], problem: Problem) -> None:
        """Take one evaluation down; stop where the loss has reached its floor."""
        number, every = len(self._losses), self.search.trace_every
        if loss < self.loss:
            self.loss, self.best = loss, [variable.detach().clone() for variable in sought]
        self._losses.append(self.loss)
        if every and number % every == 0:
            with torch.no_grad():
                self._points.append(TracePoint(number, loss, problem.images(sought).clamp(0, 1).float().cpu()))
        before = self._losses[-1 - _PATIENCE] if number >= _PATIENCE else math.inf
        stuck = not math.isfinite(loss) or self.loss > (1 - _LEAST_GAIN) * before
        if stuck or self.loss < self.search.tolerance or number + 1 == self.search.iterations:
            raise _ArrivedError

    def trace(self) -> tuple[TracePoint, ...]:
        """Every point that was asked for; pictures stay with about ``_PICTURES`` of them, more of the early ones."""
        last = max(len(self._points) - 1, 1)
        kept = {round(last * (k / (_PICTURES - 1)) ** 2) for k in range(_PICTURES)}
        return tuple(point if k in kept else replace(point, images=None) for k, point in enumerate(self._points))
