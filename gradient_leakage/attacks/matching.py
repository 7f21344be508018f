"""The descent that gradient-matching attacks share: images whose gradient looks like the one that was sent.

An attack makes an objective, one loss a restart, and ``descend`` walks all restarts at once as one tensor. The model
that is differentiated is the attacker's ``working_copy``, never the observed one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ...utils.errors import AttackError, ConfigError
from ..gradients import Named
from ..threat_model import Candidate, Knowledge, Observation, TracePoint
from .labels import infer_labels

Objective: TypeAlias = Callable[[Tensor, float], Tensor]
"""Of (restarts, ...) images and the progress from 0 to 1: one loss a restart, independent of the other restarts."""


OptionT = TypeVar("OptionT", bound=Enum)


def option(kind: type[OptionT], name: str, value: str) -> OptionT:
    """The choice of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(repr(choice.value) for choice in kind)
        raise ConfigError(f"{name} {value!r}: expected one of {expected}") from None


class Distance(Enum):
    """Between a gradient and the one that was sent; both are one number a restart and free of units."""

    COSINE = "cosine"  # 1 - cosine similarity (Geiping et al. 2020); blind to the gradient's length
    L2 = "l2"  # squared L2 over the squared length of what was sent (Zhu et al. 2019, scaled)


class Decay(Enum):
    """How step sizes shrink."""

    STEPS = "steps"  # to a tenth after 3/8, 5/8 and 7/8 of the iterations (Geiping et al. 2020)
    EXPONENTIAL = "exponential"  # evenly to a thousandth


@dataclass(frozen=True, slots=True)
class Descent:
    """Adam on images; by default on the signs of their gradients.

    Raises:
        ConfigError: a number that no descent has.
    """

    iterations: int
    restarts: int
    step_size: float
    decay: Decay
    signed: bool
    trace_every: int

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        if self.iterations < 1 or self.restarts < 1 or self.trace_every < 0:
            raise ConfigError(
                f"iterations {self.iterations}, restarts {self.restarts}, trace_every {self.trace_every}: "
                "expected at least 1, 1 and 0"
            )
        if not self.step_size > 0:
            raise ConfigError(f"step_size {self.step_size}: expected a positive number")

    def step_at(self, progress: float) -> float:
        """Step size after this part of the iterations."""
        if self.decay is Decay.EXPONENTIAL:
            return float(self.step_size * 1e-3**progress)
        return float(self.step_size * 0.1 ** sum(progress >= eighths / 8 for eighths in (3, 5, 7)))


def as_they_are(images: Tensor) -> Tensor:
    """Where what is sought are the images themselves."""
    return images


