"""From the updates of one round to their aggregate: weighted mean, and rules that outvote a few bad updates.

Pure but for what a ``StoredUpdate`` reads: updates lie on a disk and are read block by block, so memory stays
the same whatever the number of envoys. Updates are always taken in the order of their envoys' names, and every
operation rounds element by element, so the result is the same to the last bit whatever the order of arrival
or the size of the blocks: a director that was killed makes the same model again.

What this does not do: check that updates are finite (``is_finite``, when they come in), step a model
(``director/server_optimizer``), or decide whose updates count (``director/rounds``).

| rule              | bad updates that it outvotes   | uses num_examples | works under secure aggregation        |
|-------------------|--------------------------------|-------------------|---------------------------------------|
| weighted_mean     | none                           | yes               | yes                                   |
| norm_bounding     | none; bounds what each can do  | yes               | no, unless sites prove their norm     |
| coordinate_median | fewer than half                | no                | over the means of groups alone        |
| trimmed_mean      | floor(trim_fraction * n)       | no                | over the means of groups alone        |
| krum, multi_krum  | byzantine, if n >= 2 of it + 3 | no                | no: needs all updates                 |

The rules hold for parameters and buffers. SCAFFOLD's control variates always get their plain mean (times the
share of the federation that took part), so no rule shields a run that uses SCAFFOLD.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, EmptyRoundError, NoQuorumError
from .messages import EnvoyName
from .tensors import Layout, Role, Vector

BLOCK = 1 << 17
"""Elements read at once from one update: 512 KiB, so that a block stays in the cache while it is summed."""
_ROWS = 1 << 20
"""Elements held at once of all updates together, by rules that need them all: 4 MiB."""


class StoredUpdate(Protocol):
    """One envoy's update (local minus global), wherever it lies."""

    @property
    def envoy(self) -> EnvoyName:
        """Who sent it."""

    @property
    def num_examples(self) -> int:
        """Its weight; at least 0."""

    def read(self, start: int, out: Vector) -> None:
        """Fill ``out`` with the elements from ``start`` on."""


class Method(Enum):
    """How updates become one."""

    WEIGHTED_MEAN = "weighted_mean"
    COORDINATE_MEDIAN = "coordinate_median"
    TRIMMED_MEAN = "trimmed_mean"
    KRUM = "krum"
    MULTI_KRUM = "multi_krum"
    NORM_BOUNDING = "norm_bounding"


@dataclass(frozen=True, slots=True)
class Aggregation:
    """The rule of a run. Each key belongs to one method and must be given with it, and with no other.

    Raises:
        ConfigError: a key is missing, out of range, or of another method.
    """

    method: Method = Method.WEIGHTED_MEAN
    trim_fraction: float | None = None  # trimmed_mean: cut at each end, in (0, 0.5)
    byzantine: int | None = None  # krum, multi_krum: bad updates to outvote, at least 1
    max_norm: float | None = None  # norm_bounding: L2 of parameters and buffers, in their units; > 0

    def __post_init__(self) -> None:
        krum = (Method.KRUM, Method.MULTI_KRUM)
        self._check("trim_fraction", self.trim_fraction, (Method.TRIMMED_MEAN,))
        self._check("byzantine", self.byzantine, krum)
        self._check("max_norm", self.max_norm, (Method.NORM_BOUNDING,))
        if self.trim_fraction is not None and not 0 < self.trim_fraction < 0.5:
            raise ConfigError(f"trim_fraction is {self.trim_fraction:g}, expected more than 0 and less than 0.5")
        if self.byzantine is not None and self.byzantine < 1:
            raise ConfigError(f"byzantine is {self.byzantine}, expected at least 1; weighted_mean outvotes nobody")
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise ConfigError(f"max_norm is {self.max_norm:g}, expected more than 0")

    def _check(self, key: str, value: float | None, methods: tuple[Method, ...]) -> None:
        if value is None and self.method in methods:
            raise ConfigError(f"{key} must be given with method {self.method.value}")
        if value is not None and self.method not in methods:
            owners = " and ".join(method.value for method in methods)
            raise ConfigError(f"{key} belongs to {owners}, and the method is {self.method.value}; leave it out")

    @property
    def needs_all_updates(self) -> bool:
        """The rule compares updates with each other, so it must have all of them at once."""
        return self.method not in {Method.WEIGHTED_MEAN, Method.NORM_BOUNDING}

    @property
    def works_under_secure_aggregation(self) -> bool:
        """The rule needs the sum alone and never one envoy's update."""
        return self.method is Method.WEIGHTED_MEAN

    @property
    def min_updates(self) -> int:
        """With fewer updates the rule cannot keep what it promises, and ``aggregate`` refuses."""
        if self.byzantine is not None:
            return 2 * self.byzantine + 3
        if self.trim_fraction is not None:
            return math.ceil(1 / self.trim_fraction - 1e-9)
        return 1


