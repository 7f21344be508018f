"""Images read off the gradient of a first linear layer by division; no optimisation.

For one example the gradient of row i of the weight is the input times the gradient of bias i, so their quotient is the
input (Phong et al. 2018, IEEE TIFS 13(5); Geiping et al. 2020, arXiv:2003.14053, Proposition 3.1). For a batch each
neuron gives a mixture of its own; a neuron that one example alone switched on gives that example.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError
from ..threat_model import ImageDomain, Knowledge, Observation, Reconstruction, require_knowledge


@dataclass(frozen=True, slots=True, eq=False)
class FirstLinear:
    """A model's first linear layer as its gradient shows it, in float64 on the CPU."""

    name: str
    weight: Tensor  # (neurons, inputs)
    bias: Tensor  # (neurons,)
    weight_gradient: Tensor  # (neurons, inputs)
    bias_gradient: Tensor  # (neurons,)
    scale: Tensor  # (inputs,) by what the model multiplies a pixel before this layer ...
    shift: Tensor  # (inputs,) ... and what it then adds
    shape: tuple[int, int, int]  # of an image
    next_gradient: Tensor | None  # (outputs, neurons) of the linear layer that reads this one's neurons, if one does

    def images(self, inputs: Tensor) -> Tensor:
        """The images of which the layer saw these inputs: (count, inputs) to (count, channels, height, width)."""
        return ((inputs - self.shift) / self.scale).reshape(-1, *self.shape)


def first_linear(attack: str, observation: Observation) -> FirstLinear:
    """The first layer with parameters, where it is linear, has a bias, and sees each pixel on its own.

    Raises:
        AttackError: names the layer that stands in the way.
    """
    model = copy.deepcopy(observation.model).cpu().double().eval()
    (name, layer), *later = _layers_in_use(model, observation.domain)
    if not isinstance(layer, nn.Linear):
        raise AttackError(
            f"{attack}: the first layer with parameters is {name} ({type(layer).__name__}); this attack reads a linear "
            "layer that sees the image itself: use an attack that matches gradients"
        )
    gradient = {n: g.detach().cpu().double() for n, g in observation.gradient().items()}
    if layer.bias is None or not {f"{name}.weight", f"{name}.bias"} <= gradient.keys():
        raise AttackError(
            f"{attack}: the update holds no gradient of both weight and bias of {name}, and without the bias the scale "
            "of an image stays unknown: use an attack that matches gradients"
        )
    scale, shift = _before(attack, model, name, layer, observation.domain)
    after, reader = later[0] if later else ("", None)
    reads = isinstance(reader, nn.Linear) and reader.in_features == layer.out_features
    return FirstLinear(
        name=name,
        weight=layer.weight.detach(),
        bias=layer.bias.detach(),
        weight_gradient=gradient[f"{name}.weight"],
        bias_gradient=gradient[f"{name}.bias"],
        scale=scale,
        shift=shift,
        shape=observation.domain.shape,
        next_gradient=gradient.get(f"{after}.weight") if reads else None,
    )


def labels_of(observation: Observation, images: Tensor) -> Tensor | None:
    """The label of each of a batch's images, once they are known; None where the last layer does not tell.

    The gradient of a last linear layer is the sum over the batch of (probabilities - one-hot label) times features;
    with as many features as examples that is solved for the labels.

    Args:
        observation: of one gradient, or of few steps.
        images: (num_examples, channels, height, width), the whole batch.
    """
    model = copy.deepcopy(observation.model).cpu().double().eval()
    name, last = _layers_in_use(model, observation.domain)[-1]
    gradient = observation.gradient().get(f"{name}.weight")
    if gradient is None or not isinstance(last, nn.Linear) or len(images) != observation.num_examples:
        return None
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images.cpu().double())
    hook.remove()
    errors: Tensor = gradient.cpu().double() @ torch.linalg.pinv(seen[0])  # (classes, count)
    return errors.argmin(0)  # negative at the label alone, at any scale


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """The image itself at batch 1; of a batch the mixtures that its neurons hold, the best supported first."""

    agreement: float = 1e-3  # relative distance up to which two neurons show the same; above the rounding of float32

    @property
    def needs(self) -> Knowledge:
        """Nothing but the update."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Divide, and keep what several neurons show before what a single one shows.

        Returns:
            At most ``num_examples`` images; ``exact`` where two neurons agree, which mixtures do not, as each neuron
            weighs the examples differently. Labels where the images are as many as the examples.

        Raises:
            AttackError: the first layer with parameters is no linear layer with a bias on the image itself, or nothing
                of its gradient is left.
        """
        del rng  # nothing is drawn
        require_knowledge("first-layer", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        layer = first_linear("first-layer", seen)
        strength = layer.bias_gradient.abs()
        used = (strength > 1e-6 * strength.max()).nonzero()[:, 0]
        if not len(used):
            raise AttackError(
                f"first-layer: the gradient of {layer.name}.bias is zero: no example switched a neuron on, or a "
                "defense removed it; nothing is left to divide"
            )
        used = used[strength[used].argsort(descending=True)]  # the strongest has the least rounding
        inputs, support = self._supported(
            layer.weight_gradient[used] / layer.bias_gradient[used, None], seen.num_examples
        )
        images = layer.images(inputs)
        labels = labels_of(seen, images) if bool((support > 1).all()) else None
        return Reconstruction(images.to(seen.dtype), labels, exact=support > 1)

    def _supported(self, mixtures: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` mixtures that most neurons show, and how many neurons show each."""
        near = torch.cdist(mixtures, mixtures) <= self.agreement * mixtures.norm(dim=1)
        support, free = near.sum(0), torch.ones(len(mixtures), dtype=torch.bool)
        chosen: list[int] = []
        while len(chosen) < count and bool(free.any()):
            best = int(torch.where(free, support, -1).argmax())
            chosen.append(best)
            free &= ~near[:, best]
        return mixtures[chosen], support[chosen]


def _layers_in_use(model: nn.Module, domain: ImageDomain) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own, by name, in the order in which an image meets them."""
    met: dict[str, nn.Module] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, _inputs, name=name: met.setdefault(name, module) and None)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        model(torch.zeros(1, *domain.shape, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    if not met:
        raise AttackError(f"{type(model).__name__} has no layer with parameters: there is no gradient to attack")
    return list(met.items())


def _before(attack: str, model: nn.Module, name: str, layer: nn.Linear, domain: ImageDomain) -> tuple[Tensor, Tensor]:
    """What happens to a pixel before the layer, (scale, shift), if that is all that happens to it."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    probe = torch.rand(1, *domain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for image in (torch.zeros_like(probe), torch.ones_like(probe), probe):
            model(image)
    hook.remove()
    shift, one, other = (inputs.flatten() for inputs in seen)
    scale = one - shift
    if len(shift) != domain.pixels or not torch.allclose(scale * probe.flatten() + shift, other) or not scale.all():
        raise AttackError(
            f"{attack}: {name} sees {tuple(seen[0].shape[1:])} numbers that are not the {domain.pixels} pixels, each "
            "scaled and shifted: what stands before it cannot be undone by division"
        )
    return scale, shift
