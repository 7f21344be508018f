"""Membership: was this picture among those that the released model was trained on?

RMIA, Zarifzadeh, Liu and Shokri, ICML 2024 (arXiv:2312.03262), in its offline form: the reference models are trained
on public images alone, before any candidate is known, and serve every candidate. Beside it the threshold on the loss of
Yeom et al. 2018 (arXiv:1709.01604), which every membership attack must beat.

The attacker sees the released model, candidates with their labels, and public images; which candidates are members is
nowhere in this module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from ...utils.errors import AttackError
from ..threat_model import Granted, Knowledge, PublicImages, Reconstruction, require_knowledge

Training: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], nn.Module]
"""Trains a fresh model of the plan on (images, labels); a plan is known to everybody in its federation."""

_UNTUNED_A = 0.3  # the paper's value for CIFAR-10
_TRIED_A = tuple(tenth / 10 for tenth in range(11))
_AT_ONCE = 512  # images in one forward pass


@dataclass(frozen=True, slots=True, eq=False)
class ReleasedModel:
    """What a reader of the model has."""

    model: nn.Module
    images: Tensor  # (candidates, channels, height, width) in [0, 1]: those whose membership is asked
    labels: Tensor  # (candidates,) int64
    num_examples: int  # the model was trained on so many
    train: Training
    granted: Granted = field(default_factory=Granted)


@dataclass(frozen=True, slots=True)
class LossThreshold:
    """Members have a lower loss: Yeom et al. 2018, Adversary 2. Needs nothing but the model."""

    @property
    def needs(self) -> Knowledge:
        """Nothing."""
        return Knowledge()

    def __call__(self, observation: ReleasedModel, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:  # noqa: ARG002 - the attacks' one shape
        """``scores`` is the log-probability of the label, in float64."""
        return Reconstruction(scores=_log_probability(observation.model, observation.images, observation.labels))


@dataclass(frozen=True, slots=True)
class Rmia:
    """Reference models on public images, then the pairwise likelihood ratio.

    ``fit`` alone trains the reference models, which serve every released model of the same plan and size.
    """

    reference_models: int = 8
    offline_a: float | None = None  # equation 11's a in [0, 1]; None: tuned on a reference model in the target's place

    @property
    def needs(self) -> Knowledge:
        """Public images with their labels."""
        return Knowledge(public_data=True)

    def __call__(self, observation: ReleasedModel, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Attack.

        Raises:
            AttackError: too few public images, or no reference model.
            ConfigError: the threat model grants no public data.
        """
        require_knowledge("rmia", self.needs, knowledge)
        return self.fit(observation, rng)(observation, knowledge, rng)

    def fit(self, observation: ReleasedModel, rng: torch.Generator) -> FittedRmia:
        """Train the reference models. Neither the released model nor a candidate is read.

        Raises:
            AttackError: too few public images, or no reference model.
        """
        public = observation.granted.public_data
        if public is None or len(public.images) < 2 * observation.num_examples:
            found = 0 if public is None else len(public.images)
            raise AttackError(
                f"rmia: {found} public images; reference models like one trained on {observation.num_examples} "
                f"examples take {2 * observation.num_examples}: each public image must also be outside of some"
            )
        if self.reference_models < 1:
            raise AttackError(f"rmia: {self.reference_models} reference models; expected at least 1")
        models, inside = [], torch.zeros(self.reference_models, len(public.images), dtype=torch.bool)
        for number in range(self.reference_models):
            chosen = torch.randperm(len(public.images), generator=rng)[: observation.num_examples]
            inside[number, chosen] = True
            models.append(observation.train(public.images[chosen], public.labels[chosen], rng))
        known = torch.stack([_log_probability(model, public.images, public.labels) for model in models])
        offline_a = self.offline_a if self.offline_a is not None else _tuned(known.exp(), inside)
        return FittedRmia(tuple(models), public, inside, known, offline_a)


@dataclass(frozen=True, slots=True, eq=False)
class FittedRmia:
    """Reference models, and what they say of the public images."""

    models: tuple[nn.Module, ...]
    public: PublicImages
    inside: Tensor  # (models, public images) bool: what each was trained on
    known: Tensor  # (models, public images) float64: log-probability of the label
    offline_a: float

    @property
    def needs(self) -> Knowledge:
        """Public images: the reference models took them."""
        return Knowledge(public_data=True)

    def __call__(self, observation: ReleasedModel, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:  # noqa: ARG002 - the attacks' one shape
        """``scores``: the share of public images z that a candidate x beats, Pr(LR(x, z) > 1), equation 3 with gamma 1.

        The share grows with x's own ratio alone, so ties between candidates that beat the same share are broken by
        that ratio, in less than one step of the share: what an ever larger public set would do.

        Raises:
            ConfigError: the threat model grants no public data.
        """
        require_knowledge("rmia", self.needs, knowledge)
        images, labels = observation.images, observation.labels
        out = torch.stack([_log_probability(model, images, labels) for model in self.models]).exp()
        ratio = _log_probability(observation.model, images, labels) - _prior(out.mean(0), self.offline_a).log()
        outside = (~self.inside).any(0)
        public = PublicImages(self.public.images[outside], self.public.labels[outside])
        prior = _prior(_mean_outside(self.known.exp(), self.inside)[outside], self.offline_a)
        population = (_log_probability(observation.model, public.images, public.labels) - prior.log()).sort().values
        beaten = torch.searchsorted(population, ratio)
        return Reconstruction(scores=(beaten + torch.sigmoid(ratio)) / (len(population) + 1))


def _prior(mean_outside: Tensor, offline_a: float) -> Tensor:
    """Pr(x) from models that did not see x, equation 11: half of the models in the world did, and are surer of x."""
    return ((1 + offline_a) * mean_outside + (1 - offline_a)) / 2


def _mean_outside(probability: Tensor, inside: Tensor) -> Tensor:
    """Mean over the models that did not see each image; NaN where all did."""
    return (probability * ~inside).sum(0) / (~inside).sum(0)


def _tuned(probability: Tensor, inside: Tensor) -> float:
    """The a with the best area under the curve when the first reference model stands in the target's place."""
    if len(inside) < 2:
        return _UNTUNED_A
    usable = (~inside[1:]).any(0)
    mean, own, member = _mean_outside(probability[1:], inside[1:])[usable], probability[0][usable], inside[0][usable]

    def area(a: float) -> float:
        return float(roc_auc_score(np.asarray(member), np.asarray(own / _prior(mean, a))))

    return max(_TRIED_A, key=area)


def _log_probability(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the label, float64 on the CPU, shape (count,); the model stays in the mode it was in."""
    weight, still = next(model.parameters()), copy.deepcopy(model).eval()
    with torch.no_grad():
        outputs = [still(part.to(weight.device, weight.dtype)).double().cpu() for part in torch.split(images, _AT_ONCE)]
    return functional.log_softmax(torch.cat(outputs), 1).gather(1, labels.cpu()[:, None])[:, 0]
