"""Which files stay though no run needs them: registered models, and plans that were shown to be reviewed."""

from __future__ import annotations

from sqlalchemy import Engine

from ...utils.artifacts import ArtifactStore
from ...utils.errors import FederationError
from ...utils.plan_bundle import read_manifest
from ...utils.tensors import Digest
from .models import Models
from .plans import Plans


class LastingFiles:
    """Asked after each round and at the start.

    Args:
        engine: of the director's database.
        artifacts: where plans lie.
    """

    def __init__(self, engine: Engine, artifacts: ArtifactStore) -> None:
        self._models, self._plans, self._artifacts = Models(engine), Plans(engine), artifacts
        self._blobs: dict[Digest, frozenset[Digest]] = {}  # of plans that were read: they never change

    def digests(self) -> frozenset[Digest]:
        """All of them.

        Raises:
            StorageError: the database does not answer.
        """
        shown = self._plans.shown()
        return self._models.digests().union(shown, *map(self._consists_of, shown))

    def _consists_of(self, plan: Digest) -> frozenset[Digest]:
        if plan not in self._blobs:
            try:
                manifest = read_manifest(self._artifacts.read(plan))
            except FederationError:
                return frozenset()  # it is gone: whoever looks for it is told so
            self._blobs[plan] = frozenset(digest for digest, _ in manifest.blobs())
        return self._blobs[plan]
