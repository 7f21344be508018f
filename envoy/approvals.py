"""What a site's data manager approved, and whether a task keeps within it. Pure: no clock, no disk.

A *proposal* (``utils/proposal.py``) is offered, and then approved with limits or rejected; the latest decision counts.
Limits can only be stricter than what is proposed. A task must be exactly what was approved: plan, codec, who sums,
protection at least as asked, only the sites that were named, and no more rounds. A round is one model that is trained
with the same settings: another attempt of it counts once, another model or other settings under its number again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from ..utils.errors import ConfigError, NotApprovedError
from ..utils.identity import when
from ..utils.messages import AskedProtection, EnvoyName, RunId, Task, TaskKind
from ..utils.proposal import Proposal, proposal_of
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, canonical_json, digest_of

MAX_REASON = 500
MAX_ATTEMPTS = 10
"""Of one round at one site; a director tries three times by default."""
MAX_UNDECIDED = 64
"""Offers that wait for a decision; one more is not kept."""


class Word(Enum):
    """What a data manager says."""

    APPROVED = "approved"
    REJECTED = "rejected"


class State(Enum):
    """How a proposal stands at a site."""

    OFFERED = "offered"  # waits for a decision
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    USED_UP = "used up"  # all rounds are done


@dataclass(frozen=True, slots=True)
class Limits:
    """Within what a proposal is approved.

    Raises:
        ConfigError: numbers that limit nothing.
    """

    datasets: tuple[str, ...]  # by their names at this site; empty: none
    max_rounds: int  # of training, over all runs of the proposal; evaluations are counted apart, up to as many
    epsilon: float | None  # all that the proposal's runs may spend of a data set; None: the data set's budget alone
    expires_at: float  # seconds since 1970

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ConfigError(f"--rounds is {self.max_rounds}, expected at least 1; to allow none, reject the proposal")
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"--epsilon is {self.epsilon:g}, expected above 0; leave it out for the budget alone")

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "datasets": list(self.datasets),
            "max_rounds": self.max_rounds,
            "epsilon": self.epsilon,
            "expires_at": self.expires_at,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Limits:
        """Read what ``to_document`` made."""
        datasets, epsilon = tuple(document["datasets"]), document["epsilon"]
        return cls(datasets, document["max_rounds"], epsilon, float(document["expires_at"]))


@dataclass(frozen=True, slots=True)
class Decision:
    """One word on one proposal."""

    proposal: Digest
    word: Word
    limits: Limits | None  # with APPROVED alone
    by: str  # the account at the site's machine
    at: float  # seconds since 1970
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.limits is None) is (self.word is Word.APPROVED):
            raise ConfigError("an approval has limits, and a rejection none")
        if len(self.reason) > MAX_REASON or not self.reason.isprintable():
            raise ConfigError(f"--reason: expected one printable line of at most {MAX_REASON} characters")


@dataclass(frozen=True, slots=True)
class Begun:
    """One round that was begun here."""

    run: RunId
    round: int
    kind: TaskKind
    work: Digest  # the model that it began with, seed and settings
    attempt: int = 1

    @property
    def one_round(self) -> Begun:
        """The same for each attempt of it."""
        return replace(self, attempt=1)


@dataclass(frozen=True, slots=True)
class Standing:
    """One proposal at this site."""

    proposal: Proposal
    document: SignedDocument
    run: RunId  # that it was first offered for
    offered_at: float
    decision: Decision | None = None
    begun: frozenset[Begun] = frozenset()

    @property
    def runs(self) -> frozenset[RunId]:
        """That were worked on under it."""
        return frozenset(one.run for one in self.begun)

    def rounds_done(self, kind: TaskKind = TaskKind.TRAIN) -> int:
        """How many rounds were begun under it, in however many attempts."""
        return len({one.one_round for one in self.begun if one.kind is kind})

    @property
    def limits(self) -> Limits | None:
        """Of the approval, while there is one."""
        return self.decision.limits if self.decision is not None else None

    def state(self, now: float) -> State:
        """How it stands now."""
        limits, decision = self.limits, self.decision
        if decision is not None and decision.word is Word.REJECTED:
            return State.REJECTED
        if now > (self.proposal.expires_at if limits is None else limits.expires_at):
            return State.EXPIRED
        if limits is None:
            return State.OFFERED
        return State.USED_UP if self.rounds_done() >= limits.max_rounds else State.APPROVED

    def is_approved(self, now: float) -> bool:
        """May something of it run still? With its rounds used up that is an attempt more, or an evaluation."""
        return self.state(now) in {State.APPROVED, State.USED_UP}


@dataclass(frozen=True, slots=True)
class ApprovalBooks:
    """All that was offered and decided at a site, from the rows of its store."""

    standings: Mapping[Digest, Standing] = field(default_factory=dict)
    patches: Mapping[RunId, tuple[Digest, ...]] = field(default_factory=dict)  # as far as each run's were seen

    def with_row(self, row: Mapping[str, Any]) -> ApprovalBooks:
        """After one more row.

        Raises:
            KeyError, TypeError, ValueError, FederationError: it is no row of such a store.
        """
        match row["row"]:
            case "offer":
                content = str(row["content"]).encode()
                document = SignedDocument(content, bytes.fromhex(row["signature"]), str(row["chain"]).encode())
                proposal = proposal_of(content)
                made = Standing(proposal, document, RunId(row["run"]), float(row["at"]))
            case "decision":
                limits = None if row["limits"] is None else Limits.from_document(row["limits"])
                digest = Digest(row["proposal"])
                word = Decision(digest, Word(row["word"]), limits, row["by"], float(row["at"]), row["reason"])
                made = replace(self.standings[digest], decision=word)
            case "begun":
                kind, attempt = TaskKind(row["kind"]), int(row.get("attempt", 1))
                one = Begun(RunId(row["run"]), int(row["round"]), kind, Digest(row["work"]), attempt)
                before = self.standings[Digest(row["proposal"])]
                made = replace(before, begun=before.begun | {one})
            case "patches":
                seen = tuple(Digest(one) for one in row["digests"])
                return replace(self, patches={**self.patches, RunId(row["run"]): seen})
            case other:
                raise ValueError(f"a row that is a {other}")
        return replace(self, standings={**self.standings, made.proposal.digest: made})

    def find(self, prefix: str) -> Standing:
        """One by the beginning of its digest, or of its plan's where that tells it.

        Raises:
            NotApprovedError: there is none, or several; the message names them.
        """
        for digests in ([one.proposal.digest for one in self.standings.values()], [*self.standings]):
            if prefix in digests:
                return self.standings[Digest(prefix)]
        found = [one for one in self.standings.values() if prefix and _begins(one, prefix)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise NotApprovedError(f"no proposal {prefix[:80]!r} was offered to this site; see `envoy plan list`")
        named = ", ".join(sorted(one.proposal.digest[:12] for one in found))
        raise NotApprovedError(f"{prefix[:80]!r} may be any of {named}; type more of its digest")

    def approved_before(self, standing: Standing) -> Standing | None:
        """The version of the same study that was approved last, before or beside this one."""
        others = [
            one
            for one in self.standings.values()
            if one.proposal.study == standing.proposal.study
            and one.proposal.digest != standing.proposal.digest
            and one.decision is not None
            and one.decision.word is Word.APPROVED
        ]
        return max(others, key=lambda one: one.decision.at if one.decision else 0.0, default=None)


def limits_for(
    proposal: Proposal,
    dataset: str | None,
    *,
    datasets: Collection[str] = (),
    rounds: int | None = None,
    epsilon: float | None = None,
    until: float | None = None,
) -> Limits:
    """What a data manager asks for, over the proposal's own limits; it can only be stricter.

    Args:
        proposal: as it was offered.
        dataset: that its plan reads, None where it reads none.
        datasets: that are allowed; none: the one that the plan reads.
        rounds: at most so many.
        epsilon: at most so much, over all runs of the proposal.
        until: seconds since 1970.

    Raises:
        ConfigError: looser than what is proposed, or not for what it asks.
    """
    own = () if dataset is None else (dataset,)
    if datasets and dataset is not None and dataset not in datasets:
        raise ConfigError(f"the plan reads data set {dataset}, and --dataset names {', '.join(sorted(datasets))}")
    if rounds is not None and rounds > proposal.max_rounds:
        raise ConfigError(f"--rounds is {rounds}; no more than {proposal.max_rounds} are proposed")
    if until is not None and until > proposal.expires_at:
        raise ConfigError(f"--until is {when(until)}; the proposal itself ends on {when(proposal.expires_at)}")
    most = proposal.max_rounds if rounds is None else rounds
    return Limits(own, most, epsilon, proposal.expires_at if until is None else until)


def check_standing(standing: Standing | None, proposal: Digest, now: float) -> tuple[Standing, Limits]:
    """Is a proposal approved now?

    Raises:
        NotApprovedError: it is not; the message says why.
    """
    named = f"proposal {proposal[:12]}…"
    if standing is None:
        raise NotApprovedError(f"{named} was never offered to this site; nothing of it runs")
    limits = standing.limits
    match standing.state(now):
        case State.OFFERED:
            raise NotApprovedError(f"{named} waits for the decision of this site's data manager; nothing of it runs")
        case State.REJECTED:
            raise NotApprovedError(f"this site's data manager does not approve {named}")
        case State.EXPIRED:
            end = standing.proposal.expires_at if limits is None else limits.expires_at
            raise NotApprovedError(f"{named} expired at this site on {when(end)}; it is {when(now)}")
        case State.APPROVED | State.USED_UP:
            if limits is None:  # an approval has limits
                raise NotApprovedError(f"{named} is not approved")
            return standing, limits


def check_task(standing: Standing, task: Task, name: EnvoyName) -> None:
    """Is a task what was proposed, and nothing else?

    Args:
        standing: of its proposal, which is approved.
        task: as it came.
        name: this site's envoy.

    Raises:
        NotApprovedError: it is not; the message says what was approved and what came.
    """
    proposal = standing.proposal
    summed_by = None if task.sum is None else f"envoy:{task.sum.aggregator}" if task.sum.aggregator else "director"
    _same(task, "plan", proposal.plan[:12], task.ref.plan[:12], is_same=proposal.plan == task.ref.plan)
    _same(task, "codec", _short(proposal.codec), _short(task.codec), is_same=proposal.codec == task.codec)
    is_secure = "in a secure sum" if proposal.is_secure else "in the clear"
    asked = "in the clear" if task.sum is None else "in a secure sum"
    _same(task, "answers", is_secure, asked, is_same=is_secure == asked)
    if summed_by is not None:
        _same(task, "aggregator", proposal.aggregator, summed_by, is_same=proposal.aggregator == summed_by)
    if not _is_at_least(task.asked, proposal.asked):
        raise NotApprovedError(f"{task.ref} asks for less protection than was approved")
    noise = task.sum.noise if task.sum is not None else None
    if proposal.sum_noise > (0.0 if noise is None else noise.noise_multiplier):
        raise NotApprovedError(f"{task.ref} is for a sum with less noise than was approved")
    if proposal.sites:
        strange = sorted(set(task.cohort) - set(proposal.sites))
        if strange or name not in proposal.sites:
            raise NotApprovedError(
                f"{task.ref} asks {', '.join(strange[:3]) or name}, and the proposal names other sites"
            )


def check_run(books: ApprovalBooks, task: Task) -> None:
    """Was this run worked on under no other proposal? What stays at the site between rounds is kept by run.

    Raises:
        NotApprovedError: it was.
    """
    for digest, other in books.standings.items():
        if digest != task.proposal and task.ref.run in other.runs:
            raise NotApprovedError(
                f"run {task.ref.run} was begun here under proposal {digest[:12]}…, and comes with another; the director"
                " starts a run of its own for each proposal"
            )


def check_rounds(standing: Standing, limits: Limits, begun: Begun) -> bool:
    """Is there a round left for this? True where it was counted already.

    Each attempt may give the same update behind other noise, so attempts of a round have an end too.

    Raises:
        NotApprovedError: all rounds that were approved are done, or all attempts of this one.
    """
    if begun in standing.begun:
        return True
    attempts = sum(one.one_round == begun.one_round for one in standing.begun)
    if attempts:
        if attempts >= MAX_ATTEMPTS:
            raise NotApprovedError(
                f"round {begun.round} of {begun.run} was begun {attempts} times at this site, no more are done"
            )
        return False
    done = standing.rounds_done(begun.kind)
    if done >= limits.max_rounds:
        what = "rounds" if begun.kind is TaskKind.TRAIN else "evaluations"
        raise NotApprovedError(
            f"round {begun.round} of {begun.run}: this site approved {limits.max_rounds} {what} of proposal"
            f" {standing.proposal.digest[:12]}…, and {done} were begun"
        )
    return False


def check_dataset(limits: Limits, task: Task, dataset: str | None) -> None:
    """Is the data set that the plan reads among those approved?

    Raises:
        NotApprovedError: it is not.
    """
    if dataset is not None and dataset not in limits.datasets:
        raise NotApprovedError(f"{task.ref} reads a data set that was not approved for it")


def begun_by(task: Task, settings: Mapping[str, float]) -> Begun:
    """What is counted: another attempt of a round with the same model, seed and settings is no other round."""
    work = ["fedveil/round", task.model, task.seed.hex(), sorted(settings.items())]
    return Begun(task.ref.run, task.ref.round, task.kind, digest_of(canonical_json(work)), task.ref.attempt)


def _begins(standing: Standing, prefix: str) -> bool:
    return standing.proposal.digest.startswith(prefix) or standing.proposal.plan.startswith(prefix)


def _same(task: Task, what: str, approved: str, came: str, *, is_same: bool) -> None:
    if not is_same:
        raise NotApprovedError(f"{task.ref}: approved was {what} {approved}, the task has {came}")


def _short(digest: Digest | None) -> str:
    return "none" if digest is None else digest[:12]


def _is_at_least(asked: AskedProtection, approved: AskedProtection) -> bool:
    """A smaller bound and a larger noise multiplier are more."""
    if approved.max_norm is not None and (asked.max_norm is None or asked.max_norm > approved.max_norm):
        return False
    return asked.noise_multiplier >= approved.noise_multiplier
