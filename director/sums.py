"""Begins the secure sum of a round, or takes it up again from its log, and says how a run's sums are set."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from ..utils.errors import StorageError
from ..utils.messages import EnvoyName, Task
from ..utils.roster import Roster
from ..utils.secure_sum import summation
from ..utils.secure_sum.groups import groups_of
from ..utils.secure_sum.spec import spec_of
from .active_run import ActiveRun
from .audit import DirectorAudit
from .grouped_sum import GroupedSum, GroupSum
from .relayed_sum import RelayedSum
from .rounds import Round, Stragglers
from .sum_log import SumLog, log_folder
from .sum_progress import SecureSum, SumPolicy

PresentSum: TypeAlias = SecureSum | GroupedSum
"""What a round sums by."""


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

    def begin(self, run: ActiveRun, this: Round, now: float) -> PresentSum | None:
        """The sum of a round that was just opened; None for a run without secure aggregation."""
        if not run.settings.is_secure:
            return None
        try:
            for task in run.tasks(this, now):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(log_folder(self._folder, this.ref, _group(task)))
        except OSError as error:
            raise StorageError(f"the director cannot clear {self._folder}: {error.strerror}") from error
        return self._sum(run, this, now)

    def resume(self, run: ActiveRun, this: Round, now: float) -> PresentSum | None:
        """The sum of a round that a killed director left open.

        Raises:
            StorageError: what was kept of it cannot be read, or does not fit.
        """
        return self._sum(run, this, now) if run.settings.is_secure and this.cohort else None

    def draw_groups(self, run: ActiveRun, willing: Collection[EnvoyName]) -> None:
        """At the start of a run: who is summed with whom, until its end; among those that approved it.

        Raises:
            ConfigError: too few organizations have joined for so many groups.
        """
        asked = run.settings.secure_sum
        if run.settings.is_secure and asked.groups:
            roster = self._roster()
            roster = Roster(roster.federation, tuple(one for one in roster.entries if one.name in willing))
            run.groups = groups_of(roster, run.record.seed, asked.groups, asked.floors)

    def askable(self, run: ActiveRun, there: frozenset[EnvoyName]) -> frozenset[EnvoyName]:
        """Whom a round can ask, of those who are there: with groups, those whose group can be summed."""
        if run.groups is None:
            return there
        able = run.groups.askable(there, self._roster(), run.settings.secure_sum.floors)
        return frozenset[EnvoyName]().union(*able.values()) if len(able) >= run.settings.group_quorum else frozenset()

    def _sum(self, run: ActiveRun, this: Round, now: float) -> PresentSum:
        settings, roster = run.settings, self._roster()
        asked, tasks = settings.secure_sum, run.tasks(this, now)
        least = settings.rounds.min_participants
        policy = SumPolicy(
            asked.floors.organizations if run.groups else least,
            settings.rounds.round_timeout_seconds,
            min(asked.stage_timeout_seconds, settings.rounds.round_timeout_seconds),
            settings.rounds.stragglers is Stragglers.DROP,
        )

        def begun(task: Task) -> tuple[summation.Gathering, SumPolicy, SumLog, DirectorAudit | None, float]:
            spec = spec_of(roster.federation, task, run.payload_sizes)
            log = SumLog(self._folder, this.ref, _group(task), durable=self._durable, keep=self._keep)
            return summation.begin(spec, roster, asked.colluding, asked.honest), policy, log, self._audit, now

        if run.groups:
            parts = [GroupSum(task.cohort, *begun(task)) for task in tasks]
            return GroupedSum(this.ref, parts, settings.group_quorum, least)
        return (RelayedSum if asked.summing_envoy else SecureSum)(*begun(tasks[0]))


def _group(task: Task) -> int:
    return task.sum.group if task.sum else 0
