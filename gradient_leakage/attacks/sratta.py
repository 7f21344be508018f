"""SRATTA: images out of secure sums of FedAvg rounds, and which of them are of one site, from the sums alone.

Source: Marchand et al. 2023, "SRATTA: Sample Re-ATTribution Attack of Secure Aggregation" (ICML, arXiv:2306.07644).

1. *Recovery.* A neuron of the first layer that one single image of all sites activated over a round leaves that image:
   the update of its weights divided by that of its bias. Whether it was one alone shows in the pixels: 8-bit images lie
   on a grid, mixtures do not.
2. *Matching.* The update of every other neuron is a combination of the images that activated it; where the recovered
   ones explain it wholly, least squares says which did.
3. *Attribution.* An image that did not activate a neuron when the round began and did so later was moved there by its
   own site, through images that did from the start. Where all of those are of one group, it belongs to it as well.

It needs several local steps: after a single one nothing moved, and images stay alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...utils.errors import AttackError
from ..threat_model import Knowledge, Reconstruction, RoundSums, SumObservation, require_knowledge

__all__ = ["Sratta"]

_SIGMAS = 6  # of the rounding of an update


@dataclass(frozen=True, slots=True)
class Sratta:
    """Images of all sites and, in ``sites``, a number of the group that each was attributed to."""

    levels: int = 256  # grey values of the images
    tolerance: float = 0.05  # of a grey value's step, as in the authors' code
    detection: float = 1e-3  # shares must be known this well, of a neuron's largest, for the neuron to count

    @property
    def needs(self) -> Knowledge:
        """Nothing."""
        return Knowledge()

    def __call__(
        self,
        observation: RoundSums,
        knowledge: Knowledge,
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> Reconstruction:
        """Images of shape (found, channels, height, width) with groups of shape (found,).

        Raises:
            AttackError: the model does not begin with a linear layer and ReLU, or no neuron kept an image alone.
        """
        require_knowledge("sratta", self.needs, knowledge)
        layers = [_first_layer(seen) for seen in observation.rounds]
        flat = self._recovered(layers)
        if not len(flat):
            raise AttackError(
                f"no neuron of {layers[0].name} kept an image alone over {len(layers)} rounds: "
                "more neurons, more rounds or fewer examples are needed"
            )
        together = [pair for layer in layers for pair in self._moved_together(layer, flat)]
        domain = observation.rounds[0].domain
        return Reconstruction(
            images=flat.reshape(-1, *domain.shape).to(observation.rounds[0].dtype),
            exact=torch.ones(len(flat), dtype=torch.bool),
            sites=_groups(len(flat), together),
        )

    def _recovered(self, layers: list[_FirstLayer]) -> Tensor:
        """Images that lie on the grid, each once; (found, pixels) float64."""
        steps = self.levels - 1
        found = []
        for layer in layers:
            felt = layer.bias_update.abs() > 1e-9 * layer.bias_update.abs().max()
            scaled = steps * layer.weight_update[felt] / layer.bias_update[felt, None]
            whole = scaled.round()
            on_grid = ((scaled - whole).abs() < self.tolerance).all(1) & (whole >= 0).all(1) & (whole <= steps).all(1)
            found.append(whole[on_grid & whole.any(1)])
        once: Tensor = torch.unique(torch.cat(found), dim=0)
        return (once / steps).float().double()  # as image loaders divide them

    def _moved_together(self, layer: _FirstLayer, images: Tensor) -> list[tuple[list[int], list[int]]]:
        """For each neuron that is wholly explained: images active from the start, and images that became active."""
        if int(torch.linalg.matrix_rank(images)) < len(images):
            return []  # shares would not be determined
        inverse = torch.linalg.pinv(images)
        shares = layer.weight_update @ inverse
        left = (layer.weight_update - shares @ images).norm(dim=1) / max(1, images.shape[1] - len(images)) ** 0.5
        rounding = 2**-24 * (layer.weight.abs().amax(1) + layer.weight_update.abs().amax(1))
        uncertain = _SIGMAS * torch.maximum(left, rounding)[:, None] * inverse.norm(dim=0)
        active = shares.abs() > uncertain
        explained = (left <= 10 * rounding) & (uncertain.amax(1) < self.detection * shares.abs().amax(1))
        before = images @ layer.weight.T + layer.bias > 0
        pairs = []
        for neuron in explained.nonzero().flatten().tolist():
            then, now = before[:, neuron], active[neuron]
            started, joined = (then & now).nonzero().flatten().tolist(), (~then & now).nonzero().flatten().tolist()
            if started and joined:
                pairs.append((started, joined))
        return pairs


@dataclass(frozen=True, slots=True, eq=False)
class _FirstLayer:
    """The first linear layer as published for a round, and the sum of its updates; float64 on the CPU."""

    name: str
    weight: Tensor  # (neurons, pixels)
    bias: Tensor  # (neurons,)
    weight_update: Tensor
    bias_update: Tensor


def _first_layer(seen: SumObservation) -> _FirstLayer:
    leaves = [(name, m) for name, m in seen.models[0].named_modules() if not list(m.children())]
    leaves = [(name, m) for name, m in leaves if not isinstance(m, nn.Flatten | nn.Identity)]
    name, layer = leaves[0]
    if not isinstance(layer, nn.Linear) or layer.bias is None or layer.in_features != seen.domain.pixels:
        raise AttackError(f"sratta needs a first linear layer on all pixels, with a bias; {name} is {layer}")
    if len(leaves) < 2 or not isinstance(leaves[1][1], nn.ReLU):
        after = f"{leaves[1][0]} is {type(leaves[1][1]).__name__}" if len(leaves) > 1 else "nothing follows"
        raise AttackError(f"sratta needs nn.ReLU after {name}; {after}")
    sent = seen.as_one().tensors()
    if f"{name}.weight" not in sent or f"{name}.bias" not in sent:
        raise AttackError(f"the sum does not hold {name}.weight and {name}.bias: is the layer frozen?")
    parts = (layer.weight, layer.bias, sent[f"{name}.weight"], sent[f"{name}.bias"])
    return _FirstLayer(name, *(part.detach().cpu().double() for part in parts))


def _groups(count: int, together: list[tuple[list[int], list[int]]]) -> Tensor:
    """Groups that hold what moved together: joined to those who started, once these are all of one group."""
    group = torch.arange(count)
    changed = True
    while changed:
        changed = False
        for started, joined in together:
            if len(set(group[started].tolist())) == 1:
                own: Tensor = torch.unique(group[started + joined])
                if len(own) > 1:
                    group[torch.isin(group, own)] = own[0]
                    changed = True
    numbers: Tensor = torch.unique(group, return_inverse=True)[1]
    return numbers
