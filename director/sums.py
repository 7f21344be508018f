"""Begins the secure sum of a round, or takes it up again from its log, and says how a run's sums are set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from ..utils.errors import StorageError
from ..utils.roster import Roster
from ..utils.secure_sum import summation
from ..utils.secure_sum.spec import spec_of
from .active_run import ActiveRun
from .audit import DirectorAudit
from .relayed_sum import RelayedSum
from .rounds import Round, Stragglers
from .sum_log import SumLog
from .sum_progress import SecureSum, SumPolicy


class Sums:
    """Makes the secure sums of all rounds.

    Args:
        folder: where what is said in them is kept while they last.
        roster: the director's own: who joined, with which identity key.
        durable: what is kept survives a power cut.
        keep: it stays after the sum, with the masked vectors.
        audit: the director's log, if it keeps one.
    """

    def __init__(
        self,
        folder: Path,
        roster: Callable[[], Roster],
        *,
        durable: bool,
        keep: bool = False,
        audit: DirectorAudit | None = None,
    ) -> None:
        self._folder, self._roster, self._durable, self._keep, self._audit = folder, roster, durable, keep, audit

    def begin(self, run: ActiveRun, this: Round, now: float) -> SecureSum | None:
        """The sum of a round that was just opened; None for a run without secure aggregation."""
        if not run.settings.is_secure:
            return None
        try:
            shutil.rmtree(self._folder / this.ref.run / f"{this.ref.round}-{this.ref.attempt}", ignore_errors=False)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"the director cannot clear {self._folder}: {error.strerror}") from error
        return self._sum(run, this, now)

    def resume(self, run: ActiveRun, this: Round, now: float) -> SecureSum | None:
        """The sum of a round that a killed director left open.

        Raises:
            StorageError: what was kept of it cannot be read, or does not fit.
        """
        return self._sum(run, this, now) if run.settings.is_secure and this.cohort else None

    def _sum(self, run: ActiveRun, this: Round, now: float) -> SecureSum:
        settings, roster = run.settings, self._roster()
        spec = spec_of(roster.federation, run.task(this, now), run.payload_sizes)
        beginning = summation.begin(spec, roster, settings.secure_sum.colluding, settings.secure_sum.honest)
        policy = SumPolicy(
            settings.rounds.min_participants,
            settings.rounds.round_timeout_seconds,
            min(settings.secure_sum.stage_timeout_seconds, settings.rounds.round_timeout_seconds),
            settings.rounds.stragglers is Stragglers.DROP,
        )
        log = SumLog(self._folder, this.ref, durable=self._durable, keep=self._keep)
        kind = RelayedSum if spec.terms.aggregator else SecureSum
        return kind(beginning, policy, log, self._audit, now)
