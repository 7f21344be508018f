"""Whether a task may go on: permit, agreements, reviews, organization, who started it and the data, as they are now."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Engine, select

from ...utils.errors import AgreementError, UnknownEntityError
from ...utils.identity import when
from ...utils.messages import EnvoyName, RunId
from ...utils.tensors import Digest
from ..database import reading
from ..revocations import Revocations
from ..tables import RUNS
from .agreements import Collaboration, check_may_start
from .collaborations import Agreements, collaborations
from .datasets import Dataset, named, withdrawn_envoys, withdrawn_since
from .organizations import Status, organizations
from .reviews import Reviews
from .tasks import Task, Tasks
from .users import users


class TaskMandates:
    """``mandates.Mandates`` of a federation whose organizations agreed on things. Runs that are no tasks go free.

    Args:
        engine: of the director's database; it is asked each time, since other processes write there too.
        needs_infrastructure_user: the federation's own rule.
    """

    def __init__(self, engine: Engine, *, needs_infrastructure_user: bool) -> None:
        self._engine, self._needs_infrastructure_user = engine, needs_infrastructure_user
        self._tasks, self._revocations = Tasks(engine), Revocations(engine)
        self._collaborations, self._agreements = collaborations(engine), Agreements(engine)
        self._organizations, self._users = organizations(engine), users(engine)
        self._reviews = Reviews(engine)

    def objection(self, run: RunId, now: float) -> str | None:
        """Why the run may not go on; None while it may.

        Raises:
            StorageError: the database does not answer.
        """
        task = self._tasks.find(run)
        if task is None:
            return None
        try:
            return self._of_people(task) or self._of_agreements(task, now) or self._of_data(task)
        except UnknownEntityError as error:  # the database was changed by hand; what nobody can look up allows nothing
            return f"what it was started under is gone: {error}"

    def among(self, run: RunId, envoys: Collection[EnvoyName]) -> frozenset[EnvoyName]:
        """Of these, the envoys of the active organizations of its collaboration; all, where the run is no task.

        Those that withdrew the data which the task reads are not among them.

        Raises:
            StorageError: the database does not answer.
        """
        task = self._tasks.find(run)
        if task is None:
            return frozenset(envoys)
        members = frozenset(envoys) & self._tasks.envoys(task.collaboration).keys()
        return members - withdrawn_envoys(self._offered(task))

    def _of_people(self, task: Task) -> str | None:
        organization, user = self._organizations.get(task.organization), self._users.get(task.user)
        if organization.status is not Status.ACTIVE:
            return f"organization {organization.name}, whose task it is, is {organization.status.value}"
        if user.disabled_at is not None:
            return f"user {user.name}, who started it, is disabled"
        revoked_at = self._revocations.since(user.name)
        if revoked_at is not None:
            return f"user {user.name}, who started it, was revoked on {when(revoked_at)}"
        return None

    def _of_agreements(self, task: Task, now: float) -> str | None:
        collaboration = self._collaborations.get(task.collaboration)
        try:
            self._check_reviewed(task, collaboration)
            processing = check_may_start(
                collaboration,
                self._agreements.about(collaboration),
                task.organization,
                task.dataset,
                now,
                needs_infrastructure_user=self._needs_infrastructure_user,
            )
        except AgreementError as error:
            return str(error)
        began = self._agreements.get(task.processing)
        if processing.kind is not began.kind:
            return (
                f"it was started under a {began.kind.value} agreement, and a {processing.kind.value} agreement is in"
                " force now; start it anew"
            )
        return None

    def _check_reviewed(self, task: Task, collaboration: Collaboration) -> None:
        if not collaboration.reviews_needed:
            return
        with reading(self._engine) as connection:
            plan = connection.execute(select(RUNS.c.plan).where(RUNS.c.id == task.run)).scalar_one()
        self._reviews.check(collaboration, Digest(plan), task.user)

    def _of_data(self, task: Task) -> str | None:
        return withdrawn_since(self._offered(task), task.created_at)

    def _offered(self, task: Task) -> tuple[Dataset, ...]:
        if task.dataset is None:
            return ()
        return named(self._engine, task.dataset, self._collaborations.get(task.collaboration).organizations)
