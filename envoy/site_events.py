"""What a site logs, by name: one method for each event, called before the step that it stands for.

The log stays at the site. It names plans, proposals, data sets (by the site's own names), tasks and digests; how many
records of a data set were read; and the reasons that the data manager typed. Never patients' data, pixels, labels,
metrics, updates or secrets; nothing that the plan's own code said.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from ..utils.audit_chain import Json
from ..utils.identity import PeerId
from ..utils.messages import RunId, TaskKind, TaskRef
from ..utils.tensors import Digest

APPROVED, REJECTED, VETOED = "approved", "rejected", "vetoed"
DECISIONS = frozenset({APPROVED, REJECTED, VETOED})
"""What a data manager says of a proposal; the last counts."""
POLICY = "policy"
MAX_WORDS = 1000  # characters of a reason, a purpose, a sentence


class SiteEvents(ABC):
    """The events of a site. Each is on disk before its method returns.

    Every method raises ``StorageError`` when it cannot be: then the step that it stands for must not be taken. A step
    that is then tried again stands there twice.
    """

    @abstractmethod
    def append(self, what: str, more: Mapping[str, Json]) -> None:
        """Log one event.

        Raises:
            StorageError: it cannot be written.
        """

    # ------------------------------------------------------------ plans

    def offered(self, run: RunId, proposal: Digest, plan: Digest, by: PeerId) -> None:
        """A proposal came, its signature was checked, and it is shown to the data manager. Nothing of it runs."""
        self.append("offered", {"run": run, "proposal": proposal, "plan": plan, "proposed_by": str(by)})

    def approved(self, proposal: Digest, plan: Digest, limits: Mapping[str, Json], by: str) -> None:
        """The data manager approves a proposal.

        Args:
            proposal: by its digest.
            plan: that it names.
            limits: data sets, rounds, epsilon, expiry, as they stand in the approval.
            by: who decided, by the name that this machine knows.
        """
        said: dict[str, Json] = {"proposal": proposal, "plan": plan, "limits": dict(limits)}
        self.append(APPROVED, said | {"by": by})

    def rejected(self, proposal: Digest, by: str, reason: str) -> None:
        """The data manager rejects a proposal, or takes an approval back."""
        self.append(REJECTED, {"proposal": proposal, "by": by, "reason": _words(reason)})

    def expired(self, proposal: Digest) -> None:
        """An approval's or a proposal's time is over."""
        self.append("expired", {"proposal": proposal})

    # ------------------------------------------------------------ tasks

    def accessed(
        self,
        ref: TaskRef,
        kind: TaskKind,
        dataset: str,
        records: int,
        *,
        proposal: Digest | None,
        purpose: str = "",
        legal_basis: str = "",
    ) -> None:
        """A task is about to read a data set.

        Args:
            ref: the task; names the plan.
            kind: train or evaluate.
            dataset: by its name at this site; empty where the plan reads none.
            records: examples that the task may read.
            proposal: under which it is done; None where none was asked for.
            purpose: as the proposal says.
            legal_basis: as the proposal says; empty where it names none.
        """
        said: dict[str, Json] = {"kind": kind.value, "dataset": dataset, "records": records, "proposal": proposal}
        said |= {"purpose": _words(purpose), "legal_basis": _words(legal_basis)}
        self.append("data accessed", place_of(ref) | said)

    def sent(self, ref: TaskRef, kind: str, digest: Digest | None, num_bytes: int) -> None:
        """An answer is about to leave: ``kind`` says what it is, ``digest`` is of its bytes (none of metrics alone)."""
        self.append("sent", place_of(ref) | {"kind": kind, "digest": digest, "bytes": num_bytes})

    def published(self, ref: TaskRef, digest: Digest) -> None:
        """With an answer, what the site publishes by subgroups is about to leave: the digest of the signed text."""
        self.append("fairness published", place_of(ref) | {"digest": digest})

    def refused(self, ref: TaskRef, error: str, reason: str) -> None:
        """A task is not done: the error's class and reason, as the director is told them."""
        self.append("refused", place_of(ref) | {"error": error, "reason": _words(reason)})

    def vetoed(self, what: str, by: str, reason: str, proposal: Digest | None = None) -> None:
        """The data manager ends local work; ``what`` is the run, task or proposal as it was named."""
        self.append(VETOED, {"vetoed": what, "proposal": proposal, "by": by, "reason": _words(reason)})

    def stopped(self, by: str, reason: str) -> None:
        """The data manager ends all local work, and the envoy."""
        self.append("stopped", {"by": by, "reason": _words(reason)})

    # ------------------------------------------------------------ the site

    def renewed(self, certificate: str, expires_at: float) -> None:
        """This envoy has a new certificate: SHA-256 of its DER in hexadecimal, and until when (seconds since 1970)."""
        self.append("renewed", {"certificate": certificate, "expires_at": expires_at})

    def accepted_roster(self, digest: Digest, envoys: Sequence[str], by: str) -> None:
        """From now on this site sums with these, and nobody else."""
        self.append("roster accepted", {"roster": digest, "envoys": list(envoys), "by": by})

    def policy(self, digest: str, before: str) -> None:
        """envoy.toml is another than at the last start; both by SHA-256, empty for none."""
        self.append(POLICY, {"envoy_toml": digest, "before": before})

    # ------------------------------------------------------------ the privacy ledger

    def spent(self, ref: TaskRef, dataset: str, row: int, head: str) -> None:
        """A row of the privacy ledger counts what a task releases; ``head`` is the ledger's after it."""
        self.append("budget spent", place_of(ref) | {"dataset": dataset, "row": row, "ledger_head": head})

    def over_budget(self, ref: TaskRef, dataset: str, error: str, head: str) -> None:
        """The privacy ledger refused a task; the refusal is a row of it."""
        self.append("budget refused", place_of(ref) | {"dataset": dataset, "error": error, "ledger_head": head})


class Unlogged(SiteEvents):
    """Of rehearsals and simulations, where nobody is there to whom a log would show anything."""

    def append(self, what: str, more: Mapping[str, Json]) -> None:
        """Keep nothing."""


def place_of(ref: TaskRef) -> dict[str, Json]:
    """A task, as it stands in an event."""
    return {"run": ref.run, "round": ref.round, "attempt": ref.attempt, "plan": ref.plan}


def _words(text: str) -> str:
    return " ".join(text.split())[:MAX_WORDS]
