"""A plan that trains nothing: its update is one everywhere. What is left of a round is the federation's own cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, MetricSum, PlanSettings


class NoTraining(ArrayPlan):
    """A model of one tensor; each round adds one to every element of it."""

    data = DataSpec("nothing", DataKind.NONE)

    @dataclass(frozen=True)
    class Settings(PlanSettings):
        """How large the model is."""

        elements: int = 1_000_000

    settings: Settings

    def initial(self) -> dict[str, np.ndarray]:
        """Zeros."""
        return {"weights": np.zeros(self.settings.elements, np.float32)}

    def train(self, weights: Mapping[str, np.ndarray], data: object, rng: object) -> tuple[dict[str, np.ndarray], int]:
        """Add one."""
        return {name: value + np.float32(1) for name, value in weights.items()}, 1

    def update(self, weights: object, out: Mapping[str, np.ndarray], data: object, rng: object) -> int:
        """Add one, where the update is sent from."""
        for value in out.values():
            value.fill(1)
        return 1

    def evaluate(self, weights: object, data: object) -> Iterable[MetricSum]:
        """Nothing to measure."""
        return ()
