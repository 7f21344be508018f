"""SPEAR: whole batches exactly, out of a linear layer followed by ReLU (Dimitrov et al. 2024, arXiv:2403.03945).

The gradient of the weight is ``errors.T @ inputs``: its rank is the batch size b, and the errors are zero where ReLU
switched a neuron off. So in the coordinates of its b leading right singular vectors each example is a point, and the
inverse of the matrix of points has columns that are orthogonal to every neuron that the example left off. Those columns
are found by sampling (``sparse_directions.py``); the gradient of the bias gives their scale.

Two shortcuts come before the sampling, as it costs 2^b. Where the ReLU is read by another linear layer, points are
found one by one (``activation_span.py``), starting from what each neuron holds. And every example that was found is
taken out of the neurons' gradients, so that the next start from cleaner mixtures, and the sampling, if it still has to
come, works on the few that are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.errors import AttackError
from ..threat_model import Knowledge, Observation, Reconstruction, require_knowledge
from .activation_span import ActivationSpan
from .first_layer import FirstLinear, first_linear, labels_of
from .sparse_directions import NOISE, null_space, sparse_directions

SPAN = 100.0  # times the noise: below, a direction of the next layer's gradient is too tilted to confirm anything
SAME = 1e-4  # relative distance below which two points are one


@dataclass(frozen=True, slots=True)
class Spear:
    """Exact recovery of a batch through a first linear layer with ReLU."""

    samples: int = 200_000  # sets of neurons to draw for the examples that the shortcut did not find
    starts: int = 512  # random starts of the shortcut, once the neurons' own mixtures are used up
    next_layer: bool = True  # False: the paper's sampling alone

    @property
    def needs(self) -> Knowledge:
        """Nothing but the update."""
        return Knowledge()

    def __call__(self, observation: Observation, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Recover the batch.

        Returns:
            As many images as the gradient has independent directions, which is fewer than ``num_examples`` where
            examples are equal or switch nothing on. ``exact`` where the ReLU confirms an image: its outputs lie in the
            next layer's span, or the neurons that it leaves off are those with a zero error. Examples that switch the
            very same neurons on cannot be told apart, and are given as what they have in common. Labels where all were
            found.

        Raises:
            AttackError: the first layer with parameters is no linear layer with a bias on the image itself; the batch
                is as large as the layer; or the gradient holds nothing.
        """
        require_knowledge("spear", self.needs, knowledge)
        seen = observation.limited_to(knowledge)
        layer = first_linear("spear", seen)
        batch = _Batch.of(layer, seen.num_examples)
        points, certain = batch.points(self, rng)
        images = layer.images(points @ batch.basis)
        labels = labels_of(seen, images) if bool(certain.all()) else None
        return Reconstruction(images.to(seen.dtype), labels, exact=certain)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """A gradient in the coordinates of its own row space; ``rank`` is the number of examples in it."""

    basis: Tensor  # (rank, inputs), orthonormal rows: a point times it is the layer's input
    rows: Tensor  # (neurons, rank): the gradient of the weight
    bias_gradient: Tensor  # (neurons,)
    noise: Tensor  # (neurons,) standard deviation of each number of a row
    slope: Tensor  # (neurons, rank): pre-activations are slope @ point + bias
    bias: Tensor  # (neurons,)
    span: Tensor | None  # (at most rank, neurons) of the next layer's inputs
    span_noise: float  # how far outside of it the outputs of an example may lie

    @staticmethod
    def of(layer: FirstLinear, num_examples: int) -> _Batch:
        gradient = layer.weight_gradient
        limit = min(gradient.shape) - 1
        if num_examples > limit:
            raise AttackError(
                f"spear: {num_examples} examples through {layer.name} of {gradient.shape[0]} neurons and "
                f"{gradient.shape[1]} inputs: the gradient's rank no longer tells them apart; at most {limit}"
            )
        rank, basis, _ = _row_space(gradient, num_examples, 5)
        if not rank:
            raise AttackError(f"spear: the gradient of {layer.name} is zero, so no example switched a neuron on")
        rows = gradient @ basis.T
        left = gradient - rows @ basis
        floor = 1e-15 * torch.linalg.matrix_norm(gradient, 2)  # of float64's own decomposition
        noise = (left.square().sum(1) / (gradient.shape[1] - rank)).sqrt() + floor
        span, span_noise = None, 0.0
        if layer.next_gradient is not None and num_examples < min(layer.next_gradient.shape):
            _, span, span_noise = _row_space(layer.next_gradient, num_examples, SPAN)
        return _Batch(
            basis=basis,
            rows=rows,
            bias_gradient=layer.bias_gradient,
            noise=noise,
            slope=layer.weight @ basis.T,
            bias=layer.bias,
            span=span if span is not None and len(span) else None,
            span_noise=span_noise,
        )

    @property
    def tolerance(self) -> float:
        """How wrong a point that the span confirms may be, relative to its length."""
        return max(1e-9, 10 * self.span_noise)

    @property
    def sum_to_one(self) -> Tensor:
        """What every point's product with is 1, since the bias sees each example as 1; (rank,)."""
        weight = 1 / self.noise[:, None]
        solved: Tensor = torch.linalg.lstsq(self.rows * weight, self.bias_gradient[:, None] * weight).solution
        return solved[:, 0]

    def points(self, options: Spear, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The examples as points (rank, rank), and for each whether it is certain."""
        rank = self.rows.shape[1]
        found = self.rows.new_zeros(0, rank)
        if options.next_layer and self.span is not None:
            found = self._by_span(self.span, options.starts, rng)
        if len(found) == rank:
            return found, torch.ones(rank, dtype=torch.bool)
        others, certain = self._by_sparsity(found, options.samples, rng)
        return torch.cat([found, others]), torch.cat([torch.ones(len(found), dtype=torch.bool), certain])

    def _by_span(self, span: Tensor, starts: int, rng: torch.Generator) -> Tensor:
        """Points one by one; those found are taken out of the mixtures from which the next start."""
        rank = self.rows.shape[1]
        check = ActivationSpan(self.slope, self.bias, self.sum_to_one, span)
        found = self.rows.new_zeros(0, rank)
        tried_random = False
        while len(found) < rank:
            begin = self._mixtures(found)
            if tried_random or not len(begin):
                begin = _around(self._mixtures(found[:0]), starts, rng)
            points, outside = check.solve(begin)
            before = len(found)
            for index in outside.argsort()[: int((outside < self.tolerance).sum())]:
                apart = (found - points[index]).norm(dim=1)
                new = len(found) < rank and bool((apart > SAME * points[index].norm()).all())
                if new and self._leaves_off(points[index]):
                    found = torch.cat([found, points[index : index + 1]])
            if len(found) == before:
                if tried_random:
                    break
                tried_random = True
            else:
                tried_random = False
        return found

    def _leaves_off(self, point: Tensor) -> bool:
        """Whether some direction that meets the point is orthogonal to all neurons that the point leaves off."""
        off = self.slope @ point + self.bias <= 0
        directions = null_space(self.rows[off] / self.noise[off, None])
        return float((point @ directions).norm()) > 1e-6 * float(point.norm())

    def _mixtures(self, found: Tensor) -> Tensor:
        """What each neuron holds of the examples that were not found, as points."""
        directions = [self._direction(found, index) for index in range(len(found))]
        rows, bias, noise = self.rows, self.bias_gradient, self.noise
        for point, direction in zip(found, directions, strict=True):
            if direction is not None:
                errors = self.rows @ direction
                rows, bias = rows - errors[:, None] * point, bias - errors
                noise = noise + self.noise * float(direction.norm() * point.norm())
        usable = (rows.norm(dim=1) > 10 * NOISE * noise) & (bias.abs() > NOISE * noise)
        mixtures = rows[usable] / bias[usable, None]
        away = (mixtures - mixtures.median(0).values).norm(dim=1) if len(mixtures) else bias.new_zeros(0)
        return mixtures[away <= 6 * away.median()]  # a neuron whose weights cancel holds nothing that is like an image

    def _centre(self, found: Tensor) -> Tensor:
        """The examples that were not found, mixed: a guess at each of them; (rank,)."""
        mixtures = self._mixtures(found)
        return mixtures.median(0).values if len(mixtures) else self.sum_to_one / self.sum_to_one.square().sum()

    def _direction(self, found: Tensor, index: int) -> Tensor | None:
        """What is orthogonal to all but one of the points, as far as that is settled; (rank,), 1 at that point."""
        off = self.slope @ found[index] + self.bias <= 0
        others = torch.cat([found[:index], found[index + 1 :]])
        certain = others / others.norm(dim=1, keepdim=True) / self.tolerance
        direction = null_space(torch.cat([self.rows[off] / self.noise[off, None], certain]))
        if direction.shape[1] != 1 or abs(float(found[index] @ direction[:, 0])) < 1e-6:
            return None
        return direction[:, 0] / (found[index] @ direction[:, 0])

    def _by_sparsity(self, found: Tensor, samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The examples that the span did not give, from sparse directions orthogonal to the found ones."""
        rank = self.rows.shape[1]
        width = rank - len(found)
        free = torch.linalg.svd(found)[2][len(found) :] if len(found) else torch.eye(rank, dtype=self.rows.dtype)
        likely_off = (self.slope @ self._centre(found[:0]) + self.bias).argsort()
        rows = (self.rows / self.noise[:, None] @ free.T)[likely_off]
        candidates = sparse_directions(rows, samples, rng) @ free
        settled = [self._direction(found, index) for index in range(len(found))]
        known = torch.stack([p if d is None else d for p, d in zip(found, settled, strict=True)]) if settled else found
        while True:
            chosen = _independent(candidates, width)
            if len(chosen) < width:
                return self._centre(found).expand(width, -1), torch.zeros(width, dtype=torch.bool)
            directions = torch.cat([known, candidates[chosen]])
            points = torch.linalg.inv(directions.T)[len(found) :]
            points = points / (points @ self.sum_to_one)[:, None]
            agreement = self._agreement(points, directions[len(found) :])
            if bool((agreement == 1).all()) or len(candidates) == width:
                return points, (agreement == 1) & all(d is not None for d in settled)
            # of two examples whose errors are in proportion also the difference is sparse, but no ReLU makes it so
            worst = chosen[int(agreement.argmin())]
            candidates = torch.cat([candidates[:worst], candidates[worst + 1 :]])

    def _agreement(self, points: Tensor, directions: Tensor) -> Tensor:
        """The paper's sparsity matching score: at which share of the neurons a zero error is a ReLU that is off."""
        live = self.rows.norm(dim=1) > NOISE * math.sqrt(self.rows.shape[1]) * self.noise
        errors = self.rows[live] @ directions.T / directions.norm(dim=1)
        off = self.slope[live] @ points.T + self.bias[live, None] <= 0
        same: Tensor = (errors.abs() <= NOISE * self.noise[live, None]) == off
        return same.double().mean(0)


def _row_space(gradient: Tensor, num_examples: int, clear: float) -> tuple[int, Tensor, float]:
    """How many examples the gradient tells apart, their span, and how far the noise tilts it."""
    _, lengths, basis = torch.linalg.svd(gradient, full_matrices=False)
    noise = max(float(lengths[num_examples]), 1e-14 * float(lengths[0]))
    rank = int((lengths[:num_examples] > clear * noise).sum())
    return rank, basis[:rank], noise / float(lengths[:rank].median()) if rank else 0.0


def _around(mixtures: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Random points that spread about twice as far as the mixtures."""
    centre = mixtures.median(0).values
    spread = (mixtures - centre).T / math.sqrt(len(mixtures))
    normal = torch.randn(count, len(mixtures), generator=rng, dtype=mixtures.dtype)
    return centre + 2 * torch.rand(count, 1, generator=rng, dtype=mixtures.dtype) * normal @ spread.T


def _independent(directions: Tensor, count: int) -> list[int]:
    """The first directions that are independent of those before them, at most ``count``."""
    chosen: list[int] = []
    for index in range(len(directions)):
        if len(chosen) < count and float(torch.linalg.svdvals(directions[[*chosen, index]])[-1]) > 1e-6:
            chosen.append(index)
    return chosen
