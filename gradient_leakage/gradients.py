"""Gradients of a model at images that are themselves sought: differentiable, functional, one restart or many.

Nothing here changes the model. ``loss`` takes (outputs, labels); labels are class indices or rows of probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from ..utils.errors import AttackError
from .threat_model import ImageDomain

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Named: TypeAlias = dict[str, Tensor]

_VMAP_PAYS_BELOW = 1_000_000  # parameters, on a CPU


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
    weights: Named
    if at is None:  # not through functional_call, which costs a tenth of a small network's gradient
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        value = loss(model(images), labels)
    else:
        weights = dict(at)
        value = loss(functional_call(model, weights, (images,)), labels)
    found = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), found, strict=True)}


def gradients_of_restarts(
    model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = functional.cross_entropy
) -> Named:
    """One gradient a restart, all at once: each value has the restarts as its first axis.

    vmap where it pays, else one restart after the other. Measured on one CPU thread, gradient and its slope, in ms, one
    restart after the other / vmap (28 pixels, batch 1): `relu-cnn` 4.0 / 6.4 for one restart, 12.8 / 8.8 for four,
    25.0 / 10.3 for eight; `resnet18` 642 / 883 for four. Unfolded convolutions in one matrix product for all restarts
    were below vmap for `relu-cnn` and `lenet` at batch 1 (6.7 against 7.9, 4.5 against 6.8), and up to 2.4 times above
    it for larger images and batches.

    Args:
        model: may mix its batch, but must not remember it (BatchNorm in train mode with running statistics).
        images: (restarts, count, channels, height, width).
        labels: (restarts, count) int64, or (restarts, count, classes).
        loss: of (outputs, labels).
    """
    weights = trained_parameters(model)
    if len(images) > 1 and (images.is_cuda or sum(w.numel() for w in weights.values()) <= _VMAP_PAYS_BELOW):

        def value(weights: Named, batch: Tensor, targets: Tensor) -> Tensor:
            return loss(functional_call(model, weights, (batch,)), targets)

        all_at_once: Named = vmap(grad(value), in_dims=(None, 0, 0), randomness="different")(weights, images, labels)
        return all_at_once
    each = [gradient_at(model, batch, targets, loss=loss) for batch, targets in zip(images, labels, strict=True)]
    return {name: torch.stack([one[name] for one in each]) for name in weights}


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


def require_differentiable(model: nn.Module, domain: ImageDomain) -> None:
    """Refuse a model whose gradients cannot be matched by descent on its images; tried at random images.

    Raises:
        AttackError: names the first layer through which no slope comes back, or which cannot be differentiated twice.
    """
    model = copy.deepcopy(model)  # a forward pass moves the running statistics of BatchNorm
    weight = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        drawn = torch.rand((2, *domain.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        images = drawn.to(weight.device, weight.dtype).requires_grad_()
        labels = torch.arange(2, device=weight.device) % domain.num_classes
        passed: _Passed = []
        hooks = [m.register_forward_hook(_recorder(passed, name)) for name, m in model.named_modules()]
        try:
            model(images)
        except RuntimeError as error:
            raise AttackError(f"the model does not take images of shape {domain.shape}: {error}") from error
        for hook in hooks:
            hook.remove()
        _require_layers([one for one in passed if not any(True for _ in one[1].children())], zero_is_a_fault=False)
        try:
            found = gradient_at(model, images, labels)
            value = torch.stack([g.square().sum() for g in found.values()]).sum()
            (slope,) = torch.autograd.grad(value, images)
            if bool(slope.any()):
                return
            reason = "the gradient does not move with the images"
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
    _require_layers(passed, zero_is_a_fault=True)
    raise AttackError(f"the model cannot be attacked by matching gradients: {reason}")


_Passed: TypeAlias = list[tuple[str, nn.Module, Tensor, Tensor]]
"""Each layer with what it was given and what came out, a layer before what it is part of."""


def _require_layers(passed: _Passed, *, zero_is_a_fault: bool) -> None:
    for name, module, given, came in passed:
        if fault := _fault_of(given, came, zero_is_a_fault=zero_is_a_fault):
            raise AttackError(
                f"layer {name or 'at the root'} ({type(module).__name__}) {fault}: gradients cannot be matched through"
                " it; use an analytic attack, or learned inversion"
            )


def _recorder(passed: _Passed, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def record(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        given = inputs[0] if inputs else None
        if isinstance(given, Tensor) and isinstance(output, Tensor) and given.requires_grad:
            passed.append((name, module, given, output))

    return record


def _fault_of(given: Tensor, came: Tensor, *, zero_is_a_fault: bool) -> str | None:
    """What is wrong with one layer; None for nothing. A slope of zero may be chance: a ReLU that is off everywhere."""
    if not came.requires_grad:
        return "lets no slope through"
    try:
        (slope,) = torch.autograd.grad(came.square().sum(), given, create_graph=True, allow_unused=True)
        if slope is None or not slope.requires_grad or (zero_is_a_fault and not bool(slope.any())):
            return "lets no slope through"
        (second,) = torch.autograd.grad(slope.square().sum(), given, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return f"cannot be differentiated twice ({str(error).partition(chr(10))[0]})"
    return "cannot be differentiated twice" if second is None else None
