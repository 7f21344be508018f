"""Changes to runs between their rounds: what a patch is held against, looked up. What it may do is ``steering``'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..utils.artifacts import ArtifactStore
from ..utils.config import parse_toml
from ..utils.errors import ProtocolError
from ..utils.messages import EnvoyName, RunId, TaskKind
from ..utils.plan_bundle import LAYOUT_FILE, Manifest, read_manifest
from ..utils.proposal import Patch, proposal_of
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Layout, Role
from .experiments import ExperimentSettings
from .history import History
from .rounds import Round, RoundState
from .steering import Standing, Steering, check_patch


class Patches:
    """Holds patches against the runs that they are for; used under the coordinator's lock.

    Args:
        history: of runs and rounds.
        artifacts: hold the plans, and the models that a run may be rolled back to.
        members: the names of all envoys that joined and that a run may ask.
    """

    def __init__(
        self, history: History, artifacts: ArtifactStore, members: Callable[[RunId], frozenset[EnvoyName]]
    ) -> None:
        self._history, self._artifacts, self._members = history, artifacts, members

    def check(self, patch: Patch, document: SignedDocument) -> Steering:
        """May this patch, whose signature was checked, be taken now? Gives the run's patches with it.

        Raises:
            ProtocolError, ConfigError: as ``check_patch``; or there is no such run.
        """
        record = self._history.run(patch.run)
        if record.proposal is None:
            raise ProtocolError(f"{record.run} was submitted before there were proposals, and takes no patches")
        settings = parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}")
        manifest, steering = read_manifest(self._artifacts.read(record.plan)), self._history.steering(record.run)
        current = self._history.current_round(record.run)
        this = current.round if current is not None else None
        at = Standing(
            record=record,
            settings=settings,
            manifest=manifest,
            proposal=proposal_of(record.proposal.content),
            steering=steering,
            has_controls=self._has_controls(manifest),
            members=self._members(record.run),
            round=this,
            kept=self._kept(record.run) if this is not None else (),
        )
        check_patch(patch, document, at)
        return steering.after(patch, document)

    def _has_controls(self, manifest: Manifest) -> bool:
        layout = Layout.from_json(self._artifacts.read(manifest.file(LAYOUT_FILE).sha256))
        return bool(layout.slice_of(Role.CONTROL).stop)

    def _kept(self, run: RunId) -> list[int]:
        """Rounds whose model, and state of the server optimizer, are on disk; 0: the plan's initial model."""
        closed = (one for one in self._history.rounds(run) if one.round.state is RoundState.CLOSED)
        return [0] + [
            one.round.ref.round
            for one in closed
            if one.round.kind is TaskKind.TRAIN
            and one.model_out is not None
            and self._artifacts.has(one.model_out)
            and (one.optimizer_state is None or self._artifacts.has(one.optimizer_state))
        ]


def waits_anew(this: Round, now: float) -> Round:
    """A planned round's wait begins anew: that the run was paused is not the envoys' absence."""
    return replace(this, since=now) if this.state is RoundState.PLANNED else this
