"""What went to and fro in a run: counted as it goes, written down before a round is over."""

from __future__ import annotations

import logging

from ..utils.errors import FederationError
from ..utils.messages import RunId
from .history import History

_LOG = logging.getLogger(__name__)


class Traffic:
    """Bytes that are not written down yet. Whoever calls holds the lock of the present round."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._up = self._down = 0

    def count(self, *, up: int = 0, down: int = 0) -> None:
        """Some bytes came from envoys, or went to them."""
        self._up += up
        self._down += down

    def write_down(self, run: RunId) -> None:
        """Before its round is over: who reads that the run has ended reads all of its traffic.

        A full disk may put it off until the next round.
        """
        if not self._up and not self._down:
            return
        try:
            self._history.add_traffic(run, self._up, self._down)
        except FederationError as error:
            _LOG.warning("the run's traffic is written down later: %s", error)
        else:
            self._up = self._down = 0
