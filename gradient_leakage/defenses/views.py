"""What an attacker who knows the chain compares: a candidate's gradient, as the chain would have sent it.

Every step is followed in torch as far as it is linear, so that a match can be differentiated through it; what is not is
turned into weights and the size of a noise:

| step | followed as |
|---|---|
| codec, sketch | the same linear map; its transpose, which is its decoder, leads slopes back |
| Soteria | the same mask |
| top-k | only what was kept counts |
| OUTPOST | only what stands out of its noise counts |
| noise before a bottleneck | numbers under it count by their share of signal |
| clip | a factor that nobody knows, where the update may have been longer than the bound |
| clip and noise | that factor, and noise |
| quantisation | noise of a step over the root of 6 (stochastic rounding, mean over all places in a step) |
| one scalar as a mask | the mean is taken away on both sides, and the mask with it |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ...utils.errors import ConfigError
from ...utils.tensors import Layout, Role, Vector
from ..threat_model import Observation
from .chain import Chain
from .clip import Clip
from .coded import Coded
from .defense import Defense
from .gaussian import GaussianMechanism
from .outpost import Outpost
from .partial import PartialNoise
from .quantise import Quantise
from .scalar_mask import ScalarMask
from .sketch import Sketch
from .soteria import Soteria
from .top_k import TopK, kept

Projection: TypeAlias = Callable[[Tensor], Tensor]
"""Of a flat update in the layout's order, (layout.size,), what would have been sent of it, (payload,)."""

_OUTSTANDING = 4.0  # deviations; of a million numbers of noise 60 reach it
_SHORTER = 1 - 1e-5  # a payload this much shorter than the bound was not clipped


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What was sent, and how to bring candidates beside it."""

    observed: Tensor  # (payload,) float64
    project: Projection  # in the dtype that comes in; differentiable
    weights: Tensor | None  # (payload,) float64 from 0 to 1: how much each number counts; None: all alike
    noise_std: float  # of each number of the payload; 0 for none
    is_scaled: bool  # by an unknown factor, at most 1

    @property
    def numbers(self) -> float:
        """How many numbers say something."""
        return float(len(self.observed) if self.weights is None else self.weights.sum())


def view_of(chain: Chain, observation: Observation) -> View:
    """How an attacker who was told the chain sees this payload.

    Raises:
        ConfigError: a step that no view knows.
    """
    device = next(observation.model.parameters()).device
    observed = torch.from_numpy(observation.payload_vector().astype(np.float64)).to(device)
    own = _without_buffers(observation.layout, chain, len(observed))
    weights = None if own is None else torch.from_numpy(own).to(device)
    view = View(observed, lambda update: update, weights, 0.0, is_scaled=False)
    for place, step in enumerate(chain.steps):
        view = _after(step, view, chain.steps[place + 1 :])
    return view


@singledispatch
def _after(step: Defense, view: View, later: Sequence[Defense]) -> View:  # noqa: ARG001 - one shape for all steps
    """The view with one more step; ``later`` are those that this one's result went through."""
    raise ConfigError(f"no view of a chain with {type(step).__name__}: an adaptive attack does not know this step")


@_after.register
def _(step: Sketch, view: View, _later: Sequence[Defense]) -> View:
    return replace(view, project=_through(view.project, _sketched(step, view.observed.device)))


@_after.register
def _(step: Coded, view: View, _later: Sequence[Defense]) -> View:
    return replace(view, project=_through(view.project, _coded(step)))


@_after.register
def _(step: Clip, view: View, later: Sequence[Defense]) -> View:
    return replace(view, is_scaled=view.is_scaled or _may_be_clipped(view.observed, step.max_norm, later))


@_after.register
def _(step: GaussianMechanism, view: View, later: Sequence[Defense]) -> View:
    is_scaled = step.noise_multiplier > 0 or _may_be_clipped(view.observed, step.max_norm, later)
    return replace(view, is_scaled=view.is_scaled or is_scaled, noise_std=_joint(view.noise_std, step.noise_std))


@_after.register
def _(step: Quantise, view: View, later: Sequence[Defense]) -> View:
    std = step.step_of(float(view.observed.abs().max())) / 6**0.5
    return replace(view, noise_std=_joint(view.noise_std, std)) if _is_shown(later) else view


@_after.register
def _(step: TopK, view: View, later: Sequence[Defense]) -> View:
    return _weighted(view, _largest(view.observed, step.share)) if _is_shown(later) else view


@_after.register
def _(step: Soteria, view: View, _later: Sequence[Defense]) -> View:
    def hide(update: Tensor) -> Tensor:
        mask = torch.ones_like(update)
        mask[step.start : step.start + step.shape[0] * step.shape[1]].view(step.shape)[:, list(step.columns)] = 0
        return update * mask

    return replace(view, project=_through(view.project, hide))


