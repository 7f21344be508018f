"""The networks of the benchmark. All take images in [0, 1] of any size and give one logit a class.

| name | what |
|---|---|
| `mlp` | one hidden ReLU layer of 200, then 100: the case of the analytic attacks |
| `lenet` | Zhu et al. 2019 (arXiv:1906.08935): three 5x5 convolutions of 12 channels, sigmoid, uniform(-0.5, 0.5) |
| `tanh-cnn` | three 5x5 convolutions of 16, 32 and 32 channels, tanh: smooth, so second derivatives never vanish |
| `relu-cnn` | the same with ReLU |
| `resnet18` | He et al. 2015 with batch normalisation; 3x3 stem without pooling for images under 100 pixels |
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from ..utils.errors import ConfigError
from .threat_model import ImageDomain


def mlp(domain: ImageDomain) -> nn.Module:
    """Flatten, 200, 100, classes; ReLU between."""
    widths = [domain.pixels, 200, 100]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], domain.num_classes))


def lenet(domain: ImageDomain) -> nn.Module:
    """The DLG paper's own network with its own initial weights."""
    channels = domain.shape[0]
    layers: list[nn.Module] = []
    for before, stride in ((channels, 2), (12, 2), (12, 1)):
        layers += [nn.Conv2d(before, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
    body = nn.Sequential(*layers, nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(_width(body, domain), domain.num_classes))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def tanh_cnn(domain: ImageDomain) -> nn.Module:
    """Twice differentiable everywhere."""
    return _cnn(domain, nn.Tanh)


def relu_cnn(domain: ImageDomain) -> nn.Module:
    """Its second derivatives vanish almost everywhere, so matching gradients is harder."""
    return _cnn(domain, nn.ReLU)


def resnet18(domain: ImageDomain) -> nn.Module:
    """Batch normalisation: in train mode its gradient depends on the whole batch at once."""
    from ..utils.vision import models

    channels, height, width = domain.shape
    model: nn.Module = models.resnet18(num_classes=domain.num_classes)
    if min(height, width) < 100:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # second derivatives and per-example transforms need what was there before
    return model


MODELS: dict[str, Callable[[ImageDomain], nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "tanh-cnn": tanh_cnn,
    "relu-cnn": relu_cnn,
    "resnet18": resnet18,
}


def build(name: str, domain: ImageDomain, seed: int) -> nn.Module:
    """A network with fresh weights drawn from a seed; the process's own generator stays as it was.

    Raises:
        ConfigError: there is no such model.
    """
    if name not in MODELS:
        raise ConfigError(f"model {name!r}: expected one of {', '.join(MODELS)}, or module:callable")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](domain)


def _cnn(domain: ImageDomain, activation: type[nn.Module]) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(domain.shape[0], 16, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(32, 32, 5, padding=2),
        activation(),
        nn.Flatten(),
    )
    return nn.Sequential(*body, nn.Linear(_width(body, domain), domain.num_classes))


def _width(body: nn.Module, domain: ImageDomain) -> int:
    with torch.no_grad():
        return int(body(torch.zeros(1, *domain.shape)).shape[1])
