"""Is the epsilon of the ledger true of the code that trains? An audit by canaries, and whether it sees planted bugs.

Each canary is a patient of a site whose whole gradient is known: two records that point along one number of the model,
ten times as long as the clip. Half of them, by fair coins, are in the data of a round of ``envoy.training.run_round``,
which is what the envoy's worker calls: it draws patients, computes and clips their gradients, adds the system's noise
and steps. The auditor sees the update that would be sent, and guesses the coins (``gradient_leakage.one_run_audit``;
Steinke et al. 2023, arXiv:2305.08846). That gives a lower bound on the true epsilon at 95 % confidence; the ledger's is
an upper one.

A bound below the ledger's is no proof that the code is right. That the same audit contradicts the ledger as soon as a
bug is planted says what it would have seen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...envoy.plans import PlanSettings, TrainingPlan
from ...envoy.privacy_ledger import LEDGER_FILE, PrivacyLedger
from ...envoy.records import LoadedDataset
from ...envoy.splits import Split
from ...envoy.training import LocalRound, run_round
from ...gradient_leakage.one_run_audit import Audited, OneRunAudit
from ...utils.data_spec import DataKind, DataSpec
from ...utils.differential_privacy import DifferentialPrivacy
from ...utils.messages import RunId, TaskKind, TaskRef
from ...utils.metrics import MetricSum
from ...utils.privacy.values import PublishedEpsilon, Unit
from ...utils.tensors import Digest, Layout, Role

GROUP = 500
"""Canaries of one round: each along a number of its own."""
_LAYOUT = Layout.of([("weight", (1, GROUP), Role.PARAMETER)])
_OVERSHOOT = 10.0
_RECORDS = 2  # of each patient


@dataclass(frozen=True, slots=True)
class Case:
    """What the manifest declares, and so the ledger counts; and what runs."""

    name: str
    declared: DifferentialPrivacy
    planted: Callable[[DifferentialPrivacy], DifferentialPrivacy] | None = None  # None: no bug
    canaries: int = 60_000

    @property
    def run(self) -> DifferentialPrivacy:
        """What trains."""
        return self.planted(self.declared) if self.planted else self.declared


@dataclass(frozen=True, slots=True)
class Finding:
    """One case, audited."""

    case: Case
    ledger: PublishedEpsilon
    audited: Audited

    @property
    def is_contradicted(self) -> bool:
        """Is the ledger's epsilon refuted?"""
        return self.audited.contradicts(self.ledger.epsilon)

    @property
    def is_as_expected(self) -> bool:
        """Bugs are seen, and nothing else is."""
        return self.is_contradicted == (self.case.planted is not None)

    def to_json(self) -> dict[str, object]:
        """All of it."""
        declared, audited = self.case.declared, self.audited
        return {
            "case": self.case.name,
            "declared": declared.label,
            "ledger": self.ledger.to_json(),
            "lower_bound": {"epsilon": audited.epsilon, "delta": audited.delta, "confidence": audited.confidence},
            "canaries": audited.canaries,
            "guessed": audited.guessed,
            "correct": audited.correct,
            "contradicted": self.is_contradicted,
            "as_expected": self.is_as_expected,
        }


