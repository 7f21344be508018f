"""Fishing: a malicious director makes one example of a large batch the only one that the gradient feels.

Source: Wen et al. 2022, "Fishing for User Data in Large-Batch Federated Learning" (ICML 2022, arXiv:2202.00580). Only
numbers of the last linear layer change; layout and structure stay the plan's. What the batch then sends is one
example's gradient, which any attack on batch 1 inverts.

| form | the last layer | who is felt |
|---|---|---|
| class (``expected`` = 1) | all other classes are certain; their rows are zero | all examples of the target class |
| feature (``expected`` > 1) | a steep step at a quantile of one feature | those of the class below the step |

The second form also feels examples of other classes *above* the step, so it is for sites that hold one class, as in
the paper. It catches one example with probability (1 - 1/n)^(n - 1), about 1/e, and knows from the update whether it
did. A site whose model has BatchNorm in train mode mixes the batch before the last layer: nobody is felt alone there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError, ConfigError
from ..threat_model import (
    ImageDomain,
    Knowledge,
    Observation,
    PublicImages,
    Reconstruction,
    SentKind,
    require_knowledge,
)
from .catalogue import listed

CERTAIN = 100.0  # a logit beside which others vanish in float32


@dataclass(frozen=True, slots=True)
class Fishing:
    """One example out of a batch, by an attack on batch 1."""

    inner: str = "dlg"  # by its name in the catalogue, with its own options
    target_class: int = 0
    expected: int = 1  # examples of the target class at the site, as far as the director guesses
    steepness: float = 1000.0  # of the step, in standard deviations of the feature

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: says which.
        """
        if self.expected < 1 or self.target_class < 0 or self.steepness <= 0:
            raise ConfigError("fishing expects at least 1 example of a class from 0 on, and a positive steepness")

    @property
    def needs(self) -> Knowledge:
        """That the attacker chose the model; public images too, where the site is to hold several of the class."""
        return Knowledge(malicious=True, public_data=self.expected > 1)

    def prepare(
        self,
        model: nn.Module,
        domain: ImageDomain,
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
        public: PublicImages | None = None,
    ) -> nn.Module:
        """The plan's model with another last layer.

        Raises:
            AttackError: the model has no last linear layer with one output a class and a bias.
            ConfigError: no such class, or the feature's distribution cannot be estimated: no public images.
        """
        published = copy.deepcopy(model)
        _, last = last_linear(published, domain)
        if self.target_class >= domain.num_classes:
            raise ConfigError(f"no class {self.target_class} to fish for: the plan has {domain.num_classes}")
        with torch.no_grad():
            row, bias = last.weight[self.target_class].clone(), torch.zeros_like(last.bias[0])
            if self.expected > 1:
                row, bias = self._step(model, domain, public)
            last.weight.zero_()
            last.weight[self.target_class] = row
            last.bias.fill_(CERTAIN if self.expected == 1 else 0.0)
            last.bias[self.target_class] = bias
        return published

    def _step(self, model: nn.Module, domain: ImageDomain, public: PublicImages | None) -> tuple[Tensor, Tensor]:
        """Row and bias of a logit that crosses zero where one of ``expected`` examples lies below."""
        own = None if public is None else public.images[public.labels == self.target_class]
        if own is None or len(own) < self.expected:
            have = 0 if own is None else len(own)
            raise ConfigError(
                f"the quantile of one in {self.expected} needs as many public images of class {self.target_class}, "
                f"there are {have}"
            )
        features = features_of(model, domain, own).double()
        centered = features - features.mean(0)
        widest = torch.linalg.svd(centered, full_matrices=False).Vh[0]
        seen = features @ widest
        scale = self.steepness / seen.std()
        like = next(model.parameters())
        return (scale * widest).to(like), (-scale * torch.quantile(seen, 1 / self.expected)).to(like)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Invert the gradient of who was caught; one image of the target class.

        Raises:
            AttackError: nobody was caught, or several were; or the inner attack cannot treat the model.
        """
        require_knowledge("fishing", self.needs, knowledge)
        caught = self.caught(observation.limited_to(knowledge))
        found: Reconstruction = listed(self.inner).make()(caught, replace(knowledge, labels=True), rng)
        return replace(found, labels=caught.granted.labels)

    def caught(self, observation: Observation) -> Observation:
        """The one example's own gradient, as if the site had had no other.

        The bias of the target class feels -1 of each caught example, so their number is read off it.

        Raises:
            AttackError: none or several were caught, or an update's scale is not known.
        """
        name, last = last_linear(observation.model, observation.domain)
        if observation.kind is SentKind.UPDATE and observation.granted.learning_rate is None:
            raise AttackError("how many were caught is read off the scale of the update: grant the learning rate")
        gradient, prefix, target = observation.gradient(), f"{name}." if name else "", self.target_class
        number = -observation.num_examples * float(gradient[f"{prefix}bias"][target])
        if not 0.5 < number < 1.5:
            raise AttackError(f"{number:.1f} examples were caught, not one: fish with another class or another step")
        scale = observation.num_examples / number
        alone = {n: scale * g for n, g in gradient.items()}
        share = torch.full_like(last.bias, 1 / (len(last.bias) - 1))  # the others are equally likely
        share[target] = -1.0
        alone[f"{prefix}weight"] = -share[:, None] * alone[f"{prefix}weight"][target]
        alone[f"{prefix}bias"] = share
        flat = [
            alone[e.name].reshape(-1) if e.name in alone else last.bias.new_zeros(e.size)
            for e in observation.layout.entries
        ]
        return replace(
            observation,
            sent=torch.cat(flat).to(observation.dtype).cpu().numpy().tobytes(),
            kind=SentKind.GRADIENT,
            model=self._flat(observation.model, observation.domain),
            num_examples=1,
            granted=replace(
                observation.granted,
                labels=torch.tensor([target]),
                batch_norm_statistics=None,
                local_steps=None,
                learning_rate=None,
            ),
        )

    def _flat(self, model: nn.Module, domain: ImageDomain) -> nn.Module:
        """The published model as a caught example saw it, at every image: below the step there is no step.

        An inner attack that starts above it would feel nothing.
        """
        flat = copy.deepcopy(model)
        _, last = last_linear(flat, domain)
        with torch.no_grad():
            last.bias.fill_(0.0)
            last.bias[self.target_class] = -CERTAIN * (1.0 + last.weight[self.target_class].abs().sum())
        return flat


def last_linear(model: nn.Module, domain: ImageDomain) -> tuple[str, nn.Linear]:
    """The layer that gives the logits, with its name.

    Raises:
        AttackError: it is not a linear layer with a bias and one output a class.
    """
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != domain.num_classes or linear[-1][1].bias is None:
        raise AttackError(f"fishing needs a last nn.Linear with a bias and {domain.num_classes} outputs")
    return linear[-1]


def features_of(model: nn.Module, domain: ImageDomain, images: Tensor) -> Tensor:
    """What the last layer is given, shape (count, features)."""
    probe, like = copy.deepcopy(model), next(model.parameters())
    seen: list[Tensor] = []
    _, last = last_linear(probe, domain)
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for some in torch.split(images.to(like), 64):
            probe(some)
    return torch.cat(seen)
