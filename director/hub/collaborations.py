"""Collaborations and agreements, as they are kept; what they allow is ``agreements``'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, delete, insert, select
from sqlalchemy.exc import IntegrityError

from ...utils.errors import AgreementError, NameTakenError, UnknownEntityError
from ..database import reading, transaction
from .agreements import Agreement, Collaboration, Kind, Permit
from .store import Store
from .tables import AGREEMENTS, COLLABORATIONS, PARTIES, SIGNATURES


def collaborations(engine: Engine) -> Store[Collaboration]:
    """Where they are kept."""
    return Store(engine, COLLABORATIONS, "collaboration", _collaboration, _row, _keep_parties)


class Agreements:
    """The memory of agreements; safe to share between threads and processes. A version, once kept, is only signed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, agreement: Agreement, now: float, write_down: Callable[[], None]) -> Agreement:
        """Keep the next version of an agreement, which nobody signed yet.

        Returns:
            with the number that it got: one more than the last of its kind for the same parties.

        Raises:
            NameTakenError: what it refers to is gone.
        """
        try:
            with transaction(self._engine) as connection:
                numbers = [
                    one.version
                    for one in _agreements(connection, AGREEMENTS.c.kind == agreement.kind.value)
                    if one.collaboration == agreement.collaboration
                    and (agreement.collaboration is not None or one.parties == agreement.parties)
                ]
                made = replace(agreement, version=max(numbers, default=0) + 1, signed={})
                connection.execute(insert(AGREEMENTS), _row_of_agreement(made) | {"created_at": now})
                write_down()
        except IntegrityError as error:
            raise NameTakenError("what the agreement refers to is gone") from error
        return made

    def get(self, id_: str) -> Agreement:
        """The one of that id.

        Raises:
            UnknownEntityError: there is none.
        """
        with reading(self._engine) as connection:
            return _one(connection, id_)

    def all(self, *where: ColumnElement[bool]) -> tuple[Agreement, ...]:
        """All of those, the oldest first."""
        with reading(self._engine) as connection:
            return _agreements(connection, *where)

    def about(self, collaboration: Collaboration) -> tuple[Agreement, ...]:
        """Those of a collaboration, and of each of its organizations."""
        of_it, of_none = AGREEMENTS.c.collaboration == collaboration.id, AGREEMENTS.c.collaboration.is_(None)
        return tuple(
            one
            for one in self.all(of_it | of_none)
            if one.collaboration is not None or one.parties <= collaboration.organizations
        )

    def sign(self, id_: str, organization: str, user: str, now: float, write_down: Callable[[], None]) -> Agreement:
        """A party signs, by one of its users; signed again, nothing changes.

        Raises:
            UnknownEntityError: there is no such agreement.
            AgreementError: the organization is no party.
        """
        row = {"agreement": id_, "organization": organization, "by": user, "at": now}
        try:
            with transaction(self._engine) as connection:
                before = _one(connection, id_)
                if organization not in before.parties:
                    raise AgreementError("only its parties sign an agreement")
                if organization in before.signed:
                    return before
                connection.execute(insert(SIGNATURES), row)
                write_down()
        except IntegrityError:  # the same party, at the same moment
            return self.get(id_)
        return replace(before, signed={**before.signed, organization: now})


def _one(connection: Connection, id_: str) -> Agreement:
    found = _agreements(connection, AGREEMENTS.c.id == id_)
    if not found:
        raise UnknownEntityError("there is no such agreement")
    return found[0]


def _agreements(connection: Connection, *where: ColumnElement[bool]) -> tuple[Agreement, ...]:
    rows = connection.execute(
        select(AGREEMENTS).where(*where).order_by(AGREEMENTS.c.created_at, AGREEMENTS.c.number)
    ).mappings()
    kept = rows.all()
    signed: dict[str, dict[str, float]] = {}
    for one in connection.execute(select(SIGNATURES).where(SIGNATURES.c.agreement.in_([row["id"] for row in kept]))):
        signed.setdefault(one.agreement, {})[one.organization] = one.at
    return tuple(_agreement(row, signed.get(row["id"], {})) for row in kept)


def _agreement(row: RowMapping, signed: dict[str, float]) -> Agreement:
    return Agreement(
        id=row["id"],
        kind=Kind(row["kind"]),
        version=row["number"],
        document=row["document"],
        parties=frozenset(row["parties"]),
        collaboration=row["collaboration"],
        valid_from=row["valid_from"],
        valid_until=row["valid_until"],
        may_start_tasks=frozenset(row["may_start_tasks"]),
        may_publish=frozenset(row["may_publish"]),
        intellectual_property=row["intellectual_property"],
        signed=signed,
    )


def _row_of_agreement(one: Agreement) -> dict[str, Any]:
    return {
        "id": one.id,
        "kind": one.kind.value,
        "number": one.version,
        "document": one.document,
        "parties": sorted(one.parties),
        "collaboration": one.collaboration,
        "valid_from": one.valid_from,
        "valid_until": one.valid_until,
        "may_start_tasks": sorted(one.may_start_tasks),
        "may_publish": sorted(one.may_publish),
        "intellectual_property": one.intellectual_property,
    }


def _collaboration(row: RowMapping) -> Collaboration:
    permit = Permit(
        row["permit_number"],
        row["permit_authority"],
        row["purpose"],
        row["starts_at"],
        row["ends_at"],
        frozenset(row["datasets"]),
    )
    return Collaboration(
        id=row["id"],
        name=row["name"],
        organizations=frozenset(row["organizations"]),
        permit=permit,
        created_at=row["created_at"],
        version=row["version"],
        reviews_needed=row["reviews_needed"],
    )


def _row(one: Collaboration) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "permit_number": one.permit.number,
        "permit_authority": one.permit.authority,
        "purpose": one.permit.purpose,
        "starts_at": one.permit.starts_at,
        "ends_at": one.permit.ends_at,
        "datasets": sorted(one.permit.datasets),
        "organizations": sorted(one.organizations),
        "reviews_needed": one.reviews_needed,
        "created_at": one.created_at,
        "version": one.version,
    }


def _keep_parties(connection: Connection, one: Collaboration) -> None:
    connection.execute(delete(PARTIES).where(PARTIES.c.collaboration == one.id))
    rows = [{"collaboration": one.id, "organization": each} for each in sorted(one.organizations)]
    if rows:
        connection.execute(insert(PARTIES), rows)
