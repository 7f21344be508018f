"""Gradients of a model at images that are themselves sought: differentiable, functional, one restart or many.

Nothing here changes the model. ``loss`` takes (outputs, labels); labels are class indices or rows of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Named: TypeAlias = dict[str, Tensor]


def trained_parameters(model: nn.Module) -> Named:
    """The parameters that training moves, detached, by name and in the model's order."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def gradient_at(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    at: Mapping[str, Tensor] | None = None,
    loss: Loss = functional.cross_entropy,
) -> Named:
    """Gradient of the mean loss over one batch; it can be differentiated by images, labels and ``at``.

    Args:
        model: in the mode in which the site trains it.
        images: (count, channels, height, width).
        labels: (count,) int64, or (count, classes) probabilities.
        at: other parameters than the model's own.
        loss: of (outputs, labels).
    """
    weights = dict(trained_parameters(model) if at is None else at)
    if at is None:
        weights = {name: w.requires_grad_() for name, w in weights.items()}
    value = loss(functional_call(model, weights, (images,)), labels)
    found = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), found, strict=True)}


def gradients_of_restarts(
    model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = functional.cross_entropy
) -> Named:
    """One gradient a restart, all at once: each value has the restarts as its first axis.

    Args:
        model: without operations that mix a batch in ways vmap does not know (BatchNorm in train mode).
        images: (restarts, count, channels, height, width).
        labels: (restarts, count) int64, or (restarts, count, classes).
        loss: of (outputs, labels).
    """

    def value(weights: Named, batch: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(model, weights, (batch,)), targets)

    found: Named = vmap(grad(value), in_dims=(None, 0, 0))(trained_parameters(model), images, labels)
    return found


def update_after(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    learning_rate: float,
    *,
    loss: Loss = functional.cross_entropy,
) -> Named:
    """Local minus global after one step of plain SGD on each batch; differentiable by all images and labels.

    Source: the inner loop of FedAvg, McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629).
    """
    start = {name: w.requires_grad_() for name, w in trained_parameters(model).items()}
    weights: Named = dict(start)
    for images, labels in batches:
        step = gradient_at(model, images, labels, at=weights, loss=loss)
        weights = {name: w - learning_rate * step[name] for name, w in weights.items()}
    return {name: weights[name] - start[name] for name in start}
