"""A round is a value that moves forward.

    planned ──open──> open ──first update──> collecting ──due──> aggregating ──close──> closed
       └────────────────┴────────────────────────┴──────due──> failed

Pure: no I/O, no clock (``now`` is an argument, seconds since 1970), no randomness. Each function takes a round and
returns the next one; an event that changes nothing returns the very same round, so events may come twice and in
any order. What may not be said now raises and changes nothing. ``coordinator`` feeds the events and writes every
transition down before it acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ..utils.errors import DuplicateUpdateError, NotInvitedError, ProtocolError, WrongRoundError
from ..utils.messages import EnvoyName, TaskKind, TaskRef


class RoundState(Enum):
    """Where a round stands."""

    PLANNED = "planned"  # waits for enough envoys
    OPEN = "open"  # the cohort has its tasks
    COLLECTING = "collecting"  # at least one answer is here
    AGGREGATING = "aggregating"  # the set of answers is fixed
    CLOSED = "closed"
    FAILED = "failed"  # too few answers; another attempt may follow

    @property
    def is_over(self) -> bool:
        """Nothing moves it any more."""
        return self in (RoundState.CLOSED, RoundState.FAILED)

    @property
    def takes_answers(self) -> bool:
        """Updates, reports and refusals may come."""
        return self in (RoundState.OPEN, RoundState.COLLECTING)


class Stragglers(Enum):
    """What happens to envoys that take longer than the others."""

    WAIT = "wait"  # until everybody answered, was lost or declined, or the round timed out
    DROP = "drop"  # as soon as min_participants have answered


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """When a round may close.

    Raises:
        ValueError: less than one participant, or a timeout that is not positive.
    """

    min_participants: int
    timeout_seconds: float
    stragglers: Stragglers = Stragglers.WAIT

    def __post_init__(self) -> None:
        if self.min_participants < 1 or not self.timeout_seconds > 0:
            raise ValueError("a round needs at least one participant and a positive timeout")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what was asked, of whom, and who answered."""

    ref: TaskRef
    kind: TaskKind
    since: float  # when its present wait began: planned, or opened
    state: RoundState = RoundState.PLANNED
    cohort: frozenset[EnvoyName] = frozenset()
    received: frozenset[EnvoyName] = frozenset()
    declined: frozenset[EnvoyName] = frozenset()
    lost: frozenset[EnvoyName] = frozenset()
    reason: str = ""
    patches: int = 0  # of the run: how many there were when it was opened

    @property
    def waiting(self) -> frozenset[EnvoyName]:
        """Asked, and neither answered nor gone."""
        return self.cohort - self.received - self.declined - self.lost


def open_round(this: Round, cohort: frozenset[EnvoyName], policy: RoundPolicy, now: float, patches: int = 0) -> Round:
    """Give the round its cohort, and the patches that it goes by until it is over.

    Raises:
        ProtocolError: it is open or over already, or the cohort is smaller than the quorum.
    """
    if this.state is not RoundState.PLANNED:
        raise ProtocolError(f"{this.ref} is {this.state.value}; only a planned round can be opened")
    if len(cohort) < policy.min_participants:
        raise ProtocolError(f"{this.ref}: a cohort of {len(cohort)} cannot give {policy.min_participants} answers")
    return replace(this, state=RoundState.OPEN, cohort=cohort, since=now, patches=patches)


def check_voice(this: Round, ref: TaskRef, envoy: EnvoyName) -> None:
    """May this envoy say something about this task now?

    Raises:
        WrongRoundError: another run, round, attempt or plan is open, or the round is past answers.
        NotInvitedError: the envoy is not in the cohort.
    """
    _check_ref(this, ref, envoy)
    if envoy not in this.cohort:
        raise NotInvitedError(f"{envoy} was not asked to take part in {this.ref}")
    if not this.state.takes_answers:
        raise WrongRoundError(f"{this.ref} is {this.state.value} and takes no more answers; {envoy} came too late")


def check_answer(this: Round, ref: TaskRef, envoy: EnvoyName) -> None:
    """May this envoy answer this task now?

    Raises:
        WrongRoundError, NotInvitedError: as ``check_voice``.
        DuplicateUpdateError: it answered already.
    """
    _check_ref(this, ref, envoy)
    if envoy in this.received:
        raise DuplicateUpdateError(f"{envoy} already answered {this.ref}; one answer counts")
    check_voice(this, ref, envoy)


def receive(this: Round, ref: TaskRef, envoy: EnvoyName) -> Round:
    """An answer is here, whole and checked. One who had declined or was thought lost counts again.

    Raises:
        ProtocolError: as ``check_answer``.
    """
    check_answer(this, ref, envoy)
    return replace(
        this,
        state=RoundState.COLLECTING,
        received=this.received | {envoy},
        declined=this.declined - {envoy},
        lost=this.lost - {envoy},
    )


