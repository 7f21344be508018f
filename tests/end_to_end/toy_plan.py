"""A plan without torch whose updates depend on the model, the site, the round and the seed, so that nothing can be
left out, repeated or swapped without changing the final model. Its text is built into a bundle; tests never import it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, MetricSum, PlanSettings, mean_of


class Toy(ArrayPlan):
    """Two tensors that drift by lot."""

    data = DataSpec("nothing", DataKind.NONE)

    @dataclass(frozen=True)
    class Settings(PlanSettings):
        """How long it trains."""

        seconds: float = 0.0

    settings: Settings

    def initial(self) -> dict[str, np.ndarray]:
        return {"weights": np.linspace(-1, 1, 3000, dtype=np.float32), "bias": np.zeros((7, 11), np.float32)}

    def train(
        self, weights: Mapping[str, np.ndarray], data: object, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], int]:
        """Says in the worker's log that it began and that it ended."""
        print("training begins", flush=True)  # noqa: T201
        num_examples = int(rng.integers(10, 100))
        local = {
            name: np.tanh(weights[name] + rng.standard_normal(weights[name].shape, np.float32))
            for name in sorted(weights)
        }
        if self.settings.seconds:
            time.sleep(self.settings.seconds)
        print("training ends", flush=True)  # noqa: T201
        return local, num_examples

    def evaluate(self, weights: Mapping[str, np.ndarray], data: object) -> Iterable[MetricSum]:
        yield mean_of("size", float(np.abs(weights["weights"]).sum(dtype=np.float64)), weights["weights"].size)
