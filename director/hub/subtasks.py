"""What a task is at each site: asked, approved, at work, done. Pure.

| state | when |
|---|---|
| expelled | it did not keep to what it had signed, and is not asked again in this task |
| done | the task is over, and an answer of it is in a round that was closed |
| over | the task is over, without it |
| working, answered, declined, lost | of the round under way, which asked it |
| approved | no round asks it now; its site approved the proposal, as far as it said so |
| proposed | its site did not approve it, or not yet |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from ...utils.messages import EnvoyName
from ..records import RoundRecord
from ..rounds import Round, RoundState


class SubtaskState(Enum):
    """Where one site stands with a task."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    WORKING = "working"
    ANSWERED = "answered"
    DECLINED = "declined"
    LOST = "lost"
    EXPELLED = "expelled"
    DONE = "done"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Subtask:
    """A task at one site."""

    envoy: EnvoyName
    state: SubtaskState


def subtasks(
    asked: Collection[EnvoyName],
    approved: Collection[EnvoyName],
    expelled: Collection[EnvoyName],
    rounds: Sequence[RoundRecord],
    *,
    is_over: bool,
) -> tuple[Subtask, ...]:
    """Of every site that a task asks or asked, by name.

    Args:
        asked: whom it may ask by now.
        approved: who of them said so.
        expelled: who is not asked again.
        rounds: all attempts so far, in their order.
        is_over: nothing moves the task any more.

    Guarantees (each has a property test):
        - every site that is asked, or was, has one state, and no other site has one;
        - once the task is over no site is at work;
        - a site is at work just while the round under way waits for it.
    """
    gave = frozenset().union(*(_in_result(one) for one in rounds))
    present = rounds[-1].round if rounds and not rounds[-1].round.state.is_over else None
    names = frozenset(asked).union(*(one.round.cohort for one in rounds), expelled)

    def state(envoy: EnvoyName) -> SubtaskState:
        if envoy in expelled:
            return SubtaskState.EXPELLED
        if is_over:
            return SubtaskState.DONE if envoy in gave else SubtaskState.OVER
        if present is not None and envoy in present.cohort:
            return _in_round(present, envoy)
        return SubtaskState.APPROVED if envoy in approved else SubtaskState.PROPOSED

    return tuple(Subtask(envoy, state(envoy)) for envoy in sorted(names))


def _in_round(this: Round, envoy: EnvoyName) -> SubtaskState:
    if envoy in this.declined:  # in a secure sum, whatever it sent before
        return SubtaskState.DECLINED
    if envoy in this.received:
        return SubtaskState.ANSWERED
    return SubtaskState.LOST if envoy in this.lost else SubtaskState.WORKING


def _in_result(record: RoundRecord) -> frozenset[EnvoyName]:
    """Whose answers are in what a round gave."""
    if record.round.state is not RoundState.CLOSED:
        return frozenset()
    return frozenset(record.sum.survivors) if record.sum is not None else record.round.received
