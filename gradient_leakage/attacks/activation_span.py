"""Inputs of a ReLU layer whose outputs lie in the span that the next layer's gradient shows.

The gradient of a linear layer's weight is a sum over the batch of error times input, so each example's input lies in
its row space as long as there are as many independent errors as examples: the span check of Petrov et al. 2024 (DAGER,
arXiv:2405.15586). Behind a ReLU this gives more than a check. While the switched-on neurons stay the same, the
condition is linear in the example, so a few steps of Newton's method solve it from many a guess, each example alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 12  # a start that converges does so in fewer


@dataclass(frozen=True, slots=True, eq=False)
class ActivationSpan:
    """The points of an affine space, and which outputs of the layer are allowed."""

    slope: Tensor  # (neurons, width): pre-activations are slope @ point + bias
    bias: Tensor  # (neurons,)
    sum_to_one: Tensor  # (width,): its product with every point is 1
    span: Tensor  # (rank, neurons), orthonormal rows

    def solve(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's method from many starts at once.

        Args:
            starts: (count, width).

        Returns:
            Points (count, width), and for each which part of its outputs (their norm is 1) lies outside the span.
        """
        origin = self.sum_to_one / self.sum_to_one.square().sum()
        free = torch.linalg.svd(self.sum_to_one[None])[2][1:]  # (width - 1, width)
        affine = torch.cat([self.slope @ free.T, (self.bias + self.slope @ origin)[:, None]], 1)
        points = starts
        for _ in range(STEPS):
            on = (points @ self.slope.T + self.bias > 0).to(starts.dtype)
            outside = on[..., None] * affine
            outside = outside - self.span.T @ (self.span @ outside)
            basis, upper = torch.linalg.qr(outside[..., :-1])
            solved = -torch.linalg.solve_ex(upper, basis.mT @ outside[..., -1:])[0][..., 0]
            points = origin + torch.nan_to_num(solved, 0.0, 0.0, 0.0) @ free
        outputs = (points @ self.slope.T + self.bias).relu()
        outside = outputs - (outputs @ self.span.T) @ self.span
        return points, outside.norm(dim=1) / outputs.norm(dim=1)
