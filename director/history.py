"""What happened to every run and round: the one writer of these tables, and what a restarted director goes on from.

Each method is one transaction, so that a kill -9 at any instant leaves the state before it or the state after it.
What single sites answered (their metrics, their number of examples) is kept while a round is open and deleted in the
transaction that ends it: only sums stay. Decides nothing: ``rounds`` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Update, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ..utils.errors import DuplicateUpdateError, ProtocolError
from ..utils.messages import EnvoyName, RunId, TaskRef
from ..utils.metrics import MetricSum
from ..utils.proposal import Patch, patch_of
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest
from .database import reading, transaction
from .records import (
    Ending,
    Published,
    RoundRecord,
    RunRecord,
    RunState,
    SubmissionRecord,
    SumRecord,
    metrics_values,
    published,
    round_record,
    round_values,
    run_record,
    run_values,
    submission_record,
    submission_values,
    sum_values,
)
from .rounds import Round, RoundState
from .steering import Steering
from .tables import FAIRNESS, PATCHES, ROUNDS, RUNS, SUBMISSIONS

__all__ = ["Ending", "History", "RoundRecord", "RunRecord", "RunState", "SubmissionRecord"]


class History:
    """Runs, rounds and answers; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()

    @contextmanager
    def _transition(self, name: str) -> Iterator[Connection]:  # noqa: ARG002 - for tests that stop in the middle
        """The one place through which every change passes; committed at its end.

        Threads take turns here, since SQLite would let them sleep before they try again.
        """
        with self._turn, transaction(self._engine) as connection:
            yield connection

    # Runs.

    def enqueue(self, record: RunRecord, also: Callable[[Connection], None] = lambda _: None) -> None:
        """Put a run at the end of the queue, with what ``also`` keeps of it: both, or neither.

        Raises:
            ProtocolError: a run of that name was submitted before.
        """
        try:
            with self._transition("enqueue") as connection:
                connection.execute(_INSERT_RUN, run_values(record))
                also(connection)
        except IntegrityError as error:
            raise ProtocolError(f"{record.run} was submitted before; a run's id is used once") from error

    def runs(self) -> tuple[RunRecord, ...]:
        """All runs, in the order in which they were submitted."""
        with reading(self._engine) as connection:
            return tuple(map(run_record, connection.execute(_SELECT_RUNS)))

    def run(self, run: RunId) -> RunRecord:
        """One run.

        Raises:
            ProtocolError: there is none of that id.
        """
        with reading(self._engine) as connection:
            row = connection.execute(_SELECT_RUN, {"key_run": run}).one_or_none()
        if row is None:
            raise ProtocolError(f"there is no run {run}; `director experiment list` shows those there are")
        return run_record(row)

    def start_run(self, run: RunId, now: float, first: Round, groups: tuple[tuple[EnvoyName, ...], ...] = ()) -> None:
        """The run leaves the queue with its first round planned, and with the groups that are summed apart.

        Raises:
            ProtocolError: it is not queued.
        """
        with self._transition("start_run") as connection:
            kept = [list(group) for group in groups] or None
            values = {"key_run": run, "state": RunState.RUNNING.value, "started_at": now, "sum_groups": kept}
            if not connection.execute(_START_RUN, values).rowcount:
                raise ProtocolError(f"{run} is not queued; only a queued run can start")
            _plan_round(connection, first)

    def finish_run(self, run: RunId, ending: Ending, now: float) -> None:
        """A run ends that has no open round; one that has ends with its round.

        Raises:
            ProtocolError: it is over already, or unknown.
        """
        with self._transition("finish_run") as connection:
            _end_run(connection, run, ending, now)

    def expel(self, run: RunId, expelled: Mapping[EnvoyName, str]) -> None:
        """Keep who is not asked again in this run, and why: all of them."""
        with self._transition("expel") as connection:
            connection.execute(_EXPEL, {"key_run": run, "expelled": dict(expelled)})

    def add_traffic(self, run: RunId, up: int, down: int) -> None:
        """Count bytes that went from envoys to the director (up) and back (down)."""
        with self._transition("add_traffic") as connection:
            connection.execute(_ADD_TRAFFIC, {"key_run": run, "up": up, "down": down})

    # Patches.

    def add_patch(self, patch: Patch, document: SignedDocument, now: float) -> None:
        """Keep a patch, before it takes effect.

        Raises:
            ProtocolError: the run has one of that number.
        """
        values = {"run": patch.run, "number": patch.number, "taken_at": now}
        signed = {"content": document.content, "signature": document.signature, "chain": document.chain}
        try:
            with self._transition("add_patch") as connection:
                connection.execute(_INSERT_PATCH, values | signed)
        except IntegrityError as error:
            raise ProtocolError(f"patch {patch.number} of {patch.run} is taken; look at the run again") from error

    def steering(self, run: RunId) -> Steering:
        """All patches of a run, in order."""
        with reading(self._engine) as connection:
            rows = connection.execute(_SELECT_PATCHES, {"key_run": run}).all()
        documents = tuple(SignedDocument(row.content, row.signature, row.chain) for row in rows)
        return Steering(tuple(patch_of(one.content) for one in documents), documents)

    def patched_at(self, run: RunId) -> tuple[float, ...]:
        """When each patch of a run was taken, in order; seconds since 1970."""
        with reading(self._engine) as connection:
            return tuple(row.taken_at for row in connection.execute(_SELECT_PATCHES, {"key_run": run}))

    # Rounds.

    def save_round(self, this: Round, now: float, model: Digest | None = None) -> None:
        """Keep where the round stands; a round that was not there begins from the run's latest model.

        Args:
            this: the round, not over.
            now: seconds since 1970.
            model: after a rollback, what the round begins with and what is the run's from now on.

        Raises:
            ProtocolError: it is over.
        """
        if this.state.is_over:
            raise ValueError(f"{this.ref} is {this.state.value}: that is what close_round and fail_round are for")
        try:
            with self._transition("save_round") as connection:
                if model is not None:
                    connection.execute(_UPDATE_MODEL, {"key_run": this.ref.run, "model": model})
                    connection.execute(_UPDATE_MODEL_IN, _key(this.ref) | {"model_in": model})
                if not connection.execute(_UPDATE_ROUND, _state_values(this, now)).rowcount:
                    _plan_round(connection, this, opened_at=now if this.cohort else None)
        except IntegrityError as error:
            raise ProtocolError(f"{this.ref} is over; it cannot be {this.state.value} again") from error

    def add_submission(self, submission: SubmissionRecord, this: Round) -> None:
        """Keep an answer together with the round that has it.

        Raises:
            DuplicateUpdateError: the envoy's answer to this task is here already.
        """
        if submission.ref != this.ref or submission.envoy not in this.received:
            raise ValueError(f"the answer of {submission.envoy} to {submission.ref} is not in {this.ref}")
        try:
            with self._transition("add_submission") as connection:
                connection.execute(_INSERT_SUBMISSION, submission_values(submission))
                if submission.fairness is not None:
                    told = {"content": submission.fairness.content, "signature": submission.fairness.signature}
                    connection.execute(_INSERT_FAIRNESS, _place(submission.ref) | {"envoy": submission.envoy} | told)
                _move(connection, _UPDATE_ROUND, _state_values(this, this.since))
        except IntegrityError as error:
            raise DuplicateUpdateError(f"{submission.envoy} already answered {this.ref}; one answer counts") from error

    def submissions(self, ref: TaskRef) -> tuple[SubmissionRecord, ...]:
        """The answers to a task, by name of the envoy: in the order in which they are summed."""
        with reading(self._engine) as connection:
            rows = connection.execute(_SELECT_SUBMISSIONS, _key(ref)).all()
        return tuple(sorted((submission_record(ref, row) for row in rows), key=lambda record: record.envoy))

    def published(self, run: RunId) -> dict[tuple[int, int], dict[EnvoyName, Published]]:
        """What sites told of their privacy ledgers and leak tests, by round and attempt."""
        told: dict[tuple[int, int], dict[EnvoyName, Published]] = {}
        with reading(self._engine) as connection:
            for row in connection.execute(_SELECT_PUBLISHED, {"key_run": run}):
                one = published(row)
                if one != Published():
                    told.setdefault((row.round, row.attempt), {})[EnvoyName(row.envoy)] = one
        return told

    def fairness(self, run: RunId) -> dict[tuple[int, int], dict[EnvoyName, SignedDocument]]:
        """What sites published by subgroups, by round and attempt, as they signed it."""
        told: dict[tuple[int, int], dict[EnvoyName, SignedDocument]] = {}
        with reading(self._engine) as connection:
            for row in connection.execute(_SELECT_FAIRNESS, {"key_run": run}):
                document = SignedDocument(row.content, row.signature, b"")
                told.setdefault((row.round, row.attempt), {})[EnvoyName(row.envoy)] = document
        return told

    def close_round(
        self,
        this: Round,
        *,
        model_out: Digest | None,
        metrics: tuple[MetricSum, ...],
        optimizer_state: Digest | None,
        num_examples: int,
        now: float,
        next_round: Round | None,
        ending: Ending | None = None,
        secure_sum: SumRecord | None = None,
        run_model: Digest | None = None,
    ) -> None:
        """The round is closed, its model is the run's, single sites' values are deleted, and it goes on or ends.

        Args:
            this: the round, closed.
            model_out: the new model; None after an evaluation, which leaves the run's model as it is.
            metrics: summed over sites.
            optimizer_state: the server optimizer's state after this round; None if it has none.
            num_examples: summed over sites.
            now: seconds since 1970.
            next_round: planned; None if the run ends here.
            ending: of the run, if it ends here.
            secure_sum: what a secure sum leaves; None without one.
            run_model: the run's from now on, where it is not ``model_out``: it ends here, and was rolled back.
        """
        if this.state is not RoundState.CLOSED:
            raise ValueError(f"{this.ref} is {this.state.value}, not closed")
        result = {
            "model_out": model_out,
            "metrics": metrics_values(metrics),
            "optimizer_state": optimizer_state,
            "num_examples": num_examples,
            "closed_at": now,
            "secure_sum": sum_values(secure_sum),
        }
        with self._transition("close_round") as connection:
            _move(connection, _CLOSE_ROUND, _state_values(this, now) | result)
            if model_out is not None:
                connection.execute(_UPDATE_MODEL, {"key_run": this.ref.run, "model": run_model or model_out})
            connection.execute(_SCRUB, _key(this.ref) | _NOTHING)
            if next_round is not None:
                _plan_round(connection, next_round)
            if ending is not None:
                _end_run(connection, this.ref.run, ending, now)

    def fail_round(self, this: Round, now: float, next_round: Round | None, ending: Ending | None = None) -> None:
        """The round failed, single sites' values are deleted, and its next attempt is planned or the run ends."""
        if this.state is not RoundState.FAILED:
            raise ValueError(f"{this.ref} is {this.state.value}, not failed")
        with self._transition("fail_round") as connection:
            _move(connection, _FAIL_ROUND, _state_values(this, now) | {"closed_at": now})
            connection.execute(_SCRUB, _key(this.ref) | _NOTHING)
            if next_round is not None:
                _plan_round(connection, next_round)
            if ending is not None:
                _end_run(connection, this.ref.run, ending, now)

    def rounds(self, run: RunId) -> tuple[RoundRecord, ...]:
        """Every attempt at every round of a run, in order."""
        with reading(self._engine) as connection:
            return tuple(map(round_record, connection.execute(_SELECT_ROUNDS, {"key_run": run})))

    def current_round(self, run: RunId) -> RoundRecord | None:
        """The run's last round, if it is not over."""
        with reading(self._engine) as connection:
            row = connection.execute(_SELECT_LAST_ROUND, {"key_run": run}).one_or_none()
        record = None if row is None else round_record(row)
        return None if record is None or record.round.state.is_over else record


