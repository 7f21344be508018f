"""Robbing the Fed: a malicious director puts a layer that keeps single images before the model.

Source: Fowl et al. 2022, "Robbing the Fed" (ICLR 2022, arXiv:2110.13057). Every row of the layer measures the same
linear statistic of the image (its brightness) against a threshold of its own; the thresholds are quantiles of public
images. Behind a ReLU the gradients of two neighbouring rows differ by exactly the images whose brightness lies between
the two thresholds. One image there: gradient of the weights divided by that of the bias is the image.

Nothing here hides: a module before the plan's model, two matrices of bins x pixels, rows that are all the same. A site
that compares the structure with the plan that it approved does not train it.
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

LEVELS = 255  # of an 8-bit image


class ImprintBlock(nn.Module):
    """Adds to an image what its rows measured; shape in, shape out.

    The image passes on beside it, so that the model behind still learns. What is added stays below
    ``gain * row_scale * bins`` in norm. A finite ``ceiling`` caps each row, so that only images between its threshold
    and the next reach it with a gradient.
    """

    ceiling: Tensor  # (bins,)

    def __init__(self, pixels: int, ceiling: Tensor) -> None:
        super().__init__()
        self.measure = nn.Linear(pixels, len(ceiling))
        self.spread = nn.Linear(len(ceiling), pixels, bias=False)
        self.register_buffer("ceiling", ceiling)

    def forward(self, images: Tensor) -> Tensor:
        """From (count, channels, height, width) to the same."""
        measured = functional.relu(self.measure(images.flatten(1)))
        capped = measured - functional.relu(measured - self.ceiling)
        added: Tensor = self.spread(capped)
        return images + added.reshape(images.shape)


@dataclass(frozen=True, slots=True)
class Imprint:
    """Whole batches out of one update, by division.

    Both forms are the paper's. Of the ReLU form, bins are differences of neighbouring rows, and what is rounded away
    is in proportion to all brighter images together. Of the sparse form (its hard tanh), each row keeps only its own
    bin: nothing cancels, and a row that caught an image in one local step has moved away before the next.

    | what the site did | what comes back |
    |---|---|
    | one gradient or several local steps | each image that was alone in its bin, to float32 rounding |
    | two images in one bin and step | their mean, weighted by the sensitivity of the loss to each |
    """

    bins: int = 1024  # 16 images are all alone in theirs nine times in ten
    sparse: bool = True
    row_scale: float = 1e-5  # of the rows; a small one keeps digits where an update is local minus global
    gain: float = 1.0  # of what the block adds, and so of the gradient
    tolerance: float = 1e-6  # a bin whose bias gradient is smaller than this, beside the largest, is empty

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: says which.
        """
        if self.bins < 2:
            raise ConfigError(f"an imprint of {self.bins} bins; expected at least 2")
        if min(self.row_scale, self.gain, self.tolerance) <= 0:
            raise ConfigError("row_scale, gain and tolerance of an imprint are positive")

    @property
    def needs(self) -> Knowledge:
        """That the attacker chose the model."""
        return Knowledge(malicious=True)

    def prepare(
        self, model: nn.Module, domain: ImageDomain, rng: torch.Generator, public: PublicImages | None = None
    ) -> nn.Module:
        """The model that the director publishes: an ``ImprintBlock``, then a copy of the plan's model.

        Args:
            model: the plan's; stays as it was.
            domain: of the images.
            rng: draws the direction in which the block adds.
            public: gives the quantiles of brightness; without it a normal distribution is assumed.

        Raises:
            AttackError: the model's output does not depend on its input.
        """
        edges = brightness_quantiles(self.bins, public)
        block = self.block(edges, felt_direction(model, domain, rng))
        like = next(model.parameters())
        return nn.Sequential(block, copy.deepcopy(model)).to(like.device, like.dtype).train(model.training)

    def block(self, edges: Tensor, direction: Tensor) -> ImprintBlock:
        """The layer whose rows keep images with a brightness from their edge, shape (bins,), to the next."""
        no_cap = torch.full_like(edges, 2.0)  # brighter than any image
        widths = torch.cat([edges, no_cap[:1]]).diff().clamp_min(0.0)
        block = ImprintBlock(len(direction), self.row_scale * (widths if self.sparse else no_cap - edges))
        with torch.no_grad():
            block.measure.weight.fill_(self.row_scale / len(direction))
            block.measure.bias.copy_(-self.row_scale * edges)
            block.spread.weight.copy_(self.gain * direction[:, None].expand(-1, len(edges)))
        return block

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:  # noqa: ARG002 - nothing is drawn
        """Read the bins. Fewer images than examples come back where some shared a bin.

        ``exact`` holds where the attacker itself can tell: as many full bins as examples, or every pixel on one of the
        levels of an 8-bit image, where a mixture of two images does not lie.

        Raises:
            AttackError: the published model has no imprint, or the update holds nothing of it.
        """
        require_knowledge("imprint", self.needs, knowledge)
        weights, biases = imprint_gradients(observation.limited_to(knowledge))
        images = self.images_in_bins(weights, biases, observation.num_examples)
        return as_reconstruction(images, observation.domain, observation.num_examples)

    def images_in_bins(self, weights: Tensor, biases: Tensor, at_most: int) -> Tensor:
        """What lies in each bin that is not empty, shape (count, pixels), in the order of brightness.

        Args:
            weights: gradient of the rows, (bins, pixels).
            biases: of their biases, (bins,).
            at_most: images that there can be; the bins with the largest gradients are kept.

        Raises:
            AttackError: all bins are empty.
        """
        if not self.sparse:  # a row feels every image that is brighter than its threshold
            weights = torch.cat([weights[:-1] - weights[1:], weights[-1:]])
            biases = torch.cat([biases[:-1] - biases[1:], biases[-1:]])
        size = biases.abs()
        full = torch.nonzero(size > self.tolerance * size.max()).flatten()
        if not len(full):
            raise AttackError("no image left a gradient in the imprint: its bins are all empty")
        kept = full[size[full].argsort(descending=True)[:at_most]].sort().values
        return weights[kept] / biases[kept, None]


