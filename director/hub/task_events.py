"""What happened to a task, as a list that only grows: made anew from its run, rounds and patches each time. Pure.

Each event has an id that says what it is of (``3.1.closed``: round 3, attempt 1), so whoever was cut off goes on after
the last one that it had, also with a director that was started anew meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...utils.proposal import Patch, Step
from ..records import RoundRecord, RunRecord, RunState


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One thing that happened."""

    id: str  # "": how far the present round is; it is told as it goes, and not again
    kind: str  # state, round or metrics
    data: dict[str, Any]
    at: float  # seconds since 1970


def events_of(
    run: RunRecord, rounds: Sequence[RoundRecord], patches: Sequence[tuple[Patch, float]]
) -> tuple[TaskEvent, ...]:
    """All that happened so far, in order.

    Args:
        run: as it is.
        rounds: all attempts, in order.
        patches: in order, with when each was taken.

    Guarantees (each has a property test):
        - ids come once, and what was told stays in its place as the task goes on;
        - the end of the task comes last, and only then.
    """
    found = [TaskEvent("queued", "state", {"state": RunState.QUEUED.value}, run.submitted_at)]
    if run.started_at is not None:
        found.append(TaskEvent("running", "state", {"state": RunState.RUNNING.value}, run.started_at))
    for record in rounds:
        found += _of_round(record)
    found += _of_patches(run, patches)
    found.sort(key=lambda one: one.at)  # stable: of one moment, in the order from above
    if run.state.is_over:
        data = {"state": run.state.value, "reason": run.reason}
        found.append(TaskEvent(run.state.value, "state", data, run.ended_at or found[-1].at))
    return tuple(found)


def progress_of(rounds: Sequence[RoundRecord]) -> TaskEvent | None:
    """How far the present round is; None where none is open."""
    record = rounds[-1] if rounds else None
    if record is None or record.round.state.is_over or record.opened_at is None:
        return None
    return TaskEvent("", "round", _round(record) | {"received": len(record.round.received)}, record.opened_at)


def after(events: Sequence[TaskEvent], last_id: str) -> tuple[TaskEvent, ...]:
    """Those after the one of that id; all, where there is none of it."""
    place = next((number for number, one in enumerate(events, 1) if last_id and one.id == last_id), 0)
    return tuple(events[place:])


def _of_round(record: RoundRecord) -> list[TaskEvent]:
    this, found = record.round, []
    place = f"{this.ref.round}.{this.ref.attempt}"
    if record.opened_at is not None:
        found.append(TaskEvent(f"{place}.open", "round", _round(record) | {"state": "open"}, record.opened_at))
    if not this.state.is_over or record.closed_at is None:
        return found
    result = {
        "received": len(this.received),
        "model_digest": record.model_out,
        "reason": this.reason,
        "survivors": None if record.sum is None else sorted(record.sum.survivors),
        "seconds": record.closed_at - (this.since if record.opened_at is None else record.opened_at),
    }
    found.append(TaskEvent(f"{place}.{this.state.value}", "round", _round(record) | result, record.closed_at))
    metrics = {one.name: one.value for one in record.metrics if one.value is not None}
    if metrics:
        data = {"round": this.ref.round, "attempt": this.ref.attempt, "kind": this.kind.value, "metrics": metrics}
        found.append(TaskEvent(f"{place}.metrics", "metrics", data, record.closed_at))
    return found


def _round(record: RoundRecord) -> dict[str, Any]:
    this = record.round
    return {
        "round": this.ref.round,
        "attempt": this.ref.attempt,
        "kind": this.kind.value,
        "state": this.state.value,
        "invited": len(this.cohort),
    }


def _of_patches(run: RunRecord, patches: Sequence[tuple[Patch, float]]) -> list[TaskEvent]:
    found, is_paused = [], False
    for patch, at in patches:
        is_paused = patch.step is Step.PAUSE or (is_paused and patch.step is not Step.RESUME)
        has_begun = run.started_at is not None and run.started_at <= at
        data = {
            "state": "paused" if is_paused else (RunState.RUNNING if has_begun else RunState.QUEUED).value,
            "patch": patch.number,
            "step": patch.step.value,
            "reason": patch.reason,
        }
        found.append(TaskEvent(f"patch-{patch.number}", "state", data, at))
    return found
