"""Who attacks, and what that attacker has: an ``Observation``, a ``Knowledge``, and nothing else.

No type of this module has room for the images that are sought. They first appear in ``metrics.py``, which no attack
imports (a test holds that), so an attack that picks its best restart by looking at the truth cannot be written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.errors import ConfigError, LayoutMismatchError, LengthMismatchError, NonFiniteUpdateError
from ..utils.tensors import Layout


class Adversary(Enum):
    """The columns of the matrix of adversaries."""

    CURIOUS_DIRECTOR = "curious director"  # keeps to the protocol and looks at every update
    MALICIOUS_DIRECTOR = "malicious director"  # also chooses the model that the sites train
    SUM_READER = "reader of sums"  # sees what secure aggregation shows
    MODEL_READER = "reader of the model"  # sees the released model alone


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the threat model grants beside the update, the model and the number of examples; each by name."""

    labels: bool = False
    batch_norm_statistics: bool = False  # mean and variance of the batch at each BatchNorm
    defense: bool = False  # which defense stands there, with its parameters: encoder, decoder, noise scale
    local_steps: bool = False  # epochs and batch size of the local training
    learning_rate: bool = False
    public_data: bool = False  # images and labels of other patients
    malicious: bool = False  # the attacker chose the model


@dataclass(frozen=True, slots=True)
class ImageDomain:
    """What the plan says about its images, which lie in [0, 1]; public."""

    shape: tuple[int, int, int]  # channels, height, width
    num_classes: int

    @property
    def pixels(self) -> int:
        """Numbers in one image: channels x height x width."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """Plain SGD at the site: ``epochs`` passes over its examples in batches of ``batch_size``."""

    epochs: int
    batch_size: int

    def steps(self, num_examples: int) -> int:
        """Steps of the whole local training.

        >>> LocalTraining(epochs=2, batch_size=4).steps(9)
        6
        """
        return self.epochs * -(-num_examples // self.batch_size)


@dataclass(frozen=True, slots=True, eq=False)
class PublicImages:
    """Images that anybody may have, of other patients than the attacked ones."""

    images: Tensor  # (count, channels, height, width) in [0, 1]
    labels: Tensor  # (count,) int64


@dataclass(frozen=True, slots=True, eq=False)
class BatchStatistics:
    """What one BatchNorm saw: mean and biased variance over batch and space, each of shape (channels,)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Granted:
    """The values behind the booleans of a ``Knowledge``; None where nothing was granted."""

    labels: Tensor | None = None  # (num_examples,) int64
    batch_norm_statistics: Mapping[str, BatchStatistics] | None = None  # by the module's name
    defense: object | None = None  # the ``defenses.chain.Chain`` of the site; it holds no secret
    local_steps: LocalTraining | None = None
    learning_rate: float | None = None
    public_data: PublicImages | None = None


