"""The chain that every update passes before it leaves: check, encode, clip, noise, audit. Pure.

It runs in the envoy's own process, after the plan's code and outside of it, on a copy that the plan cannot reach
(``payload``). What it does not recognise does not leave: every way out of ``protect`` is a payload that passed all of
its steps, zeros of weight zero, or an error.

The encoder alone protects nobody: a code as long as an image has pixels gives the image away (Balunovic 2022;
``gradient_leakage``). Clip and noise bound what one release says of a whole site, and of no single patient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from ..gradient_leakage.defenses.chain import Chain
from ..gradient_leakage.defenses.clip import Clip
from ..gradient_leakage.defenses.coded import Coded
from ..gradient_leakage.defenses.gaussian import GaussianMechanism
from ..gradient_leakage.vae.codec import Codec
from ..utils.aggregation import BLOCK, is_finite
from ..utils.errors import ConfigError, LengthMismatchError, NonFiniteUpdateError, UnsendableUpdateError
from ..utils.messages import PayloadKind
from ..utils.metrics import MetricSum
from ..utils.plan_bundle import Bundle
from ..utils.privacy.noise import NoiseSource
from ..utils.tensors import FLOAT_BYTES, Layout, Vector
from .orders import WorkResult
from .policy import Measures, ProtectionPolicy, Step


@dataclass(frozen=True, slots=True)
class Open:
    """The leak test was passed."""

    score: float  # of the worst attack, on public canaries


@dataclass(frozen=True, slots=True)
class Closed:
    """It was not, or could not be measured; nothing of a training leaves."""

    reason: str  # goes to the director: holds nothing of the site


@dataclass(frozen=True, slots=True)
class Off:
    """The site asks for no leak test."""


Verdict: TypeAlias = Open | Closed | Off
Gate: TypeAlias = Callable[[], Verdict]


class Gatekeeper(Protocol):
    """Knows what each plan and chain leaks on public images."""

    def gate(self, plan: Bundle, model: Path, chain: Chain) -> Gate:
        """The gate of one task: asked before its training, and again before its update leaves.

        Args:
            plan: the task's.
            model: the round's model, as it came from the director.
            chain: as ``chain_of`` builds it, with the codec as it came (a seeded one before its round's basis).
        """
        ...

    def interrupt(self) -> None:
        """End a measurement that runs; the next one is made anew."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Protected:
    """What may leave."""

    payload: Vector  # the very update where nothing changed it
    kind: PayloadKind
    num_examples: int  # 0: withheld
    metrics: tuple[MetricSum, ...]
    score: float | None  # of the leak test
    residual: Vector | None  # what the code lost of this update, for the next round; stays at the site

    @property
    def is_withheld(self) -> bool:
        """Zeros of weight zero, instead of an update."""
        return self.num_examples == 0


def chain_of(measures: Measures, codec: Codec | None) -> Chain:
    """The transforms of a task's measures, in their order.

    Raises:
        ConfigError: the task's update is to be encoded and there is no codec, or the other way round.
    """
    if measures.encodes is not (codec is not None):
        raise ConfigError("a codec is needed exactly where updates are encoded")
    encode = (Coded(codec),) if codec is not None else ()
    if measures.max_norm is None:
        return Chain(encode)
    if measures.has_noise:
        return Chain((*encode, GaussianMechanism(measures.max_norm, measures.noise_multiplier)))
    return Chain((*encode, Clip(measures.max_norm)))


def protect(
    update: Vector,
    result: WorkResult,
    layout: Layout,
    policy: ProtectionPolicy,
    measures: Measures,
    *,
    codec: Codec | None,
    rng: NoiseSource,
    gate: Gate,
    residual: Vector | None = None,
) -> Protected:
    """Take one update through the chain.

    Args:
        update: local minus global; never written to.
        result: what training said of it.
        layout: the plan's.
        policy: the site's; says which metrics leave.
        measures: the policy's, with what the task added.
        codec: the round's.
        rng: of the noise.
        gate: asked last.
        residual: what the codes of earlier rounds lost; added before encoding.

    Guarantees (property-tested): the payload's norm is at most ``measures.max_norm`` before the noise; what leaves is
    finite and as long as its kind says; metrics that the policy does not name do not leave.

    Raises:
        UnsendableUpdateError: it is no update of this plan.
        ConfigError: as ``chain_of``.
    """
    chain = chain_of(measures, codec)
    check(update, layout)
    if result.num_examples < 1:  # weight zero is what tells a withheld answer from one that was let out
        raise UnsendableUpdateError("training names no example that it used; nothing was sent")
    kind = PayloadKind.CODED if measures.encodes else PayloadKind.PLAIN
    length = codec.size if codec is not None else layout.size
    verdict = gate()
    if isinstance(verdict, Closed) or (isinstance(verdict, Off) and Step.AUDIT in measures.steps):
        return Protected(np.zeros(length, np.float32), kind, 0, (), None, None)
    whole = update if residual is None else update + residual
    payload = chain(whole, rng)
    if payload.dtype != np.float32 or payload.shape != (length,):
        raise LengthMismatchError(f"the chain gave {payload.shape} {payload.dtype}, expected ({length},) float32")
    if not is_finite(payload):
        raise NonFiniteUpdateError("the chain gave NaN or infinity; nothing was sent")
    # What the code lost, and not what the clip cut: that would leave all the same, only later.
    lost = whole - codec.decode(codec.encode(whole)) if codec is not None and residual is not None else None
    score = verdict.score if isinstance(verdict, Open) else None
    return Protected(payload, kind, result.num_examples, policy.leaving(result.metrics), score, lost)


def check(update: Vector, layout: Layout) -> None:
    """Is this an update of the plan?

    Raises:
        LengthMismatchError: not as long as the layout.
        NonFiniteUpdateError: NaN or infinity.
        UnsendableUpdateError: all zeros, or its squared norm is no number in float32.
    """
    if update.dtype != np.float32 or update.shape != (layout.size,):
        raise LengthMismatchError(
            f"the update has {update.size * FLOAT_BYTES} bytes, the plan's layout {layout.num_bytes}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(update, update))
    if math.isfinite(square) and square > 0:
        return  # one fast pass says all of it
    if not is_finite(update):
        raise NonFiniteUpdateError("training gave NaN or infinity; nothing was sent")
    if math.isinf(square):
        raise UnsendableUpdateError("the update's norm is beyond 1e19; nothing was sent")
    if not any(bool(update[at : at + BLOCK].any()) for at in range(0, update.size, BLOCK)):
        raise UnsendableUpdateError("training changed nothing: the update is all zeros; nothing was sent")
