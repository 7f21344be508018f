"""A plan whose training never ends by itself, in five processes that heed no signal: what a withdrawal has to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from typing import NoReturn

import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, MetricSum

BEGUN = "training begins"


class NoEnd(ArrayPlan):
    """A model of one number that is trained for ever."""

    data = DataSpec("nothing", DataKind.NONE)

    def initial(self) -> dict[str, np.ndarray]:
        """Zero."""
        return {"weights": np.zeros(1, np.float32)}

    def train(self, weights: Mapping[str, np.ndarray], data: object, rng: object) -> NoReturn:
        """Loop."""
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
        for _ in range(4):
            if not os.fork():
                break
        else:
            print(BEGUN, flush=True)
        while True:
            pass

    def evaluate(self, weights: object, data: object) -> Iterable[MetricSum]:
        """Nothing to measure."""
        return ()
