"""Opens planned rounds: whom they ask, by which patches they go, and from which model they begin.

Used under the coordinator's lock. A round waits until all are there who may be asked, so that a restart of the director
does not change who is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from ..utils.messages import EnvoyName, RunId
from . import rounds
from .active_run import ActiveRun
from .approvals import Approvals, invited
from .attendance import Attendance
from .audit import DirectorAudit
from .history import History
from .lines import Lines
from .round_sum import RoundSum
from .rounds import Round
from .selection import select
from .steering import lineage

_LOG = logging.getLogger(__name__)


class Opening:
    """Opens the rounds of the run under way.

    Args:
        history: keeps them.
        approvals: what sites said that they approved.
        attendance: who is there.
        members: the names of all envoys that joined and that a run may ask.
        among: of some envoys, those that a run may ask.
        suspects: envoys whose audit logs the director does not believe; they are not asked.
        round_sum: the present round's secure sum.
        lines: tasks go down these.
        audit: the director's log.
    """

    def __init__(
        self,
        history: History,
        approvals: Approvals,
        attendance: Attendance,
        members: Callable[[RunId], frozenset[EnvoyName]],
        among: Callable[[RunId, Collection[EnvoyName]], frozenset[EnvoyName]],
        suspects: Callable[[], Collection[EnvoyName]],
        round_sum: RoundSum,
        lines: Lines,
        audit: DirectorAudit,
    ) -> None:
        self._history, self._approvals, self._attendance = history, approvals, attendance
        self._members, self._among, self._suspects = members, among, suspects
        self._sum, self._lines, self._audit = round_sum, lines, audit

    def open(self, run: ActiveRun, this: Round, now: float) -> Round:
        """The planned round, opened; the very same while it waits for envoys.

        Raises:
            StorageError: nothing has changed; it can be tried again.
            UnknownArtifactError: the model that a rollback names is gone from the disk.
        """
        cohort = self._cohort(run, this, now)
        if not cohort:
            return this
        opened = rounds.open_round(this, cohort, run.settings.round_policy, now, len(run.steering.patches))
        is_rolled_back = self._roll_back(run)
        self._audit.round_opened(opened.ref, opened.kind, run.model, cohort)
        self._sum.begin(run, opened, now)
        self._history.save_round(opened, now, run.model if is_rolled_back else None)
        run.patches = opened.patches
        _LOG.info("round opened task=%s cohort=%d", opened.ref, len(cohort))
        for task in run.tasks(opened, now):
            self._lines.push(task.cohort, task)
        return opened

    def willing(self, run: ActiveRun) -> frozenset[EnvoyName]:
        """The members that a run asks and whose sites approved it, be they there or not."""
        return self._approvals.askable(run.record.proposal_digest, invited(run.sites, self._members(run.record.run)))

    def num_asked(self, run: ActiveRun, this: Round) -> int:
        """How many envoys an open round's study asks: all that it may, unless it names them."""
        return len(run.sites_of(this) or self._members(run.record.run))

    def _cohort(self, run: ActiveRun, this: Round, now: float) -> frozenset[EnvoyName]:
        """Whom the round asks; nobody yet, while it waits."""
        shunned = run.expelled.keys() | set(self._suspects())
        asked = invited(run.sites, self._members(run.record.run)) - shunned
        there = self._among(run.record.run, self._attendance.there(now)) - shunned
        willing = self._approvals.askable(run.record.proposal_digest, invited(run.sites, there))
        able = self._sum.askable(run, willing)
        if len(able) < run.settings.round_policy.min_participants:
            return frozenset()
        absent = (asked - there) | self._approvals.silent(asked & there)
        if any(not self._attendance.is_gone(envoy, now) for envoy in absent):
            return frozenset()
        return select(able, run.settings.rounds.cohort_size, run.record.seed, this.ref.round, this.ref.attempt)

    def _roll_back(self, run: ActiveRun) -> bool:
        """Go on from the model that an earlier round gave, if a patch says so. Done again, it is the same."""
        back = run.roll_back
        if back is None or back.to_round is None:
            return False
        told = self._history.rounds(run.record.run)
        run.return_to(lineage(told, run.steering, back.to_round), len(run.progress))
        self._audit.rolled_back(run.record.run, back.to_round, run.model)
        _LOG.info("rolled back run=%s to_round=%d", run.record.run, back.to_round)
        return True
