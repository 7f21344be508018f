"""Defenses of the benchmark by name: what a site does to the model that it trains, and to what it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..utils.errors import ConfigError
from .bottleneck import with_bottleneck
from .threat_model import Observation


def _same_model(model: nn.Module, _seed: int) -> nn.Module:
    return model


def _same_observation(observation: Observation, _rng: torch.Generator) -> Observation:
    return observation


@dataclass(frozen=True, slots=True)
class Defense:
    """Either half may be missing."""

    on_model: Callable[[nn.Module, int], nn.Module] = _same_model  # fresh, and a seed; before it is trained
    on_observation: Callable[[Observation, torch.Generator], Observation] = _same_observation


DEFENSES: dict[str, Defense] = {
    "none": Defense(),
    "precode": Defense(on_model=lambda model, seed: with_bottleneck(model, seed=seed)),
}


def defense_named(name: str) -> Defense:
    """The defense of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    if name not in DEFENSES:
        raise ConfigError(f"defense {name!r}: expected one of {', '.join(DEFENSES)}")
    return DEFENSES[name]
