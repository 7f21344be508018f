"""Before anything of a task is fetched or run: did this site's data manager approve it, and is anything left of that?

    offer -> (a data manager decides) -> admit a task -> begin its round

Nothing of an offer runs. Python plans run under an approval alone; there is no setting that would change it. What was
vetoed stays refused by this process also where the disk is too full to write it down.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cryptography import x509

from ..utils import messages as m
from ..utils.data_spec import DataKind
from ..utils.errors import FederationError, MalformedMessageError, NotApprovedError, StorageError, VetoedError
from ..utils.plan_bundle import Manifest
from ..utils.proposal import Patch, Proposal, check_patches, read_patch, read_proposal
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from .approval_store import ApprovalStore
from .approvals import (
    Decision,
    Limits,
    Standing,
    State,
    Word,
    begun_by,
    check_dataset,
    check_rounds,
    check_run,
    check_standing,
    check_task,
    limits_for,
)
from .privacy_books import SpendingLimit
from .recipes.catalogue import check_recipe
from .site_events import SiteEvents
from .steering import SteeringPolicy, check_patch, check_private, check_sites, effective

_LOG = logging.getLogger(__name__)
_MOST_CACHED = 1000
UNASKED = "[approval] of envoy.toml"  # who decided, where a declarative plan runs unasked


@dataclass(frozen=True, slots=True)
class Admission:
    """A task that may be done, as far as it can be said before its plan is here."""

    settings: Mapping[str, float]  # of the plan, where patches changed them
    proposal: Digest | None = None
    limits: Limits | None = None
    patches: tuple[Patch, ...] = ()
    spending: SpendingLimit | None = None  # beside the data set's budget
    purpose: str = ""  # as the proposal says
    legal_basis: str = ""


class Approvals(Protocol):
    """What a session asks before it does anything."""

    def offer(self, offer: m.Offer) -> Proposal | None:
        """Keep what is proposed; gives it where it is new and its plan is to be fetched."""
        ...

    def kept(self) -> Collection[Digest]:
        """Plans and codecs that must not make room for others."""
        ...

    def approved(self) -> tuple[Digest, ...]:
        """The proposals that are approved now, for the director to know."""
        ...

    def admit(self, task: m.Task) -> Admission:
        """May a task be done? Asked before anything is fetched for it.

        Raises:
            NotApprovedError: it may not.
        """
        ...

    def begin(self, task: m.Task, admission: Admission, manifest: Manifest) -> None:
        """Count a round, before anything of it is done.

        Raises:
            NotApprovedError: it may not be done after all.
        """
        ...

    def veto(self, proposals: Iterable[Digest], what: str, reason: str, by: str) -> None:
        """Take approvals back, at once; ``what`` is the task, run or proposal as it was named.

        Raises:
            StorageError: that cannot be written down; they are refused all the same.
        """
        ...

    def came(self, proposal: Digest, manifest: Manifest) -> bool:
        """The plan of a proposal is here; True where the site lets it run without asking anybody.

        Raises:
            StorageError: that cannot be written down; then it waits for the data manager.
        """
        ...

    def named(self, prefix: str) -> Digest:
        """The proposal whose digest, or whose plan's, begins so.

        Raises:
            NotApprovedError: none does, or several.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class ApprovalGuard:
    """Asks the store.

    Args:
        name: this envoy's.
        federation: that it is in.
        root: that this site pinned.
        store: of proposals and decisions.
        steering: what may be changed between rounds.
        log: the site's audit log.
        clock: seconds since 1970.
        allows_unasked: ``[approval]``'s word on a plan and a number of rounds; by default nothing runs unasked.
        taken_back: what was rejected or vetoed last, by the audit log. An approval in the store that is older was put
            there again, from a copy of the file; or the process was killed between the two. It does not count.
    """

    def __init__(
        self,
        name: m.EnvoyName,
        federation: str,
        root: x509.Certificate,
        store: ApprovalStore,
        steering: SteeringPolicy,
        log: SiteEvents,
        clock: Callable[[], float] = time.time,
        allows_unasked: Callable[[Manifest, int], bool] = lambda *_: False,
        taken_back: Collection[Digest] = (),
    ) -> None:
        self._allows_unasked = allows_unasked
        self._name, self._federation, self._root = name, federation, root
        self._store, self._steering, self._log, self._clock = store, steering, log, clock
        self._vetoed: set[Digest] = set()
        self._good: set[Digest] = set()  # approved, when that was last asked
        self._read: dict[tuple[bytes, bytes], Patch] = {}
        self._lock = threading.Lock()
        held = [one for digest, one in store.books().standings.items() if digest in taken_back]
        self._overruled = {one.proposal.digest: one.decision for one in held if one.limits is not None}
        for digest in sorted(self._overruled):
            _LOG.error("approval of proposal=%s does not count: the audit log says that it was taken back", digest)

    def offer(self, offer: m.Offer) -> Proposal | None:
        """Keep a proposal, once.

        Raises:
            IdentityError, NotAuthorizedError: not signed by an operator of this federation.
            MalformedMessageError: no proposal, or one that is not for this site.
            NotApprovedError: it expired, or too many wait.
            StorageError: it cannot be kept.
        """
        now = self._clock()
        if digest_of(offer.proposal.content) in self._store.books().standings:
            return None
        proposal = read_proposal(offer.proposal, self._root, now)
        if proposal.federation != self._federation:
            raise MalformedMessageError(f"a proposal to {proposal.federation}, expected {self._federation}")
        if proposal.sites and self._name not in proposal.sites:
            raise MalformedMessageError(f"proposal {proposal.digest[:12]}… is for other sites than {self._name}")
        if now > proposal.expires_at:
            raise NotApprovedError(f"proposal {proposal.digest[:12]}… expired before it came")
        is_new = self._store.offer(
            offer.proposal,
            proposal,
            offer.run,
            now,
            lambda: self._log.offered(offer.run, proposal.digest, proposal.plan, proposal.proposed_by),
        )
        if not is_new:
            return None
        return proposal

    def kept(self) -> Collection[Digest]:
        """Of what is approved or waits, and of what was approved last of each study: a change is shown against it."""
        books, now, kept = self._store.books(), self._clock(), set[Digest]()
        for one in books.standings.values():
            before = books.approved_before(one)
            for held in (one, before):
                if held is not None and (held is before or held.state(now) is not State.REJECTED):
                    kept |= {held.proposal.plan} | ({held.proposal.codec} if held.proposal.codec else set())
        return kept

    def approved(self) -> tuple[Digest, ...]:
        """Sorted; rounds that are used up do not matter: an attempt or an evaluation may still follow.

        The newest, where there are more than a message holds.
        """
        now, standings = self._clock(), self._store.books().standings
        self._log_expired(standings, now)
        good = [
            (one.decision.at, digest)
            for digest, one in standings.items()
            if one.decision is not None and one.is_approved(now) and not self._is_overruled(one)
        ]
        told = [digest for _, digest in sorted(good, reverse=True) if digest not in self._vetoed]
        return tuple(sorted(told[: m.MAX_APPROVED]))

    def _is_overruled(self, standing: Standing) -> bool:
        """Is the decision one that the audit log knows to be taken back?"""
        return standing.decision is not None and standing.decision == self._overruled.get(standing.proposal.digest)

    def _log_expired(self, standings: Mapping[Digest, Standing], now: float) -> None:
        """What was approved when this was last looked at, and has expired since; with a full disk, a later time."""
        with self._lock:
            over = [one for one in sorted(self._good) if standings[one].state(now) is State.EXPIRED]
            with contextlib.suppress(StorageError):
                for digest in over:
                    self._log.expired(digest)
                    self._good.discard(digest)
            self._good |= {digest for digest, one in standings.items() if one.is_approved(now)}

    def admit(self, task: m.Task) -> Admission:
        """Check a task against the approval of its proposal, and its patches against ``[steering]``."""
        if task.proposal is None:
            raise NotApprovedError(f"{task.ref} names no proposal that this site could have approved")
        if task.proposal in self._vetoed:
            raise VetoedError(f"{task.ref}: this site's data manager ended it")
        books = self._store.books()
        standing, limits = check_standing(books.standings.get(task.proposal), task.proposal, self._clock())
        if self._is_overruled(standing):
            raise NotApprovedError(
                f"proposal {task.proposal[:12]}… was taken back at this site: its audit log says so, and the approvals"
                " are older; who wants it runs `envoy plan approve`"
            )
        check_task(standing, task, self._name)
        check_run(books, task)
        patches = tuple(self._patch(document) for document in task.patches)
        check_patches(patches, task.ref.run, task.proposal)
        for patch in patches:
            check_patch(self._steering, patch, standing.proposal)
        check_sites(patches, task, self._name)
        settings = effective(patches)
        check_rounds(standing, limits, begun_by(task, settings))
        self._store.see_patches(task.ref.run, tuple(digest_of(one.content) for one in task.patches))
        spending = None
        if limits.epsilon is not None:
            spending = SpendingLimit(limits.epsilon, standing.runs | {task.ref.run})
        said = standing.proposal
        return Admission(settings, said.digest, limits, patches, spending, said.purpose, said.legal_basis)

    def begin(self, task: m.Task, admission: Admission, manifest: Manifest) -> None:
        """Check what the plan itself says, and count the round."""
        if admission.proposal is None or admission.limits is None:
            return
        dataset = None if manifest.data.kind is DataKind.NONE else manifest.data.name
        check_dataset(admission.limits, task, dataset)
        if manifest.privacy is not None:
            check_private(admission.patches)
        self._store.begin(admission.proposal, admission.limits, begun_by(task, admission.settings))

    def came(self, proposal: Digest, manifest: Manifest) -> bool:
        """Approve a declarative plan that ``[approval]`` lets run, unless somebody decided on it, or against its plan.

        Raises:
            PlanError: a recipe that this software does not have.
            StorageError: it cannot be kept or logged.
        """
        books = self._store.books()
        standing, now = books.standings[proposal], self._clock()
        said = standing.proposal
        has_no = any(
            one.proposal.plan == said.plan and one.decision is not None and one.decision.word is Word.REJECTED
            for one in books.standings.values()
        )
        is_asked = standing.decision is not None or has_no or standing.state(now) is not State.OFFERED
        if is_asked or manifest.recipe is None or manifest.digest != said.plan:
            return False
        if not self._allows_unasked(manifest, said.max_rounds):
            return False
        check_recipe(manifest.recipe, manifest.data)
        limits = limits_for(said, manifest.data.name)
        decision = Decision(proposal, Word.APPROVED, limits, UNASKED, now)
        self._store.decide(decision, lambda: self._log.approved(proposal, said.plan, limits.to_document(), decision.by))
        return True

    def named(self, prefix: str) -> Digest:
        """The proposal that begins so.

        Raises:
            NotApprovedError: none does, or several.
        """
        return self._store.books().find(prefix).proposal.digest

    def veto(self, proposals: Iterable[Digest], what: str, reason: str, by: str) -> None:
        """Reject them; each is refused from the first moment on, whatever can be written."""
        chosen = sorted(set(proposals))
        self._vetoed.update(chosen)
        failure: FederationError | None = None
        try:
            self._log.vetoed(what, by, reason, chosen[0] if len(chosen) == 1 else None)
        except FederationError as error:
            failure = error
        for digest in chosen:
            decision = Decision(digest, Word.REJECTED, None, by, self._clock(), reason)
            try:
                self._store.decide(decision, partial(self._log.rejected, digest, by, reason))
                self._vetoed.discard(digest)  # the rows say it from here on, until a later decision
            except FederationError as error:
                failure = error
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _patch(self, document: SignedDocument) -> Patch:
        """Its signature is checked once: a run has up to 200, and each task carries all of them."""
        key = (document.content, document.signature)
        with self._lock:
            found = self._read.get(key)
        if found is None:
            found = read_patch(document, self._root, self._federation, self._clock())
            with self._lock:
                if len(self._read) >= _MOST_CACHED:
                    self._read.clear()
                self._read[key] = found
        return found