# Statements are built once: building one takes longer than SQLite needs to do it.

_THIS_RUN = RUNS.c.id == bindparam("key_run")
_THIS_ROUND = (
    (ROUNDS.c.run == bindparam("key_run"))
    & (ROUNDS.c.number == bindparam("key_round"))
    & (ROUNDS.c.attempt == bindparam("key_attempt"))
)
_IS_MOVING = ROUNDS.c.state.in_([state.value for state in RoundState if not state.is_over])
_THIS_TASK = (
    (SUBMISSIONS.c.run == bindparam("key_run"))
    & (SUBMISSIONS.c.round == bindparam("key_round"))
    & (SUBMISSIONS.c.attempt == bindparam("key_attempt"))
)
_STATE: dict[str, Any] = {
    column: bindparam(column)
    for column in ("state", "since", "cohort", "received", "declined", "lost", "reason", "patches")
} | {"opened_at": func.coalesce(ROUNDS.c.opened_at, bindparam("new_opened_at"))}

_INSERT_RUN = insert(RUNS)
_SELECT_RUNS = select(RUNS).order_by(RUNS.c.number)
_SELECT_RUN = select(RUNS).where(_THIS_RUN)
_START_RUN = (
    update(RUNS)
    .where(_THIS_RUN, RUNS.c.state == RunState.QUEUED.value)
    .values({name: bindparam(name) for name in ("state", "started_at", "sum_groups")})
)
_FINISH_RUN = (
    update(RUNS)
    .where(_THIS_RUN, RUNS.c.state.in_([RunState.QUEUED.value, RunState.RUNNING.value]))
    .values(state=bindparam("state"), reason=bindparam("reason"), ended_at=bindparam("ended_at"))
)
_ADD_TRAFFIC = (
    update(RUNS)
    .where(_THIS_RUN)
    .values(bytes_up=RUNS.c.bytes_up + bindparam("up"), bytes_down=RUNS.c.bytes_down + bindparam("down"))
)
_EXPEL = update(RUNS).where(_THIS_RUN).values(expelled=bindparam("expelled"))
_SELECT_MODEL = select(RUNS.c.model).where(_THIS_RUN)
_UPDATE_MODEL = update(RUNS).where(_THIS_RUN).values(model=bindparam("model"))
_UPDATE_MODEL_IN = update(ROUNDS).where(_THIS_ROUND, _IS_MOVING).values(model_in=bindparam("model_in"))
_INSERT_PATCH = insert(PATCHES)
_SELECT_PATCHES = select(PATCHES).where(PATCHES.c.run == bindparam("key_run")).order_by(PATCHES.c.number)
_INSERT_ROUND = insert(ROUNDS)
_UPDATE_ROUND = update(ROUNDS).where(_THIS_ROUND, _IS_MOVING).values(_STATE)
_FAIL_ROUND = update(ROUNDS).where(_THIS_ROUND, _IS_MOVING).values(_STATE | {"closed_at": bindparam("closed_at")})
_CLOSE_ROUND = (
    update(ROUNDS)
    .where(_THIS_ROUND, _IS_MOVING)
    .values(
        _STATE
        | {
            column: bindparam(column)
            for column in ("model_out", "metrics", "optimizer_state", "num_examples", "closed_at", "secure_sum")
        }
    )
)
_SELECT_ROUNDS = select(ROUNDS).where(ROUNDS.c.run == bindparam("key_run")).order_by(ROUNDS.c.number, ROUNDS.c.attempt)
_SELECT_LAST_ROUND = (
    select(ROUNDS)
    .where(ROUNDS.c.run == bindparam("key_run"))
    .order_by(ROUNDS.c.number.desc(), ROUNDS.c.attempt.desc())
    .limit(1)
)
_INSERT_SUBMISSION = insert(SUBMISSIONS)
_SELECT_SUBMISSIONS = select(SUBMISSIONS).where(_THIS_TASK)
_PUBLISHED = [SUBMISSIONS.c[name] for name in ("round", "attempt", "envoy", "privacy", "leakage_score")]
_SELECT_PUBLISHED = (
    select(*_PUBLISHED)
    .where(SUBMISSIONS.c.run == bindparam("key_run"))
    .order_by(SUBMISSIONS.c.round, SUBMISSIONS.c.attempt, SUBMISSIONS.c.envoy)
)
_INSERT_FAIRNESS = insert(FAIRNESS)
_SELECT_FAIRNESS = (
    select(FAIRNESS)
    .where(FAIRNESS.c.run == bindparam("key_run"))
    .order_by(FAIRNESS.c.round, FAIRNESS.c.attempt, FAIRNESS.c.envoy)
)
_NOTHING = {"num_examples": None, "metrics": None}
_SCRUB = (
    update(SUBMISSIONS).where(_THIS_TASK).values(num_examples=bindparam("num_examples"), metrics=bindparam("metrics"))
)
_SCRUB_RUN = (
    update(SUBMISSIONS)
    .where(SUBMISSIONS.c.run == bindparam("key_run"), SUBMISSIONS.c.num_examples.is_not(None))
    .values(num_examples=bindparam("num_examples"), metrics=bindparam("metrics"))
)


