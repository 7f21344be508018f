"""The torch models that a recipe may name. Their parameters are named and drawn as those of plans with code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from ...utils import vision
from ...utils.data_spec import DataSpec
from ...utils.recipe import Choice

_CELLS, _DIRECTIONS = 7, 8


def network(choice: Choice, data: DataSpec) -> nn.Module:
    """A new model; what it draws comes from torch's own generator."""
    return NETWORKS[choice.name](choice, data)


def small_cnn(choice: Choice, data: DataSpec) -> nn.Module:
    """Three blocks, each of which halves the image, then the mean of what they found."""
    width = int(str(choice.values["width"]))
    blocks = [*_block(data.shape[0], width), *_block(width, 2 * width), *_block(2 * width, 4 * width)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, len(data.classes)))


def resnet18(choice: Choice, data: DataSpec) -> nn.Module:
    """He et al. 2016 (arXiv:1512.03385), with as many channels and classes as the data has."""
    norms = {"group": lambda channels: nn.GroupNorm(32, channels), "fedbn": nn.BatchNorm2d}
    norm = norms[str(choice.values["norm"])]
    made: nn.Module = vision.models.resnet18(num_classes=len(data.classes), norm_layer=norm)
    made.conv1 = nn.Conv2d(data.shape[0], 64, 7, stride=2, padding=3, bias=False)
    return made


def edge_histograms(_: Choice, data: DataSpec) -> nn.Module:
    """Few parameters on fixed features, for training with noise (Tramer and Boneh 2021, arXiv:2011.11660)."""
    linear = nn.Linear(_CELLS * _CELLS * _DIRECTIONS, len(data.classes))
    nn.init.zeros_(linear.weight)
    return nn.Sequential(Histograms(), linear)


def linear(_: Choice, data: DataSpec) -> nn.Module:
    """Logits straight from the features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.shape), len(data.classes)))


def mlp(choice: Choice, data: DataSpec) -> nn.Module:
    """As many hidden layers as asked for."""
    hidden, layers = int(str(choice.values["hidden"])), int(str(choice.values["layers"]))
    widths = [math.prod(data.shape), *[hidden] * layers]
    steps: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps, nn.Linear(hidden, len(data.classes)))


NETWORKS: Mapping[str, Callable[[Choice, DataSpec], nn.Module]] = {
    "small-cnn": small_cnn,
    "resnet18": resnet18,
    "edge-histograms": edge_histograms,
    "linear": linear,
    "mlp": mlp,
}


class Histograms(nn.Module):
    """How strong the edges of each direction are in each of 7 x 7 cells; of mean 0 and of length 4.

    Source: Dalal and Triggs 2005.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From (count, 1, height, width) to (count, 7 * 7 * 8)."""
        across = images[..., 1:-1, 2:] - images[..., 1:-1, :-2]
        down = images[..., 2:, 1:-1] - images[..., :-2, 1:-1]
        strength, angle = (across.square() + down.square() + 1e-8).sqrt(), torch.atan2(down, across)
        turns = torch.arange(_DIRECTIONS, device=images.device) * (2 * torch.pi / _DIRECTIONS)
        edges = strength * functional.relu(torch.cos(angle - turns[:, None, None])).pow(4)
        cells = functional.adaptive_avg_pool2d(edges, _CELLS).flatten(1)
        return 4 * functional.normalize(cells - cells.mean(1, keepdim=True), dim=1)


def _block(before: int, after: int) -> list[nn.Module]:
    """Convolve, normalise, halve."""
    return [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.ReLU(), nn.MaxPool2d(2)]
