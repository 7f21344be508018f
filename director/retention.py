"""Which models, states, codecs and blobs stay on disk. Housekeeping: it comes after a round is closed, and may fail.

A model that is registered and a plan that is shown for review (``hub/lasting_files``) stay for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from ..utils.artifacts import ArtifactStore
from ..utils.messages import TaskKind
from ..utils.tensors import Digest
from .active_run import ActiveRun, Kept
from .history import History
from .plan_files import files_of
from .records import RunRecord, RunState
from .rounds import RoundState
from .steering import lineage, opened_with

_LOG = logging.getLogger(__name__)


class Retention:
    """Keeps the last models of a run, the latest of every run, those that are registered, and what plans consist of.

    Args:
        history: says what there is.
        artifacts: where it lies.
        keep_models: of the run under way, the last so many rounds'; 0 keeps all.
        registered: files that stay whatever becomes of their runs.
    """

    def __init__(
        self,
        history: History,
        artifacts: ArtifactStore,
        keep_models: int,
        registered: Callable[[], Collection[Digest]] = frozenset,
    ) -> None:
        self._history, self._artifacts, self._keep_models = history, artifacts, keep_models
        self._registered = registered

    def tidy(self, run: ActiveRun) -> None:
        """Discard what a closed round made superfluous: models of long ago, and the optimizer's states with them.

        What a rollback is about to take stays until it took it. Nothing is discarded while ``keep_models`` is 0.

        Raises:
            StorageError: the disk or the database does not let it be done now.
        """
        if not self._keep_models:
            return
        needed = {record.model for record in self._history.runs()} | {digest for digest, _ in run.manifest.blobs()}
        back = run.roll_back.to_round if run.roll_back else None
        old = [one for one in run.kept[: -self._keep_models] if one.round != back]
        stays = [one for one in run.kept if one not in old]
        needed.update([run.model], _digests(stays), [run.state] if run.state else [])
        with self._artifacts.turn:
            for digest in _digests(old) - needed.union(self._registered()):
                self._artifacts.discard(digest)
        run.kept = stays

    def sweep(self) -> None:
        """At the start, discard what a killed director left behind; nothing is while ``keep_models`` is 0."""
        if not self._keep_models:
            return
        keep: set[Digest] = set()
        for record in self._history.runs():
            keep |= {record.model, *files_of(record, self._artifacts)}
            if record.state is RunState.RUNNING:
                keep |= self._going_on(record)
        with self._artifacts.turn:
            count = self._artifacts.discard_except(keep.union(self._registered()))
        _LOG.info("swept artifacts=%d", count)

    def _going_on(self, record: RunRecord) -> set[Digest]:
        """Models and states that a run goes on from, or may be rolled back to."""
        told, steering = self._history.rounds(record.run), self._history.steering(record.run)
        closed = [one for one in told if one.round.state is RoundState.CLOSED and one.round.kind is TaskKind.TRAIN]
        back = steering.roll_back(opened_with(told))
        stays = closed[-self._keep_models :] + lineage(told, steering)[-1:]
        stays += [one for one in closed if back is not None and one.round.ref.round == back.to_round]
        return {digest for one in stays for digest in (one.model_out, one.optimizer_state) if digest is not None}


def _digests(kept: Iterable[Kept]) -> set[Digest]:
    return {digest for one in kept for digest in (one.model, one.state) if digest is not None}