def descend(
    descent: Descent,
    objective: Objective,
    start: Tensor,
    labels: Tensor,
    as_images: Callable[[Tensor], Tensor] = as_they_are,
) -> tuple[Candidate, ...]:
    """Walk from ``start`` and hand over where each restart ended, with its loss there.

    Args:
        descent: how.
        objective: to be small.
        start: (restarts, ...) in [0, 1], where the images stay.
        labels: (restarts, count), kept beside the images.
        as_images: from one restart of the sought tensor to its (count, channels, height, width) images.

    Raises:
        AttackError: every restart met NaN.
    """
    images, first, second = start.detach().clone(), torch.zeros_like(start), torch.zeros_like(start)
    traces: list[list[TracePoint]] = [[] for _ in images]
    keep_every = max(1, descent.iterations // 40)
    for iteration in range(descent.iterations):
        progress = iteration / descent.iterations
        losses = objective(images.requires_grad_(), progress)
        (slope,) = torch.autograd.grad(losses.sum(), images)
        images = images.detach()
        if descent.trace_every and iteration % descent.trace_every == 0:
            for trace, loss, now in zip(traces, losses.tolist(), images, strict=True):
                kept = as_images(now).cpu().clone() if iteration % keep_every < descent.trace_every else None
                trace.append(TracePoint(iteration, loss, kept))
        step = descent.step_at(progress)
        if descent.signed:  # the second moment of signs is 1
            first.lerp_(slope.sign(), 0.1)
            images.sub_(first, alpha=step / (1 - 0.9 ** (iteration + 1)))
        else:
            first.lerp_(slope, 0.1)
            second.mul_(0.999).addcmul_(slope, slope, value=0.001)
            spread = (second / (1 - 0.999 ** (iteration + 1))).sqrt_().add_(torch.finfo(slope.dtype).tiny)
            images.addcdiv_(first, spread, value=-step / (1 - 0.9 ** (iteration + 1)))
        images.clamp_(0, 1)
    losses = objective(images.requires_grad_(), 1.0).detach()
    if not bool(losses.isfinite().any()):
        raise AttackError(
            "every restart met NaN: the gradient of this model is not finite at the images that are tried"
        )
    return tuple(
        Candidate(as_images(found), chosen, loss, tuple(trace))
        for found, chosen, loss, trace in zip(images.detach(), labels, losses.tolist(), traces, strict=True)
    )


def distance_to(sent: Named, kind: Distance) -> Callable[[Named], Tensor]:
    """Of a gradient, with the restarts as the first axis of each value, the distances (restarts,) to what was sent."""
    target = torch.cat([value.flatten() for value in sent.values()])
    squared = target.square().sum()

    def distances(found: Named) -> Tensor:
        flat = torch.cat([found[name].flatten(1) for name in sent], dim=1)
        if kind is Distance.L2:
            return (flat - target).square().sum(1) / squared
        return 1 - flat @ target / (flat.square().sum(1) * squared).sqrt()

    return distances


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, horizontally plus vertically, of each restart: (restarts, ..., H, W)."""
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)


@dataclass(frozen=True, slots=True)
class Smoothness:
    """Total variation with a weight that goes evenly, in its logarithm, from ``start`` to ``end``.

    It leads into the basin, and then holds the images back from the target: so it falls along the way. What weight is
    right moves with the model by four orders of magnitude (the cosine's slope is 1e-4 of a fresh `lenet`'s on a network
    of nine BatchNorm layers in eval mode), so weights may be given in units of the match's own slope.
    """

    start: float
    end: float
    unit: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that reward noise.

        Raises:
            ConfigError: a negative weight.
        """
        if not (self.start >= 0 and self.end >= 0):
            raise ConfigError(f"total_variation {self.start}, total_variation_end {self.end}: expected 0 or more")

    def in_units_of(self, match: Callable[[Tensor], Tensor], images: Tensor) -> Smoothness:
        """The same weights, in units of how steep ``match`` is at ``images``: its summed absolute slope."""
        tried = images.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(match(tried).sum(), tried)
        return replace(self, unit=float(slope.abs().flatten(1).sum(1).nan_to_num().mean()))

    def __call__(self, images: Tensor, progress: float) -> Tensor:
        """Weighted total variation of each restart."""
        if self.start > 0 and self.end > 0:
            weight = float(self.start * (self.end / self.start) ** progress)
        else:
            weight = self.start + (self.end - self.start) * progress
        return self.unit * weight * total_variation(images)


def sent_gradient(attack: str, observation: Observation) -> Named:
    """What is to be matched, in the model's dtype.

    Raises:
        AttackError: nothing was trained, or the update is zero everywhere.
    """
    dtype = next(observation.model.parameters()).dtype
    sent = {name: value.to(dtype) for name, value in observation.gradient().items()}
    if not any(bool(value.any()) for value in sent.values()):
        raise AttackError(f"{attack}: the update is zero in every trained parameter, there is nothing to match")
    return sent


def labels_of_restarts(observation: Observation, knowledge: Knowledge, restarts: int, rng: torch.Generator) -> Tensor:
    """Granted labels, else what the last layer gives away, once a restart: (restarts, num_examples) int64."""
    device = next(observation.model.parameters()).device
    granted = observation.granted.labels if knowledge.labels else None
    labels = infer_labels(observation, knowledge, rng) if granted is None else granted
    return labels.to(device).expand(restarts, -1)


def random_images(observation: Observation, leading: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform in [0, 1], of shape (*leading, channels, height, width), like the model's parameters."""
    drawn = torch.rand((*leading, *observation.domain.shape), generator=rng, dtype=torch.float64)
    return drawn.to(next(observation.model.parameters()))


def working_copy(model: nn.Module) -> nn.Module:
    """The same model as far as its gradients go, and without memory of what passes through it.

    BatchNorm in train mode takes the batch's own statistics and keeps none; dropout, whose mask nobody knows, is off.
    """
    copied = without_running_statistics(model)
    for module in copied.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    return copied


def without_running_statistics(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms in train mode keep no running statistics, which vmap cannot move."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied


@contextmanager
def randomness_of(rng: torch.Generator) -> Iterator[None]:
    """What the model itself draws (a bottleneck's noise) comes from ``rng`` too; the process's generator stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=rng)))
        yield