def aggregate(
    rule: Aggregation,
    layout: Layout,
    updates: Sequence[StoredUpdate],
    out: Vector,
    *,
    participation: float = 1.0,
    block: int = BLOCK,
) -> int:
    """Write the aggregate of the updates into ``out``.

    Control variates: ``participation`` (envoys that took part / envoys of the federation) times their unweighted
    mean, equation 5 of Karimireddy et al. 2020 (arXiv:1910.06378).

    Args:
        rule: how parameters and buffers are aggregated.
        layout: of every update and of ``out``; who stored an update checked that.
        updates: in any order, one of an envoy.
        out: float32, shape (layout.size,); what it held is lost.
        participation: in (0, 1].
        block: elements read at once; the result does not depend on it (but for the last bit of a norm).

    Returns:
        The examples of all updates together.

    Raises:
        EmptyRoundError: no update came, or all of them together have no examples.
        NoQuorumError: fewer updates than the rule needs.
    """
    ordered = sorted(updates, key=lambda update: update.envoy)
    if len({update.envoy for update in ordered}) != len(ordered) or any(u.num_examples < 0 for u in ordered):
        raise ValueError("one update of an envoy, with at least 0 examples")
    if out.shape != (layout.size,) or out.dtype != np.float32:
        raise ValueError(f"out has shape {out.shape} {out.dtype}, expected ({layout.size},) float32")
    num_examples = sum(update.num_examples for update in ordered)
    if not num_examples:
        raise EmptyRoundError(
            f"nothing to average: {len(ordered)} updates with no examples; every other envoy failed, declined or "
            "came late"
        )
    if len(ordered) < rule.min_updates:
        raise NoQuorumError(f"{rule.method.value} needs {rule.min_updates} updates as it is set, {len(ordered)} came")
    control = layout.slice_of(Role.CONTROL)
    body = slice(0, layout.size - (control.stop - control.start))
    work = _Work(ordered, out, block)
    _aggregate_body(rule, work, body, num_examples)
    work.weighted_sum([participation / len(ordered)] * len(ordered), control)
    return num_examples


