"""The variational bottleneck of PRECODE: noise inside the network, so that its gradient depends on more than images.

Source: Scheliga, Mäder and Seeland, WACV 2022, "PRECODE - A Generic Model Extension to Prevent Deep Gradient Leakage".
Only the module and where it goes, as much as the attack on it needs; here sites train on the cross-entropy alone, the
paper adds a Kullback-Leibler term that changes nothing of what the attack reads.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..utils.errors import ConfigError


class VariationalBottleneck(nn.Module):
    """Encode to a Gaussian of ``width`` numbers, draw, decode: (count, features) to (count, features).

    The noise is fresh in every forward pass, in train and in eval mode alike, unless it is pinned. It comes from the
    process's own generator, as in any network.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, 2 * width)
        self.decoder = nn.Linear(width, features)
        self.pinned: Tensor | None = None  # (count, width); an attacker's, once the noise is known

    def forward(self, features: Tensor) -> Tensor:
        """Equation 2 of the paper: z = mean + deviation * noise, decoded."""
        mean, deviation = self.gaussian(features)
        noise = torch.randn_like(mean) if self.pinned is None else self.pinned.to(mean)
        decoded: Tensor = self.decoder(mean + deviation * noise)
        return decoded

    def gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the code, each (count, width)."""
        mean, logarithm = self.encoder(features).chunk(2, dim=1)
        return mean, logarithm.exp()


def with_bottleneck(model: nn.Module, width: int = 128, seed: int = 0) -> nn.Module:
    """A copy of the model with a bottleneck before its last linear layer, where the paper puts it.

    Args:
        model: stays as it is.
        width: numbers in the code.
        seed: of the new weights; the process's own generator stays as it was.

    Raises:
        ConfigError: the model has no linear layer, or the width is below 1.
    """
    if width < 1:
        raise ConfigError(f"a bottleneck of width {width}: expected at least 1")
    copied = copy.deepcopy(model)
    linear = [(name, module) for name, module in copied.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError("the model has no nn.Linear: a bottleneck goes before the last one")
    name, last = linear[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bottleneck = VariationalBottleneck(last.in_features, width).to(last.weight)
    both = nn.Sequential(bottleneck, last)
    if not name:
        return both
    parent, _, child = name.rpartition(".")
    setattr(copied.get_submodule(parent), child, both)
    return copied
