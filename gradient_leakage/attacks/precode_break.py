"""PRECODE gives its noise away, and with it everything that lies behind the bottleneck.

For one example the gradient of a linear layer is an outer product: its input is the gradient of the weights over that
of the bias, and the gradient of its bias is what comes back from behind. So the encoder's gradient gives the features
and hence mean and deviation of the code, the decoder's gives the code that was drawn, and ``noise = (code - mean) /
deviation``. With the noise pinned the network is an ordinary function, and DLG can run on it (``pinned``).

The attack itself need not go through the pinned part. All that it would calculate there is known exactly, features and
their slope, so it runs DLG on the layers before: twice as fast, and never caught in a minimum behind the bottleneck.

Source: inputs of linear layers by division are Phong et al. 2018 (IEEE TIFS 13(5), section 3), the module is Scheliga
et al., WACV 2022; that it falls to an attacker who knows it is Balunović et al. 2022 (arXiv:2111.04706).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError
from ..defenses.bottlenecks import VariationalBottleneck
from ..gradients import Named, gradient_at, require_differentiable
from ..threat_model import Knowledge, Observation, Reconstruction, SentKind, require_knowledge
from .dlg import random_start, relative_distance
from .labels import idlg_label
from .matching import randomness_of, working_copy
from .natural_images import natural_coordinates
from .quasi_newton import Problem, Search, best_restart, walk

_BALANCE = 0.5  # early convolutions have small gradients, and say most about the image


@dataclass(frozen=True, slots=True)
class PrecodeBreak:
    """Features and slope at the bottleneck by division, then DLG on what lies before it."""

    iterations: int = 1000  # evaluations of the gradient a restart, at most
    restarts: int = 3
    tolerance: float = 1e-11
    falloff: float = 0.5  # as in ``Dlg``
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        self._search()

    @property
    def needs(self) -> Knowledge:
        """Nothing, not even the label; of an update, the learning rate."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """One image, shape (1, channels, height, width) in [0, 1], and its label.

        Raises:
            AttackError: more than one example, no bottleneck, nothing before it, or a layer before it that is not
                differentiable twice.
            ConfigError: an update whose learning rate is not granted.
        """
        require_knowledge("the break of PRECODE", self.needs, knowledge)
        if observation.kind is SentKind.UPDATE:
            require_knowledge("the break of PRECODE on an update", Knowledge(learning_rate=True), knowledge)
        seen = observation.limited_to(knowledge)
        name, bottleneck = _bottleneck_of(seen)
        features, slope = input_of(seen, f"{name}.encoder"), slope_at(seen, name, bottleneck.encoder)
        label = idlg_label(seen, rng)
        with randomness_of(rng):
            body = Body(working_copy(seen.model).double(), name)
            search, sent = self._search(), _sent_before(seen, body)
            require_differentiable(body, seen.domain)
            found = best_restart(
                "the break of PRECODE",
                lambda: walk(self._problem(body, sent, features, slope, label, 0.1 * random_start(seen, rng)), search),
                search,
            )
        assert found.images is not None
        return replace(found, images=found.images.to(seen.dtype))

    def _search(self) -> Search:
        return Search(self.iterations, self.restarts, self.tolerance, self.trace_every)

    def _problem(
        self, body: Body, sent: Named, features: Tensor, slope: Tensor, label: Tensor, start: Tensor
    ) -> Problem:
        to_pixels = natural_coordinates(tuple(start.shape), self.falloff, start)
        distance, length = relative_distance(sent, _BALANCE), features.square().sum()

        def loss(sought: Sequence[Tensor]) -> Tensor:
            image = 0.5 + to_pixels(sought[0])
            # the slope of the loss behind is known, so the loss may be replaced by its linear part
            gradient = gradient_at(body, image, slope, loss=lambda outputs, known: (outputs * known).sum())
            found: Tensor = body(image)
            return distance(gradient) + (found - features).square().sum() / length

        return Problem([start], loss, lambda sought: 0.5 + to_pixels(sought[0]), lambda _: label)


def recovered_noise(observation: Observation) -> Tensor:
    """The noise that the site drew, shape (1, width), float64, on the model's device.

    Raises:
        AttackError: more than one example, no bottleneck, or its layers got no gradient.
    """
    name, bottleneck = _bottleneck_of(observation)
    features, code = (input_of(observation, f"{name}.{layer}") for layer in ("encoder", "decoder"))
    with torch.no_grad():
        mean, deviation = copy.deepcopy(bottleneck).double().gaussian(features)
        noise: Tensor = (code - mean) / deviation
        return noise


def pinned(observation: Observation) -> Observation:
    """The same observation of a model whose bottleneck draws nothing: its noise is the recovered one.

    Raises:
        AttackError: as ``recovered_noise``.
    """
    noise, model = recovered_noise(observation), copy.deepcopy(observation.model)
    bottleneck = model.get_submodule(_bottleneck_of(observation)[0])
    assert isinstance(bottleneck, VariationalBottleneck)
    bottleneck.pinned = noise
    return replace(observation, model=model)


class Body(nn.Module):
    """What lies before the module of that name: images to features. The model is taken over."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self._tap = _Tap()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, self._tap)

    def forward(self, images: Tensor) -> Tensor:
        """Features, (count, ...)."""
        self.model(images)
        features = self._tap.features
        del self._tap.features  # a module that keeps what can be differentiated cannot be copied
        return features


