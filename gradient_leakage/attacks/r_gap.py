"""R-GAP: one image in closed form, layer by layer from the last (Zhu and Blaschko 2021, arXiv:2010.07733).

Known of each layer are the error at its output, which is propagated back, and its output itself, which is the next
layer's input with the activation undone. Both constrain its input linearly: the gradient of the weight is error times
input (the paper's gradient constraints), and weight times input is the output (its weight constraints).

The paper has one logit and must solve for its margin. Here the last layer has a bias: with cross-entropy over any
number of classes the gradient of that bias is the error itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...utils.errors import AttackError
from ..gradients import gradient_at
from ..threat_model import Knowledge, Observation, Reconstruction, require_knowledge

INVERTIBLE = (nn.LeakyReLU, nn.Tanh, nn.Sigmoid)
ROUNDS = 5  # of refinement: the normal equations lose half of the digits
EXACT = 1e-10  # 1 - cosine of the gradients, whose root is what the image may be wrong by; above rounding in float32


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A linear map and the activation after it, if any."""

    name: str
    layer: nn.Linear | nn.Conv2d
    shape: tuple[int, ...]  # of its input, without the batch
    activation: nn.Module | None


@dataclass(frozen=True, slots=True)
class RGap:
    """Closed form for one example through convolutions and linear layers with invertible activations."""

    ridge: float = 1e-13  # relative; what a rank-deficient layer leaves open becomes small instead of wild

    @property
    def needs(self) -> Knowledge:
        """Nothing but the update."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Recover the image and its label.

        Returns:
            One image; ``loss`` is 1 - the cosine of its gradient and the observed one; ``exact`` where they agree.

        Raises:
            AttackError: more than one example; or a layer that is no convolution, linear layer, flattening, leaky
                ReLU, tanh or sigmoid; or a last layer without bias; each with the layer's name.
        """
        del rng  # nothing is drawn
        require_knowledge("r-gap", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        if seen.num_examples != 1:
            raise AttackError(f"r-gap: an update of {seen.num_examples} examples; it recovers single ones")
        model = copy.deepcopy(seen.model).cpu().double().eval()
        gradient = {n: g.detach().cpu().double() for n, g in seen.gradient().items()}
        blocks = _blocks(model, seen.domain.shape, gradient)
        error = gradient[f"{blocks[-1].name}.bias"]
        label = error.argmin()[None]
        output = torch.empty(0)  # the last layer's own is not needed: its error is known
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            found = self._input(block, error, output, gradient[f"{block.name}.weight"])
            if index:
                before = blocks[index - 1]
                back = _transposed(block, error).reshape(found.shape)
                output, slope = _undone(before.activation, found)
                shape = _output_shape(before)
                error, output = (back * slope).reshape(shape), output.reshape(shape)
        image = found.reshape(1, *seen.domain.shape)
        again = gradient_at(model, image, label)
        cosine = functional.cosine_similarity(
            torch.cat([g.detach().flatten() for g in again.values()]),
            torch.cat([gradient[n].flatten() for n in again]),
            0,
        )
        loss = float(1 - cosine)
        return Reconstruction(image.to(seen.dtype), label, loss, exact=torch.tensor([loss < EXACT]))

    def _input(self, block: _Block, error: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
        """Least squares over both kinds of constraints."""
        layer = block.layer
        if isinstance(layer, nn.Linear):  # the gradient alone determines it
            return gradient.T @ error / error.square().sum()
        assert not isinstance(layer.padding, str)  # _is_plain saw to it
        channels, height, width = block.shape
        pixels = height * width
        weights = _apply(layer, torch.eye(channels * pixels, dtype=error.dtype).reshape(-1, *block.shape)).flatten(1).T
        target = output.flatten()
        if layer.bias is not None:
            target = target - layer.bias.detach().repeat_interleave(output.shape[1] * output.shape[2])
        patches = functional.unfold(
            torch.eye(pixels, dtype=error.dtype).reshape(-1, 1, height, width),
            layer.kernel_size,
            padding=layer.padding,
            stride=layer.stride,
        )
        by_error = torch.einsum("ol,pkl->okp", error.flatten(1), patches).reshape(-1, pixels)
        wanted = gradient.reshape(layer.out_channels, channels, -1).transpose(0, 1).reshape(channels, -1)
        balance = weights.square().sum() / (channels * by_error.square().sum())  # errors are small, weights are not
        normal = weights.T @ weights
        own = balance * by_error.T @ by_error
        for channel in range(channels):
            part = slice(channel * pixels, (channel + 1) * pixels)
            normal[part, part] += own
        normal.diagonal().add_(self.ridge * normal.diagonal().mean())
        factor = torch.linalg.cholesky(normal)
        found = torch.zeros(channels * pixels, dtype=error.dtype)
        for _ in range(ROUNDS):
            missing = weights.T @ (target - weights @ found)
            missing += balance * ((wanted - found.reshape(channels, -1) @ by_error.T) @ by_error).flatten()
            found = found + torch.cholesky_solve(missing[:, None], factor)[:, 0]
        return found.reshape(block.shape)


def _blocks(model: nn.Module, shape: tuple[int, ...], gradient: dict[str, Tensor]) -> list[_Block]:
    blocks: list[_Block] = []
    for name, module in _in_sequence(model, ""):
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and not _is_plain(module):
                raise AttackError(f"r-gap: {name} is a grouped, dilated or otherwise padded convolution")
            if f"{name}.weight" not in gradient:
                raise AttackError(f"r-gap: the update holds no gradient of {name}.weight")
            blocks.append(_Block(name, module, tuple(shape), None))
            shape = _output_shape(blocks[-1])
        elif isinstance(module, INVERTIBLE) and blocks and blocks[-1].activation is None:
            blocks[-1] = _Block(blocks[-1].name, blocks[-1].layer, blocks[-1].shape, module)
        elif isinstance(module, nn.Flatten):
            shape = (torch.Size(shape).numel(),)
        elif not isinstance(module, nn.Identity):
            raise AttackError(
                f"r-gap: {name} ({type(module).__name__}) cannot be undone; it needs convolutions and linear layers, "
                "each followed by a leaky ReLU, tanh or sigmoid: use an attack that matches gradients"
            )
    last = blocks[-1] if blocks else None
    if last is None or not isinstance(last.layer, nn.Linear) or f"{last.name}.bias" not in gradient or last.activation:
        raise AttackError("r-gap: the last layer must be linear with a bias, whose gradient is the error")
    return blocks


def _is_plain(layer: nn.Conv2d) -> bool:
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return padded and layer.groups == 1 and set(layer.dilation) == {1}


def _in_sequence(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        inside = [(f"{name}.{key}".lstrip("."), child) for key, child in module.named_children()]
        return [found for key, child in inside for found in _in_sequence(child, key)]
    return [(name or type(module).__name__, module)]


def _output_shape(block: _Block) -> tuple[int, ...]:
    if isinstance(block.layer, nn.Linear):
        return (block.layer.out_features,)
    return tuple(_apply(block.layer, torch.zeros(1, *block.shape, dtype=block.layer.weight.dtype)).shape[1:])


def _apply(layer: nn.Conv2d, images: Tensor) -> Tensor:
    return functional.conv2d(images, layer.weight.detach(), stride=layer.stride, padding=layer.padding)


def _transposed(block: _Block, error: Tensor) -> Tensor:
    """The error at a layer's input."""
    if isinstance(block.layer, nn.Linear):
        return block.layer.weight.detach().T @ error
    images = torch.zeros(1, *block.shape, dtype=error.dtype, requires_grad=True)
    return torch.autograd.grad(_apply(block.layer, images), images, error[None])[0][0]


def _undone(activation: nn.Module | None, value: Tensor) -> tuple[Tensor, Tensor]:
    """What the activation made this value of, and its slope there."""
    if isinstance(activation, nn.LeakyReLU):
        slope = torch.where(value >= 0, 1.0, activation.negative_slope).to(value.dtype)
        return value / slope, slope
    if isinstance(activation, nn.Tanh):
        value = value.clamp(-1 + 1e-15, 1 - 1e-15)
        return value.atanh(), 1 - value.square()
    if isinstance(activation, nn.Sigmoid):
        value = value.clamp(1e-15, 1 - 1e-15)
        return value.logit(), value * (1 - value)
    return value, torch.ones_like(value)
