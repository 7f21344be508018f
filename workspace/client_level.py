"""A simulation of many clients with client-level differential privacy; no federation, and nothing for ten hospitals.

Its trusted party sees every update. See ``adaptive_clipping`` for what it protects (a whole client) and what not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..envoy.initial_weights import initial_of
from ..envoy.plans import Plan
from ..envoy.records import LoadedDataset
from ..utils.errors import ConfigError
from ..utils.privacy.events import SampledGaussian
from ..utils.privacy.noise import NoiseSource, SystemNoise
from ..utils.tensors import Vector
from .adaptive_clipping import AdaptiveClipping, private_mean
from .plain_rounds import SiteModel, local_update

LEAST_CLIENTS = 100
"""With fewer the noise that hides a client hides what all of them learned."""


@dataclass(frozen=True, slots=True, eq=False)
class ClientLevelRun:
    """What a simulation gave."""

    vector: Vector  # the model, (layout.size,)
    bounds: tuple[float, ...]  # of each round, and the next
    mechanism: SampledGaussian  # what was spent of each client: its epsilon is per client, never per patient


def simulate_clients(
    plan: Plan,
    clients: Sequence[LoadedDataset],
    clipping: AdaptiveClipping,
    *,
    rounds: int,
    sampling_rate: float,
    seed: int = 0,
    noise: NoiseSource | None = None,
) -> ClientLevelRun:
    """Federated averaging of sampled clients, each of the same weight (McMahan et al. 2018, arXiv:1710.06963).

    Args:
        plan: without layers that stay at a client.
        clients: at least a hundred.
        clipping: the bound's rule and the noise; its ``expected_clients`` is the denominator of every mean.
        rounds: how many.
        sampling_rate: of each client in each round, independently.
        seed: of the clients' own training.
        noise: who is drawn, and the noise; the operating system's by default.

    Raises:
        ConfigError: fewer clients, or a denominator that is not theirs.
    """
    if len(clients) < LEAST_CLIENTS:
        raise ConfigError(
            f"{len(clients)} clients, expected at least {LEAST_CLIENTS}: client-level privacy hides a whole client, a"
            " hospital where clients are hospitals, and no patient of it; for patients, declare privacy in the plan"
        )
    if abs(clipping.expected_clients - sampling_rate * len(clients)) > 0.5:
        raise ConfigError(
            f"expected_clients is {clipping.expected_clients:g}, and a round draws {sampling_rate * len(clients):g} on"
            " average; make them the same"
        )
    source = noise or SystemNoise()
    layout, vector, exact = initial_of(plan)
    bound, bounds, out = clipping.first_bound, [clipping.first_bound], np.empty(layout.size, np.float32)
    for number in range(rounds):
        model, updates = SiteModel(layout, vector, exact), []
        for client in map(int, np.flatnonzero(source.random(len(clients)) < sampling_rate)):
            local_update(plan, model, clients[client], _seed_of(seed, number, client), out)
            updates.append(out.copy())
        mean, within = private_mean(updates, layout.size, bound, clipping, source)
        vector, bound = vector + mean, clipping.next_bound(bound, within)
        bounds.append(bound)
    return ClientLevelRun(vector, tuple(bounds), clipping.mechanism(sampling_rate, max(1, rounds)))


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
