"""Under whose authority a run goes on, and whom it may ask: what the rounds ask before they do anything.

Runs that the director's own operator submits have no mandate but its own. Those that came over REST are tasks of a
collaboration: ``hub/mandates`` holds them against permits and agreements.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ..utils.messages import EnvoyName, RunId


class Mandates(Protocol):
    """Asked before each round, and again and again while one is open."""

    def objection(self, run: RunId, now: float) -> str | None:
        """Why the run may not go on; None while it may.

        Raises:
            StorageError: it cannot be known now, so nothing goes on.
        """

    def among(self, run: RunId, envoys: Collection[EnvoyName]) -> frozenset[EnvoyName]:
        """Those of these envoys that the run may ask.

        Raises:
            StorageError: as ``objection``.
        """


class Unbound:
    """Every run may go on, and ask everybody: a director without a hub."""

    def objection(self, run: RunId, now: float) -> str | None:  # noqa: ARG002 - of the protocol
        """Never any."""
        return None

    def among(self, run: RunId, envoys: Collection[EnvoyName]) -> frozenset[EnvoyName]:  # noqa: ARG002 - of the protocol
        """All of them."""
        return frozenset(envoys)