def _plan_round(connection: Connection, this: Round, opened_at: float | None = None) -> None:
    model = connection.execute(_SELECT_MODEL, {"key_run": this.ref.run}).scalar_one_or_none()
    if model is None:
        raise ProtocolError(f"there is no run {this.ref.run} for {this.ref}")
    connection.execute(
        _INSERT_ROUND,
        {
            "run": this.ref.run,
            "number": this.ref.round,
            "attempt": this.ref.attempt,
            "plan": this.ref.plan,
            "kind": this.kind.value,
            "model_in": model,
            "model_out": None,
            "optimizer_state": None,
            "metrics": [],
            "num_examples": 0,
            "opened_at": opened_at,
            "closed_at": None,
        }
        | round_values(this),
    )


def _end_run(connection: Connection, run: RunId, ending: Ending, now: float) -> None:
    values = {"key_run": run, "state": ending.state.value, "reason": ending.reason, "ended_at": now}
    if not connection.execute(_FINISH_RUN, values).rowcount:
        raise ProtocolError(f"{run} is over already, or unknown; it cannot be {ending.state.value}")
    connection.execute(_SCRUB_RUN, {"key_run": run} | _NOTHING)


def _move(connection: Connection, statement: Update, values: dict[str, Any]) -> None:
    if not connection.execute(statement, values).rowcount:
        raise ProtocolError(f"round {values['key_round']} of {values['key_run']} is over, or was never planned")


def _place(ref: TaskRef) -> dict[str, Any]:
    return {"run": ref.run, "round": ref.round, "attempt": ref.attempt}


def _key(ref: TaskRef) -> dict[str, Any]:
    return {"key_run": ref.run, "key_round": ref.round, "key_attempt": ref.attempt}


def _state_values(this: Round, now: float) -> dict[str, Any]:
    return _key(this.ref) | round_values(this) | {"new_opened_at": now if this.cohort else None}