def decline(this: Round, ref: TaskRef, envoy: EnvoyName) -> Round:
    """The envoy will not answer.

    Raises:
        ProtocolError: as ``check_answer``.
    """
    check_answer(this, ref, envoy)
    if envoy in this.declined:
        return this
    return replace(this, declined=this.declined | {envoy}, lost=this.lost - {envoy})


def lose(this: Round, envoy: EnvoyName) -> Round:
    """The envoy's line is gone. What it already gave stays."""
    if not this.state.takes_answers or envoy not in this.waiting:
        return this
    return replace(this, lost=this.lost | {envoy})


def regain(this: Round, envoy: EnvoyName) -> Round:
    """The envoy is back before the round closed: it is waited for again."""
    if not this.state.takes_answers or envoy not in this.lost:
        return this
    return replace(this, lost=this.lost - {envoy})


def leave(this: Round, envoy: EnvoyName) -> Round:
    """The envoy goes no further in a secure sum, whatever it sent before."""
    if envoy in this.declined:
        return this
    return replace(this, declined=this.declined | {envoy}, lost=this.lost - {envoy})


def seal(this: Round) -> Round:
    """A secure sum can be opened: the set of answers is fixed.

    Raises:
        ProtocolError: the round takes no answers.
    """
    if not this.state.takes_answers:
        raise ProtocolError(f"{this.ref} is {this.state.value}; only a round that takes answers can be summed")
    return replace(this, state=RoundState.AGGREGATING)


def due(this: Round, policy: RoundPolicy, now: float, withheld: int = 0) -> Round:
    """Close, fail or wait: the one place that decides.

    Of the answers that are here, ``withheld`` hold no update: they count as received, so nobody waits for them, but
    the others are not dropped on their account. Whether enough is left to sum is for whoever sums.

    | state      | all answered or gone | timeout   | answers >= quorum | then        |
    |------------|----------------------|-----------|-------------------|-------------|
    | planned    |                      | yes       |                   | failed      |
    | collecting | yes                  |           | yes               | aggregating |
    | collecting |                      | yes       | yes               | aggregating |
    | open, collecting |                | yes       | no                | failed      |
    | open, collecting | so many declined that the quorum is out of reach |  | failed |
    | collecting, stragglers = drop     |           | without withheld  | aggregating |
    """
    timed_out = now - this.since >= policy.timeout_seconds
    if this.state is RoundState.PLANNED and timed_out:
        return _fail(
            this,
            f"fewer than {policy.min_participants} envoys that approved were there for {policy.timeout_seconds:g} s",
        )
    if not this.state.takes_answers:
        return this
    has_quorum = len(this.received) >= policy.min_participants
    may_drop = policy.stragglers is Stragglers.DROP and len(this.received) - withheld >= policy.min_participants
    if has_quorum and (timed_out or not this.waiting or may_drop):
        return replace(this, state=RoundState.AGGREGATING)
    answers = f"{len(this.received)} of {policy.min_participants} answers needed"
    if len(this.cohort - this.declined) < policy.min_participants:
        return _fail(this, f"{answers}: {len(this.declined)} of {len(this.cohort)} envoys declined")
    if timed_out:
        return _fail(this, f"{answers} came within {policy.timeout_seconds:g} s")
    return this


def close(this: Round) -> Round:
    """The sum is made and the new model kept.

    Raises:
        ProtocolError: the round is not aggregating.
    """
    if this.state is not RoundState.AGGREGATING:
        raise ProtocolError(f"{this.ref} is {this.state.value}; only an aggregating round can be closed")
    return replace(this, state=RoundState.CLOSED)


def fail(this: Round, reason: str) -> Round:
    """End the round without a model: its run was stopped, or its answers could not be summed."""
    return this if this.state.is_over else _fail(this, reason)


def resume(this: Round, now: float) -> Round:
    """After a restart of the director: nobody is lost before there was time to come back, and the wait begins anew."""
    return this if this.state.is_over else replace(this, lost=frozenset(), since=now)


def again(this: Round, now: float) -> Round:
    """The next attempt of a failed round.

    Raises:
        ProtocolError: the round did not fail.
    """
    if this.state is not RoundState.FAILED:
        raise ProtocolError(f"{this.ref} is {this.state.value}; only a failed round is tried again")
    ref = replace(this.ref, attempt=this.ref.attempt + 1)
    return Round(ref=ref, kind=this.kind, since=now)


def _fail(this: Round, reason: str) -> Round:
    return replace(this, state=RoundState.FAILED, reason=reason)


def _check_ref(this: Round, ref: TaskRef, envoy: EnvoyName) -> None:
    if ref != this.ref:
        plan = ", under another plan" if ref.plan != this.ref.plan else ""
        raise WrongRoundError(f"{this.ref} is {this.state.value}; {envoy} answers {ref}{plan}")
