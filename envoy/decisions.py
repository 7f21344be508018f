"""What a data manager decides, carried out in an envoy's folder: beside an envoy that runs, or without one.

Whatever is approved is checked once more as it lies there: who signed the proposal, every byte of the plan, the codec.
A decision that cannot be logged is not made.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..utils.certificates import read_identity_key
from ..utils.command_line import this_user
from ..utils.data_spec import DataKind
from ..utils.errors import ConfigError, NotApprovedError, PlanError
from ..utils.identity import read_certificate, when
from ..utils.plan_bundle import Bundle, Manifest, open_bundle
from ..utils.proposal import read_proposal
from ..utils.tensors import Digest, digest_of
from .approval_store import ApprovalStore
from .approvals import Decision, Limits, Standing, Word, limits_for
from .audit_door import logging_to
from .config import load_config
from .enrolment import Credentials, load_credentials
from .fetching import CODECS_FOLDER, PLANS_FOLDER
from .plan_scan import require_allowed, scan
from .privacy_ledger import LEDGER_FILE, PrivacyLedger


@dataclass(frozen=True, slots=True)
class Wish:
    """What a data manager asks for, over a proposal's own limits; it can only be stricter."""

    datasets: Collection[str] = ()  # none: the one that the plan reads
    rounds: int | None = None
    epsilon: float | None = None
    until: float | None = None  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Approvable:
    """A proposal that may be approved, as it was checked just now."""

    standing: Standing
    bundle: Bundle
    limits: Limits


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Credentials, ApprovalStore]]:
    """A site's credentials and its approvals, for as long as a command needs them.

    Raises:
        IdentityError: this folder has not joined, or its credentials cannot be read.
        StorageError: the approvals were altered, or cannot be read.
    """
    credentials = load_credentials(folder, time.time())
    key = read_identity_key(credentials.identity_key, "the identity key")
    store = ApprovalStore(folder, credentials.public_identity, key.sign)
    try:
        yield credentials, store
    finally:
        store.close()


def approvable(folder: Path, digest: str, wish: Wish) -> Approvable:
    """May a proposal be approved, within what limits?

    Raises:
        NotApprovedError: none begins so, several do, or it is over.
        IdentityError: its signature is not right any more.
        PlanError: its plan or codec is not here, or was changed on disk; or it imports what this site does not allow.
        ConfigError: limits that are looser than the proposal, or not for what it asks.
    """
    with opened(folder) as (credentials, store):
        standing = store.books().find(digest)
    _check_may_approve(standing, credentials, time.time())
    bundle = proposed_bundle(folder, standing)
    require_allowed(scan(bundle, load_config(folder).approval.imports), bundle.manifest.name)
    _check_codec(folder, standing)
    limits = limits_for(
        standing.proposal,
        dataset_of(bundle.manifest),
        datasets=wish.datasets,
        rounds=wish.rounds,
        epsilon=wish.epsilon,
        until=wish.until,
    )
    _check_epsilon(folder, bundle.manifest, limits)
    return Approvable(standing, bundle, limits)


def approve_here(folder: Path, found: Approvable, by: str = "") -> Standing:
    """Approve what was found approvable.

    Raises:
        FederationError: it cannot be kept or logged; then nothing was decided.
    """
    proposal, said = found.standing.proposal, found.limits.to_document()
    decision = Decision(proposal.digest, Word.APPROVED, found.limits, by or this_user(), time.time())
    with opened(folder) as (_, store), logging_to(folder) as log:
        return store.decide(decision, lambda: log.approved(proposal.digest, proposal.plan, said, decision.by))


def reject_here(folder: Path, digest: str, reason: str) -> Standing:
    """Reject a proposal in an envoy's folder, and log it.

    Raises:
        NotApprovedError: none begins so, or several.
        FederationError: it cannot be kept or logged; then nothing was decided.
    """
    with opened(folder) as (_, store):
        standing = store.books().find(digest)
        decision = Decision(standing.proposal.digest, Word.REJECTED, None, this_user(), time.time(), reason)
        with logging_to(folder) as log:
            return store.decide(decision, lambda: log.rejected(decision.proposal, decision.by, reason))


def plan_proposed(folder: Path, digest: str) -> Digest:
    """The plan of the proposal whose digest begins so.

    Raises:
        NotApprovedError: none does, or several.
    """
    with opened(folder) as (_, store):
        return store.books().find(digest).proposal.plan


def proposed_bundle(folder: Path, standing: Standing) -> Bundle:
    """The plan that is proposed, every byte of it checked now."""
    plan = standing.proposal.plan
    if not (folder / PLANS_FOLDER / plan).is_dir():
        raise PlanError(
            f"plan {plan[:12]}… is not here yet: a running envoy fetches it between two tasks; its log says why if it"
            " could not (`envoy status`)"
        )
    return open_bundle(folder / PLANS_FOLDER / plan, plan)


def dataset_of(manifest: Manifest) -> str | None:
    """By the name at this site; None where a plan reads none."""
    return None if manifest.data.kind is DataKind.NONE else manifest.data.name


def _check_may_approve(standing: Standing, credentials: Credentials, now: float) -> None:
    """Is it signed, as it was when it came, and not over?"""
    read_proposal(standing.document, read_certificate(credentials.root, "the root"), standing.offered_at)
    if now > standing.proposal.expires_at:
        raise NotApprovedError(
            f"proposal {standing.proposal.digest[:12]}… ended on {when(standing.proposal.expires_at)}; the researcher"
            " proposes it anew"
        )


def _check_codec(folder: Path, standing: Standing) -> None:
    """Is the codec that is approved with it the one that is here?"""
    codec = standing.proposal.codec
    if codec is None:
        return
    file = folder / CODECS_FOLDER / f"{codec}.safetensors"
    try:
        is_whole = digest_of(file.read_bytes()) == codec
    except OSError as error:
        raise PlanError(f"codec {codec[:12]}… is not here yet ({error.strerror}); the envoy's log says why") from error
    if not is_whole:
        raise PlanError(f"codec {codec[:12]}… was changed on disk; delete {file}, and let it be fetched again")


def _check_epsilon(folder: Path, manifest: Manifest, limits: Limits) -> None:
    """An epsilon is counted at a delta, of a unit: of the plan's, or of the data set's budget."""
    if limits.epsilon is None or manifest.privacy is not None:
        return
    dataset = dataset_of(manifest)
    if dataset is not None and (folder / LEDGER_FILE).exists():
        ledger = PrivacyLedger(folder / LEDGER_FILE)
        try:
            if ledger.books().of(dataset).budget is not None:
                return
        finally:
            ledger.close()
    raise ConfigError(
        "--epsilon: the plan names no delta, and its data set has no budget that does; `envoy privacy budget` gives one"
    )