@_after.register
def _(step: Outpost, view: View, later: Sequence[Defense]) -> View:
    if not _is_shown(later):
        return view
    weights, std = _standing_out(step, view.observed)
    return replace(_weighted(view, weights), noise_std=_joint(view.noise_std, std))


@_after.register
def _(_step: ScalarMask, view: View, _later: Sequence[Defense]) -> View:
    # One direction of the update, the mean, is lost with the mask; all others are as they were.
    return replace(view, observed=_centred(view.observed), project=_through(view.project, _centred))


@_after.register
def _(step: PartialNoise, view: View, later: Sequence[Defense]) -> View:
    return _weighted(view, _signal_share(step, view.observed)) if _is_shown(later) else view


def _centred(update: Tensor) -> Tensor:
    return update - update.mean()


def _is_shown(later: Sequence[Defense]) -> bool:
    """Is what came out seen number by number, and not in a code?"""
    return not any(isinstance(one, Coded | Sketch) for one in later)


def _through(first: Projection, then: Projection) -> Projection:
    return lambda update: then(first(update))


def _joint(one: float, other: float) -> float:
    return float(np.hypot(one, other))


def _weighted(view: View, weights: Tensor) -> View:
    return replace(view, weights=weights if view.weights is None else view.weights * weights)


def _without_buffers(layout: Layout, chain: Chain, size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """Zero at what no gradient tells, as far as it was sent number by number; None where there is nothing such."""
    if isinstance(chain.encoder, Sketch):
        return None
    sent = layout if chain.encoder is None else chain.encoder.codec.payload_layout
    spans = [(e.offset, e.offset + e.size) for e in sent.entries if e.role is not Role.PARAMETER]
    if not spans:
        return None
    weights = np.ones(size)
    for start, stop in spans:
        weights[start:stop] = 0
    return weights


def _may_be_clipped(observed: Tensor, max_norm: float, later: Sequence[Defense]) -> bool:
    """Without noise after it, a payload that is shorter than the bound shows that nothing was clipped."""
    return bool(later) or float(observed.norm()) >= _SHORTER * max_norm


def _largest(observed: Tensor, share: float) -> Tensor:
    """1 at the share of largest magnitude, of which none is zero."""
    size = observed.abs()
    mask = torch.zeros_like(observed)
    mask[size.topk(kept(share, len(observed))).indices] = 1
    return mask * (size > 0)


def _standing_out(step: Outpost, observed: Tensor) -> tuple[Tensor, float]:
    """1 for numbers that its noise alone would not make, and the noise in these, root mean square.

    Zeros were pruned, and what is as small as the noise may have been: neither says what stood there.
    """
    weights, variance = torch.ones_like(observed), torch.zeros_like(observed)
    for span in step.spans:
        noise = step.noise * span.risk
        weights[span.start : span.stop] = (observed[span.start : span.stop].abs() > _OUTSTANDING * noise).double()
        variance[span.start : span.stop] = noise**2
    return weights, float(((weights * variance).sum() / weights.sum().clamp(min=1)).sqrt())


def _signal_share(step: PartialNoise, observed: Tensor) -> Tensor:
    """Signal over signal and noise, in the mean square of each span."""
    weights = torch.ones_like(observed)
    for start, stop in step.spans:
        whole = float(observed[start:stop].square().mean()) if stop > start else 0.0
        weights[start:stop] = max(whole - step.std**2, 0.0) / whole if whole else 0.0
    return weights


def _sketched(step: Sketch, device: torch.device) -> Projection:
    at, held = step.placed()
    places, signs = torch.from_numpy(at.astype(np.int64)).to(device), torch.from_numpy(held).to(device)
    return lambda update: update.new_zeros(step.size).index_add(0, places, update * signs)


def _coded(step: Coded) -> Projection:
    def encode(update: Tensor) -> Tensor:
        coded: Tensor = _Encoded.apply(update, step)  # type: ignore[no-untyped-call]
        return coded

    return encode


class _Encoded(torch.autograd.Function):
    """The codec's own encoder, in float32; its rows are orthonormal, so its transpose is its decoder."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, step: Coded) -> Tensor:
        ctx.step = step
        return _like(update, step.codec.encode(_vector(update)))

    @staticmethod
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor, None]:
        step: Coded = ctx.step  # type: ignore[attr-defined]
        return _like(slopes[0], step.codec.decode(_vector(slopes[0]))), None


def _vector(tensor: Tensor) -> Vector:
    flat: Vector = tensor.detach().cpu().numpy().astype(np.float32)
    return flat


def _like(tensor: Tensor, vector: Vector) -> Tensor:
    return torch.from_numpy(vector).to(tensor)
