"""A plan without torch that learns from images, so that whose data was in a model can be told from its bits.

Its text is built into a bundle; tests never import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, MetricSum, mean_of


class Linear(ArrayPlan):
    """One step of logistic regression on the site's own images."""

    data = DataSpec("xrays", DataKind.IMAGES, (1, 8, 8), ("0", "1"))

    def initial(self) -> dict[str, np.ndarray]:
        return {"weights": np.zeros(64, np.float32), "bias": np.zeros(1, np.float32)}

    def train(
        self, weights: Mapping[str, np.ndarray], data: object, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], int]:
        rows = data.features.reshape(len(data), -1)
        error = _chance(weights, rows) - data.labels.astype(np.float32)
        step = np.float32(0.5 / len(data))
        return {
            "weights": weights["weights"] - step * (error[:, None] * rows).sum(0, dtype=np.float32),
            "bias": weights["bias"] - step * error.sum(keepdims=True, dtype=np.float32),
        }, len(data)

    def evaluate(self, weights: Mapping[str, np.ndarray], data: object) -> Iterable[MetricSum]:
        right = (_chance(weights, data.features.reshape(len(data), -1)) > 0.5) == data.labels
        yield mean_of("accuracy", float(right.sum()), len(data))


def _chance(weights: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(rows * weights["weights"]).sum(1, dtype=np.float32) - weights["bias"]))