def is_finite(vector: Vector) -> bool:
    """Whether no element is NaN or infinite.

    The square of the norm is finite only if all elements are: one fast pass decides. It may also overflow (elements
    beyond 1e15 or so), and only then each element is looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(np.dot(vector, vector))):
            return True
    return all(bool(np.isfinite(vector[at : at + BLOCK]).all()) for at in range(0, vector.size, BLOCK))


def _aggregate_body(rule: Aggregation, work: _Work, body: slice, num_examples: int) -> None:
    count = len(work.updates)
    weights = [update.num_examples / num_examples for update in work.updates]
    if rule.method is Method.COORDINATE_MEDIAN:
        work.trimmed_mean((count - 1) // 2, body)
    elif rule.trim_fraction is not None:
        work.trimmed_mean(math.floor(rule.trim_fraction * count + 1e-9), body)
    elif rule.byzantine is not None:
        chosen = _krum(work.squared_distances(body), rule.byzantine, only_one=rule.method is Method.KRUM)
        work.weighted_sum([1 / len(chosen) if at in chosen else 0.0 for at in range(count)], body)
    elif rule.max_norm is not None:
        scales = [min(1.0, rule.max_norm / norm) if norm else 1.0 for norm in work.norms(body)]
        work.weighted_sum([weight * scale for weight, scale in zip(weights, scales, strict=True)], body)
    else:
        work.weighted_sum(weights, body)


def _krum(squared: NDArray[np.float64], byzantine: int, *, only_one: bool) -> frozenset[int]:
    """Which updates Krum or multi-Krum keeps, from the squared distances between them.

    Source: Blanchard et al. 2017 (NeurIPS), section 4: an update's score is the sum of the squared distances to its
    n - f - 2 nearest others; Krum keeps the lowest score. Multi-Krum keeps the n - f - 2 lowest and takes their plain
    mean (the most for which El Mhamdi et al. 2018, arXiv:1802.07927, show resilience). Equal scores: the first name.
    """
    count = len(squared)
    neighbours = count - byzantine - 2
    others = np.sort(np.where(np.eye(count, dtype=bool), np.inf, squared), axis=1)
    order = np.argsort(others[:, :neighbours].sum(axis=1), kind="stable")
    return frozenset(int(at) for at in order[: 1 if only_one else neighbours])


@dataclass(frozen=True, slots=True)
class _Work:
    """The passes over the updates; each writes only to its slice of ``out``."""

    updates: Sequence[StoredUpdate]  # sorted by name
    out: Vector
    block: int

    def weighted_sum(self, weights: Sequence[float], where: slice) -> None:
        """``out = sum of weight * update``, the first update read in place; a weight of 0 is not read at all.

        FedAvg: McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629), if weights are shares of the examples.

        Accuracy: weights, products and sums are each rounded to float32, so with n updates an element is off by at
        most (n + 2) * 2**-24 * (sum of weight * absolute value): 2e-6 of that for 32 envoys.
        """
        terms = [(u, np.float32(w)) for u, w in zip(self.updates, weights, strict=True) if w]
        buffer = np.empty(min(self.block, where.stop - where.start), np.float32)
        for start, stop in _blocks(where, self.block):
            total, term = self.out[start:stop], buffer[: stop - start]
            if not terms:
                total.fill(0)
            for nth, (update, weight) in enumerate(terms):
                target = term if nth else total
                update.read(start, target)
                np.multiply(target, weight, out=target)
                if nth:
                    np.add(total, term, out=total)

    def trimmed_mean(self, cut: int, where: slice) -> None:
        """Mean of each coordinate without its ``cut`` lowest and highest values; the median is the deepest cut.

        Source: Yin et al. 2018 (arXiv:1803.01498), definitions 1 and 2; unweighted, since a bad envoy may claim any
        number of examples. With at most ``cut`` bad updates, each element lies between the least and the greatest
        value of the good ones.
        """
        count = len(self.updates)
        comparators, share = list(_comparators(count)), np.float32(1 / (count - 2 * cut))
        rows = self._rows_buffer(where, count + 1)
        for start, stop in _blocks(where, rows.shape[1]):
            held = self._read_rows(rows, start, stop)
            spare = rows[count, : stop - start]
            for low, high in comparators:
                np.minimum(held[low], held[high], out=spare)
                np.maximum(held[low], held[high], out=held[high])
                held[low], spare = spare, held[low]
            total = self.out[start:stop]
            total.fill(0)  # and so never -0.0, whose sign would depend on how numpy compares zeros
            for row in held[cut : count - cut]:
                np.multiply(row, share, out=row)
                np.add(total, row, out=total)

    def squared_distances(self, where: slice) -> NDArray[np.float64]:
        """Squared L2 distance between each two updates, shape (updates, updates), summed in float64."""
        count = len(self.updates)
        squared = np.zeros((count, count))
        rows = self._rows_buffer(where, count)
        buffer = np.empty(rows.shape[1])
        for start, stop in _blocks(where, rows.shape[1]):
            held, difference = self._read_rows(rows, start, stop), buffer[: stop - start]
            for i in range(count):
                for j in range(i):
                    np.subtract(held[i], held[j], out=difference, dtype=np.float64)
                    squared[i, j] += np.square(difference, out=difference).sum()
        return squared + squared.T

    def norms(self, where: slice) -> list[float]:
        """L2 norm of each update, summed in float64.

        Used by norm bounding: Sun et al. 2019 (arXiv:1911.07963), section 4: each update is scaled down to at most
        ``max_norm``, then averaged, so one envoy moves the model by at most its share of the examples times
        ``max_norm``.
        """
        buffer = np.empty(min(self.block, where.stop - where.start), np.float32)
        wide = np.empty(buffer.size)
        squares = [0.0] * len(self.updates)
        for start, stop in _blocks(where, self.block):
            for nth, update in enumerate(self.updates):
                update.read(start, buffer[: stop - start])
                square = np.multiply(
                    buffer[: stop - start], buffer[: stop - start], out=wide[: stop - start], dtype=np.float64
                )
                squares[nth] += float(square.sum())
        return [math.sqrt(square) for square in squares]

    def _rows_buffer(self, where: slice, count: int) -> NDArray[np.float32]:
        """Memory for one block of each update; the more updates, the shorter the blocks."""
        width = min(self.block, max(1, _ROWS // count), max(1, where.stop - where.start))
        return np.empty((count, width), np.float32)

    def _read_rows(self, rows: NDArray[np.float32], start: int, stop: int) -> list[Vector]:
        held = [rows[nth, : stop - start] for nth in range(len(self.updates))]
        for update, row in zip(self.updates, held, strict=True):
            update.read(start, row)
        return held


def _blocks(where: slice, block: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each block."""
    for start in range(where.start, where.stop, block):
        yield start, min(start + block, where.stop)


def _comparators(count: int) -> Iterator[tuple[int, int]]:
    """Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M).

    Rows are sorted with whole-row minima and maxima, which for a few dozen updates is many times faster than
    sorting column by column.

    >>> list(_comparators(3))
    [(0, 2), (0, 1), (1, 2)]
    """
    top = 1 << max(0, (count - 1).bit_length() - 1)
    p = top if count > 1 else 0
    while p:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(count - d) if (i & p) == r)
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
