"""The round under way, as those see it who have no line: a picture, taken under the coordinator's lock."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.messages import EnvoyName, RunId
from ..utils.plan_bundle import Manifest
from ..utils.tensors import Digest, Layout
from .experiments import ExperimentSettings
from .rounds import Round


@dataclass(frozen=True, slots=True)
class Present:
    """One round of one run."""

    run: RunId
    settings: ExperimentSettings
    manifest: Manifest
    proposal: Digest | None
    sites: tuple[EnvoyName, ...]  # who may be asked; empty: every member
    round: Round
    model: Digest  # that the round is of
    layout: Layout
    payload: Layout  # of what leaves a site: the codec's, or the plan's
    codec: Digest | None

    @property
    def closes_at(self) -> float:
        """When it waits no longer, in seconds since 1970."""
        return self.round.since + self.settings.rounds.round_timeout_seconds
