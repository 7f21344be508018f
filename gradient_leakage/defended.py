"""Defenses of the benchmark by name: what a site does to the model that it trains, and to what it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..utils.errors import ConfigError
from .threat_model import ImageDomain, Observation


def _same_model(model: nn.Module, _domain: ImageDomain, _rng: torch.Generator) -> nn.Module:
    return model


def _same_observation(observation: Observation, _rng: torch.Generator) -> Observation:
    return observation


@dataclass(frozen=True, slots=True)
class Defense:
    """Either half may be missing. What is granted to the attacker (a decoder, say) is added by ``on_observation``."""

    on_model: Callable[[nn.Module, ImageDomain, torch.Generator], nn.Module] = _same_model
    on_observation: Callable[[Observation, torch.Generator], Observation] = _same_observation


DEFENSES: dict[str, Defense] = {"none": Defense()}


def defense_named(name: str) -> Defense:
    """The defense of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    if name not in DEFENSES:
        raise ConfigError(f"defense {name!r}: expected one of {', '.join(DEFENSES)}")
    return DEFENSES[name]
