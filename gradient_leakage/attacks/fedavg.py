"""Updates of several local steps: the attacker walks the site's own training, step by step, and differentiates it.

Source: Dimitrov et al. 2022, "Data leakage in federated averaging" (arXiv:2206.12395). Where a site passes more than
once over its examples in batches whose order nobody knows, each epoch gets images of its own (Section 4.2), held
together by a prior that does not depend on their order: all epochs have the same mean image. At the end the epochs'
images are assigned to one another and averaged (Section 4.3). Simplified: their prior compares several functions of the
images, ours the mean; their labels are counted by an estimate of their own, ours come from ``labels``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...utils.errors import AttackError, ConfigError
from ..gradients import require_differentiable, trained_parameters, update_after
from ..threat_model import (
    Knowledge,
    LocalTraining,
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
    working_copy,
)


@dataclass(frozen=True, slots=True)
class FedAvgInversion:
    """The images behind a FedAvg update, given how the site trained.

    An iteration costs the local steps times that of ``InvertingGradients``; restarts go one after the other.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 300
    restarts: int = 1
    total_variation: float = 0.2  # weight at the start, of the mean absolute difference of neighbours
    total_variation_end: float = 3e-4
    relative: bool = True  # both in units of the match's slope at the start
    epoch_prior: float = 1.0  # weight of the squared difference of the epochs' mean images; 0: one set for all epochs
    step_size: float = 0.1
    decay: str = "exponential"  # or "steps"
    signed: bool = True
    distance: str = "cosine"  # or "l2"
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range before any work."""
        self._descent()
        option(Distance, "distance", self.distance)
        Smoothness(self.total_variation, self.total_variation_end)
        if not self.epoch_prior >= 0:
            raise ConfigError(f"epoch_prior {self.epoch_prior}: expected 0 or more")

    @property
    def needs(self) -> Knowledge:
        """How the site trained: without it there is nothing to walk."""
        return Knowledge(local_steps=True, learning_rate=True)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Descend from random images; the restart of the lowest loss is chosen.

        Raises:
            AttackError: one gradient instead of an update, nothing to match, a layer without slope, or only NaN.
            ConfigError: the threat model does not grant, or the observation does not hold, how the site trained.
        """
        require_knowledge("fedavg", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        local, rate = seen.granted.local_steps, seen.granted.learning_rate
        if seen.kind is not SentKind.UPDATE:
            raise AttackError("fedavg: a gradient has no local steps; attack it with inverting-gradients")
        if local is None or rate is None:
            raise ConfigError(
                "fedavg: the observation holds no local steps or no learning rate, though they are granted"
            )
        require_differentiable(seen.model, seen.domain)
        model = working_copy(seen.model)
        trained = trained_parameters(model)
        sent = {n: v.to(trained[n]) for n, v in seen.tensors().items() if n in trained}
        if not any(bool(value.any()) for value in sent.values()):
            raise AttackError("fedavg: the update is zero in every trained parameter, there is nothing to match")
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)
        distances = distance_to(sent, Distance(self.distance))
        epochs = self._own_epochs(local, seen.num_examples)

        def match(sought: Tensor) -> Tensor:
            found = [
                update_after(model, _batches(images, targets, local), rate)
                for images, targets in zip(sought, labels, strict=True)
            ]
            return distances({name: torch.stack([one[name] for one in found]) for name in sent})

        start = random_images(seen, (self.restarts, epochs, seen.num_examples), rng)
        smooth = Smoothness(self.total_variation, self.total_variation_end)
        with randomness_of(rng):
            if self.relative:
                smooth = smooth.in_units_of(match, start)
            prior = self.epoch_prior * smooth.unit

            def objective(sought: Tensor, progress: float) -> Tensor:
                return match(sought) + smooth(sought, progress) + prior * epochs_apart(sought)

            ends = descend(self._descent(), objective, start, labels, lambda sought: one_set(sought, labels[0]))
        return lowest_loss(ends)

    def _own_epochs(self, local: LocalTraining, num_examples: int) -> int:
        """Sets of images: one where the order cannot matter."""
        return local.epochs if local.batch_size < num_examples and self.epoch_prior > 0 else 1

    def _descent(self) -> Descent:
        decay = option(Decay, "decay", self.decay)
        return Descent(self.iterations, self.restarts, self.step_size, decay, self.signed, self.trace_every)


def epochs_apart(sought: Tensor) -> Tensor:
    """How far the epochs' mean images are from one another, whatever the order within: (restarts,).

    Args:
        sought: (restarts, epochs, count, channels, height, width).
    """
    means = sought.mean(2)
    return (means - means.mean(1, keepdim=True)).square().flatten(1).mean(1)


def one_set(sought: Tensor, labels: Tensor) -> Tensor:
    """The epochs' images as one set: each assigned to one of the first epoch and of its label, then the mean.

    Args:
        sought: (epochs, count, channels, height, width).
        labels: (count,), the same in each epoch.

    Returns:
        (count, channels, height, width).
    """
    total = sought[0].clone()
    strangers = (labels[:, None] != labels[None, :]).double().cpu() * sought[0].numel()  # more than any pair differs
    for images in sought[1:]:
        cost = torch.cdist(sought[0].flatten(1).double(), images.flatten(1).double()).square().cpu()
        _, chosen = linear_sum_assignment((cost + strangers).numpy())
        total += images[torch.from_numpy(chosen).to(images.device)]
    return total / len(sought)


def _batches(sought: Tensor, labels: Tensor, local: LocalTraining) -> list[tuple[Tensor, Tensor]]:
    """The local steps of all epochs; epochs without a set of their own share the only one."""
    size = local.batch_size
    cut = [
        [(images[at : at + size], labels[at : at + size]) for at in range(0, len(labels), size)] for images in sought
    ]
    return [batch for epoch in range(local.epochs) for batch in cut[epoch % len(cut)]]
