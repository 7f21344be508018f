"""What a director that was stopped left under way: the run, its round, and the answers that have a receipt."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils import messages as m
from ..utils.artifacts import ArtifactStore
from ..utils.errors import FederationError
from . import rounds
from .active_run import ActiveRun, Kept
from .history import History
from .records import Ending, RoundRecord, RunState, SubmissionRecord
from .rounds import Round, RoundState
from .steering import lineage, opened_with
from .uploads import Uploads


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """A round to go on with."""

    run: ActiveRun
    round: Round
    answers: dict[m.EnvoyName, SubmissionRecord]
    damaged: str = ""  # why it cannot go on, if it cannot


def left_open(history: History, artifacts: ArtifactStore, uploads: Uploads, now: float) -> LeftOpen | None:
    """The round under way, if there is one. A run whose plan or model is gone fails here, alone."""
    record = next((r for r in history.runs() if r.state is RunState.RUNNING), None)
    current = history.current_round(record.run) if record is not None else None
    if record is None or current is None:  # a running run has a round that is not over
        return None
    told, steering = history.rounds(record.run), history.steering(record.run)
    line, past = lineage(told, steering), [r for r in told if _counts(r)]
    try:
        run = ActiveRun(record, artifacts, line[-1].optimizer_state if line else None, steering)
    except FederationError as error:
        ending = Ending(RunState.FAILED, f"{type(error).__name__}: {error}")
        history.fail_round(rounds.fail(current.round, ending.reason), now, None, ending)
        return None
    run.recall(line, len(past))
    run.patches = opened_with(told)
    run.kept = [Kept(r.round.ref.round, r.model_out, r.optimizer_state) for r in past if r.model_out is not None]
    resumed = rounds.resume(current.round, now)
    answers = {one.envoy: one for one in history.submissions(resumed.ref)}
    history.save_round(resumed, now)
    damaged = sorted(name for name, one in answers.items() if one.spool and not uploads.is_intact(one))
    reason = f"what {', '.join(damaged)} had sent is damaged on the director's disk" if damaged else ""
    return LeftOpen(run, resumed, answers, reason)


def _counts(record: RoundRecord) -> bool:
    return record.round.state is RoundState.CLOSED and record.round.kind is m.TaskKind.TRAIN
