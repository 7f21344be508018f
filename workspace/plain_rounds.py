"""Rounds without a federation: the envoy's training and a weighted mean in one loop, for rehearsals and benchmarks.

What a round *is* (invitations, quorum, retries, protection) belongs to director and envoy; ``simulation`` runs those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..envoy import array_training
from ..envoy.plans import ArrayPlan, Plan, TrainingPlan
from ..envoy.records import LoadedDataset
from ..utils.errors import PlanError
from ..utils.messages import TaskKind
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import Layout, Vector


@dataclass(frozen=True, slots=True)
class SiteModel:
    """The model that a round begins with, as a site has it."""

    layout: Layout
    vector: Vector  # (layout.size,)
    exact: bytes


def local_update(
    plan: Plan, model: SiteModel, data: LoadedDataset, seed: int, out: Vector, noise: NoiseSource | None = None
) -> int:
    """Train one site's round on the CPU, as its envoy would; gives the number of examples.

    Args:
        plan: of either kind, without layers that stay at the site.
        model: only read.
        data: the site's.
        seed: of its order of examples and its augmentation.
        out: takes local minus global, (layout.size,).
        noise: of a private plan; the operating system's by default.

    Raises:
        TrainingError: the plan raised.
        PlanError: the plan keeps tensors at the sites, which this loop does not remember.
    """
    if isinstance(plan, ArrayPlan):
        given = array_training.ArrayRound(TaskKind.TRAIN, seed, model.layout, model.vector, model.exact, data)
        return array_training.run_round(plan, given, out).num_examples
    if not isinstance(plan, TrainingPlan):
        raise PlanError(f"{type(plan).__name__} is neither a TrainingPlan nor an ArrayPlan")
    from ..envoy import training

    order = training.LocalRound(
        TaskKind.TRAIN,
        0,
        seed,
        model.layout,
        model.vector,
        model.exact,
        data,
        device="cpu",
        privacy=plan.privacy,
        noise=noise,
    )
    result, state = training.run_round(plan, order, out)
    if state:
        raise PlanError(f"{type(plan).__name__} keeps {len(state)} tensors at the sites; a plain loop forgets them")
    return result.num_examples


def weighted_mean(updates: NDArray[np.float32] | Sequence[Vector], sizes: Sequence[int]) -> Vector:
    """Mean of a few updates in memory, each weighted by its number of examples (McMahan et al. 2017, Algorithm 1)."""
    weights = np.asarray(sizes, np.float64) / sum(sizes)
    total = np.zeros(len(updates[0]), np.float32)
    for weight, update in zip(weights, updates, strict=True):
        total += np.float32(weight) * update
    return total