class _Tap(nn.Module):
    """Keeps what would have entered the bottleneck and hands it on."""

    features: Tensor

    def forward(self, features: Tensor) -> Tensor:
        self.features = features
        return features


def _bottleneck_of(observation: Observation) -> tuple[str, VariationalBottleneck]:
    for name, module in observation.model.named_modules():
        if isinstance(module, VariationalBottleneck):
            return name, module
    raise AttackError("the model has no PRECODE bottleneck: attack it with dlg")


def _sent_before(observation: Observation, body: Body) -> Named:
    """The gradient of each parameter on which the features depend, by its name in the body, in float64."""
    named = {name: weight for name, weight in body.named_parameters() if weight.requires_grad}
    image = torch.full((1, *observation.domain.shape), 0.5).to(next(body.parameters()))
    total, reached = body(image).sum(), set()
    if total.requires_grad:
        slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        reached = {name for name, slope in zip(named, slopes, strict=True) if slope is not None}
    sent = {f"model.{name}": value.double() for name, value in observation.gradient().items()}
    before = {name: value for name, value in sent.items() if name in reached}
    if not any(bool(value.any()) for value in before.values()):
        raise AttackError("no trained layer lies before the bottleneck: what enters it is all that the update shows")
    return before


def slope_at(observation: Observation, name: str, encoder: nn.Linear) -> Tensor:
    """Of the loss, by the features that enter the bottleneck of that encoder: (1, features), float64."""
    behind = observation.gradient()[f"{name}.encoder.bias"].double()
    return (behind @ encoder.weight.detach().double())[None]


def input_of(observation: Observation, name: str) -> Tensor:
    """What entered a linear layer, (1, in_features): least squares over all rows of ``dW = db input``, in float64."""
    if observation.num_examples != 1:
        raise AttackError(
            f"the update is of {observation.num_examples} examples, whose noise adds up in the gradient: "
            "PRECODE's is read off one example"
        )
    gradient, found = observation.gradient(), [f"{name}.weight", f"{name}.bias"]
    if absent := [one for one in found if one not in gradient]:
        raise AttackError(f"the update holds no {absent[0]}: nothing can be read off the bottleneck")
    weight, bias = (gradient[one].double() for one in found)
    power = bias.square().sum()
    if not bool(power > 0):
        raise AttackError(f"the gradient of {name}.bias is zero: nothing came back through the bottleneck")
    return (bias @ weight / power)[None]
