"""Which models, states, codecs and blobs stay on disk. Housekeeping: it comes after a round is closed, and may fail."""

from __future__ import annotations

import logging

from ..utils.artifacts import ArtifactStore
from ..utils.config import parse_toml
from ..utils.errors import FederationError
from ..utils.plan_bundle import read_manifest
from ..utils.tensors import Digest
from .active_run import ActiveRun
from .experiments import ExperimentSettings
from .history import History
from .records import RunRecord, RunState
from .rounds import RoundState

_LOG = logging.getLogger(__name__)


class Retention:
    """Keeps the last models of a run, the latest of every run, and what plans consist of.

    Args:
        history: says what there is.
        artifacts: where it lies.
        keep_models: of the run under way, the last so many rounds'; 0 keeps all.
    """

    def __init__(self, history: History, artifacts: ArtifactStore, keep_models: int) -> None:
        self._history, self._artifacts, self._keep_models = history, artifacts, keep_models

    def tidy(self, run: ActiveRun) -> None:
        """Discard what a closed round made superfluous: old models, and all but the last state of the optimizer.

        Raises:
            StorageError: the disk or the database does not let it be done now.
        """
        needed = {record.model for record in self._history.runs()} | {digest for digest, _ in run.manifest.blobs()}
        needed.update(run.states[-1:], run.models[-self._keep_models :])
        old = run.states[:-1] + (run.models[: -self._keep_models] if self._keep_models else [])
        for digest in set(old) - needed:
            self._artifacts.discard(digest)
        del run.states[:-1]
        if self._keep_models:
            del run.models[: -self._keep_models]

    def sweep(self) -> None:
        """At the start, discard what a killed director left behind; nothing is while ``keep_models`` is 0."""
        if not self._keep_models:
            return
        keep: set[Digest] = set()
        for record in self._history.runs():
            keep |= {record.model, record.plan, *self._blobs(record)}
            if record.state is RunState.RUNNING:
                closed = [r for r in self._history.rounds(record.run) if r.round.state is RoundState.CLOSED]
                keep.update(r.model_out for r in closed[-self._keep_models :] if r.model_out)
                keep.update([r.optimizer_state for r in closed if r.optimizer_state][-1:])
        count = self._artifacts.discard_except(keep)
        _LOG.info("swept artifacts=%d", count)

    def _blobs(self, record: RunRecord) -> set[Digest]:
        """What the run's plan consists of, and its codec."""
        try:
            codec = parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}").codec
            blobs = {digest for digest, _ in read_manifest(self._artifacts.read(record.plan)).blobs()}
        except FederationError:
            return set()  # the plan is gone: its run says so when it starts
        return blobs | {codec.digest} if codec else blobs
