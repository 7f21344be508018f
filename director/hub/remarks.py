"""What people say of plans and tasks, in threads that only grow; what reviewers' verdicts decide is ``reviews``'."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.exc import IntegrityError

from ...utils.errors import ProtocolError, StorageError, UnknownEntityError
from ..database import reading, transaction
from .tables import REMARKS

MOST_REMARKS = 10_000  # in one thread
MOST_WITH_VERDICTS = 11_000  # a thread that others filled still takes a reviewer's verdict
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


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a user thinks of a plan: the verdict that it gave last."""

    user: str
    organization: str  # that the user acted for
    verdict: Verdict


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
            ProtocolError: the thread is full.
            StorageError: too many spoke at the same moment.
        """
        first = made(0)
        for _ in range(_ATTEMPTS):
            try:
                with transaction(self._engine) as connection:
                    query = select(func.max(REMARKS.c.number)).where(*_thread(first.subject, first.about))
                    last = connection.execute(query).scalar()
                    remark = made(0 if last is None else last + 1)
                    if remark.number >= (MOST_WITH_VERDICTS if remark.verdict else MOST_REMARKS):
                        raise ProtocolError(f"this thread has {remark.number} remarks, and takes no more")
                    if remark.answers is not None and remark.answers >= remark.number:
                        raise UnknownEntityError(f"there is no remark {remark.answers} to answer")
                    connection.execute(insert(REMARKS), _row(remark))
                    write_down(remark)
                    return remark
            except IntegrityError:  # another took that number
                continue
        raise StorageError("others said something at the same moment; say it again")

    def thread(
        self,
        subject: Subject,
        about: str,
        after: int = -1,
        limit: int | None = None,
        by: Collection[str] | None = None,
    ) -> tuple[Remark, ...]:
        """What was said of it, in order, from the first behind ``after`` on.

        Args:
            subject: what kind of thing it is.
            about: which one.
            after: the number of a remark.
            limit: at most so many.
            by: only what was said for these organizations; None: for any.
        """
        query = select(REMARKS).where(*_thread(subject, about), REMARKS.c.number > after).order_by(REMARKS.c.number)
        if by is not None:
            query = query.where(REMARKS.c.organization.in_(sorted(by)))
        with reading(self._engine) as connection:
            return tuple(_remark(row) for row in connection.execute(query.limit(limit)).mappings())

    def verdicts(self, plan: str) -> tuple[Opinion, ...]:
        """What each who gave a verdict on a plan thinks of it now. Asked at every step of a run: no text is read."""
        given = *_thread(Subject.PLAN, plan), REMARKS.c.verdict.is_not(None)
        latest = select(func.max(REMARKS.c.number)).where(*given).group_by(REMARKS.c.user)
        query = select(REMARKS.c.user, REMARKS.c.organization, REMARKS.c.verdict)
        query = query.where(*_thread(Subject.PLAN, plan), REMARKS.c.number.in_(latest)).order_by(REMARKS.c.number)
        with reading(self._engine) as connection:
            return tuple(Opinion(one.user, one.organization, Verdict(one.verdict)) for one in connection.execute(query))

    def all(self) -> tuple[Remark, ...]:
        """Every thread, one after the other."""
        query = select(REMARKS).order_by(REMARKS.c.subject, REMARKS.c.about, REMARKS.c.number)
        with reading(self._engine) as connection:
            return tuple(_remark(row) for row in connection.execute(query).mappings())


def _thread(subject: Subject, about: str) -> tuple[Any, ...]:
    return REMARKS.c.subject == subject.value, REMARKS.c.about == about


def _row(one: Remark) -> dict[str, Any]:
    row = {name: getattr(one, name) for name in Remark.__dataclass_fields__}
    return row | {"subject": one.subject.value, "verdict": one.verdict.value if one.verdict else None}


def _remark(row: Any) -> Remark:
    verdict = Verdict(row["verdict"]) if row["verdict"] else None
    return Remark(**(dict(row) | {"subject": Subject(row["subject"]), "verdict": verdict}))
