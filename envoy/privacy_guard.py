"""Before a task touches data: what will leave of it, and whether the data set's privacy budget covers that.

What a task releases follows from public numbers alone (the plan's manifest, the chain that the update passes), so that
it can be said before anything is read, and told to anybody:

=====================================================  ==========================================================
task                                                   releases
=====================================================  ==========================================================
a plan without data                                    nothing
training with differential privacy in the plan         its noised steps; no metrics, and a number of examples of 1
training, with clip, in a secure sum with noise        one Skellam release per site; no metrics, and a number of
                                                       examples of 1
training, with clip and noise on the update            one Gaussian release per site, and beside it, without any
                                                       guarantee, metrics and the number of examples
training otherwise                                     an update, metrics: without any guarantee
an evaluation of a plan with differential privacy,     nothing: it sends no metrics
or in a secure sum with noise
an evaluation otherwise                                metrics, without any guarantee
the leak test                                          nothing: it attacks public canaries, never the site's images
a declined task                                        a fixed sentence; that training gave NaN may depend on data,
                                                       and is not accounted for
=====================================================  ==========================================================

Whoever trains as a plan says is trusted to do what its manifest says: the trainer that comes with fedveil, in a process
that also runs the plan's own code.

Where the data set has a budget, metrics and the number of examples stay here (1 is sent, so that every such site weighs
the same), and noise on the update is a guarantee after all. What a secure sum adds beside the update (clip counts,
norms) is made of the noised update, and costs nothing more. Where noise is drawn inside the secure sum, by all sites
together, nothing else is in it; a site whose own chain adds noise counts that alone, which needs nobody else's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ..utils import messages as m
from ..utils.data_spec import DataKind
from ..utils.errors import BudgetExhaustedError, PrivacyError
from ..utils.plan_bundle import Manifest
from ..utils.privacy.events import Gaussian, Release, Skellam
from ..utils.privacy.values import PublishedEpsilon, Unit
from ..utils.secure_sum.skellam import noise_in
from ..utils.secure_sum.terms import NoiseTerms
from .datasets import DatasetRegistry
from .orders import WorkResult
from .policy import Measures
from .privacy_books import SpendingLimit, WithoutGuarantee
from .privacy_ledger import LEDGER_FILE, PrivacyLedger, Reservation
from .privacy_overlap import Overlaps
from .site_events import SiteEvents, Unlogged

_LOG = logging.getLogger(__name__)
_PUBLIC_EXAMPLES = 1


@dataclass(frozen=True, slots=True)
class Releases:
    """What an answer releases of the data."""

    accounted: tuple[Release, ...] = ()
    is_bare: bool = False  # something beside them, or instead of them, has no guarantee
    delta: float | None = None  # that the plan names

    @property
    def any(self) -> bool:
        """Is anything released at all?"""
        return bool(self.accounted) or self.is_bare


def releases_of(
    kind: m.TaskKind, manifest: Manifest, measures: Measures, noise: NoiseTerms | None = None, size: int = 0
) -> Releases:
    """The table of this module; ``is_bare`` as it is where the data set has no budget.

    Args:
        kind: of the task.
        manifest: of its plan.
        measures: what the update passes.
        noise: inside the secure sum.
        size: numbers of what leaves; where the sum has noise.
    """
    private = manifest.privacy
    is_silent = private is not None or noise is not None
    if manifest.data.kind is DataKind.NONE or (is_silent and kind is m.TaskKind.EVALUATE):
        return Releases()
    if private is not None:
        return Releases((private.release(),), delta=private.delta)
    if kind is m.TaskKind.TRAIN and measures.has_noise:
        return Releases((Release(Gaussian(measures.noise_multiplier), Unit.SITE),), is_bare=True)
    if noise is not None:
        summed = noise_in(noise, size)
        event = Skellam(summed.sensitivity_l1, summed.sensitivity_l2, summed.variance)
        return Releases((Release(event, Unit.SITE),))
    return Releases(is_bare=True)


class Charge:
    """One start of a task that may be done."""

    def __init__(self, ledger: PrivacyLedger | None, reservation: Reservation | None, *, is_stripped: bool) -> None:
        self._ledger, self._reservation, self.is_stripped = ledger, reservation, is_stripped

    def settle(self, result: WorkResult) -> WorkResult:
        """The work is done: what of its outcome, beside the update, may leave.

        Raises:
            StorageError: the ledger cannot be written; nothing may leave.
        """
        if self._ledger is not None and self._reservation is not None:
            self._ledger.settle(self._reservation)
        if not self.is_stripped:
            return result
        return replace(result, num_examples=min(result.num_examples, _PUBLIC_EXAMPLES), metrics=())


class PrivacyGuard:
    """Asks the ledger. Its file is made when the first task with data comes.

    Args:
        folder: the envoy's.
        events: the site's log; each row that counts a task stands there too, with the ledger's head after it.
    """

    def __init__(self, folder: Path, events: SiteEvents | None = None) -> None:
        self._events = events or Unlogged()
        self._path = folder / LEDGER_FILE
        self._overlaps = Overlaps(DatasetRegistry(folder / "datasets"))
        self._opened: PrivacyLedger | None = None
        self._told: tuple[m.TaskRef, PublishedEpsilon | None] | None = None

    def reserve(
        self,
        task: m.Task,
        manifest: Manifest,
        measures: Measures,
        size: int = 0,
        limit: SpendingLimit | None = None,
    ) -> Charge:
        """Count what a task will release as spent; before its data is touched.

        Args:
            task: as it came.
            manifest: of its plan.
            measures: what its update will pass.
            size: numbers of what leaves; of a training.
            limit: of the proposal's approval, beside the data set's budget.

        Raises:
            BudgetExhaustedError: its data set's budget does not cover it; the log has what is left.
            PrivacyError: the data set has a budget, and the task no guarantee of its unit; or it has none, and holds
                examples of one that has.
            StorageError: the ledger is damaged, or cannot be written.
        """
        noise = task.sum.noise if task.sum is not None else None
        released = releases_of(task.kind, manifest, measures, noise, size)
        is_private = manifest.privacy is not None or noise is not None
        if not released.any:
            return Charge(None, None, is_stripped=is_private)
        name, ledger = manifest.data.name, self._ledger()
        books = ledger.books()
        budget = books.of(name).budget
        if budget is None:
            self._refuse_a_way_round(task, name, [one.dataset for one in books.books.values() if one.budget])
        is_stripped = is_private or (budget is not None and bool(released.accounted))
        try:
            if limit is not None:
                books.of(name).check_limit(
                    task.ref,
                    limit,
                    released.accounted,
                    is_bare=released.is_bare and not is_stripped,
                    delta=released.delta,
                )
            reservation = ledger.reserve(
                name,
                task.ref,
                task.kind,
                released.accounted,
                is_bare=released.is_bare and not is_stripped,
                delta=released.delta,
                participants=len(task.cohort),
            )
        except PrivacyError as error:
            if isinstance(error, BudgetExhaustedError):
                _LOG.warning("refused task=%s: %s", task.ref, error.site_text)
            self._events.over_budget(task.ref, name, type(error).__name__, ledger.head)
            raise
        self._events.spent(task.ref, name, reservation.row, ledger.head)
        if budget is not None and budget.without_guarantee is WithoutGuarantee.ALLOW and not released.accounted:
            _LOG.warning("task=%s releases something of data set %s that no epsilon covers", task.ref, name)
        return Charge(ledger, reservation, is_stripped=is_stripped)

    def published(self, ref: m.TaskRef) -> PublishedEpsilon | None:
        """What may be told with the answer to a task, the same each time it is told."""
        if self._told is None or self._told[0] != ref:
            self._told = ref, self._ledger().published(ref) if self._path.exists() else None
        return self._told[1]

    def close(self) -> None:
        """Close the ledger."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _refuse_a_way_round(self, task: m.Task, name: str, budgeted: list[str]) -> None:
        """The same patients under a name that has no budget."""
        shared = self._overlaps.of(name, budgeted)
        if shared:
            told = ", ".join(f"{count} with {other}" for other, count in shared.items())
            _LOG.warning("refused task=%s: data set %s shares examples: %s; remove it", task.ref, name, told)
            raise PrivacyError(f"{task.ref}: this site's data is also in a data set that has a privacy budget")

    def _ledger(self) -> PrivacyLedger:
        if self._opened is None:
            self._opened = PrivacyLedger(self._path)
        return self._opened
