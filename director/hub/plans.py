"""Plans that users brought, and whose they are; what is in them is an artifact, by the SHA-256 of its manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from ...utils.tensors import Digest
from ..database import reading, transaction
from ..tables import RUNS
from .tables import PLANS, SHOWN_PLANS, TASKS


@dataclass(frozen=True, slots=True)
class Brought:
    """That somebody brought a plan."""

    plan: Digest
    user: str
    organization: str
    created_at: float  # seconds since 1970


class Plans:
    """The memory of who brought which plan; safe to share between threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def bring(self, brought: Brought, write_down: Callable[[], None]) -> None:
        """A user brings a plan; the second time nothing changes."""
        values = {name: getattr(brought, name) for name in Brought.__dataclass_fields__}
        if any(one.user == brought.user for one in self.of(brought.plan)):
            return
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(PLANS), values)
                write_down()
        except IntegrityError:  # the same user, at the same moment
            return

    def of(self, plan: Digest) -> tuple[Brought, ...]:
        """Who brought it, the first one first."""
        query = select(PLANS).where(PLANS.c.plan == plan).order_by(PLANS.c.created_at, PLANS.c.user)
        with reading(self._engine) as connection:
            return tuple(Brought(**row) for row in connection.execute(query).mappings())

    def show(self, plan: Digest, collaboration: str, now: float, write_down: Callable[[], None]) -> None:
        """A collaboration may see a plan from now on; the second time nothing changes."""
        try:
            with transaction(self._engine) as connection:
                values = {"plan": plan, "collaboration": collaboration, "shown_at": now}
                connection.execute(insert(SHOWN_PLANS), values)
                write_down()
        except IntegrityError:
            return

    def shown(self) -> frozenset[Digest]:
        """All that were shown to some collaboration."""
        with reading(self._engine) as connection:
            found = connection.execute(select(SHOWN_PLANS.c.plan).distinct()).scalars()
            return frozenset(map(Digest, found))

    def collaborations(self, plan: Digest) -> frozenset[str]:
        """Those with a task of it, and those that it is shown to."""
        run = select(TASKS.c.collaboration).join(RUNS, RUNS.c.id == TASKS.c.run).where(RUNS.c.plan == plan)
        shown = select(SHOWN_PLANS.c.collaboration).where(SHOWN_PLANS.c.plan == plan)
        with reading(self._engine) as connection:
            return frozenset(connection.execute(run.union(shown)).scalars())
