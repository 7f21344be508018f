"""The secure sum of the round under way, as the coordinator sees it: there is one, or there is none.

Used under the coordinator's lock, and knows neither clock nor database.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from ..utils import messages as m
from ..utils.errors import BadShareError, FederationError, ProtocolError, StorageError
from . import rounds
from .active_run import ActiveRun
from .grouped_sum import GroupedSum
from .lines import Lines
from .records import SubmissionRecord
from .relayed_sum import Handover
from .rounds import Round
from .sums import PresentSum, Sums

_LOG = logging.getLogger(__name__)


class RoundSum:
    """Holds the present secure sum from its round's opening to its end.

    Args:
        sums: makes them; None where all runs are in the clear.
        lines: what a sum says to sites goes down these.
    """

    def __init__(self, sums: Sums | None, lines: Lines) -> None:
        self._sums, self._lines = sums, lines
        self.present: PresentSum | None = None
        self.handover: Handover | None = None  # while an aggregator elsewhere opens it
        self._opened: frozenset[tuple[m.TaskRef, m.EnvoyName]] = frozenset()  # who is in the last one that was opened

    def start(self, run: ActiveRun, willing: Collection[m.EnvoyName]) -> None:
        """A run starts, for which these approved.

        Raises:
            ConfigError: it asks for groups, and too few organizations have joined.
        """
        self._require(run)
        if self._sums is not None:
            self._sums.draw_groups(run, willing)

    def askable(self, run: ActiveRun, there: frozenset[m.EnvoyName]) -> frozenset[m.EnvoyName]:
        """Whom a round can ask, of those who are there."""
        return self._sums.askable(run, there) if self._sums is not None else there

    def asks(self, envoy: m.EnvoyName) -> bool:
        """Does the present round still want something of an envoy of its cohort?"""
        return self.present.asks(envoy) if isinstance(self.present, GroupedSum) else True

    def begin(self, run: ActiveRun, this: Round, now: float) -> None:
        """A round was opened."""
        self._require(run)
        self.present = self._sums.begin(run, this, now) if self._sums is not None else None

    def resume(self, run: ActiveRun, this: Round, now: float) -> None:
        """A round was left open by the director before this one.

        Raises:
            StorageError: what was kept of its sum cannot be read, or does not fit.
        """
        self._require(run)
        self.present = self._sums.resume(run, this, now) if self._sums is not None else None

    def has_heard(self, envoy: m.EnvoyName, statement: m.SumStatement) -> bool:
        """Is there nothing more to do about a statement?

        So it is with the aggregator's word about the total, which is taken here, and with shares that come when
        enough others have revealed theirs.
        """
        given = self.handover
        if given is not None and given.order.ref == statement.ref and given.is_for(envoy, statement.content):
            given.take(statement.content)
            return True
        return (statement.ref, envoy) in self._opened

    def take(
        self,
        envoy: m.EnvoyName,
        statement: m.SumStatement,
        answers: Mapping[m.EnvoyName, SubmissionRecord],
        now: float,
    ) -> None:
        """What an envoy of the round says.

        Raises:
            ProtocolError: the round has no secure sum.
            FederationError: as ``SecureSum.take``.
        """
        if self.present is None:
            raise ProtocolError(f"{statement.ref} has no secure sum, and {envoy} speaks in one")
        arrived = {name: one.digest for name, one in answers.items()}
        self.present.take(envoy, statement.content, arrived, now)

    def refuse(self, envoy: m.EnvoyName, refusal: m.Refusal, now: float) -> BadShareError | None:
        """An envoy of the round declined; gives whom it accuses, once more than may collude accuse the same."""
        if self.present is None:
            return None
        self.present.refuse(envoy, now)
        if refusal.error != BadShareError.__name__:
            return None
        accused = self.present.accuse(envoy, refusal.reason)
        if accused is None:
            return None
        return BadShareError(f"several sites decline what it dealt them: {refusal.reason}", accused)

    def items_for(self, envoy: m.EnvoyName, *, is_at_work: bool) -> list[m.WorkItem]:
        """What a new line of an envoy begins with: what it has not answered yet."""
        items: list[m.WorkItem] = []
        if self.handover is not None and envoy == self.handover.aggregator:
            items.append(self.handover.order)
        said = self.present.item_for(envoy) if self.present is not None and is_at_work else None
        return [*items, said] if said else items

    def advance(self, this: Round, gone: Collection[m.EnvoyName], now: float) -> Round:
        """One look: on to the next stage, or to the opening, or to the round's end; else the very same round."""
        if self.present is None:
            return this
        try:
            items = self.present.advance(this.cohort, gone, now)
        except StorageError:
            raise
        except FederationError as error:
            return rounds.fail(this, str(error))
        for envoy, item in items.items():
            self._lines.push([envoy], item)
        if items:
            _LOG.info("secure sum task=%s stage=%s envoys=%d", this.ref, self.present.stage, len(items))
        if not self.present.is_ready:
            return this
        self._opened = frozenset((this.ref, envoy) for envoy in self.present.survivors)
        return rounds.seal(this)

    def end(self, outcome: str) -> None:
        """The round is over. What was kept of its sum goes, or stays for auditors: housekeeping, which may fail."""
        ended, self.present = self.present, None
        try:
            if ended is not None:
                ended.end(outcome)
        except FederationError as error:
            _LOG.warning("housekeeping is put off: %s", error)

    def close(self) -> None:
        """This process ends; the next one goes on from the log."""
        if self.present is not None:
            self.present.close()

    def _require(self, run: ActiveRun) -> None:
        if self._sums is None and run.settings.is_secure:
            raise ValueError(f"{run.record.run} asks for secure sums, and this coordinator was made without any")
