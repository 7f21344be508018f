"""What a submission costs, and what the site's books and leak test say of its round.

The round itself was counted before it was trained, by what its plan and the site's chain guarantee. Noise that was
added by hand comes after that: where the round has no account of its own, the ledger gets another row for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...utils import messages as m
from ...utils.data_spec import DataKind
from ...utils.errors import LayoutMismatchError, NonFiniteUpdateError, UnsendableUpdateError
from ...utils.plan_bundle import Manifest
from ...utils.privacy.events import Gaussian, Release
from ...utils.privacy.noising import AddedNoise, Law, digest_of_arrays
from ...utils.privacy.values import Unit
from ...utils.tensors import Digest
from ..config import EnvoyConfig
from ..gate import last_outcome
from ..policy import SumRule
from ..privacy_books import Book
from ..privacy_ledger import LEDGER_FILE, PrivacyLedger
from .checks import PrivacySituation, ValidationReport


@dataclass(frozen=True, slots=True)
class Charge:
    """What was counted for noise that was added by hand."""

    epsilon: float | None
    delta: float | None
    settle: Callable[[], None]

    @classmethod
    def none(cls) -> Charge:
        """Nothing was."""
        return cls(None, None, lambda: None)


def charged(folder: Path, task: m.Task, manifest: Manifest, noise: AddedNoise | None) -> Charge:
    """Count what was added by hand, before anything leaves.

    Nothing is counted without a data set, for Laplace noise (the ledger has no account of it), or where the round's own
    release is accounted for: the noise by hand is then on top of that, and no second release.

    Raises:
        BudgetExhaustedError, PrivacyError: the data set's budget does not cover it; the refusal is in the ledger.
        StorageError: the ledger cannot be written.
    """
    path = folder / LEDGER_FILE
    if noise is None or noise.law is not Law.GAUSSIAN or manifest.data.kind is DataKind.NONE or not path.exists():
        return Charge.none()
    name = manifest.data.name
    ledger = PrivacyLedger(path)
    try:
        own = [one for one in ledger.books().of(name).spendings if one.ref == task.ref]
        if any(one.releases for one in own):
            return Charge.none()
        release = Release(Gaussian(noise.noise_multiplier), Unit.SITE)
        reservation = ledger.reserve(
            name,
            task.ref,
            task.kind,
            (release,),
            is_bare=False,
            delta=noise.delta,
            participants=len(task.cohort),
        )
    finally:
        ledger.close()

    def settle() -> None:
        again = PrivacyLedger(path)
        try:
            again.settle(reservation)
        finally:
            again.close()

    return Charge(noise.epsilon, noise.delta, settle)


def situation(folder: Path, config: EnvoyConfig, task: m.Task, manifest: Manifest) -> PrivacySituation:
    """What this site knows of a round's privacy.

    Raises:
        StorageError: the ledger or the envoy's database cannot be read.
    """
    found = last_outcome(folder, task.ref.plan)
    return PrivacySituation(
        policy=config.protection,
        leak_test=None if found is None else found[0],
        book=_book(folder, manifest),
        cohort=len(task.cohort),
        organizations=config.secure_aggregation.min_organizations,
        is_summed=task.sum is not None,
        may_be_plain=config.secure_aggregation.rule is SumRule.ALLOWED,
    )


def content_of(gradients: object) -> Digest:
    """What tells one submission from another.

    Raises:
        LayoutMismatchError: it is no mapping of names to numpy arrays.
    """
    if not isinstance(gradients, Mapping) or not all(
        isinstance(name, str) and isinstance(one, np.ndarray) and not one.dtype.hasobject
        for name, one in gradients.items()
    ):
        raise LayoutMismatchError("something else came than numpy arrays by name, as `train_local` gives them")
    return digest_of_arrays(dict(gradients))


def require_sendable(report: ValidationReport) -> None:
    """Refuse what failed a check, with all that is wrong.

    Raises:
        NonFiniteUpdateError, UnsendableUpdateError: something is.
    """
    if report:
        return
    words = "; ".join(one.what for one in report.failures[:5])
    kind: Any = NonFiniteUpdateError if any(one.check == "nan_check" for one in report.failures) else None
    raise (kind or UnsendableUpdateError)(f"nothing was sent: {words}")


def _book(folder: Path, manifest: Manifest) -> Book | None:
    path = folder / LEDGER_FILE
    if manifest.data.kind is DataKind.NONE or not path.exists():
        return None
    ledger = PrivacyLedger(path)
    try:
        return ledger.books().of(manifest.data.name)
    finally:
        ledger.close()
