"""Ways to send a round's updates with fewer bytes, for the comparison of codecs; each remembers its sites' residuals.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847): what was not sent is added to the next
update. Nothing here is an envoy's: that code is in ``envoy/residual.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...gradient_leakage.vae.codec import Codec
from ...utils.tensors import FLOAT_BYTES, Layout, Vector

INDEX_BYTES = 2
"""Of an entry's place in an update of at most 65,536 numbers: the least a sparse update can do with."""


class Uplink(Protocol):
    """What the director makes of a round's updates, and what it cost to send them."""

    @property
    def num_bytes(self) -> int:
        """That one site sends in a round."""
        ...

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:
        """The mean update, (layout.size,), as it is after the way up.

        Args:
            updates: of all sites, in the same order every round.
            weights: of the sites; they sum to one.
            seed: the round's.
        """
        ...


@dataclass(slots=True)
class Uncompressed:
    """Every number, as float32."""

    layout: Layout

    @property
    def num_bytes(self) -> int:
        """As ``Uplink``."""
        return self.layout.num_bytes

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:  # noqa: ARG002
        """As ``Uplink``."""
        return _weighted(updates, weights)


@dataclass(slots=True)
class Coded:
    """Codes are summed and decoded once."""

    codec: Codec
    has_feedback: bool = False
    _residuals: dict[int, Vector] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """As ``Uplink``."""
        return self.codec.size * FLOAT_BYTES

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:
        """As ``Uplink``."""
        codec, payloads = self.codec.for_round(seed), []
        for site, update in enumerate(updates):
            wanted = update + self._residuals[site] if site in self._residuals else update
            payloads.append(codec.encode(wanted))
            if self.has_feedback:
                self._residuals[site] = wanted - codec.decode(payloads[-1])
        return codec.decode(_weighted(payloads, weights))


@dataclass(slots=True)
class Refreshed:
    """Codes whose basis is fitted again every so many rounds, on rehearsals that begin with the model of that round.

    A federation does so by ending the run and going on from its released model with another codec.
    """

    every: int  # rounds
    refit: Callable[[Vector], Codec]  # from the model at hand
    coded: Coded

    @property
    def num_bytes(self) -> int:
        """As ``Uplink``."""
        return self.coded.num_bytes

    def begin(self, number: int, model: Vector) -> None:
        """Before round ``number``, which counts from 1."""
        if number > 1 and (number - 1) % self.every == 0:
            self.coded = Coded(self.refit(model))

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:
        """As ``Uplink``."""
        return self.coded.mean(updates, weights, seed)


@dataclass(slots=True)
class TopK:
    """The largest numbers with their places, with error feedback (Stich et al. 2018, arXiv:1809.07599)."""

    budget: int  # bytes
    _residuals: dict[int, Vector] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Numbers that are sent."""
        return self.budget // (FLOAT_BYTES + INDEX_BYTES)

    @property
    def num_bytes(self) -> int:
        """As ``Uplink``."""
        return self.count * (FLOAT_BYTES + INDEX_BYTES)

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:  # noqa: ARG002
        """As ``Uplink``."""
        return _weighted([self._sent(site, update) for site, update in enumerate(updates)], weights)

    def _sent(self, site: int, update: Vector) -> Vector:
        wanted = update + self._residuals.get(site, np.float32(0))
        places = np.argpartition(-np.abs(wanted), self.count)[: self.count]
        sent = np.zeros_like(wanted)
        sent[places] = wanted[places]
        self._residuals[site] = wanted - sent
        return sent


@dataclass(slots=True)
class PowerSGD:
    """Low rank with error feedback and a warm start (Vogels et al. 2019, arXiv:1905.13727, algorithms 1 and 2).

    A round asks for two sums, one after the other: of P = M Q, and of M^T P with P made orthonormal. Tensors for which
    both factors would not be smaller, biases and norms above all, are sent as they are.
    """

    layout: Layout
    rank: int
    _bases: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _residuals: dict[int, Vector] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """As ``Uplink``; of both factors."""
        shapes = [(entry.size, self._shape(entry.shape)) for entry in self.layout.entries]
        return FLOAT_BYTES * sum(size if shape is None else self.rank * sum(shape) for size, shape in shapes)

    def mean(self, updates: Sequence[Vector], weights: Sequence[float], seed: bytes) -> Vector:
        """As ``Uplink``."""
        wanted = [update + self._residuals.get(site, np.float32(0)) for site, update in enumerate(updates)]
        mean = _weighted(wanted, weights)
        approximated = mean.copy()
        rng = np.random.default_rng(list(seed))
        for entry in self.layout.entries:
            shape = self._shape(entry.shape)
            if shape is not None:
                place = slice(entry.offset, entry.offset + entry.size)
                basis = self._bases.get(entry.name)
                if basis is None:
                    basis = rng.standard_normal((shape[1], self.rank), np.float32)
                # The two sums of the sites' products are the products of their sum.
                matrix = mean[place].reshape(shape)
                left = np.linalg.qr(matrix @ basis)[0]
                self._bases[entry.name] = matrix.T @ left
                approximated[place] = (left @ self._bases[entry.name].T).ravel()
        for site, one in enumerate(wanted):
            self._residuals[site] = one - approximated
        return approximated

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """As a matrix, where its factors are smaller."""
        if len(shape) < 2:
            return None
        rows, columns = shape[0], int(np.prod(shape[1:]))
        return (rows, columns) if self.rank * (rows + columns) < rows * columns else None


def _weighted(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    total = np.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        total += np.float32(weight) * vector
    return total
