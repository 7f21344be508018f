"""The bottleneck's noise as one more unknown: images and noise whose gradient together is the one that was sent.

PRECODE's claim (Scheliga et al., WACV 2022) rests on an attacker who draws noise of its own. A site that trains on one
batch drew its noise once, and the gradient of everything behind the bottleneck depends on it smoothly; so it can be
sought like the image (Balunović et al. 2022, arXiv:2111.04706, section 5, optimise the randomness of a defense along
with the input). Needs no division, so it takes batches and convolutional bottlenecks as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...utils.errors import ConfigError
from ..defenses.bottlenecks import Bottleneck
from ..gradients import gradient_at, require_differentiable
from ..threat_model import Candidate, Knowledge, Observation, Reconstruction, SentKind, require_knowledge
from .dlg import random_start, relative_distance
from .ignore_bottleneck import noisy_layers, without_noise
from .matching import labels_of_restarts, randomness_of, sent_gradient, working_copy
from .natural_images import natural_coordinates
from .quasi_newton import Problem, Search, best_restart, walk


@dataclass(frozen=True, slots=True)
class NoiseVariable:
    """DLG on the image and on the noise of every bottleneck.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 1500  # evaluations a restart, at most
    restarts: int = 5  # at most; a further one only where all before it plainly failed
    tolerance: float = 1e-11
    prior: float = 1e-8  # weight of the noise's mean square: it was drawn from a standard Gaussian
    falloff: float = 0.5  # as in ``Dlg``
    balance: float = 0.5  # early layers have small gradients, and say most about the image
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        self._search()
        if self.prior < 0:
            raise ConfigError(f"prior {self.prior}: expected 0 or more")

    @property
    def needs(self) -> Knowledge:
        """Nothing: the bottleneck is part of the published model; of an update, the learning rate."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Images of shape (num_examples, channels, height, width) in [0, 1].

        Raises:
            AttackError: no bottleneck, a zero update, a model that cannot be differentiated twice, or NaN.
            ConfigError: an update whose learning rate is not granted.
        """
        require_knowledge("noise-variable", self.needs, knowledge)
        if observation.kind is SentKind.UPDATE:
            require_knowledge("noise-variable on an update", Knowledge(learning_rate=True), knowledge)
        seen = observation.limited_to(knowledge)
        model = without_noise(working_copy(seen.model).double())
        require_differentiable(model, seen.domain)
        labels = labels_of_restarts(seen, knowledge, 1, rng)[0]
        with randomness_of(rng):
            found = best_restart("noise-variable", lambda: self._restart(seen, model, labels, rng), self._search())
        assert found.images is not None
        return replace(found, images=found.images.to(seen.dtype))

    def _search(self) -> Search:
        return Search(self.iterations, self.restarts, self.tolerance, self.trace_every)

    def _restart(self, seen: Observation, model: nn.Module, labels: Tensor, rng: torch.Generator) -> Candidate:
        start = 0.1 * random_start(seen, rng)
        noises = [
            0.1 * torch.randn(shape, generator=rng, dtype=torch.float64).to(start.device)
            for shape in _noise_shapes(model, 0.5 + start)
        ]
        to_pixels, layers = natural_coordinates(tuple(start.shape), self.falloff, start), noisy_layers(model).values()
        sent = {name: value.double() for name, value in sent_gradient("noise-variable", seen).items()}
        distance = relative_distance(sent, self.balance)

        def loss(sought: Sequence[Tensor]) -> Tensor:
            for layer, noise in zip(layers, sought[1:], strict=True):
                layer.pinned = noise
            unlikely = torch.stack([noise.square().mean() for noise in sought[1:]]).sum()
            return distance(gradient_at(model, 0.5 + to_pixels(sought[0]), labels)) + self.prior * unlikely

        problem = Problem([start, *noises], loss, lambda sought: 0.5 + to_pixels(sought[0]), lambda _: labels)
        return walk(problem, self._search())


def _noise_shapes(model: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Of each bottleneck's noise for these images."""
    shapes: list[tuple[int, ...]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, Bottleneck)
        mean, _ = module.gaussian(inputs[0])
        shapes.append(tuple(mean.shape))

    hooks = [layer.register_forward_pre_hook(record) for layer in noisy_layers(model).values()]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return shapes
