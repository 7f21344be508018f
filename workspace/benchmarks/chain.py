"""What the protection chain costs a round: the same federation, with one step more in every other run.

Sites check by their own policy; clip and noise are what an experiment asks them to add, so that runs with and without
take turns in the same processes and the machine's drift meets them all alike. There is no envoy without a check to
compare with: what a check costs is measured by itself, on an update of the same size.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...envoy.payload import UPDATE_FILE, Payloads
from ...envoy.protection import check
from ...utils.tensors import FLOAT_BYTES, Layout, Role
from ..processes import CpuSampler
from .round import idle_federation, run_rounds

CHAINS = {
    "check": "",
    "check, clip": "[protection]\nmax_norm = 1.0\n",
    "check, clip, noise": "[protection]\nmax_norm = 1.0\nnoise_multiplier = 1.0\n",
}
"""Each with the table of experiment.toml that asks for it."""
_REPEATS = 9


@dataclass(frozen=True, slots=True)
class ChainCost:
    """What one chain costs; the first round of each run does not count."""

    chain: str
    rounds: int
    round_s_median: float
    envoy_cpu_s_per_round: float  # all envoys with their training processes
    share_of_round: float  # what the chain adds to a round without any, by the clock
    share_of_cpu: float  # what it adds to the processor seconds of such a round, the director's included


def measure_chain(mb: float, envoys: int, rounds: int, turns: int = 3) -> list[ChainCost]:
    """Run every chain ``turns`` times, in turn.

    Args:
        mb: size of the model, in 1e6 bytes.
        envoys: how many.
        rounds: of each run; the first does not count.
        turns: runs of each chain.

    Raises:
        FederationError: a run did not finish.
    """
    runs: list[tuple[str, list[float]]] = []
    with idle_federation(mb, envoys) as (federation, bundle):
        sampler = CpuSampler([one.pid for one in (federation.director, *federation.envoys.values()) if one])
        for _ in range(turns):
            for chain, table in CHAINS.items():
                runs.append((chain, run_rounds(federation, bundle, envoys, rounds, table)))
        sampler.end()
    seconds: dict[str, list[float]] = {chain: [] for chain in CHAINS}
    spent: dict[str, list[float]] = {chain: [] for chain in CHAINS}  # by all processes, a round
    of_envoys: dict[str, list[float]] = {chain: [] for chain in CHAINS}
    for chain, ends in runs:
        used = np.subtract(sampler.at(ends[-1]), sampler.at(ends[0])) / (len(ends) - 1)
        seconds[chain] += [after - before for before, after in pairwise(ends)]
        spent[chain].append(float(used.sum()))
        of_envoys[chain].append(float(used[1:].sum()))
    alone = check_seconds(mb)
    medians = {chain: statistics.median(values) for chain, values in seconds.items()}
    cpu = {chain: statistics.median(values) for chain, values in spent.items()}
    at_once = min(envoys, os.cpu_count() or 1)
    unchecked_s, unchecked_cpu = medians["check"] - alone * envoys / at_once, cpu["check"] - envoys * alone
    return [
        ChainCost(
            chain=chain,
            rounds=len(seconds[chain]),
            round_s_median=round(medians[chain], 4),
            envoy_cpu_s_per_round=round(statistics.median(of_envoys[chain]), 4),
            share_of_round=round(medians[chain] / unchecked_s - 1, 4),
            share_of_cpu=round(cpu[chain] / unchecked_cpu - 1, 4),
        )
        for chain in CHAINS
    ]


def check_seconds(mb: float) -> float:
    """Processor seconds of reading one update out of the plan's reach and checking it, the median of several."""
    layout = Layout.of([("weights", (int(mb * 1e6 / FLOAT_BYTES),), Role.PARAMETER)])
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        np.ones(layout.size, np.float32).tofile(Path(name) / UPDATE_FILE)
        payloads, taken = Payloads(Path(name)), []
        for _ in range(_REPEATS):
            began = time.process_time()
            check(payloads.take_update(layout.num_bytes), layout)
            taken.append(time.process_time() - began)
    return statistics.median(taken)
