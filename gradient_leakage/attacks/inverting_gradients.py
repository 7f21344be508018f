"""Inverting Gradients: images whose gradient points where the sent one points, among smooth images.

Source: Geiping et al. 2020, "Inverting Gradients - How easy is it to break privacy in federated learning?"
(arXiv:2003.14053): 1 - cosine similarity of the gradients plus total variation, by Adam on the signs of the slope, in
the box [0, 1]. ``GEIPING_2020`` are the paper's own settings. The defaults differ in three things. The weight of the
total variation falls along the way, as it leads to the basin but then holds the image back from the target (fresh
`relu-cnn`, four X-rays of 28 pixels, 500 steps: 23 dB at a fixed 0.1, 28 at 0.01, 34 at 0.001, 25 without; falling from
0.01 to 0.0001 38 dB over six, in 400). It is in units of the match's own slope, so that one default serves all models.
And step sizes fall evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..gradients import gradients_of_restarts, require_differentiable
from ..threat_model import Knowledge, Observation, Reconstruction, lowest_loss, require_knowledge
from .matching import (
    Decay,
    Descent,
    Distance,
    Smoothness,
    descend,
    distance_to,
    labels_of_restarts,
    option,
    random_images,
    randomness_of,
    sent_gradient,
    working_copy,
)

GEIPING_2020: dict[str, Any] = {
    "total_variation": 0.2,
    "total_variation_end": 0.2,
    "relative": False,
    "decay": "steps",
}
"""The options of the paper, with the weight of its later implementation for mean differences of pixels."""


@dataclass(frozen=True, slots=True)
class InvertingGradients:
    """The images of one gradient, or of an update treated as one gradient.

    Labels that are not granted are taken from the last layer first. Batches need no more than memory, but the match
    gets worse with each further image.

    Raises:
        ConfigError: an option out of range.
    """

    iterations: int = 400
    restarts: int = 1
    total_variation: float = 0.2  # weight at the start, of the mean absolute difference of neighbours
    total_variation_end: float = 3e-4
    relative: bool = True  # both in units of the match's slope at the start
    step_size: float = 0.1
    decay: str = "exponential"  # or "steps"
    signed: bool = True
    distance: str = "cosine"  # or "l2"
    trace_every: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of range before any work."""
        self._descent()
        option(Distance, "distance", self.distance)
        Smoothness(self.total_variation, self.total_variation_end)

    @property
    def needs(self) -> Knowledge:
        """Nothing beside the update."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Descend from random images; the restart of the lowest loss is chosen.

        Raises:
            AttackError: nothing to match, a layer without slope, or NaN in every restart.
        """
        require_knowledge("inverting-gradients", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        require_differentiable(seen.model, seen.domain)
        sent = sent_gradient("inverting-gradients", seen)
        labels = labels_of_restarts(seen, knowledge, self.restarts, rng)
        model, distances = working_copy(seen.model), distance_to(sent, Distance(self.distance))

        def match(images: Tensor) -> Tensor:
            return distances(gradients_of_restarts(model, images, labels))

        start = random_images(seen, (self.restarts, seen.num_examples), rng)
        smooth = Smoothness(self.total_variation, self.total_variation_end)
        with randomness_of(rng):
            if self.relative:
                smooth = smooth.in_units_of(match, start)
            return lowest_loss(descend(self._descent(), lambda x, at: match(x) + smooth(x, at), start, labels))

    def _descent(self) -> Descent:
        decay = option(Decay, "decay", self.decay)
        return Descent(self.iterations, self.restarts, self.step_size, decay, self.signed, self.trace_every)
