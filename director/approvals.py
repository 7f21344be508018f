"""What each site said that it approved, and whom a run may ask for that reason. Pure; knows no clock and no disk.

Sites say it in every heartbeat and with every line that they open, so a director that was killed learns it again
within seconds, and an approval that is withdrawn is known before the next round. What one site approved is told to no
other. Whether a site really approved is for the site to enforce: it refuses what it did not, whatever stands here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..utils.messages import EnvoyName
from ..utils.proposal import Proposal
from ..utils.tensors import Digest


@dataclass(slots=True)
class Approvals:
    """What was said since the director started; the latest word of each envoy counts."""

    _said: dict[EnvoyName, frozenset[Digest]] = field(default_factory=dict)

    def say(self, envoy: EnvoyName, approved: Iterable[Digest]) -> bool:
        """An envoy says all that its site approved and would do now. Is that another word than its last one?"""
        said = frozenset(approved)
        is_new = self._said.get(envoy) != said
        self._said[envoy] = said
        return is_new

    def by(self, proposal: Digest | None) -> frozenset[EnvoyName]:
        """Who approved a proposal, as far as they said so."""
        return frozenset(envoy for envoy, said in self._said.items() if proposal in said)

    def askable(self, proposal: Digest | None, envoys: Collection[EnvoyName]) -> frozenset[EnvoyName]:
        """Whom of these a round may ask."""
        return self.by(proposal) & frozenset(envoys)

    def silent(self, envoys: Iterable[EnvoyName]) -> frozenset[EnvoyName]:
        """Who of these said nothing about approvals yet: after a restart of the director, all of them for a moment."""
        return frozenset(envoy for envoy in envoys if envoy not in self._said)


def invited(sites: Sequence[EnvoyName], members: Iterable[EnvoyName]) -> frozenset[EnvoyName]:
    """The members that a list of sites names; all of them where it is empty."""
    return frozenset(members) & frozenset(sites) if sites else frozenset(members)


def offered(
    proposals: Mapping[Digest, Proposal], envoy: EnvoyName, approved: Collection[Digest], now: float
) -> tuple[Digest, ...]:
    """Which proposals are offered to an envoy: those that ask it, that it did not approve and that are still good."""
    return tuple(
        digest
        for digest, proposal in proposals.items()
        if digest not in approved and now < proposal.expires_at and (not proposal.sites or envoy in proposal.sites)
    )
