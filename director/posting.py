"""The desk for updates that sites post: finds the round that one is for, looks at it, hands it in, writes the receipt.

What is refused here is what the round would refuse of an envoy's own upload, and more: a round that is over (410 over
HTTP) is told from one that is not open yet (409). A round under secure aggregation takes no single body at all: its
envoys walk steps together, each of which depends on what the others said, and a body beside them would be an update in
the clear. ``FederatedLearner`` walks them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..utils import messages as m
from ..utils.errors import (
    BudgetExhaustedError,
    FederationError,
    MalformedMessageError,
    NotApprovedError,
    NotInvitedError,
    ProtocolError,
    RoundOverError,
    StorageError,
    WrongRoundError,
)
from ..utils.metrics import MetricSum
from ..utils.privacy.values import PublishedEpsilon
from ..utils.sealed_update import Destination
from ..utils.tensors import Digest
from ..utils.update_receipt import UpdateReceipt, signed_bytes
from .audit import DirectorAudit
from .coordinator import Coordinator
from .history import History
from .posted_updates import PRIVACY, PostedUpdate, check_update, hand_in, read_update, unseal
from .present import Present
from .private_runs import release_of
from .records import RunState
from .rounds import RoundState
from .sealing_key import sealing_key

LEARNER = "FederatedLearner (from fedveil import FederatedLearner) takes part in the sum"
_HEADER_ROOM = 17 << 20  # of a safetensors file, before its numbers; and of what sealing adds


@dataclass(frozen=True, slots=True)
class Post:
    """What a site posts to a round."""

    organization: str  # its id
    envoy: m.EnvoyName
    round: int
    model_version: str
    sample_count: int = 1  # what it weighs: the lower bound of what the site said
    body: Path | None = None  # None: metrics alone
    sealed_to: str = ""  # the director's key, hexadecimal; "": as it is
    metrics: tuple[MetricSum, ...] = ()
    privacy: PublishedEpsilon | None = None
    leakage_score: float | None = None
    run: m.RunId | None = None  # None: the one under way


@dataclass(frozen=True, slots=True)
class Taken:
    """What a site gets for it."""

    receipt: UpdateReceipt
    document: bytes  # of the receipt, canonical JSON
    signature: bytes  # by the key of the director's log
    key: bytes  # of the director's log


class PostingDesk:
    """Takes posts; safe to share between threads.

    Args:
        federation: its name.
        folder: the director's.
        coordinator: has the round.
        history: has the rounds that are over.
        audit: the director's log; receipts are signed by its key.
        now: seconds since 1970.
    """

    def __init__(
        self,
        federation: str,
        folder: Path,
        coordinator: Coordinator,
        history: History,
        audit: DirectorAudit,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._federation, self._folder, self._now = federation, folder, now
        self._coordinator, self._history, self._audit = coordinator, history, audit

    def post(self, post: Post, digest_of_version: Callable[[str], Digest | None]) -> Taken:
        """Take one.

        Args:
            post: what came.
            digest_of_version: the model that a version names, if it names one.

        Raises:
            WrongRoundError: another round is open, or none yet, or the update is of another model.
            RoundOverError: it is over.
            NotApprovedError, NotInvitedError: the round did not ask this envoy.
            FailedChecksError: the update failed checks; it names them.
            BudgetExhaustedError: the run's privacy budget is spent, or would be passed.
            DuplicateUpdateError: another update of this envoy counts already.
            FederationError: as ``Coordinator.upload``.
        """
        present = self.round_of(post)
        version = digest_of_version(post.model_version) or post.model_version
        if version != present.model:
            raise WrongRoundError(
                f"round {post.round} of {present.run} is of model {present.model}, and the update of another: fetch"
                " GET /api/v1/federated/model, and train that"
            )
        if present.round.kind is m.TaskKind.EVALUATE:
            return self._evaluated(post, present)
        if post.body is None:
            raise MalformedMessageError(f"round {post.round} of {present.run} asks for an update: gradients_encrypted")
        return self._trained(post, present, post.body)

    def round_of(self, post: Post) -> Present:
        """The open round that a post is for.

        Raises:
            FederationError: there is none; see ``post``.
        """
        present = self._coordinator.present()
        if present is None or post.run not in {None, present.run}:
            raise self._elsewhere(post)
        this, name = present.round, f"round {post.round} of {present.run}"
        if present.settings.is_secure:
            raise ProtocolError(
                f"{present.run} takes sums alone (secure_aggregation = required), and one body cannot be one: {LEARNER}"
            )
        if post.round < this.ref.round or (post.round == this.ref.round and this.state is RoundState.AGGREGATING):
            raise RoundOverError(f"{name} is over; round {this.ref.round} is {this.state.value}")
        if post.round > this.ref.round or not this.state.takes_answers:
            raise WrongRoundError(f"{name} is not open; round {this.ref.round} is {this.state.value}")
        if post.envoy not in this.cohort:
            if not self._coordinator.has_approved(post.envoy, present.proposal):
                raise NotApprovedError(
                    f"{post.envoy} did not approve {present.run}: POST /api/v1/federated/approvals, and a later round"
                    " asks it"
                )
            raise NotInvitedError(f"{post.envoy} was not asked to take part in {name}")
        return present

    def largest_body(self) -> int:
        """How many bytes a body may have now: of the run under way.

        Raises:
            WrongRoundError: none is.
        """
        present = self._coordinator.present()
        if present is None:
            raise WrongRoundError("no run is under way that could take an update")
        return present.payload.num_bytes + present.payload.num_bytes // 1024 + _HEADER_ROOM

    def _trained(self, post: Post, present: Present, body: Path) -> Taken:
        ref = present.round.ref
        try:
            with tempfile.TemporaryDirectory(prefix=".post-", dir=self._folder) as folder:
                if post.sealed_to:
                    body = self._unsealed(post, present, body, Path(folder))
                update = read_update(body, present.payload)
                self._check(post, present, update)
                header = m.UpdateHeader(
                    ref=ref,
                    layout=present.layout.digest,
                    length=present.payload.num_bytes,
                    num_examples=post.sample_count,
                    metrics=post.metrics,
                    payload=m.PayloadKind.CODED if present.codec else m.PayloadKind.PLAIN,
                    codec=present.codec,
                    privacy=post.privacy,
                    leakage_score=post.leakage_score,
                )
                received = self._handed_in(post, header, update)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be written: {error.strerror}") from error
        return self._signed(post, present, received)

    def _handed_in(self, post: Post, header: m.UpdateHeader, update: PostedUpdate) -> m.Receipt:
        try:
            return hand_in(self._coordinator, post.envoy, header, update)
        except RoundOverError:
            raise
        except WrongRoundError as error:  # it was open a moment ago
            raise RoundOverError(str(error)) from error

    def _evaluated(self, post: Post, present: Present) -> Taken:
        if post.body is not None or not post.metrics:
            raise MalformedMessageError(f"round {post.round} of {present.run} asks for metrics, and no update: metrics")
        return self._signed(
            post, present, self._coordinator.report(post.envoy, m.MetricsReport(present.round.ref, post.metrics))
        )

    def _unsealed(self, post: Post, present: Present, body: Path, folder: Path) -> Path:
        private, public = sealing_key(self._folder)
        if post.sealed_to != public.hex():
            raise WrongRoundError(
                "the body is sealed to another key than the director's present one: fetch GET /api/v1/federated/round"
            )
        to = Destination(self._federation, present.round.ref, present.model, post.organization, post.envoy)
        unseal(to, body, private, folder / "update")
        return folder / "update"

    def _check(self, post: Post, present: Present, update: PostedUpdate) -> None:
        budget, failed = present.settings.privacy_budget, list[tuple[str, str]]()
        if budget is not None and post.privacy is not None:
            if post.privacy.delta > budget.delta:
                failed.append((PRIVACY, f"privacy.delta is above {budget.delta:g}, the experiment's"))
            elif not budget.fits(post.privacy):
                raise BudgetExhaustedError(f"{post.envoy} says that it spent more than {budget}, the run's budget")
        if budget is not None and post.privacy is None:
            release = release_of(present.settings, present.manifest, present.payload.size)
            if release is None:
                failed.append((PRIVACY, f"the run keeps to {budget} by what its sites say: give privacy"))
        asked = present.settings.protection
        has_noise = bool(asked.noise_multiplier) or post.privacy is not None
        check_update(update, None if has_noise else asked.max_norm, failed)

    def _signed(self, post: Post, present: Present, received: m.Receipt) -> Taken:
        entry, head = self._audit.posted(received.ref, post.envoy, post.organization, received.digest)
        receipt = UpdateReceipt(
            federation=self._federation,
            organization=post.organization,
            envoy=post.envoy,
            ref=received.ref,
            model=present.model,
            update=received.digest,
            num_bytes=received.length,
            sample_count=post.sample_count,
            received_at=self._now(),
            entry=entry.number,
            entry_hash=entry.hash.hex(),
            head=head.to_bytes().hex(),
        )
        document = receipt.to_json()
        return Taken(receipt, document, self._audit.sign(signed_bytes(document)), head.key)

    def _elsewhere(self, post: Post) -> FederationError:
        """No run under way is meant: why the one that is meant takes nothing."""
        runs = [one for one in self._history.runs() if post.run in {None, one.run}]
        last = next((one for one in reversed(runs) if one.state is not RunState.QUEUED), None)
        if post.run is not None and not runs:
            return WrongRoundError(f"there is no run {post.run}")
        if last is None or not last.state.is_over:
            return WrongRoundError(f"no round is open; {post.envoy} answers round {post.round}")
        trained = [one.round.ref.round for one in self._history.rounds(last.run) if one.round.kind is m.TaskKind.TRAIN]
        if "privacy_budget:" in last.reason and post.round > max(trained, default=0):
            return BudgetExhaustedError(f"{last.run} takes no further update: {last.reason}")
        return RoundOverError(f"{last.run} is {last.state.value} ({last.reason}); it takes no more updates")
