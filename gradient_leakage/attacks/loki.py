"""Imprints in a sum: a malicious director gives each site rows of its own, so that secure aggregation adds zeros.

Source: Zhao et al. 2024, "LOKI" (IEEE S&P, arXiv:2303.12233). There each site's copy of a convolution before the
imprint sends its images into columns of its own. Here each site's copy has biases that put all rows but its own to
sleep: as many numbers, and it separates the gradients of the biases as well, which LOKI has to estimate.

| the director sends | what it needs | what the sum gives away |
|---|---|---|
| all sites one model: ``Imprint`` on ``as_one()`` | bins for the examples of all sites | the images |
| each site another model: this attack | that sites do not compare what they got | also whose they are |

So against images alone, comparing the model's digest among sites, or binding it into the masks' keys, helps nothing:
the plain imprint with the same number of rows finds as many. It takes away who sent which.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError, ConfigError
from ..threat_model import ImageDomain, Knowledge, PublicImages, Reconstruction, SumObservation, require_knowledge
from .imprint import Imprint, ImprintBlock, as_reconstruction, brightness_quantiles, felt_direction, imprint_gradients

ASLEEP = 1.5  # an edge of brightness that no image reaches
AWAKE = 1.25  # edges of rows that may feel an image lie below


@dataclass(frozen=True, slots=True)
class Loki:
    """Every site's images out of one sum, site by site."""

    imprint: Imprint = field(default_factory=Imprint)  # its bins are those of one site

    @property
    def needs(self) -> Knowledge:
        """That the attacker chose the models."""
        return self.imprint.needs

    def prepare(
        self,
        model: nn.Module,
        domain: ImageDomain,
        rng: torch.Generator,
        public: PublicImages | None = None,
        *,
        sites: int,
    ) -> tuple[nn.Module, ...]:
        """The model for each site; they differ in the biases and ceilings of one layer alone.

        Raises:
            AttackError: the model's output does not depend on its input.
            ConfigError: there is no site.
        """
        if sites < 1:
            raise ConfigError(f"models for {sites} sites; expected at least 1")
        direction, like = felt_direction(model, domain, rng), next(model.parameters())
        own = brightness_quantiles(self.imprint.bins, public)
        published = []
        for site in range(sites):
            edges = torch.full((sites, len(own)), ASLEEP, dtype=own.dtype)
            edges[site] = own
            blocks = [self.imprint.block(row, direction) for row in edges]
            both = nn.Sequential(_joined(blocks), copy.deepcopy(model))
            published.append(both.to(like.device, like.dtype).train(model.training))
        return tuple(published)

    def __call__(self, observation: SumObservation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """All sites' images, in the order of the sites.

        Raises:
            AttackError: a model has no imprint, its rows are not a site's own, or every site's bins are empty.
        """
        found = [part for part in self.by_site(observation, knowledge, rng) if part.images is not None]
        if not found:
            raise AttackError("no image left a gradient in the imprint of any site")
        images = torch.cat([part.images for part in found if part.images is not None])
        exact = torch.cat([part.exact for part in found if part.exact is not None])
        return Reconstruction(images, exact=exact)

    def by_site(
        self,
        observation: SumObservation,
        knowledge: Knowledge,
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> tuple[Reconstruction, ...]:
        """The images of each site; without images where nothing came of it.

        Raises:
            AttackError: a model has no imprint, or two sites share rows.
        """
        require_knowledge("loki", self.needs, knowledge)
        weights, biases = imprint_gradients(observation.as_one().limited_to(knowledge))
        awake = torch.stack([_awake(model) for model in observation.models])
        if bool((awake.sum(0) > 1).any()):
            raise AttackError("sites share rows of the imprint: attack the sum as one update, with Imprint")
        parts = []
        for rows, count in zip(awake, observation.num_examples, strict=True):
            if not float(biases[rows].abs().max()) > 0:
                parts.append(Reconstruction())
                continue
            images = self.imprint.images_in_bins(weights[rows], biases[rows], count)
            parts.append(as_reconstruction(images, observation.domain, count))
        return tuple(parts)


def _joined(blocks: list[ImprintBlock]) -> ImprintBlock:
    """One block with the rows of all."""
    joined = ImprintBlock(blocks[0].measure.in_features, torch.cat([block.ceiling for block in blocks]))
    with torch.no_grad():
        joined.measure.weight.copy_(torch.cat([block.measure.weight for block in blocks]))
        joined.measure.bias.copy_(torch.cat([block.measure.bias for block in blocks]))
        joined.spread.weight.copy_(torch.cat([block.spread.weight for block in blocks], 1))
    return joined


def _awake(model: nn.Module) -> Tensor:
    """Which rows may feel an image, shape (rows,) bool."""
    for module in model.modules():
        if isinstance(module, ImprintBlock):
            edges = -module.measure.bias.detach() / module.measure.weight.detach().sum(1)
            return edges < AWAKE
    raise AttackError("a published model has no imprint: publish the models that Loki.prepare returns")
