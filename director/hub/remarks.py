"""What people say of plans and tasks, in threads that only grow, and reviewers' verdicts on plans.

A collaboration may ask for reviews: then no task of it starts, or goes on, unless so many of its organizations have a
reviewer who approved the plan, and none has one who rejects it. Each reviewer's latest verdict counts. It comes before
what the sites' data managers decide, and takes nothing of it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.exc import IntegrityError

from ...utils.errors import AgreementError, StorageError, UnknownEntityError
from ..database import reading, transaction
from .agreements import Collaboration
from .tables import REMARKS

_ATTEMPTS = 8  # of who speaks at the same moment as others


class Subject(Enum):
    """What a thread is about."""

    PLAN = "plan"  # by the SHA-256 of its manifest
    TASK = "task"  # by its run


class Verdict(Enum):
    """What a reviewer makes of a plan."""

    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that a user said."""

    subject: Subject
    about: str
    number: int  # in its thread, from 0
    user: str
    organization: str  # that the user acted for
    text: str
    created_at: float  # seconds since 1970
    verdict: Verdict | None = None  # of plans alone
    answers: int | None = None  # the number of an earlier remark


class Remarks:
    """The memory of threads; safe to share between threads and processes. What was said stays as it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def say(self, made: Callable[[int], Remark], write_down: Callable[[Remark], None]) -> Remark:
        """Put a remark at the end of its thread.

        Args:
            made: the remark, of the number that it gets.
            write_down: puts it into the audit log, or nothing is kept.

        Raises:
            UnknownEntityError: it answers what nobody said.
            StorageError: too many spoke at the same moment.
        """
        first = made(0)
        for _ in range(_ATTEMPTS):
            try:
                with transaction(self._engine) as connection:
                    query = select(func.max(REMARKS.c.number)).where(*_thread(first.subject, first.about))
                    last = connection.execute(query).scalar()
                    remark = made(0 if last is None else last + 1)
                    if remark.answers is not None and remark.answers >= remark.number:
                        raise UnknownEntityError(f"there is no remark {remark.answers} to answer")
                    connection.execute(insert(REMARKS), _row(remark))
                    write_down(remark)
                    return remark
            except IntegrityError:  # another took that number
                continue
        raise StorageError("others said something at the same moment; say it again")

    def thread(self, subject: Subject, about: str, after: int = -1, limit: int | None = None) -> tuple[Remark, ...]:
        """What was said of it, in order, from the first behind ``after`` on."""
        query = select(REMARKS).where(*_thread(subject, about), REMARKS.c.number > after).order_by(REMARKS.c.number)
        with reading(self._engine) as connection:
            return tuple(_remark(row) for row in connection.execute(query.limit(limit)).mappings())

    def all(self) -> tuple[Remark, ...]:
        """Every thread, one after the other."""
        query = select(REMARKS).order_by(REMARKS.c.subject, REMARKS.c.about, REMARKS.c.number)
        with reading(self._engine) as connection:
            return tuple(_remark(row) for row in connection.execute(query).mappings())


def check_reviewed(collaboration: Collaboration, remarks: Iterable[Remark]) -> None:
    """Was a plan reviewed as a collaboration asks for?

    Args:
        collaboration: that a task of the plan is of.
        remarks: on the plan, in order.

    Raises:
        AgreementError: not yet, or a reviewer rejects it.
    """
    if not collaboration.reviews_needed:
        return
    latest = {one.user: one for one in remarks if one.verdict and one.organization in collaboration.organizations}
    against = sorted({one.organization for one in latest.values() if one.verdict is Verdict.REJECTED})
    if against:
        raise AgreementError(f"a reviewer of {', '.join(against)} rejects the plan; see the remarks on it")
    approved = {one.organization for one in latest.values()}
    if len(approved) < collaboration.reviews_needed:
        raise AgreementError(
            f"collaboration {collaboration.name} asks for the word of reviewers of {collaboration.reviews_needed}"
            f" organizations on a plan; {len(approved)} approved this one"
        )


def _thread(subject: Subject, about: str) -> tuple[Any, ...]:
    return REMARKS.c.subject == subject.value, REMARKS.c.about == about


def _row(one: Remark) -> dict[str, Any]:
    row = {name: getattr(one, name) for name in Remark.__dataclass_fields__}
    return row | {"subject": one.subject.value, "verdict": one.verdict.value if one.verdict else None}


def _remark(row: Any) -> Remark:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    return Remark(**(dict(row) | {"subject": Subject(row["subject"]), "verdict": verdict}))