_DELTA = 1e-6
_WHOLE = DifferentialPrivacy(Unit.PATIENT, 1.0, 2.0, 1.0, units=GROUP, steps=1, delta=_DELTA)
_SAMPLED = DifferentialPrivacy(Unit.PATIENT, 1.0, 1.5, 0.2, units=GROUP, steps=4, delta=_DELTA)
CASES = (
    Case("as declared", _WHOLE),
    Case("half the noise", _WHOLE, lambda one: replace(one, noise_multiplier=one.noise_multiplier / 2)),
    Case(
        "no clip, the same noise",
        _WHOLE,
        lambda one: replace(one, max_norm=100 * one.max_norm, noise_multiplier=one.noise_multiplier / 100),
        20_000,
    ),
    Case("clips records, not patients", _WHOLE, lambda one: replace(one, unit=Unit.RECORD)),
    Case("as declared, sampled", _SAMPLED, canaries=20_000),
    Case(
        "every patient in every step", _SAMPLED, lambda one: replace(one, sampling_rate=1.0, units=GROUP // 5), 20_000
    ),
)


class CanaryPlan(TrainingPlan):
    """A model whose gradient on an example is that example."""

    def __init__(self, privacy: DifferentialPrivacy) -> None:
        super().__init__()
        self._privacy = privacy

    settings = PlanSettings(learning_rate=1.0, batch_size=_RECORDS)
    data = DataSpec("canaries", DataKind.TABLE, (GROUP,), ("none",))

    @property
    def privacy(self) -> DifferentialPrivacy:
        """What runs."""
        return self._privacy

    def model(self) -> nn.Module:
        """One weight for each canary."""
        return nn.Linear(GROUP, 1, bias=False)

    def train_step(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The mean of the outputs."""
        features, _ = batch
        found: torch.Tensor = model(features).mean()
        return found

    def evaluate(self, model: nn.Module, loader: Iterable[object]) -> tuple[MetricSum, ...]:  # noqa: ARG002
        """Nothing is measured."""
        return ()


def audit(case: Case, seed: int = 0) -> Finding:
    """Run the envoy's training on canaries, and hold what is seen against what the ledger publishes."""
    rng = np.random.default_rng(seed)  # of the coins; sampling and noise are the system's
    included = rng.random((-(-case.canaries // GROUP), GROUP)) < 0.5
    seen = np.stack([_scores(case.run, chosen) for chosen in included])
    auditor = OneRunAudit(case.declared.max_norm, case.declared.delta, canaries=included.size, group=GROUP)
    return Finding(case, ledgers_epsilon(case.declared), auditor.of_scores(seen.ravel(), included.ravel()))


def ledgers_epsilon(declared: DifferentialPrivacy) -> PublishedEpsilon:
    """What a site's ledger publishes after one such round."""
    ref = TaskRef(RunId("audit"), 1, 1, Digest("0" * 64))
    with tempfile.TemporaryDirectory() as folder:
        ledger = PrivacyLedger(Path(folder) / LEDGER_FILE)
        ledger.reserve("canaries", ref, TaskKind.TRAIN, (declared.release(),), is_bare=False, delta=declared.delta)
        published = ledger.published(ref)
        ledger.close()
    assert published is not None  # a private plan always has one
    return published


def as_lines(findings: Iterable[Finding], seen: Callable[[Finding], None]) -> Iterator[str]:
    """A table, a row at a time; ``seen`` is given each finding."""
    yield f"{'what runs':<30}  {'ledger says at most':<42}  {'canaries say at least':<22}  verdict"
    for one in findings:
        seen(one)
        found = f"{one.audited.epsilon:.2f} (95 %)"
        verdict = "the ledger is contradicted" if one.is_contradicted else "no contradiction"
        unexpected = "" if one.is_as_expected else "  UNEXPECTED"
        yield f"{one.case.name:<30}  {one.ledger!s:<42}  {found:<22}  {verdict}{unexpected}"


def _scores(privacy: DifferentialPrivacy, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How likely each canary is in the update of one round: what was added along its number."""
    patients = np.flatnonzero(chosen)
    features = np.zeros((_RECORDS * len(patients), GROUP), np.float32)
    features[np.arange(len(features)), np.repeat(patients, _RECORDS)] = _OVERSHOOT
    data = LoadedDataset(
        features,
        np.zeros(len(features), np.int64),
        np.full(len(features), Split.TRAIN, np.uint8),
        np.repeat(np.arange(len(patients)), _RECORDS),
    )
    out = np.zeros(_LAYOUT.size, np.float32)
    start = np.zeros(_LAYOUT.size, np.float32)
    run_round(
        CanaryPlan(privacy),
        LocalRound(TaskKind.TRAIN, 1, 1, _LAYOUT, start, b"", data, device="cpu", privacy=privacy),
        out,
    )
    return -out.astype(np.float64)
