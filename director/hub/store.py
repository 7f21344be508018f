"""How the hub's things are kept: each a row with an id and a version, changed only by who saw that version."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from ...utils.errors import ChangedMeanwhileError, NameTakenError, UnknownEntityError
from ..database import reading, transaction


class Entity(Protocol):
    """A frozen dataclass with these fields."""

    @property
    def id(self) -> str:
        """Random; see ``new_id``."""

    @property
    def version(self) -> int:
        """From 1."""


Thing = TypeVar("Thing", bound=Entity)


def new_id() -> str:
    """Of anything that is kept: 96 random bits, so that ids cannot be guessed."""
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class Store(Generic[Thing]):
    """One table of things; safe to share between threads and processes.

    Args:
        engine: of the director's database.
        table: with columns ``id`` and ``version``.
        noun: what one is called in errors.
        read: a thing from its row.
        row: the other way.
        also: what else is kept of a thing that was added or changed, in the same transaction.
    """

    engine: Engine
    table: Table
    noun: str
    read: Callable[[RowMapping], Thing]
    row: Callable[[Thing], dict[str, Any]]
    also: Callable[[Connection, Thing], None] = lambda _, __: None

    def add(
        self,
        thing: Thing,
        write_down: Callable[[], None] = lambda: None,
        more: Callable[[Connection], None] = lambda _: None,
    ) -> Thing:
        """Remember a new one.

        Args:
            thing: the new one.
            write_down: puts it into the audit log; if it raises, nothing is kept.
            more: keeps what belongs to it, in the same transaction.

        Raises:
            NameTakenError: another has a name or number that one alone may have.
        """
        try:
            with transaction(self.engine) as connection:
                connection.execute(insert(self.table), self.row(thing))
                self.also(connection, thing)
                more(connection)
                write_down()
        except IntegrityError as error:
            raise NameTakenError(f"there is another {self.noun} of that name, or what it refers to is gone") from error
        return thing

    def get(self, id_: str) -> Thing:
        """The one of that id.

        Raises:
            UnknownEntityError: there is none.
        """
        with reading(self.engine) as connection:
            return self._get(connection, id_)

    def first(self, *where: ColumnElement[bool]) -> Thing | None:
        """One of those, if there is any."""
        with reading(self.engine) as connection:
            row = connection.execute(select(self.table).where(*where).limit(1)).mappings().first()
        return None if row is None else self.read(row)

    def all(self, *where: ColumnElement[bool]) -> tuple[Thing, ...]:
        """All of those, by id."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(self.table).where(*where).order_by(self.table.c.id)).mappings()
            return tuple(self.read(row) for row in rows)

    def page(self, after: str, limit: int, *where: ColumnElement[bool]) -> tuple[Thing, ...]:
        """At most so many of those, by id, from the first after ``after`` on."""
        query = select(self.table).where(self.table.c.id > after, *where).order_by(self.table.c.id).limit(limit)
        with reading(self.engine) as connection:
            return tuple(self.read(row) for row in connection.execute(query).mappings())

    def among(self, ids: Iterable[str]) -> ColumnElement[bool]:
        """Only these."""
        return self.table.c.id.in_(sorted(ids))

    def change(
        self,
        id_: str,
        seen: int,
        write_down: Callable[[Thing], None],
        more: Callable[[Connection], None] = lambda _: None,
        **changes: Any,
    ) -> Thing:
        """Change some fields of one.

        Args:
            id_: which.
            seen: the version that the change was decided on.
            write_down: puts what it becomes into the audit log; if it raises, nothing was changed.
            more: changes what belongs to it, in the same transaction.
            changes: the fields, by name.

        Raises:
            UnknownEntityError: there is none.
            ChangedMeanwhileError: somebody else changed it since.
            NameTakenError: as ``add``.
        """
        try:
            with transaction(self.engine) as connection:
                before = self._get(connection, id_)
                after = replace(before, **changes, version=seen + 1)  # type: ignore[type-var] # each is a dataclass
                of_seen = self.table.c.id == id_, self.table.c.version == seen
                was = self.row(before)
                # What stays is not written: a sign-in may count an attempt meanwhile, which changes no version.
                values = {name: value for name, value in self.row(after).items() if value != was[name]}
                made = update(self.table).where(*of_seen).values(values | {"version": seen + 1})
                if not connection.execute(made).rowcount:
                    raise self._changed(before.version, seen)
                self.also(connection, after)
                more(connection)
                write_down(after)
        except IntegrityError as error:
            raise NameTakenError(f"there is another {self.noun} of that name, or what it refers to is gone") from error
        return after

    def remove(
        self, id_: str, seen: int, write_down: Callable[[], None], before: Callable[[Connection], None] = lambda _: None
    ) -> None:
        """Forget one.

        Args:
            id_: which.
            seen: as ``change``.
            write_down: as ``change``.
            before: takes away what refers to it, in the same transaction.

        Raises:
            UnknownEntityError, ChangedMeanwhileError: as ``change``.
            NameTakenError: something refers to it.
        """
        try:
            with transaction(self.engine) as connection:
                present = self._get(connection, id_).version
                before(connection)
                gone = delete(self.table).where(self.table.c.id == id_, self.table.c.version == seen)
                if not connection.execute(gone).rowcount:
                    raise self._changed(present, seen)
                write_down()
        except IntegrityError as error:
            raise NameTakenError(f"something refers to this {self.noun}") from error

    def _changed(self, present: int, seen: int) -> ChangedMeanwhileError:
        return ChangedMeanwhileError(f"this {self.noun} is at version {present}, you saw {seen}: read it again")

    def _get(self, connection: Connection, id_: str) -> Thing:
        row = connection.execute(select(self.table).where(self.table.c.id == id_)).mappings().first()
        if row is None:
            raise UnknownEntityError(f"there is no such {self.noun}")
        return self.read(row)
