"""The runs that wait for their turn: what is proposed to whom, who approved it, and which run starts next.

A run waits until enough sites approved its proposal: as many as its rounds need answers, unless it says more. Nothing
but the proposal's own expiry ends that wait. A later run whose approvals are complete goes first. Used under the
coordinator's lock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from ..utils import messages as m
from ..utils.config import parse_toml
from ..utils.errors import FederationError, ProtocolError
from ..utils.proposal import Proposal, proposal_of
from ..utils.tensors import Digest
from .approvals import Approvals, invited, offered
from .experiments import ExperimentSettings
from .history import History
from .mandates import Mandates
from .records import Ending, RunRecord, RunState
from .sequel import stopped

_OFFERED_AGAIN_SECONDS = 60.0  # to an envoy that polls


class RunQueue:
    """Queued runs, and what sites said about them."""

    def __init__(self, history: History, mandates: Mandates) -> None:
        self._history, self._mandates = history, mandates
        self.approvals = Approvals()
        self._polled: dict[tuple[m.EnvoyName, Digest], float] = {}  # when something was last offered to a poll

    def say(self, envoy: m.EnvoyName, approved: Collection[Digest]) -> bool:
        """An envoy says what its site approved; is it another word than its last one?"""
        return self.approvals.say(envoy, approved)

    def check_new(self, record: RunRecord) -> None:
        """One proposal is one run: a second one with it would have its rounds counted twice at the sites.

        Raises:
            ProtocolError: another run has it.
        """
        same = (
            one for one in self._history.runs() if record.proposal and one.proposal_digest == record.proposal_digest
        )
        other = next(same, None)
        if other is not None:
            raise ProtocolError(f"this proposal was submitted before, as {other.run}; submit the experiment anew")

    def offers(
        self, envoy: m.EnvoyName, approved: Collection[Digest], now: float, *, is_poll: bool
    ) -> list[m.WorkItem]:
        """What a new line of an envoy ends its beginning with: what is proposed to its site and not approved yet."""
        live = {digest: record for digest, record in self._live().items() if self._mandates.among(record.run, [envoy])}
        proposals = {digest: _proposal(record) for digest, record in live.items()}
        due = offered(proposals, envoy, approved, now)
        if is_poll:
            due = tuple(digest for digest in due if self._is_due(envoy, digest, now))[:1]
            self._polled |= {(envoy, digest): now for digest in due}
        return [_offer(live[digest]) for digest in due]

    def proposed_to(self, envoy: m.EnvoyName) -> Iterator[RunRecord]:
        """The runs that are not over and ask this envoy, whether its site approved them or not."""
        for record in self._live().values():
            sites = self._history.steering(record.run).sites(_proposal(record).sites)
            if invited(sites, self._mandates.among(record.run, [envoy])):
                yield record

    def offers_of(
        self, record: RunRecord, there: Collection[m.EnvoyName], now: float
    ) -> Iterator[tuple[m.EnvoyName, m.Offer]]:
        """Whom a new run is proposed to at once."""
        if record.proposal_digest is None:
            return
        proposals = {record.proposal_digest: _proposal(record)}
        for envoy in sorted(self._mandates.among(record.run, there)):
            if offered(proposals, envoy, (), now):
                yield envoy, _offer(record)

    def next(
        self, there: Collection[m.EnvoyName], now: float
    ) -> tuple[RunRecord | None, list[tuple[RunRecord, Ending]]]:
        """The run that may start, if there is one; and those whose time is over, with how they end."""
        over: list[tuple[RunRecord, Ending]] = []
        for record in self._history.runs():
            if record.state is not RunState.QUEUED:
                continue
            ending = self._ending(record, there, now)
            if ending is not None:
                over.append((record, ending))
            elif self._is_ready(record, there):
                return record, over
        return None, over

    def waits_for(self, record: RunRecord, there: Collection[m.EnvoyName]) -> str:
        """What a queued run waits for, in words."""
        if self._is_ready(record, there):
            return "waits for its turn"
        return f"waits for approval: {len(self._willing(record, there))} of {_needed(record)} sites"

    def _willing(self, record: RunRecord, there: Collection[m.EnvoyName]) -> frozenset[m.EnvoyName]:
        sites = self._history.steering(record.run).sites(_proposal(record).sites if record.proposal else ())
        return self.approvals.askable(record.proposal_digest, invited(sites, self._mandates.among(record.run, there)))

    def _is_ready(self, record: RunRecord, there: Collection[m.EnvoyName]) -> bool:
        if self._history.steering(record.run).pause is not None:
            return False
        return len(self._willing(record, there)) >= _needed(record)

    def _ending(self, record: RunRecord, there: Collection[m.EnvoyName], now: float) -> Ending | None:
        stop = self._history.steering(record.run).stop
        if stop is not None:  # killed between the patch and what it says
            return stopped(stop.reason)
        if record.proposal is None:
            reason = "submitted before there were proposals; no site can approve it: submit it again"
            return Ending(RunState.FAILED, reason)
        objection = self._mandates.objection(record.run, now)
        if objection is not None:
            return stopped(objection)
        if now < _proposal(record).expires_at:
            return None
        count = f"{len(self._willing(record, there))} of {_needed(record)} sites had approved it"
        return Ending(RunState.FAILED, f"its proposal expired on {day(_proposal(record).expires_at)}; {count}")

    def _live(self) -> dict[Digest, RunRecord]:
        """Runs that are not over, by the digest of what they propose."""
        runs = (one for one in self._history.runs() if not one.state.is_over)
        return {one.proposal_digest: one for one in runs if one.proposal_digest is not None}

    def _is_due(self, envoy: m.EnvoyName, digest: Digest, now: float) -> bool:
        return not 0 <= now - self._polled.get((envoy, digest), -1e18) < _OFFERED_AGAIN_SECONDS


def day(seconds: float) -> str:
    """A date, for people; seconds since 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _needed(record: RunRecord) -> int:
    try:
        return parse_toml(record.settings, ExperimentSettings, f"experiment {record.run}").min_approvals
    except FederationError:
        return 0  # it starts, and fails with what is wrong with its settings


def _proposal(record: RunRecord) -> Proposal:
    if record.proposal is None:
        raise ValueError(f"{record.run} has no proposal")
    return proposal_of(record.proposal.content)


def _offer(record: RunRecord) -> m.Offer:
    if record.proposal is None:
        raise ValueError(f"{record.run} has no proposal")
    return m.Offer(record.run, record.proposal)