def as_reconstruction(images: Tensor, domain: ImageDomain, num_examples: int) -> Reconstruction:
    """Rows of pixels as images, with what the attacker holds for exact."""
    off_level = (images * LEVELS - (images * LEVELS).round()).abs().amax(1)
    exact = (off_level < 0.05) | (len(images) == num_examples)
    return Reconstruction(images.reshape(-1, *domain.shape).cpu(), exact=exact.cpu())


def felt_direction(model: nn.Module, domain: ImageDomain, rng: torch.Generator) -> Tensor:
    """How a random mixture of the model's logits changes with a grey image; unit length, shape (pixels,).

    An image's share in the gradient is what its loss feels of the block's addition; a random direction is felt little
    by some images, and these are then lost in the rounding of the others.

    Raises:
        AttackError: the model's output does not depend on its input.
    """
    like = next(model.parameters())
    grey = torch.full((1, *domain.shape), 0.5, device=like.device, dtype=like.dtype).requires_grad_()
    logits: Tensor = copy.deepcopy(model).eval()(grey)[0]
    mixture = torch.randn(len(logits), generator=rng).to(logits)
    (felt,) = torch.autograd.grad(logits @ mixture, grey)
    flat = felt.flatten().cpu()
    if not 0 < float(flat.norm()) < math.inf:
        raise AttackError(
            "the model's logits do not change with a grey image: nothing would reach an imprint before it"
        )
    unit: Tensor = flat / flat.norm()
    return unit


def brightness_quantiles(bins: int, public: PublicImages | None) -> Tensor:
    """Lower edges of bins that are equally likely for an image's mean pixel; (bins,), float64, rising.

    The first edge lies below every image. Without public images: a normal distribution with mean 0.5 and standard
    deviation 0.15, for the paper's argument by the central limit theorem says that it is normal, not which.
    """
    shares = torch.arange(1, bins, dtype=torch.float64) / bins
    if public is None:
        inner = 0.5 + 0.15 * math.sqrt(2.0) * torch.erfinv(2 * shares - 1)
    else:
        inner = torch.quantile(public.images.double().flatten(1).mean(1).cpu(), shares)
    return torch.cat([torch.full((1,), -1.0, dtype=torch.float64), inner])


def imprint_gradients(observation: Observation) -> tuple[Tensor, Tensor]:
    """Gradients of the rows (bins, pixels) and of their biases (bins,), in float64.

    Raises:
        AttackError: the published model has no imprint, or it was not trained.
    """
    found = [name for name, module in observation.model.named_modules() if isinstance(module, ImprintBlock)]
    if not found:
        raise AttackError("the published model has no imprint: publish the model that this attack's prepare returns")
    gradient, prefix = observation.gradient(), f"{found[0]}." if found[0] else ""
    names = [f"{prefix}measure.weight", f"{prefix}measure.bias"]
    if absent := [name for name in names if name not in gradient]:
        raise AttackError(f"the update holds no {absent[0]}: the site did not train the imprint")
    return gradient[names[0]].double(), gradient[names[1]].double()


def expected_alone(examples: int, bins: int) -> float:
    """How many of the examples are alone in their bin, on average: bins equally likely, examples independent.

    The paper's Proposition 1 counts every occupancy of the bins as equally likely, which expects more collisions than
    there are; independent examples follow this one.

    >>> round(expected_alone(16, 1024), 2), round(expected_alone(64, 1024), 2)
    (15.77, 60.18)
    """
    return examples * (1 - 1 / bins) ** (examples - 1)
