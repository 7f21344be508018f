"""Approval where whoever runs the sites wrote the plan: simulations, and rehearsals of one process.

A site of its own never uses this: its envoy is built with ``envoy.approval_guard``, and ``envoy start`` has no switch
for another. Nothing is signed here, and nothing kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..envoy.approval_guard import Admission
from ..utils import messages as m
from ..utils.errors import FederationError, NotApprovedError
from ..utils.plan_bundle import Manifest
from ..utils.proposal import Proposal, proposal_of
from ..utils.tensors import Digest


class OwnPlans:
    """Approves the plans that it was given, whoever proposes them, and nothing else.

    Args:
        plans: by their digests.
    """

    def __init__(self, *plans: Digest) -> None:
        self._plans = frozenset(plans)
        self._approved: dict[Digest, Digest] = {}  # proposals of them

    def offer(self, offer: m.Offer) -> Proposal | None:
        """Approve it at once, if it is of one of the plans."""
        proposal = proposal_of(offer.proposal.content)
        if proposal.plan in self._plans:
            self._approved[proposal.digest] = proposal.plan
        return None

    def kept(self) -> Collection[Digest]:
        """All."""
        return self._plans

    def approved(self) -> tuple[Digest, ...]:
        """The proposals of these plans that came."""
        return tuple(sorted(self._approved))

    def admit(self, task: m.Task) -> Admission:
        """A task of one of the plans, as it is built."""
        if task.ref.plan not in self._plans or task.patches:
            raise NotApprovedError(f"{task.ref} is of another plan, or of one that was changed")
        return Admission({}, task.proposal)

    def begin(self, task: m.Task, admission: Admission, manifest: Manifest) -> None:
        """Nothing is counted."""

    def came(self, proposal: Digest, manifest: Manifest) -> bool:
        """Nothing is decided here: they are approved as they are offered."""
        del proposal, manifest
        return False

    def named(self, prefix: str) -> Digest:
        """The one that begins so."""
        found = [one for one, plan in self._approved.items() if one.startswith(prefix) or plan.startswith(prefix)]
        if len(found) != 1:
            raise NotApprovedError(f"no proposal {prefix!r}")
        return found[0]

    def veto(self, proposals: Iterable[Digest], what: str, reason: str, by: str) -> None:
        """Take them back."""
        for digest in proposals:
            if self._approved.pop(digest, None) is None:
                raise FederationError(f"{what} was not approved ({by}: {reason})")

    def close(self) -> None:
        """Nothing is open."""
