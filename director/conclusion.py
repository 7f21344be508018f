"""From the answers of a round to its outcome, whichever way they are summed. Used outside the coordinator's lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from ..utils.artifacts import ArtifactStore
from ..utils.errors import BadShareError
from .active_run import ActiveRun, Outcome
from .group_opening import open_groups
from .grouped_sum import GroupedSum
from .lines import Lines
from .records import SubmissionRecord
from .relayed_sum import Handover, RelayedSum
from .round_sum import RoundSum
from .rounds import Round
from .uploads import Uploads


class Conclusion:
    """Makes the outcome of rounds.

    Args:
        lock: the coordinator's.
        lines: an aggregator elsewhere is asked over them.
        artifacts: hold what it is handed.
        uploads: hold what came.
    """

    def __init__(self, lock: threading.Condition, lines: Lines, artifacts: ArtifactStore, uploads: Uploads) -> None:
        self._lock, self._lines, self._artifacts, self._uploads = lock, lines, artifacts, uploads

    def plain(self, run: ActiveRun, this: Round, answers: Collection[SubmissionRecord], num_envoys: int) -> Outcome:
        """Of a round in the clear.

        Raises:
            FederationError: as ``ActiveRun.conclude``.
        """
        return run.conclude(this, sorted(answers, key=lambda one: one.envoy), self._uploads, num_envoys)

    def secure(
        self,
        run: ActiveRun,
        this: Round,
        round_sum: RoundSum,
        num_envoys: int,
        expel: Callable[[BadShareError], None],
        is_void: Callable[[], bool],
    ) -> Outcome | None:
        """Of a round whose secure sum, or whose groups' sums, are ready; None where it became void meanwhile.

        Args:
            run: the round's.
            this: the round.
            round_sum: holds its sum.
            num_envoys: of the federation.
            expel: is told of whoever spoiled a group by what it dealt.
            is_void: does nobody need it any more? Asked under the lock.

        Raises:
            FederationError: as ``ActiveRun.conclude_sum`` and ``open_groups``.
        """
        present, total = round_sum.present, None
        if present is None:
            return None
        if isinstance(present, GroupedSum):
            return run.conclude_groups(this, open_groups(present, self._uploads, expel))
        opened = present.open()
        present.keep_vectors(self._uploads)
        if isinstance(present, RelayedSum):
            total = self.summed_elsewhere(round_sum, present, is_void)
            if total is None:
                return None
        return run.conclude_sum(this, opened, self._uploads, num_envoys, total)

    def summed_elsewhere(
        self, round_sum: RoundSum, present: RelayedSum, is_void: Callable[[], bool]
    ) -> NDArray[np.uint32] | None:
        """Ask the aggregator for the sum, and wait; None where nobody needs it any more.

        Raises:
            SumAbortedError: it declined, or did not answer in time.
            FederationError: as ``Handover``.
        """
        given = Handover(present, self._artifacts, self._uploads)
        try:
            with self._lock:
                round_sum.handover = given
                self._lines.push([given.aggregator], given.order)
                self._lock.wait_for(lambda: given.is_over or is_void(), present.timeout_seconds)
                round_sum.handover = None
                return None if is_void() else given.total()
        finally:
            given.close()
