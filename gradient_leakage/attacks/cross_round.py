"""Updates of single sites out of sums over rounds whose cohorts change: one least-squares problem.

The sums are ``W G``: W says which site is in which sum, and how often (its examples); the rows of G are the updates.
Where a site's unit vector lies in the row space of W, the sums give its update away, as far as it stays the same over
the rounds. Cohorts that keep all columns of W in groups (the same sites always together) give no row of G, over any
number of rounds; two rounds that differ by one site give one.

Sources: So et al. 2021 (arXiv:2106.03328), with cohorts drawn at random; Lam et al. 2021
(arXiv:2106.06089), whose first half, finding W from participation counts, is not here: a director knows its cohorts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...utils.errors import AttackError
from ..threat_model import Knowledge, Observation, Reconstruction, RoundSums, require_knowledge

__all__ = ["CrossRound", "identifiable_sites", "update_of_site"]


@dataclass(frozen=True, slots=True)
class CrossRound:
    """The update of each site that the sums give away, averaged over the rounds as well as least squares can.

    The result's ``updates`` holds NaN for a site that cannot be told from others. ``loss`` is the part of the sums that
    constant updates leave unexplained (0 to 1, by norm), NaN where as many unknowns as sums leave nothing to test.
    ``exact`` marks a site whose update is determined, while that part is below ``tolerance``.
    """

    tolerance: float = 1e-3

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
        """Updates of shape (sites, layout.size), in the units of one site's update.

        Raises:
            AttackError: the cohorts determine no single site.
        """
        require_knowledge("cross-round regression", self.needs, knowledge)
        weights, sums = observation.weights(), observation.sums()
        found = identifiable_sites(weights)
        rank = int(torch.linalg.matrix_rank(weights))
        if not bool(found.any()):
            raise AttackError(
                f"{len(weights)} sums of rank {rank} over {weights.shape[1]} sites single out no site: "
                "wait for rounds with other cohorts"
            )
        updates: Tensor = torch.linalg.pinv(weights) @ sums
        left = float((sums - weights @ updates).norm() / sums.norm().clamp(min=1e-300))
        loss = left if rank < len(weights) else float("nan")
        updates[~found] = float("nan")
        return Reconstruction(updates=updates, loss=loss, exact=found & (not loss >= self.tolerance))


def identifiable_sites(weights: Tensor) -> Tensor:
    """Which sites the sums determine: those whose unit vector lies in the row space; (sites,) bool.

    Args:
        weights: (rounds, sites), 0 where a site is not in the cohort.

    >>> identifiable_sites(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])).tolist()
    [False, False, True]
    """
    # The projector on the row space leaves a unit vector as it is just where its own diagonal entry is 1.
    weights = weights.double()
    projector = torch.linalg.pinv(weights) @ weights
    known: Tensor = projector.diagonal() > 1 - 1e-9
    return known


def update_of_site(observation: RoundSums, separated: Reconstruction, site: int) -> Observation:
    """What a site sent, as if it had come alone: for any attack on one update.

    Raises:
        AttackError: the sums do not give this site away.
    """
    if separated.updates is None or not bool(torch.isfinite(separated.updates[site]).all()):
        raise AttackError(f"the sums do not single out site {site}")
    first = int(observation.cohorts[:, site].int().argmax())
    seen, place = observation.rounds[first], int(observation.cohorts[first, :site].sum())
    alone = replace(
        seen,
        sent=(separated.updates[site] * seen.num_examples[place]).to(seen.dtype).numpy().tobytes(),
        models=(seen.models[place],),
        num_examples=(seen.num_examples[place],),
    )
    return alone.as_one()
