"""GradInversion: gradients, the statistics of the batch at each BatchNorm, and restarts that must agree.

Source: Yin et al. 2021, "See through Gradients: Image Batch Recovery via GradInversion" (arXiv:2104.07586),
equations 3 to 11. Simplified: the group's consensus is the plain mean of the restarts, without their registration by
optical flow; both terms are divided by what was sent, so that weights carry from model to model.

``Knowledge.batch_norm_statistics`` switches the statistics; without it the rest of the attack stays as it is. They are
the granted ones, or, where a recorded update carries its BatchNorm buffers, those that ``statistics_in_update`` reads
off it: in train mode and after a single step the running mean and variance moved by ``momentum`` times their distance
to the batch's own, so a curious director who gets buffers has the statistics without being granted anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...utils.errors import ConfigError
from ..gradients import gradient_at, require_differentiable
from ..threat_model import (
    BatchStatistics,
    Knowledge,
    Observation,
    Reconstruction,
    SentKind,
    lowest_loss,
    require_knowledge,
)
from .matching import (
    Decay,
    Descent,
    Distance,
    Smoothness,
    descend,
    distance_to,
    labels_of_restarts,
    option,
    random_images,
    randomness_of,
    sent_gradient,
    working_copy,
)


@dataclass(frozen=True, slots=True)
class SeeThrough:
    """The images of one gradient, with or without the batch's statistics.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 300
    restarts: int = 1  # the group; a single one has nobody to agree with
    batch_norm: float = 1.0  # weight of the statistics
    group: float = 0.01  # weight of the distance to the group's mean, from half of the iterations on
    total_variation: float = 0.2  # weight at the start, of the mean absolute difference of neighbours
    total_variation_end: float = 3e-4
    relative: bool = True  # both in units of the match's slope at the start
    step_size: float = 0.1
    decay: str = "exponential"  # or "steps"
    signed: bool = True
    distance: str = "l2"  # or "cosine"
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range before any work."""
        self._descent()
        option(Distance, "distance", self.distance)
        Smoothness(self.total_variation, self.total_variation_end)
        if not (self.batch_norm >= 0 and self.group >= 0):
            raise ConfigError(f"batch_norm {self.batch_norm}, group {self.group}: expected 0 or more")

    @property
    def needs(self) -> Knowledge:
        """Nothing beside the update; the statistics help."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Descend from random images; the restart of the lowest loss is chosen.

        Raises:
            AttackError: nothing to match, a layer without slope, or NaN in every restart.
        """
        require_knowledge("see-through", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        require_differentiable(seen.model, seen.domain)
        sent = sent_gradient("see-through", seen)
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)
        model, distances = working_copy(seen.model), distance_to(sent, Distance(self.distance))
        wanted = _granted_or_sent(seen) if knowledge.batch_norm_statistics else {}

        def match(images: Tensor) -> Tensor:
            found, apart = [], []
            for batch, targets in zip(images, labels, strict=True):
                with statistics_of(model) as noted:
                    found.append(gradient_at(model, batch, targets))
                apart.append(_away(noted, wanted) if wanted else batch.new_zeros(()))
            stacked = {name: torch.stack([one[name] for one in found]) for name in sent}
            return distances(stacked) + self.batch_norm * torch.stack(apart)

        start = random_images(seen, (self.restarts, seen.num_examples), rng)
        smooth = Smoothness(self.total_variation, self.total_variation_end)
        with randomness_of(rng):
            if self.relative:
                smooth = smooth.in_units_of(match, start)
            group = self.group * smooth.unit

            def objective(images: Tensor, progress: float) -> Tensor:
                losses = match(images) + smooth(images, progress)
                if progress < 0.5:  # the restarts are still noise, whose mean says nothing
                    return losses
                return losses + group * (images - images.detach().mean(0)).square().flatten(1).mean(1)

            return lowest_loss(descend(self._descent(), objective, start, labels))

    def _descent(self) -> Descent:
        decay = option(Decay, "decay", self.decay)
        return Descent(self.iterations, self.restarts, self.step_size, decay, self.signed, self.trace_every)


def statistics_in_update(observation: Observation) -> dict[str, BatchStatistics]:
    """The batch's statistics as the update's own BatchNorm buffers tell them, by the module's name.

    Empty where they tell nothing: in eval mode, without these buffers in the layout, or after several local steps (or
    a number of them that is not granted), which mix the statistics of several batches.
    """
    local = observation.granted.local_steps
    if observation.kind is SentKind.UPDATE and (local is None or local.steps(observation.num_examples) != 1):
        return {}
    sent, found = observation.tensors(), {}
    for name, norm in _norms(observation.model):
        mean, variance = f"{name}.running_mean", f"{name}.running_var"
        if norm.training and mean in sent and variance in sent and norm.momentum != 0:
            found[name] = (norm, sent[mean], sent[variance])
    places = _places(observation) if found else {}
    return {name: _before_momentum(*moved, places[name]) for name, moved in found.items()}


@contextmanager
def statistics_of(model: nn.Module) -> Iterator[dict[str, BatchStatistics]]:
    """Collects mean and biased variance of what each BatchNorm is given, differentiable by the images."""
    seen: dict[str, BatchStatistics] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
            variance, mean = torch.var_mean(inputs[0], axes, correction=0)
            seen[name] = BatchStatistics(mean, variance)

        return record

    hooks = [norm.register_forward_pre_hook(recorder(name)) for name, norm in _norms(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _granted_or_sent(observation: Observation) -> Mapping[str, BatchStatistics]:
    granted = observation.granted.batch_norm_statistics
    return statistics_in_update(observation) if granted is None else granted


def _away(seen: Mapping[str, BatchStatistics], wanted: Mapping[str, BatchStatistics]) -> Tensor:
    """Mean over layers of the squared distances of mean and variance, in units of the wanted variance."""
    parts = []
    for name, target in wanted.items():
        deviation = target.variance + torch.finfo(target.variance.dtype).eps
        parts.append((seen[name].mean - target.mean).square().sum() / deviation.sum())
        parts.append((seen[name].variance - target.variance).square().sum() / deviation.square().sum())
    return torch.stack(parts).mean()


def _before_momentum(norm: _BatchNorm, mean: Tensor, variance: Tensor, places: int) -> BatchStatistics:
    """Undo ``running += momentum * (batch - running)``; torch's running variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    momentum = norm.momentum
    if momentum is None:  # a cumulative average
        assert norm.num_batches_tracked is not None
        momentum = 1 / (int(norm.num_batches_tracked) + 1)
    unbiased = norm.running_var + variance / momentum
    return BatchStatistics(norm.running_mean + mean / momentum, (unbiased * (places - 1) / places).clamp(min=0))


def _places(observation: Observation) -> dict[str, int]:
    """Over how many numbers of a channel each BatchNorm takes its statistics: examples times positions."""
    places: dict[str, int] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            places[name] = observation.num_examples * inputs[0][0, 0].numel()

        return record

    model = copy.deepcopy(observation.model).eval()
    for name, norm in _norms(model):
        norm.register_forward_pre_hook(recorder(name))
    with torch.no_grad():
        model(torch.zeros(1, *observation.domain.shape).to(next(model.parameters())))
    return places


def _norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
