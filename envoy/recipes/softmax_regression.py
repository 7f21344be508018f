"""Softmax regression in numpy alone: minibatch gradient descent on cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.recipe import Choice
from ..batch_sizes import batch_sizes

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Descent:
    """How it is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float


def inputs(features: NDArray[Any], choice: Choice) -> Floats:
    """Features (count, ...) as rows, each number less its mean and over its scale where the recipe gives these."""
    rows: Floats = features.reshape(len(features), -1).astype(np.float32)
    mean, scale = (np.array(choice.values[name], np.float32) for name in ("mean", "scale"))
    if mean.size:
        rows = rows - mean
    return rows / scale if scale.size else rows


def logits(rows: Floats, weight: Floats, bias: Floats) -> Floats:
    """(count, classes)."""
    return rows @ weight + bias


def log_probabilities(scores: Floats) -> Floats:
    """Of each class, (count, classes); of any finite scores."""
    shifted: Floats = scores - scores.max(axis=1, keepdims=True)
    sums: Floats = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - sums


def descend(
    rows: Floats, labels: NDArray[np.int64], weight: Floats, bias: Floats, how: Descent, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Weights after so many epochs; each step as torch's SGD does it, momentum and weight decay too."""
    weight, bias = weight.copy(), bias.copy()
    pace = [np.zeros_like(weight), np.zeros_like(bias)]
    for _ in range(how.epochs):
        order = rng.permutation(len(rows))
        start = 0
        for size in batch_sizes(len(rows), how.batch_size):
            chosen = order[start : start + size]
            start += size
            error = np.exp(log_probabilities(logits(rows[chosen], weight, bias)))
            error[np.arange(size), labels[chosen]] -= 1
            gradients = (rows[chosen].T @ error / np.float32(size), error.mean(axis=0))
            for held, gradient, speed in zip((weight, bias), gradients, pace, strict=True):
                np.multiply(speed, np.float32(how.momentum), out=speed)
                np.add(speed, gradient + np.float32(how.weight_decay) * held, out=speed)
                np.subtract(held, np.float32(how.learning_rate) * speed, out=held)
    return weight, bias
