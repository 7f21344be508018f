"""What a learner tells the director of what its data manager approved: only that whose data is here.

The director asks the sites that approved. A program that was started before its data was named would be asked, would
have to decline, and would be missing from the round; so a proposal counts as approved once its data set is registered.
It never counts earlier than the data manager's own word, and everything else is asked of the guard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from ...utils import messages as m
from ...utils.data_spec import DataKind
from ...utils.plan_bundle import Manifest
from ...utils.proposal import Proposal
from ...utils.tensors import Digest
from ..approval_guard import Admission, Approvals

MAX_BEGUN = 32  # tasks of which is remembered what they asked


class ReadyApprovals:
    """An ``Approvals`` on top of a site's guard.

    Args:
        guard: the data manager's word.
        manifest_of: the plan of a proposal, None while it is not here.
        has: is a data set of that name registered?
    """

    def __init__(
        self, guard: Approvals, manifest_of: Callable[[Digest], Manifest | None], has: Callable[[str], bool]
    ) -> None:
        self._guard, self._manifest_of, self._has = guard, manifest_of, has
        self._lock = threading.Lock()
        self._manifests: dict[Digest, Manifest] = {}
        self._begun: dict[m.TaskRef, tuple[m.Task, Manifest]] = {}

    # ------------------------------------------------------------ what the learner asks

    def plans(self) -> tuple[Manifest, ...]:
        """The plans of all that is approved, whether its data is here or not."""
        found = (self._manifest(digest) for digest in self._guard.approved())
        return tuple(one for one in found if one is not None)

    def task(self, ref: m.TaskRef) -> tuple[m.Task, Manifest] | None:
        """What a task that was begun here asks, and its plan."""
        with self._lock:
            return self._begun.get(ref)

    # ------------------------------------------------------------ what the session asks

    def approved(self) -> tuple[Digest, ...]:
        """Approved, and its data is here."""
        return tuple(digest for digest in self._guard.approved() if self._is_ready(digest))

    def begin(self, task: m.Task, admission: Admission, manifest: Manifest) -> None:
        """Count a round; remember what it asks."""
        self._guard.begin(task, admission, manifest)
        with self._lock:
            self._begun[task.ref] = (task, manifest)
            while len(self._begun) > MAX_BEGUN:
                self._begun.pop(next(iter(self._begun)))

    def offer(self, offer: m.Offer) -> Proposal | None:
        """As the guard."""
        return self._guard.offer(offer)

    def kept(self) -> Collection[Digest]:
        """As the guard."""
        return self._guard.kept()

    def admit(self, task: m.Task) -> Admission:
        """As the guard."""
        return self._guard.admit(task)

    def veto(self, proposals: Iterable[Digest], what: str, reason: str, by: str) -> None:
        """As the guard."""
        self._guard.veto(proposals, what, reason, by)

    def came(self, proposal: Digest, manifest: Manifest) -> bool:
        """As the guard."""
        return self._guard.came(proposal, manifest)

    def named(self, prefix: str) -> Digest:
        """As the guard."""
        return self._guard.named(prefix)

    def close(self) -> None:
        """As the guard."""
        self._guard.close()

    def _is_ready(self, digest: Digest) -> bool:
        manifest = self._manifest(digest)
        if manifest is None:
            return False
        return manifest.data.kind is DataKind.NONE or self._has(manifest.data.name)

    def _manifest(self, digest: Digest) -> Manifest | None:
        """A proposal's plan never changes, so it is read once."""
        with self._lock:
            found = self._manifests.get(digest)
        if found is None and (found := self._manifest_of(digest)) is not None:
            with self._lock:
                self._manifests[digest] = found
        return found
