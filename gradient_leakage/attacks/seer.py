"""SEER-like: a model trained so that in a secret direction of its gradient one image of a large batch is left.

Source: Garov et al. 2023, "Hiding in Plain Sight: Disguising Data Stealing Attacks in Federated Learning"
(arXiv:2306.03013). There a decoder that is trained along with the published model projects the gradient of a ResNet to
where all images of the batch but one cancel, and rebuilds that one. Here, as small as a processor allows:

| | SEER | here |
|---|---|---|
| model | ResNet18 | perceptron whose first layer sees the image |
| what is trained | model and decoder | the model; the direction comes from a secret seed |
| which image is left | a chosen property, such as the brightest | whichever the training finds easiest to set apart |

The gradient of the first layer's row k is the sum over the batch of delta_ik x_i. With secret a, image i has the weight
s_i = a . delta_i in the projected gradient; public images train the model until one |s_i| of a batch outweighs all the
others, while no |delta_i| does. (Without that last condition the training finds the short way: one example outweighs
the others in the whole gradient, and any direction shows it.)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...utils.errors import AttackError, ConfigError
from ..threat_model import ImageDomain, Knowledge, Observation, PublicImages, Reconstruction, require_knowledge


@dataclass(frozen=True, slots=True)
class Seer:
    """One image out of a batch, by a direction that nobody else knows."""

    secret: int = 0  # seed of the direction; never published
    batch: int = 32  # that the training expects; larger ones leave several images mixed
    iterations: int = 2000
    batches_a_step: int = 8
    step_size: float = 3e-3  # of Adam at the start; falls to zero
    faintest: float = 1e-6  # weight below which the image that is left would drown in the rounding of the others
    largest_share: float = 0.25  # of the first layer's squared gradients that one image may have; more is seen

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: says which.
        """
        if self.batch < 2 or self.iterations < 1 or self.batches_a_step < 1:
            raise ConfigError("SEER trains on batches of at least 2, in at least 1 iteration")
        if min(self.step_size, self.faintest, self.largest_share) <= 0:
            raise ConfigError("step_size, faintest and largest_share of SEER are positive")

    @property
    def needs(self) -> Knowledge:
        """That the attacker chose the model, and public images to train it on."""
        return Knowledge(malicious=True, public_data=True)

    def prepare(
        self, model: nn.Module, domain: ImageDomain, rng: torch.Generator, public: PublicImages | None = None
    ) -> nn.Module:
        """The plan's model with tanh for each ReLU, whose gates have no slope to train on, and other weights.

        Raises:
            AttackError: the first layer with parameters is not a linear layer that sees the image.
            ConfigError: fewer public images than two batches.
        """
        if public is None or len(public.images) < 2 * self.batch:
            have = 0 if public is None else len(public.images)
            raise ConfigError(f"SEER trains on public images: {2 * self.batch} or more, there are {have}")
        published = _smooth(copy.deepcopy(model))
        name, first = first_layer(published, domain)
        direction = self._direction(first)
        images, count = public.images.to(first.weight), self.batch * self.batches_a_step
        trained = [p for p in published.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.step_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.iterations)
        for _ in range(self.iterations):
            drawn = torch.randint(len(images), (count,), generator=rng)
            labels = public.labels[drawn].to(first.weight.device)
            delta = _delta(published, name, images[drawn], labels).reshape(-1, self.batch, len(direction))
            strength = ((delta @ direction).abs() + torch.finfo(delta.dtype).tiny).log()
            too_faint = (math.log(self.faintest) - strength.amax(1)).relu().mean()
            size = delta.square().sum(2)
            too_plain = (size.amax(1) / size.sum(1) / self.largest_share).log().relu().mean()
            loss = functional.cross_entropy(2 * strength, strength.argmax(1)) + too_faint + too_plain
            optimizer.zero_grad()
            loss.backward(inputs=trained)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
        for parameter in trained:
            parameter.grad = None
        return published

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:  # noqa: ARG002 - nothing is drawn
        """Project the gradient of the first layer, and divide by that of its bias: one image.

        Raises:
            AttackError: no first linear layer with a bias, or nothing is left in the secret direction.
        """
        require_knowledge("seer", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        name, first = first_layer(seen.model, seen.domain)
        gradient, direction = seen.gradient(), self._direction(first).double()
        if f"{name}.weight" not in gradient or f"{name}.bias" not in gradient:
            raise AttackError(f"the update holds no gradient of {name} and its bias")
        total = float(direction @ gradient[f"{name}.bias"].double())
        if not total:
            raise AttackError("nothing is left of the batch in the secret direction")
        image = direction @ gradient[f"{name}.weight"].double() / total
        return Reconstruction(image.reshape(1, *seen.domain.shape).clamp(0, 1).cpu())

    def _direction(self, first: nn.Linear) -> Tensor:
        drawn = torch.randn(first.out_features, generator=torch.Generator().manual_seed(self.secret))
        return drawn.to(first.weight)


def first_layer(model: nn.Module, domain: ImageDomain) -> tuple[str, nn.Linear]:
    """The linear layer that sees the image, with its name.

    Raises:
        AttackError: names the layer that comes first instead.
    """
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            if isinstance(module, nn.Linear) and module.in_features == domain.pixels and module.bias is not None:
                return name, module
            raise AttackError(f"SEER reads a first nn.Linear with a bias; {name} is {type(module).__name__}")
    raise AttackError("SEER reads a first nn.Linear; the model has no parameters")


def _delta(model: nn.Module, name: str, images: Tensor, labels: Tensor) -> Tensor:
    """What each image sends back into the layer, differentiable by the model's parameters; (count, rows)."""
    entered: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: entered.append(output))
    losses = functional.cross_entropy(model(images), labels, reduction="sum")
    hook.remove()
    (delta,) = torch.autograd.grad(losses, entered[0], create_graph=True)
    return delta


def _smooth(module: nn.Module) -> nn.Module:
    """With tanh for each ReLU, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Tanh())
        else:
            _smooth(child)
    return module
