"""Variational bottlenecks: noise inside the network, so that its gradient depends on more than images.

| kind | where | what breaks it |
|---|---|---|
| ``precode`` | before the last linear layer | at one image the gradient gives its noise away (``precode-break``) |
| ``cvb`` | after the first convolution | its noise is one more unknown (``noise-variable``) |

Both are heuristics: an attacker who knows the network seeks the noise like the image. PPP is ``precode`` with noise on
the update's tensors before it (``partial``), which is nothing that a network could do.

A plan uses one by ``return with_bottleneck(model)`` in its ``model``. The papers add ``beta * bottleneck_kl(model)`` to
the loss, beta 1e-3, without which the deviations shrink as the network trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import ConfigError


class Bottleneck(nn.Module):
    """Encode to Gaussians, draw, decode: what comes out has the shape of what went in.

    Source: Scheliga, Mäder and Seeland, WACV 2022 (arXiv:2108.04725), equation 2: ``mean + deviation * noise``.

    The noise is fresh in every forward pass, in train and in eval mode alike, unless it is pinned. It comes from the
    process's own generator, as in any network.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder  # gives means and logarithms of deviations, side by side along axis 1
        self.decoder = decoder
        self.pinned: Tensor | None = None  # of the means' shape; an attacker's, once the noise is known
        self._passed: tuple[Tensor, Tensor] | None = None  # mean and deviation of the last pass

    def forward(self, features: Tensor) -> Tensor:
        """Draw once for every number of the code."""
        mean, deviation = self._passed = self.gaussian(features)
        noise = torch.randn_like(mean) if self.pinned is None else self.pinned.to(mean)
        decoded: Tensor = self.decoder(mean + deviation * noise)
        return decoded

    def gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the code, each (count, width, ...)."""
        mean, logarithm = self.encoder(features).chunk(2, dim=1)
        return mean, logarithm.exp()

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence of the last pass's code from a standard Gaussian: summed, mean over the batch.

        Raises:
            ConfigError: there was no pass.
        """
        if self._passed is None:
            raise ConfigError("a bottleneck has its divergence after a forward pass; call the model first")
        mean, deviation = self._passed
        each = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
        return each.sum() / len(mean)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last pass, whose graph no copy can take over."""
        return self.__dict__ | {"_passed": None}


class VariationalBottleneck(Bottleneck):
    """PRECODE's: linear layers, (count, features) to (count, features)."""

    encoder: nn.Linear
    decoder: nn.Linear

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, 2 * width), nn.Linear(width, features))


class ConvolutionalBottleneck(Bottleneck):
    """The same by convolutions that keep height and width, so that it is small enough to stand early in a network.

    Source: Scheliga, Mäder and Seeland 2023 (arXiv:2309.04515): a variational bottleneck of convolutions, early. Kernel
    size and number of channels are ours, as is the place, right behind the first convolution.
    """

    encoder: nn.Conv2d
    decoder: nn.Conv2d

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, 2 * width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1))


def with_bottleneck(model: nn.Module, kind: str = "precode", *, width: int | None = None, seed: int = 0) -> nn.Module:
    """A copy of the model with a bottleneck where the kind's paper puts it.

    Names of the layer beside it change: it is one of two in a sequence then.

    Args:
        model: stays as it is.
        kind: precode or cvb.
        width: numbers, or channels, of the code; by default 128, or as many as come in.
        seed: of the new weights; the process's own generator stays as it was.

    Raises:
        ConfigError: no such kind, no layer to stand beside, or a width below 1.
    """
    if kind not in _KINDS:
        raise ConfigError(f"bottleneck {kind!r}: expected one of {', '.join(_KINDS)}")
    if width is not None and width < 1:
        raise ConfigError(f"a bottleneck of width {width}: expected at least 1")
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name, both = _KINDS[kind](copied, width)
    if not name:
        return both
    parent, _, child = name.rpartition(".")
    setattr(copied.get_submodule(parent), child, both)
    return copied


def bottleneck_kl(model: nn.Module) -> Tensor:
    """The divergences of all bottlenecks of a model in its last forward pass, summed.

    Raises:
        ConfigError: the model has no bottleneck, or made no pass.
    """
    found = [module.kl() for module in model.modules() if isinstance(module, Bottleneck)]
    if not found:
        raise ConfigError("the model has no bottleneck, so there is no divergence; make it with with_bottleneck")
    return torch.stack(found).sum()


def _before_the_last_linear(model: nn.Module, width: int | None) -> tuple[str, nn.Module]:
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the model has no nn.Linear: PRECODE's bottleneck goes before the last one")
    name, last = linear[-1]
    return name, nn.Sequential(VariationalBottleneck(last.in_features, width or 128).to(last.weight), last)


def _after_the_first_convolution(model: nn.Module, width: int | None) -> tuple[str, nn.Module]:
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise ConfigError("the model has no nn.Conv2d: a convolutional bottleneck goes behind the first one")
    name, first = convolutions[0]
    channels = first.out_channels
    return name, nn.Sequential(first, ConvolutionalBottleneck(channels, width or channels).to(first.weight))


_KINDS: Mapping[str, Callable[[nn.Module, int | None], tuple[str, nn.Module]]] = {
    "precode": _before_the_last_linear,
    "cvb": _after_the_first_convolution,
}
