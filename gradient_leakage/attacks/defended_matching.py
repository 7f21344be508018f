"""Gradient matching that knows the defense: candidates are brought beside the payload, not the payload beside them.

One attack for every chain that ``defenses.views`` can follow: on the kept entries of top-k (pruning was put forward by
Zhu et al. 2019, arXiv:1906.08935, section 5.2), in the code of a sketch or a codec, without what Soteria hides and by
likelihood under Gaussian noise (both as Balunović et al. 2022 attack them, arXiv:2111.04706, sections 4 and 5), by
magnitude against OUTPOST, at the best scale under a clip.

Signed Adam with falling total variation leads into the basin, as Geiping et al. 2020 do (arXiv:2003.14053). Where the
view has more numbers than there are pixels, and no noise, L-BFGS then goes on without a prior, as DLG does. Under noise
it goes on with one: squared difference over twice the variance, plus total variation over ``prior``. Its value was
chosen on two X-rays under noise of twice the gradient's length: 0.03, 0.1, 0.3, 0.6, 1 gave 17, 19, 21, 20, 18 dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...utils.errors import AttackError, ConfigError
from ...utils.tensors import Layout
from ..defenses.chain import Chain
from ..defenses.views import View, view_of
from ..gradients import Named, gradient_at, gradients_of_restarts, require_differentiable
from ..threat_model import Candidate, Knowledge, Observation, Reconstruction, SentKind, lowest_loss, require_knowledge
from .matching import (
    Decay,
    Descent,
    Distance,
    Smoothness,
    descend,
    labels_of_restarts,
    option,
    random_images,
    randomness_of,
    working_copy,
)
from .quasi_newton import Problem, Search, walk

_TIP = 1e-2  # differences below it count by their square
_EARLY = 3.0  # times the prior's weight, at the start
Distances = Callable[[Named], Tensor]
"""Of one gradient by name, its distance to what was sent: one number."""


@dataclass(frozen=True, slots=True)
class DefendedMatching:
    """Images whose gradient, sent through the chain, is what was sent.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 500  # of signed Adam, all restarts at once
    polish: int = 800  # evaluations of L-BFGS from the best restart, where the view allows it; 0 for none
    restarts: int = 1
    total_variation: float = 0.2  # as in ``InvertingGradients``, in units of the match's slope at the start
    total_variation_end: float = 3e-4
    step_size: float = 0.1
    decay: str = "exponential"  # or "steps"
    prior: float = 0.3  # under noise: total variation per pixel of such images, as far as it is believed
    distance: str = "auto"  # "cosine", "l2" (the likelihood), or l2 where the scale is known
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range before any work."""
        self._descent()
        if self.distance != "auto":
            option(Distance, "distance", self.distance)
        Smoothness(self.total_variation, self.total_variation_end)
        if self.polish < 0 or not self.prior > 0:
            raise ConfigError(f"polish {self.polish}, prior {self.prior}: expected 0 or more, and more than 0")

    @property
    def needs(self) -> Knowledge:
        """The chain, with its parameters."""
        return Knowledge(defense=True)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Images of shape (num_examples, channels, height, width) in [0, 1].

        Raises:
            AttackError: nothing to match, a layer without slope, or NaN in every restart.
            ConfigError: the defense is not granted, or no chain.
        """
        require_knowledge("defended-matching", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        require_differentiable(seen.model, seen.domain)
        view, scale = view_of(chain_of("defended-matching", seen), seen), scale_of(seen)
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)
        with randomness_of(rng):
            found = lowest_loss(self._descended(seen, view, scale, labels, rng))
            if self.polish and (view.noise_std or view.numbers > seen.num_examples * seen.domain.pixels):
                found = self._polished(seen, view, scale, labels[0], found)
        assert found.images is not None
        return replace(found, images=found.images.to(seen.dtype))

    def _descended(
        self, seen: Observation, view: View, scale: float | None, labels: Tensor, rng: torch.Generator
    ) -> tuple[Candidate, ...]:
        model, distance = working_copy(seen.model), self._distance(view, scale, seen.layout)

        def match(images: Tensor) -> Tensor:
            found = gradients_of_restarts(model, images, labels)
            return torch.stack([distance({n: g[k] for n, g in found.items()}) for k in range(len(images))])

        start = random_images(seen, (self.restarts, seen.num_examples), rng)
        smooth = self._prior(view, seen) or Smoothness(self.total_variation, self.total_variation_end).in_units_of(
            match, start
        )
        return descend(self._descent(), lambda x, at: match(x) + smooth(x, at), start, labels)

    def _polished(
        self, seen: Observation, view: View, scale: float | None, labels: Tensor, found: Reconstruction
    ) -> Reconstruction:
        """On from the best restart, in float64; kept where the match itself became better."""
        assert found.images is not None
        model, distance = working_copy(seen.model).double(), self._distance(view, scale, seen.layout)
        start = found.images.to(next(model.parameters()))

        prior = self._prior(view, seen)

        def loss(images: Tensor) -> Tensor:
            match = distance(gradient_at(model, images, labels))
            return match if prior is None else match + prior.end * _smoothed_variation(images)

        problem = Problem([start], lambda at: loss(at[0]), lambda at: at[0], lambda _: labels)
        walked = walk(problem, self._search())
        if not walked.loss < float(loss(start.requires_grad_()).detach()):
            return found
        return replace(lowest_loss((walked,)), trace=found.trace)

    def _prior(self, view: View, seen: Observation) -> Smoothness | None:
        """The weight that the noise itself gives: Laplace for differences of neighbours; None without noise."""
        if not view.noise_std:
            return None
        weights = 1.0 if view.weights is None else view.weights
        power = float((weights * view.observed.square()).sum())
        weight = 2 * view.noise_std**2 / power * seen.num_examples * seen.domain.pixels / self.prior
        return Smoothness(_EARLY * weight, weight)

    def _distance(self, view: View, scale: float | None, layout: Layout) -> Distances:
        """Relative: about 1 at a random image, 0 where all agrees."""
        weights = torch.ones_like(view.observed) if view.weights is None else view.weights
        observed, power = view.observed, (weights * view.observed.square()).sum()
        if not bool(power > 0):
            raise AttackError("defended-matching: what was sent is zero, there is nothing to match")
        is_known = scale is not None and not view.is_scaled
        kind = Distance.L2 if is_known or view.noise_std else Distance.COSINE
        if self.distance != "auto":
            kind = option(Distance, "distance", self.distance)

        def distance(gradient: Named) -> Tensor:
            sent = view.project((scale or -1.0) * _flat(gradient, layout)).double()
            common, own = (weights * sent * observed).sum(), (weights * sent.square()).sum()
            if kind is Distance.COSINE:
                return 1 - common / (own * power).sqrt()
            if is_known:
                return (weights * (sent - observed).square()).sum() / power
            return 1 - common.clamp(min=0).square() / (own * power)  # with the scale that fits best

        return distance

    def _descent(self) -> Descent:
        decay = option(Decay, "decay", self.decay)
        return Descent(self.iterations, self.restarts, self.step_size, decay, signed=True, trace_every=self.trace_every)

    def _search(self) -> Search:
        return Search(self.polish, 1, 1e-13, 0)