class SentKind(Enum):
    """What the numbers mean."""

    GRADIENT = "gradient"  # of the mean loss over the batch (FedSGD)
    UPDATE = "update"  # local minus global (FedAvg); what fedveil's envoys send


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What left the site, and what everybody in the federation knows anyway.

    Raises:
        LengthMismatchError: the bytes are not those of the layout.
        LayoutMismatchError: the layout is not the model's.
        NonFiniteUpdateError: the update or the payload holds NaN or infinity.
    """

    sent: bytes  # as the director reads it (of a code, decoded): little-endian floats in the layout's order
    layout: Layout
    kind: SentKind
    model: nn.Module  # as published, in the mode in which the sites train it; an attack never changes it
    domain: ImageDomain
    num_examples: int  # travels beside every update
    granted: Granted = field(default_factory=Granted)
    dtype: torch.dtype = torch.float32  # what an envoy sends; float64 in the laboratory alone
    payload: bytes | None = None  # what left, float32, where it is not ``sent`` in another guise: a code, a sketch

    def __post_init__(self) -> None:
        """Refuse what no envoy would send."""
        width = 8 if self.dtype is torch.float64 else 4
        if len(self.sent) != width * self.layout.size:
            raise LengthMismatchError(
                f"an update of {len(self.sent)} bytes, its layout has {self.layout.size} numbers of {width} bytes"
            )
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for entry in self.layout.entries:
            if entry.name not in own or tuple(own[entry.name].shape) != entry.shape:
                found = tuple(own[entry.name].shape) if entry.name in own else "no such tensor"
                raise LayoutMismatchError(f"the update holds {entry.name} {entry.shape}, the model has {found}")
        if not np.isfinite(self.vector()).all():
            raise NonFiniteUpdateError("the observed update holds NaN or infinity: there is nothing to match")
        if self.payload is not None and len(self.payload) % 4:
            raise LengthMismatchError(f"a payload of {len(self.payload)} bytes: no whole number of float32")
        if not np.isfinite(self.payload_vector()).all():
            raise NonFiniteUpdateError("the observed payload holds NaN or infinity: there is nothing to match")
        if self.num_examples < 1:
            raise ConfigError(f"an update of {self.num_examples} examples; expected at least 1")

    def vector(self) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
        """The numbers that were sent, read-only, shape (layout.size,)."""
        return np.frombuffer(self.sent, "<f8" if self.dtype is torch.float64 else "<f4")

    def payload_vector(self) -> np.ndarray[tuple[int], np.dtype[np.floating]]:
        """The numbers that left the site, read-only: those of the payload, else ``vector()``."""
        return self.vector() if self.payload is None else np.frombuffer(self.payload, "<f4")

    def tensors(self) -> dict[str, Tensor]:
        """What was sent, by the names of the layout, on the model's device."""
        device = next(self.model.parameters()).device
        flat = torch.from_numpy(self.vector().copy()).to(device)
        return {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in self.layout.entries}

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of each trained parameter, in the model's order, as far as the update tells it.

        Of a gradient: itself. Of an update: ``-update / (learning_rate * steps)`` where the threat model grants them,
        the mean gradient along the local steps; else ``-update``, right but for its scale.
        """
        sent, scale = self.tensors(), 1.0
        if self.kind is SentKind.UPDATE:
            local, rate = self.granted.local_steps, self.granted.learning_rate
            scale = -1.0 / ((rate or 1.0) * (local.steps(self.num_examples) if local else 1))
        return {n: scale * sent[n] for n, p in self.model.named_parameters() if p.requires_grad and n in sent}

    def limited_to(self, knowledge: Knowledge) -> Observation:
        """The same observation without the values that the threat model does not name."""
        dropped = {f.name: None for f in fields(Granted) if not getattr(knowledge, f.name)}
        return replace(self, granted=replace(self.granted, **dropped))


@dataclass(frozen=True, slots=True, eq=False)
class SumObservation:
    """What secure aggregation shows of one round: the sum over the sites, and what was sent to each of them.

    Raises:
        ConfigError: not one published model and one count a site.
    """

    sent: bytes  # the sum of num_examples x update, in the layout's order
    layout: Layout
    kind: SentKind
    models: tuple[nn.Module, ...]  # as published to each site; an honest director publishes the same to all
    domain: ImageDomain
    num_examples: tuple[int, ...]  # of each site
    granted: Granted = field(default_factory=Granted)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if not self.models or len(self.models) != len(self.num_examples):
            raise ConfigError(
                f"{len(self.models)} models and {len(self.num_examples)} counts; expected one each a site"
            )

    def as_one(self) -> Observation:
        """The sum over its examples: the update of one site with all the images, where all got the first model.

        Raises:
            FederationError: as an ``Observation`` does.
        """
        summed = np.frombuffer(self.sent, "<f8" if self.dtype is torch.float64 else "<f4")
        mean = (summed / sum(self.num_examples)).astype(summed.dtype)
        return Observation(
            sent=mean.tobytes(),
            layout=self.layout,
            kind=self.kind,
            model=self.models[0],
            domain=self.domain,
            num_examples=sum(self.num_examples),
            granted=self.granted,
            dtype=self.dtype,
        )


@dataclass(frozen=True, slots=True, eq=False)
class RoundSums:
    """What secure aggregation shows over several rounds: their sums, and who was in which cohort.

    Raises:
        ConfigError: no round, or a matrix of cohorts that does not fit the rounds.
        LayoutMismatchError: the rounds do not share one layout.
        FederationError: as an ``Observation`` does, of each sum.
    """

    rounds: tuple[SumObservation, ...]  # models and counts of each are those of its cohort, by rising site
    cohorts: Tensor  # (rounds, sites) bool

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        if not self.rounds:
            raise ConfigError("sums of no round: there is nothing to attack")
        if self.cohorts.dtype is not torch.bool or self.cohorts.ndim != 2 or len(self.cohorts) != len(self.rounds):
            raise ConfigError(
                f"cohorts of shape {tuple(self.cohorts.shape)} and {self.cohorts.dtype} for {len(self.rounds)} rounds; "
                "expected (rounds, sites) of bool"
            )
        for number, (seen, cohort) in enumerate(zip(self.rounds, self.cohorts, strict=True)):
            if int(cohort.sum()) != len(seen.models):
                raise ConfigError(
                    f"round {number} has {int(cohort.sum())} sites in its cohort and sums {len(seen.models)} updates"
                )
            if seen.layout != self.rounds[0].layout:
                raise LayoutMismatchError(f"round {number} has another layout than round 0")
            seen.as_one()

    def weights(self) -> Tensor:
        """How often each site's update is in each sum: its examples, or 0; (rounds, sites) float64."""
        matrix = torch.zeros(self.cohorts.shape, dtype=torch.float64)
        counts = [count for seen in self.rounds for count in seen.num_examples]
        matrix[self.cohorts] = torch.tensor(counts, dtype=torch.float64)
        return matrix

    def sums(self) -> Tensor:
        """The sums, a round a row; (rounds, layout.size) float64."""
        rows = [np.frombuffer(s.sent, "<f8" if s.dtype is torch.float64 else "<f4") for s in self.rounds]
        return torch.from_numpy(np.stack(rows).astype(np.float64))


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One moment of an iterative attack; what the curves and the animation are made of."""

    iteration: int
    loss: float  # the attacker's own
    images: Tensor | None = None  # (num_examples, channels, height, width), kept at a few moments only


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """What an attack found out. Parts that it does not seek stay None."""

    images: Tensor | None = None  # (count, channels, height, width), on the CPU, in [0, 1] up to the attack's error
    labels: Tensor | None = None  # (count,) int64; beside the images where there are images
    loss: float = math.nan  # the attacker's own, of the restart that it chose by it; NaN where nothing was optimised
    trace: tuple[TracePoint, ...] = ()
    exact: Tensor | None = None  # (count,) bool: what the attacker itself holds for exact (images, else updates)
    updates: Tensor | None = None  # (sites, layout.size) float64: what each site sent, NaN where a sum keeps it
    sites: Tensor | None = None  # (count,) int64: images of one group are of one site, whichever that is
    scores: Tensor | None = None  # (candidates,) float64: the higher, the more likely a member of the training set


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One restart with the loss that the attacker gave it."""

    images: Tensor
    labels: Tensor | None
    loss: float
    trace: tuple[TracePoint, ...] = ()


