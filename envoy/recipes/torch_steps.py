"""The losses, optimizers and augmentations that a recipe may name, for torch models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn import functional

from ...utils.recipe import Choice, Value


def loss(choice: Choice, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A scalar."""
    return LOSSES[choice.name](choice.values, logits, labels)


def optimizer(choice: Choice, parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """A new one, for one round."""
    return OPTIMIZERS[choice.name](choice.values, parameters, learning_rate)


def augmented(choices: Iterable[Choice], images: torch.Tensor) -> torch.Tensor:
    """Images (count, channels, height, width) after each of these, drawn from torch's own generator."""
    for choice in choices:
        images = AUGMENTATIONS[choice.name](choice.values, images)
    return images


def _cross_entropy(values: Mapping[str, Value], logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=_number(values, "label_smoothing"))


def _sgd(
    values: Mapping[str, Value], parameters: Iterable[torch.nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    momentum, decay = _number(values, "momentum"), _number(values, "weight_decay")
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, weight_decay=decay)


def _adamw(
    values: Mapping[str, Value], parameters: Iterable[torch.nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=_number(values, "weight_decay"))


def _affine(values: Mapping[str, Value], images: torch.Tensor) -> torch.Tensor:
    """Each image turned, scaled and shifted at random; what comes in from outside repeats the border."""
    shift = _number(values, "shift")
    most = torch.tensor([_number(values, "rotation"), _number(values, "scale"), shift, shift])
    angle, scale, across, down = ((2 * torch.rand(len(images), 4) - 1) * most).unbind(1)
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    rows = [torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _mirror(values: Mapping[str, Value], images: torch.Tensor) -> torch.Tensor:
    return images.flip(3) if torch.rand(()) < _number(values, "share") else images


def _number(values: Mapping[str, Value], name: str) -> float:
    value = values[name]
    if not isinstance(value, float):
        raise TypeError(f"{name} was not checked")
    return value


LOSSES: Mapping[str, Callable[[Mapping[str, Value], torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross-entropy": _cross_entropy,
}
OPTIMIZERS: Mapping[
    str, Callable[[Mapping[str, Value], Iterable[torch.nn.Parameter], float], torch.optim.Optimizer]
] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
AUGMENTATIONS: Mapping[str, Callable[[Mapping[str, Value], torch.Tensor], torch.Tensor]] = {
    "affine": _affine,
    "mirror": _mirror,
}
