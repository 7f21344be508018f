"""Ignore the bottleneck: match only what the layers before it give away.

Source: Scheliga, Mäder and Seeland 2022 (arXiv:2208.04767): an attacker omits the gradients of the bottleneck and of
what follows. What comes back through the noise still steers the layers before, so that alone finds little (13-15 dB on
`tanh-cnn`). But of one example, behind a linear encoder, both the features and the slope that came back are known by
division (``precode_break``); then nothing behind them matters. PPP, their answer, perturbs the gradients before the
bottleneck and not its own: ``gradients=False`` matches the features alone. Where nothing can be divided (batches,
convolutional bottlenecks), the noise is pinned to its mean, or with ``draws`` the match is averaged over fresh noise:
expectation over transformation (Athalye et al. 2018, arXiv:1707.07397).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError, ConfigError
from ..defenses.bottlenecks import Bottleneck
from ..gradients import Named, gradients_of_restarts, require_differentiable
from ..threat_model import Knowledge, Observation, Reconstruction, lowest_loss, require_knowledge
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
from .precode_break import Body, input_of, slope_at

Match: TypeAlias = Callable[[Tensor], Tensor]
"""Of (restarts, count, channels, height, width) images, how far each restart is from what was sent."""


@dataclass(frozen=True, slots=True)
class IgnoreBottleneck:
    """Cosine similarity on the layers before the first bottleneck, plus total variation.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 700
    restarts: int = 1
    total_variation: float = 0.2  # in units of the match's slope at the start, as in ``InvertingGradients``
    total_variation_end: float = 1e-3
    step_size: float = 0.1
    decay: str = "exponential"  # or "steps"
    distance: str = "cosine"  # or "l2"
    features: bool = True  # match the features, where they are known
    gradients: bool = True  # match the gradients before the bottleneck
    draws: int = 0  # of the noise, over which the match is averaged where nothing is known; 0: its mean instead
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range before any work."""
        self._descent()
        option(Distance, "distance", self.distance)
        Smoothness(self.total_variation, self.total_variation_end)
        if self.draws < 0:
            raise ConfigError(f"draws {self.draws}: expected 0 or more")
        if not (self.features or self.gradients):
            raise ConfigError("ignore-bottleneck: neither features nor gradients are to be matched")

    @property
    def needs(self) -> Knowledge:
        """Nothing: the bottleneck is part of the published model."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Descend from random images; the restart of the lowest loss is chosen.

        Raises:
            AttackError: no bottleneck, nothing trained before it, or NaN in every restart.
        """
        require_knowledge("ignore-bottleneck", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        require_differentiable(without_noise(working_copy(seen.model)), seen.domain)
        match = self._known(seen) or self._unknown(seen, knowledge, rng)
        start = random_images(seen, (self.restarts, seen.num_examples), rng)
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)
        smooth = Smoothness(self.total_variation, self.total_variation_end)
        with randomness_of(rng):
            smooth = smooth.in_units_of(match, start)
            return lowest_loss(descend(self._descent(), lambda x, at: match(x) + smooth(x, at), start, labels))

    def _known(self, seen: Observation) -> Match | None:
        """Features and slope by division; None where they cannot be had."""
        name, bottleneck = next(iter(noisy_layers(seen.model).items()))
        encoder = bottleneck.encoder
        if seen.num_examples != 1 or not isinstance(encoder, nn.Linear):
            return None
        body = Body(working_copy(seen.model), name)
        like = next(body.parameters())
        features, slope = (
            found.to(like) for found in (input_of(seen, f"{name}.encoder"), slope_at(seen, name, encoder))
        )
        before = trained_before(body.model, name, seen.domain.shape)
        sent = {f"model.{n}": value for n, value in _kept(sent_gradient("ignore-bottleneck", seen), before).items()}
        distances, length = distance_to(sent, Distance(self.distance)), features.square().sum()

        def match(images: Tensor) -> Tensor:
            found = images.new_zeros(len(images))
            if self.gradients:  # the slope of the loss behind is known, so the loss may be replaced by its linear part
                slopes = slope.expand(len(images), *slope.shape)
                found = found + distances(gradients_of_restarts(body, images, slopes, loss=_linear))
            if self.features:
                entered = body(images.flatten(0, 1))
                found = found + (entered - features).square().sum(1) / length
            return found

        return match

    def _unknown(self, seen: Observation, knowledge: Knowledge, rng: torch.Generator) -> Match:
        model = working_copy(seen.model) if self.draws else without_noise(working_copy(seen.model))
        before = trained_before(model, next(iter(noisy_layers(model))), seen.domain.shape)
        distances = distance_to(_kept(sent_gradient("ignore-bottleneck", seen), before), Distance(self.distance))
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)

        def match(images: Tensor) -> Tensor:
            each = [distances(gradients_of_restarts(model, images, labels)) for _ in range(self.draws or 1)]
            return torch.stack(each).mean(0)

        return match

    def _descent(self) -> Descent:
        decay = option(Decay, "decay", self.decay)
        return Descent(self.iterations, self.restarts, self.step_size, decay, signed=True, trace_every=self.trace_every)


def noisy_layers(model: nn.Module) -> Mapping[str, Bottleneck]:
    """Modules that draw noise in their forward pass unless it is pinned, by name, in the model's order.

    Raises:
        AttackError: there is none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Bottleneck)}
    if not found:
        raise AttackError("the model has no bottleneck that draws noise: attack it with dlg or inverting-gradients")
    return found


def without_noise(model: nn.Module) -> nn.Module:
    """The model itself, every noise in it pinned to 0."""
    for module in noisy_layers(model).values():
        module.pinned = torch.zeros(())
    return model


def trained_before(model: nn.Module, name: str, shape: tuple[int, int, int]) -> frozenset[str]:
    """Names of the trained parameters on which what enters the module depends.

    Raises:
        AttackError: there is none.
    """
    entered: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0]))
    weight = next(model.parameters())
    model(torch.full((2, *shape), 0.5, dtype=weight.dtype, device=weight.device))
    hook.remove()
    named = {n: w for n, w in model.named_parameters() if w.requires_grad}
    if not entered[0].requires_grad:
        raise AttackError(f"no trained layer lies before {name}: what enters it is all that the update shows")
    slopes = torch.autograd.grad(entered[0].sum(), list(named.values()), allow_unused=True)
    return frozenset(n for n, slope in zip(named, slopes, strict=True) if slope is not None)


def _linear(outputs: Tensor, slopes: Tensor) -> Tensor:
    return (outputs * slopes).sum()


def _kept(sent: Named, before: frozenset[str]) -> Named:
    kept = {name: value for name, value in sent.items() if name in before}
    if not any(bool(value.any()) for value in kept.values()):
        raise AttackError("ignore-bottleneck: the update is zero in every layer before the bottleneck")
    return kept