def chain_of(attack: str, seen: Observation) -> Chain:
    """The chain that the threat model grants.

    Raises:
        AttackError: none was handed over.
    """
    if not isinstance(seen.granted.defense, Chain):
        raise AttackError(
            f"{attack}: granted was no chain of defenses; an undefended update has the empty one, Chain()"
        )
    return seen.granted.defense


def scale_of(seen: Observation) -> float | None:
    """What a gradient is multiplied by in the update; None where the sign alone is known, and it is negative."""
    if seen.kind is SentKind.GRADIENT:
        return 1.0
    local, rate = seen.granted.local_steps, seen.granted.learning_rate
    if rate is None or local is None:
        return None
    return -rate * local.steps(seen.num_examples)


def _flat(gradient: Named, layout: Layout) -> Tensor:
    """In the layout's order; zero where nothing was trained."""
    like = next(iter(gradient.values()))
    return torch.cat(
        [gradient[e.name].flatten() if e.name in gradient else like.new_zeros(e.size) for e in layout.entries]
    )


def _smoothed_variation(images: Tensor) -> Tensor:
    """Total variation with a rounded tip, for a descent that wants curvature."""
    across, down = images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
    return torch.stack([(d.square() + _TIP**2).sqrt().mean() for d in (across, down)]).sum()
