"""Deep leakage from gradients: images, and labels where nobody granted them, whose gradient is the one that was sent.

L-BFGS on the squared difference of gradients (Zhu et al. 2019, arXiv:1906.08935, Algorithm 1); with the label that
Zhao et al. 2020 read off (arXiv:2001.02610) it is iDLG. Beyond the papers, the attacker calculates in float64 whatever
was sent, works in the coordinates of natural images, stops when the loss has reached its floor, and starts again where
it plainly failed.

Sought labels are numbers that add up to 1, not the softmax of others: a softmax comes to a true label only at
infinity. And once the gradients nearly agree, they are rounded and the images go on alone. Each halves the evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from ...utils.errors import AttackError
from ..gradients import Named, gradient_at, require_differentiable
from ..threat_model import Candidate, Knowledge, Observation, Reconstruction, SentKind, require_knowledge
from .labels import idlg_label
from .matching import option, randomness_of, sent_gradient, working_copy
from .natural_images import natural_coordinates
from .quasi_newton import Problem, Search, best_restart, walk

_LABELS_CLEAR = 1e-4  # relative squared distance at which the largest of the sought labels is taken for the label


class Labels(Enum):
    """Where the labels come from."""

    AUTO = "auto"  # known where they are granted, else joint
    KNOWN = "known"
    JOINT = "joint"  # optimised with the image, as DLG does
    IDLG = "idlg"  # read off the last layer, as iDLG does; one example


@dataclass(frozen=True, slots=True)
class Dlg:
    """DLG and iDLG.

    Reads one gradient, or the update of a site whose learning rate is known; several local steps are taken for one.

    Raises:
        ConfigError: an option that makes no sense.
    """

    labels: str = "auto"  # auto, known, joint or idlg
    iterations: int = 1000  # gradients a restart, at most; as many again once sought labels are rounded
    restarts: int = 3  # at most; a further one only where all before it plainly failed
    tolerance: float = 1e-11  # relative squared distance at which a restart is done
    falloff: float = 0.5  # of natural images' spectrum; 0 optimises pixels, as the paper does
    spread: float = 0.1  # standard deviation of the start around mid-grey; the paper's is 1
    balance: float = 0.0  # 0 weighs all numbers alike, as the paper does; 1 all tensors, whatever their length
    trace_every: int = 0  # evaluations; 0 for no trace

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        option(Labels, "labels", self.labels)
        self._search()

    @property
    def needs(self) -> Knowledge:
        """The labels, where they are to be known."""
        return Knowledge(labels=self.labels == Labels.KNOWN.value)

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Images of shape (num_examples, channels, height, width) in [0, 1], and their labels.

        Raises:
            AttackError: the model is not differentiable twice (the layer is named), the update is zero, granted labels
                do not fit, or every restart met NaN.
            ConfigError: something it needs is not granted.
        """
        require_knowledge("DLG", self.needs, knowledge)
        if observation.kind is SentKind.UPDATE:
            require_knowledge("DLG on an update", Knowledge(learning_rate=True), knowledge)
        seen = observation.limited_to(knowledge)
        require_differentiable(seen.model, seen.domain)
        labels, search = self._labels(seen, knowledge, rng), self._search()
        with randomness_of(rng):
            found = best_restart("DLG", lambda: self._restart(seen, labels, search, rng), search)
        assert found.images is not None
        return replace(found, images=found.images.to(seen.dtype))

    def _search(self) -> Search:
        return Search(self.iterations, self.restarts, self.tolerance, self.trace_every)

    def _labels(self, seen: Observation, knowledge: Knowledge, rng: torch.Generator) -> Tensor | None:
        """Labels of shape (num_examples,); None where they are to be found with the images."""
        how = Labels(self.labels)
        if how is Labels.IDLG:
            return idlg_label(seen, rng)
        return None if how is Labels.JOINT or not knowledge.labels else granted_labels(seen)

    def _restart(self, seen: Observation, labels: Tensor | None, search: Search, rng: torch.Generator) -> Candidate:
        start = self.spread * random_start(seen, rng)
        if labels is not None:
            return walk(self._problem(seen, labels, start, 0.5), search)
        free = torch.randn((seen.num_examples, seen.domain.num_classes), generator=rng, dtype=torch.float64)
        rough = walk(self._problem(seen, free.to(start.device), start, 0.5), replace(search, tolerance=_LABELS_CLEAR))
        assert rough.labels is not None
        fine = walk(self._problem(seen, rough.labels, torch.zeros_like(start), rough.images), search)
        later = (
            replace(point, iteration=len(rough.trace) * self.trace_every + point.iteration) for point in fine.trace
        )
        return replace(fine if fine.loss < rough.loss else rough, trace=(*rough.trace, *later))

    def _problem(self, seen: Observation, labels: Tensor, start: Tensor, around: Tensor | float) -> Problem:
        """Sought are the images' coordinates and, where labels are floats, these too: (num_examples, classes)."""
        model, sent = working_copy(seen.model).double(), sent_gradient("DLG", seen)
        to_pixels = natural_coordinates(tuple(start.shape), self.falloff, start)
        distance = relative_distance({name: value.double() for name, value in sent.items()}, self.balance)
        if not labels.is_floating_point():
            return Problem(
                [start],
                lambda sought: distance(gradient_at(model, around + to_pixels(sought[0]), labels)),
                lambda sought: around + to_pixels(sought[0]),
                lambda _: labels,
            )
        return Problem(
            [start, labels],
            lambda sought: distance(gradient_at(model, around + to_pixels(sought[0]), _soft_labels(sought[1]))),
            lambda sought: around + to_pixels(sought[0]),
            lambda sought: sought[1].argmax(1),
        )


def random_start(seen: Observation, rng: torch.Generator) -> Tensor:
    """White noise of variance 1, of the shape of all images, float64."""
    drawn = torch.randn((seen.num_examples, *seen.domain.shape), generator=rng, dtype=torch.float64)
    return drawn.to(next(seen.model.parameters()).device)


def relative_distance(sent: Named, balance: float) -> Callable[[Named], Tensor]:
    """Squared L2 distance to what was sent over its squared length, in all numbers or tensor by tensor.

    Args:
        sent: by name.
        balance: each tensor is divided by ``own squared length ** balance * that of all ** (1 - balance)``.
    """
    lengths = {name: float(value.square().sum()) for name, value in sent.items()}
    whole = sum(lengths.values())
    weights = {name: own**-balance * whole ** (balance - 1) for name, own in lengths.items() if own}
    return lambda found: torch.stack([w * (found[n] - sent[n]).square().sum() for n, w in weights.items()]).sum()


def granted_labels(observation: Observation) -> Tensor:
    """The labels that the threat model grants, on the model's device.

    Raises:
        AttackError: they do not fit the update or the plan.
    """
    labels, classes = observation.granted.labels, observation.domain.num_classes
    if labels is None or labels.shape != (observation.num_examples,):
        came = "none" if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise AttackError(f"the update is of {observation.num_examples} examples, granted were {came}")
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise AttackError(f"a granted label is not one of the plan's {classes} classes, 0 to {classes - 1}")
    return labels.to(next(observation.model.parameters()).device)


def _soft_labels(free: Tensor) -> Tensor:
    """Rows that add up to 1 and are free else; (count, classes)."""
    return free - free.mean(1, keepdim=True) + 1 / free.shape[1]
