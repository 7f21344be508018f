"""Tasks: runs of a collaboration, each with whose it is and which agreement on data applies to it.

The row of a task and that of its run are written in one transaction, so neither is ever without the other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Connection, Engine, insert, select

from ...utils.errors import ConfigError, UnknownEntityError
from ...utils.messages import EnvoyName, RunId
from ..database import reading
from ..experiments import ExperimentSettings
from ..tables import ROUNDS
from .organizations import Status
from .tables import ENVOYS, ORGANIZATIONS, PARTIES, TASKS


@dataclass(frozen=True, slots=True)
class Task:
    """Whose run it is, and under what."""

    run: RunId
    collaboration: str
    organization: str
    user: str  # who started it
    processing: str  # the Data Processing or Joint Controller agreement that applies
    dataset: str | None  # that its plan reads; None: none
    created_at: float  # seconds since 1970


class Tasks:
    """The memory of tasks; safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @staticmethod
    def add(connection: Connection, task: Task) -> None:
        """Keep a task, in the transaction that queues its run."""
        connection.execute(insert(TASKS), asdict(task))

    def find(self, run: str) -> Task | None:
        """The task of a run; None where the run is none."""
        with reading(self._engine) as connection:
            row = connection.execute(select(TASKS).where(TASKS.c.run == run)).mappings().one_or_none()
        return None if row is None else Task(**row)

    def get(self, run: str) -> Task:
        """The same.

        Raises:
            UnknownEntityError: there is none.
        """
        task = self.find(run)
        if task is None:
            raise UnknownEntityError("there is no such task")
        return task

    def page(self, after: str, limit: int, *where: ColumnElement[bool]) -> tuple[Task, ...]:
        """At most so many of those, by id, from the first after ``after`` on."""
        query = select(TASKS).where(TASKS.c.run > after, *where).order_by(TASKS.c.run).limit(limit)
        with reading(self._engine) as connection:
            return tuple(Task(**row) for row in connection.execute(query).mappings())

    def of(self, collaboration: str) -> tuple[Task, ...]:
        """All of a collaboration, the oldest first."""
        query = select(TASKS).where(TASKS.c.collaboration == collaboration).order_by(TASKS.c.created_at, TASKS.c.run)
        with reading(self._engine) as connection:
            return tuple(Task(**row) for row in connection.execute(query).mappings())

    def envoys(self, collaboration: str) -> dict[EnvoyName, str]:
        """The envoys of the collaboration's active organizations, with whose each is."""
        query = (
            select(ENVOYS.c.name, ENVOYS.c.organization)
            .join(PARTIES, PARTIES.c.organization == ENVOYS.c.organization)
            .join(ORGANIZATIONS, ORGANIZATIONS.c.id == ENVOYS.c.organization)
            .where(PARTIES.c.collaboration == collaboration, ORGANIZATIONS.c.status == Status.ACTIVE.value)
        )
        with reading(self._engine) as connection:
            return {EnvoyName(row.name): row.organization for row in connection.execute(query)}

    def models_of(self, digests: Collection[str]) -> dict[str, frozenset[str]]:
        """Which of these digests are models, or optimizers' states, that rounds gave, and of which runs."""
        found: dict[str, frozenset[str]] = {}
        with reading(self._engine) as connection:
            for column in (ROUNDS.c.model_out, ROUNDS.c.optimizer_state):
                query = select(column.label("digest"), ROUNDS.c.run).where(column.in_(sorted(digests))).distinct()
                for row in connection.execute(query):
                    found[row.digest] = found.get(row.digest, frozenset()) | {row.run}
        return found


def check_asked(settings: ExperimentSettings, envoys: Collection[EnvoyName]) -> None:
    """Does an experiment ask and trust envoys of its collaboration alone?

    Raises:
        ConfigError: it names another one, which may or may not be there.
    """
    named = set(settings.study.sites) if settings.study is not None else set()
    if settings.is_secure and settings.secure_sum.summing_envoy:
        named.add(EnvoyName(settings.secure_sum.summing_envoy))
    if strange := sorted(named - set(envoys)):
        raise ConfigError(
            f"the experiment names {', '.join(strange)}, expected envoys of the collaboration's organizations:"
            f" {', '.join(sorted(envoys)) or 'they have none'}"
        )
