"""L-BFGS for attacks that know their aim exactly: it runs until the loss has reached its floor, and tells where it was.

The optimizer is torch's own. It drops every pair of step and slope change whose product is below 1e-10, an absolute
number: with a loss that starts near 1 that freezes the curvature at a loss of 1e-9, for a sigmoid network at about
60 dB. So the loss is scaled up before it is handed over. (Measured on LeNet at 28 pixels: 58 to 60 dB became 90 to 95.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...utils.errors import AttackError, ConfigError
from ..threat_model import Candidate, Reconstruction, TracePoint, lowest_loss

_SCALE = 1e10  # of the loss, see above
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
    history: int = 200  # steps that L-BFGS remembers: so many that it nearly is BFGS

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
    sought = [variable.requires_grad_() for variable in problem.start]
    seen = _Seen(search, [variable.detach().clone() for variable in sought])

    def evaluate() -> Tensor:
        loss = problem.loss(sought)
        slopes = torch.autograd.grad(_SCALE * loss, sought)
        for variable, slope in zip(sought, slopes, strict=True):
            variable.grad = slope
        seen.note(float(loss.detach()), sought, problem)
        return _SCALE * loss.detach()

    optimizer = torch.optim.LBFGS(
        sought,
        max_iter=search.iterations,
        max_eval=search.iterations,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=search.history,
        line_search_fn="strong_wolfe",
    )
    with suppress(_ArrivedError):
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    images = problem.images(seen.best).clamp(0, 1)
    return Candidate(images, problem.labels(seen.best), seen.loss, seen.trace())


class _ArrivedError(Exception):
    """There is nothing left to gain; torch's L-BFGS can be stopped in no other way."""


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
        if not math.isfinite(loss) or self.loss < self.search.tolerance or self.loss > (1 - _LEAST_GAIN) * before:
            raise _ArrivedError

    def trace(self) -> tuple[TracePoint, ...]:
        """Every point that was asked for; pictures stay with about ``_PICTURES`` of them, more of the early ones."""
        last = max(len(self._points) - 1, 1)
        kept = {round(last * (k / (_PICTURES - 1)) ** 2) for k in range(_PICTURES)}
        return tuple(point if k in kept else replace(point, images=None) for k, point in enumerate(self._points))
