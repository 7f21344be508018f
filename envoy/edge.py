"""Between training and the wire: whether a task may be done here, and what of its outcome leaves.

``protection`` says what is done to an update; this module fetches what it needs for it (the codec, the round's basis,
what earlier codes lost, noise, the verdict of the leak test), and keeps what came out, so that it survives a kill -9
and is never made twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..gradient_leakage.vae.codec import Codec, round_seed
from ..utils import messages as m
from ..utils.errors import ConfigError, DigestMismatchError, LengthMismatchError, ProtocolError, StorageError
from ..utils.fairness import FairnessTable
from ..utils.metrics import MetricSum
from ..utils.plan_bundle import Bundle
from ..utils.privacy.noise import NoiseSource, SystemNoise
from ..utils.secure_sum.participant import SECRET_BYTES
from . import residual
from .journal import FinishedWork, Journal
from .orders import WorkResult
from .payload import Payloads
from .policy import Measures, ProtectionPolicy
from .protection import Closed, Gate, Gatekeeper, Off, chain_of, protect

_LOG = logging.getLogger(__name__)
_NO_POLICY = "the site's envoy.toml has no [protection] table, so nothing leaves it; `envoy join` writes one"


@dataclass(frozen=True, slots=True)
class Passage:
    """A task that may be done: what its update has to pass."""

    task: m.Task
    bundle: Bundle
    measures: Measures
    codec: Codec | None  # the round's
    gate: Gate


class Edge:
    """What leaves this site passes here.

    Args:
        policy: the site's; without one nothing is done and nothing leaves.
        journal: keeps what was made ready.
        payloads: hold it.
        state_folder: what stays at the site between rounds.
        gatekeeper: measures leakage; without one, a chain with an audit lets nothing out.
        noise: where randomness comes from; the operating system's by default.
        random: secret bytes, of the noise that goes into secure sums.
    """

    def __init__(
        self,
        policy: ProtectionPolicy | None,
        journal: Journal,
        payloads: Payloads,
        state_folder: Path,
        gatekeeper: Gatekeeper | None = None,
        noise: NoiseSource | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._policy, self._journal, self._payloads = policy, journal, payloads
        self._state_folder, self._gatekeeper = state_folder, gatekeeper
        self._noise: NoiseSource = noise or SystemNoise()
        self._random = random

    def admit(self, task: m.Task) -> Measures:
        """What will be done to a task's update; asked before anything is fetched for it.

        Raises:
            ConfigError: the site's policy does not do it.
        """
        policy = self._required()
        return policy.with_asked(task) if task.kind is m.TaskKind.TRAIN else Measures((), None, 0.0)

    def finished(self, task: m.Task, measures: Measures) -> FinishedWork | None:
        """The answer that was made ready for a task, if it passed what has to be passed now.

        A secure sum that is tried again sums the very same update: that of the earlier attempt is taken over.
        """
        is_summed = task.sum is not None
        done = self._journal.finished(task.ref)
        if done is None and is_summed:
            done = self._journal.finished_before(task.ref, task.model)
        if done is None or done.is_summed is not is_summed or not self.may_leave(done):
            return None
        is_right = done.digest is None or done.chain == _words(task, measures)
        if done.digest is not None and _has_summed_noise(task) and done.noise_secret is None:
            return None
        if not is_right or (is_summed and (done.digest is None) is (task.kind is m.TaskKind.TRAIN)):
            return None
        if done.ref == task.ref:
            return done
        return self._journal.take_over(done, task.ref) if self.is_intact(done) else None

    def may_leave(self, done: FinishedWork) -> bool:
        """Does the policy still let an earlier answer's metrics out? The site may have changed it meanwhile."""
        is_told = self._told(done.result) == done.result.fairness
        return is_told and self._required().leaving(done.result.metrics) == done.result.metrics

    def is_intact(self, done: FinishedWork) -> bool:
        """Is the payload still what it was? Later work overwrites it."""
        if done.digest is None:
            return True
        try:
            self._payloads.view(done.file, done.digest, done.length)
        except (DigestMismatchError, LengthMismatchError, StorageError):
            return False
        return True

    def open(self, task: m.Task, bundle: Bundle, model: Path, measures: Measures, codec: Codec | None) -> Passage:
        """Before training: may it be done at all?

        Args:
            task: as it came.
            bundle: its plan.
            model: the round's model.
            measures: of ``admit``.
            codec: the run's, as it was fetched.

        Raises:
            ConfigError: the leak test says no; the text is public.
            ProtocolError: an answer with noise left already, or may have.
        """
        if (measures.has_noise or _has_summed_noise(task)) and self._journal.drew_noise(task.ref):
            raise ProtocolError(
                f"noise was drawn for {task.ref} already, and that answer is no longer here;"
                " a second draw would be a second release"
            )
        gate: Gate = Off
        if self._gatekeeper is not None:
            gate = self._gatekeeper.gate(bundle, model, chain_of(measures, codec))
        verdict = gate()
        if isinstance(verdict, Closed):
            raise ConfigError(f"{task.ref}: {verdict.reason}")
        of_round = codec.for_round(round_seed(task.ref, task.model, codec.digest)) if codec is not None else None
        return Passage(task, bundle, measures, of_round, gate)

    def pass_update(self, passage: Passage, result: WorkResult) -> FinishedWork:
        """After training: take the update through the chain, and keep what may leave.

        Raises:
            UnsendableUpdateError: training left no update of the plan.
            StorageError: there is no room for what is to be sent.
        """
        task, layout, codec = passage.task, passage.bundle.layout, passage.codec
        keeps = residual.is_kept(passage.measures, codec)
        before = residual.residual_before(self._state_folder, task.ref, layout.size) if keeps else None
        update = self._payloads.take_update(layout.num_bytes)
        out = protect(
            update,
            result,
            layout,
            self._required(),
            passage.measures,
            codec=codec,
            rng=self._noise,
            gate=passage.gate,
            residual=before,
        )
        if out.residual is not None:
            residual.leave_residual(self._state_folder, task.ref, out.residual)
        metrics = out.metrics
        if out.is_withheld:
            _LOG.warning("withheld task=%s: the leak test says no; zeros of weight zero leave", task.ref)
            if task.sum is not None:  # the advert names metrics: to name none would say that this one is withheld
                metrics = tuple(_nothing_of(metric) for metric in self._required().leaving(result.metrics))
        file, digest = self._payloads.keep(out.payload, update)
        done = FinishedWork(
            ref=task.ref,
            result=WorkResult(out.num_examples, metrics, fairness=self._told(result)),
            digest=digest,
            length=out.payload.nbytes,
            kind=out.kind,
            codec=task.codec,
            chain=_words(task, passage.measures),
            file=file,
            model=task.model,
            is_summed=task.sum is not None,
            # Drawn once for this update, and never from anything that the director knows.
            noise_secret=self._random(SECRET_BYTES) if _has_summed_noise(task) else None,
        )
        has_noise = (passage.measures.has_noise and not out.is_withheld) or _has_summed_noise(task)
        return self._journal.finish(done, score=out.score, has_noise=has_noise)

    def pass_metrics(self, task: m.Task, result: WorkResult) -> FinishedWork:
        """After an evaluation: keep those metrics that may leave."""
        kept = WorkResult(0, self._required().leaving(result.metrics), fairness=self._told(result))
        return self._journal.finish(FinishedWork(task.ref, kept, model=task.model, is_summed=task.sum is not None))

    def _told(self, result: WorkResult) -> FairnessTable | None:
        """What is published by subgroups: of it too, metrics that may leave alone."""
        if result.fairness is None:
            return None
        names, policy = {one.name for cell in result.fairness.cells for one in cell.measured}, self._required()
        return result.fairness.only(name for name in names if policy.may_tell(name))

    def _required(self) -> ProtectionPolicy:
        if self._policy is None:
            raise ConfigError(_NO_POLICY)
        return self._policy


def _has_summed_noise(task: m.Task) -> bool:
    """Does each site add a part of a secure sum's noise to its numbers?"""
    return task.sum is not None and task.sum.noise is not None and task.kind is m.TaskKind.TRAIN


def _words(task: m.Task, measures: Measures) -> str:
    """What is done to a task's update. Under other terms of the noise it is another one, and is not taken over."""
    words, noise = measures.words(task.codec), task.sum.noise if task.sum is not None else None
    if noise is None:
        return words
    whole = f"{noise.noise_multiplier!r} x {noise.max_norm!r}"
    return f"{words}, in the sum Skellam noise {whole} of {noise.parts} sites together"


def _nothing_of(metric: MetricSum) -> MetricSum:
    return replace(metric, values=(0.0,) * len(metric.values), weight=0.0)
