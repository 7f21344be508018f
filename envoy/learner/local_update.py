"""What a learner is given of its own training."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...utils.messages import RunId
from ...utils.metrics import MetricSum
from ...utils.tensors import Digest, Vector


@dataclass(frozen=True, slots=True, eq=False)
class LocalUpdate:
    """What came out of one round's local training. It stays at the site until it is submitted."""

    gradients: dict[str, Vector] = field(repr=False)  # the update, local minus global: float32 arrays by name
    num_examples: int  # that trained
    metrics: dict[str, float] = field(repr=False)  # of this site's data, by name
    round: int
    run: RunId
    plan: Digest


def values_of(metrics: tuple[MetricSum, ...]) -> dict[str, float]:
    """The value of each metric that has one."""
    return {one.name: one.value for one in metrics if one.value is not None}