def lowest_loss(candidates: tuple[Candidate, ...]) -> Reconstruction:
    """The restart with the attacker's own lowest loss; a NaN never wins.

    Raises:
        ValueError: there is no candidate.
    """
    chosen = min(candidates, key=lambda candidate: math.inf if math.isnan(candidate.loss) else candidate.loss)
    labels = None if chosen.labels is None else chosen.labels.detach().cpu()
    return Reconstruction(chosen.images.detach().cpu(), labels, chosen.loss, chosen.trace)


SeenT_contra = TypeVar("SeenT_contra", contravariant=True)


class Attack(Protocol[SeenT_contra]):
    """One paper. A frozen dataclass whose fields are its options.

    ``SeenT_contra`` is an ``Observation`` for whoever looks at one update; attacks on sums over rounds and on released
    models have observations of their own beside them, which hold as little.
    """

    @property
    def needs(self) -> Knowledge:
        """What the attack cannot do without."""
        ...

    def __call__(self, observation: SeenT_contra, knowledge: Knowledge, rng: torch.Generator) -> Reconstruction:
        """Attack. All randomness comes from ``rng``; the same seed gives the same result.

        Raises:
            AttackError: this update or this model cannot be attacked so; the message says why.
        """
        ...


def require_knowledge(attack: str, needed: Knowledge, had: Knowledge) -> None:
    """Refuse an attack that its threat model does not carry.

    Raises:
        ConfigError: names what is missing.
    """
    missing = [f.name for f in fields(Knowledge) if getattr(needed, f.name) and not getattr(had, f.name)]
    if missing:
        raise ConfigError(f"{attack} needs {' and '.join(missing)}, which this threat model does not grant")
