"""One image from all rows of a noisy first linear layer at once.

For one example the gradient of a linear layer is an outer product, ``[dW | db] = g [x ; 1]``: each row holds the image,
times a number of its own. Under Gaussian noise of one size in every number, the likeliest image is the leading right
singular vector of that matrix (total least squares: Golub and Van Loan 1980, section 2, in rank one); dividing row by
row, as ``first-layer`` does, throws all rows but one away. The size of the noise is read off what rank one leaves over,
and what it leaves on the image is filtered as Wiener 1949 does, given how natural images' spectra fall (Field 1987).

This is the analytic attack on clip + Gaussian noise: a clip scales all rows alike and cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.fft import dctn, idctn
from torch import Tensor

from ...utils.errors import AttackError, ConfigError
from ..threat_model import Knowledge, Observation, Reconstruction, require_knowledge
from .first_layer import FirstLinear, first_linear

_BRIGHTNESS, _SPREAD = 0.5, 0.15  # of an image, among images


@dataclass(frozen=True, slots=True)
class AllRows:
    """The image of a batch of one.

    Raises:
        ConfigError: an option out of range.
    """

    contrast: float = 0.25  # standard deviation of the pixels of such images; 0 leaves the noise in the image
    falloff: float = 1.5  # of their spectrum's amplitude with frequency

    def __post_init__(self) -> None:
        """Refuse what no image has."""
        if not (self.contrast >= 0 and self.falloff >= 0):
            raise ConfigError(f"contrast {self.contrast}, falloff {self.falloff}: expected 0 or more")

    @property
    def needs(self) -> Knowledge:
        """Nothing: neither the noise nor the clip."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Decompose and filter; ``loss`` is the standard deviation of the noise that it expects in a pixel.

        Raises:
            AttackError: more than one example, or no first linear layer with a bias on the image itself.
        """
        del rng  # nothing is drawn
        require_knowledge("all-rows", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        if seen.num_examples != 1:
            raise AttackError(f"all-rows: an update of {seen.num_examples} examples is no outer product; expected 1")
        layer = first_linear("all-rows", seen)
        rows = torch.cat([layer.weight_gradient, layer.bias_gradient[:, None]], 1)
        _, strengths, right = torch.linalg.svd(rows, full_matrices=False)
        if not bool(strengths[0] > 0):
            raise AttackError(f"all-rows: the gradient of {layer.name} is zero: nothing is left to decompose")
        freedom = max((rows.shape[0] - 1) * (rows.shape[1] - 1), 1)
        noise = math.sqrt(max(float(rows.square().sum() - strengths[0] ** 2), 0.0) / freedom)
        noise /= float(strengths[0])  # of each number of the direction
        one = _length(layer, right[0], noise)
        image = layer.images(right[:1, :-1] / one)
        left = noise / float((one * layer.scale).abs().mean())
        return Reconstruction(self._filtered(image, left).clamp(0, 1).to(seen.dtype), loss=left)

    def _filtered(self, image: Tensor, noise: float) -> Tensor:
        """The image's expectation, if it is natural and noise of this deviation was added; mid-grey is the mean."""
        if not self.contrast:
            return image
        _, _, height, width = image.shape
        frequency = torch.hypot(torch.arange(height)[:, None].double(), torch.arange(width)[None].double())
        power = (1 + frequency) ** (-2 * self.falloff)
        power = power / power.mean() * self.contrast**2
        waves = torch.from_numpy(dctn((image - 0.5).numpy(), axes=(2, 3), norm="ortho"))
        kept = waves * (power / (power + noise**2))
        return torch.from_numpy(idctn(kept.numpy(), axes=(2, 3), norm="ortho")) + 0.5


def _length(layer: FirstLinear, direction: Tensor, noise: float) -> Tensor:
    """What the direction, ``length * [x ; 1]``, has for its 1: measured there, and expected from the image's mean."""
    measured, mean = direction[-1], direction[:-1].mean()
    if not noise:
        return measured
    usual = (_BRIGHTNESS * layer.scale + layer.shift).mean()
    slack = _SPREAD * layer.scale.abs().mean()
    expected = mean * usual / (usual.square() + slack.square())
    doubt = (mean * slack / (usual.square() + slack.square())).square()
    return (measured * doubt + expected * noise**2) / (doubt + noise**2)
