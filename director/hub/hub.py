"""The hub as one object: its stores, and what they share. Doors ask it; it knows none of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from ...utils.audit_chain import Json
from ...utils.errors import NotAuthorizedError, UnknownEntityError
from ..audit import DirectorAudit
from ..database import reading
from .agreements import Collaboration
from .collaborations import Agreements, collaborations
from .datasets import Dataset, datasets
from .models import Models
from .organizations import Organization, Stations, organizations
from .plans import Plans
from .remarks import Remarks
from .reviews import Reviews
from .rules import Decision, Operation, Resource, Target, decide
from .sign_in import Caller, SignIn
from .site_words import SiteWords
from .store import Store
from .tables import PARTIES
from .tasks import Tasks
from .users import OwnRole, Roles, User, own_roles, users

if TYPE_CHECKING:
    from .device_sign_in import DeviceSignIns  # of the extra "oidc"


@dataclass(frozen=True, slots=True)
class Hub:
    """Who takes part, and who may do what.

    Args:
        federation: its name.
        engine: of the director's database.
        audit: every change is written down there first.
        now: seconds since 1970.
        random: as ``os.urandom``.
        device_sign_ins: through an OpenID provider, where the federation has one.
        needs_infrastructure_user: no task starts where an organization has no such agreement in force.
    """

    federation: str
    engine: Engine
    audit: DirectorAudit
    now: Callable[[], float] = time.time
    random: Callable[[int], bytes] = os.urandom
    needs_infrastructure_user: bool = True
    device_sign_ins: DeviceSignIns | None = None
    organizations: Store[Organization] = field(init=False)
    stations: Stations = field(init=False)
    site_words: SiteWords = field(init=False)
    users: Store[User] = field(init=False)
    own_roles: Store[OwnRole] = field(init=False)
    roles: Roles = field(init=False)
    sign_in: SignIn = field(init=False)
    collaborations: Store[Collaboration] = field(init=False)
    agreements: Agreements = field(init=False)
    datasets: Store[Dataset] = field(init=False)
    plans: Plans = field(init=False)
    remarks: Remarks = field(init=False)
    reviews: Reviews = field(init=False)
    tasks: Tasks = field(init=False)
    models: Models = field(init=False)

    def __post_init__(self) -> None:
        for name, made in (
            ("organizations", organizations(self.engine)),
            ("stations", Stations(self.engine)),
            ("site_words", SiteWords(self.engine)),
            ("users", users(self.engine)),
            ("own_roles", own_roles(self.engine)),
            ("roles", Roles(self.engine)),
            ("sign_in", SignIn(self.engine, self.random)),
            ("collaborations", collaborations(self.engine)),
            ("agreements", Agreements(self.engine)),
            ("datasets", datasets(self.engine)),
            ("plans", Plans(self.engine)),
            ("remarks", Remarks(self.engine)),
            ("reviews", Reviews(self.engine)),
            ("tasks", Tasks(self.engine)),
            ("models", Models(self.engine)),
        ):
            object.__setattr__(self, name, made)

    def allow(self, caller: Caller, operation: Operation, resource: Resource, target: Target) -> Decision:
        """Let a caller do something.

        What a caller may not even see is not there for it: else ids and names could be guessed.

        Raises:
            NotAuthorizedError: it may not; the text says why.
            UnknownEntityError: it may not, nor see it.
        """
        decision = decide(caller.actor, operation, resource, target)
        if decision.is_allowed:
            return decision
        if operation is not Operation.CREATE and not decide(caller.actor, Operation.VIEW, resource, target).is_allowed:
            raise UnknownEntityError(f"there is no such {resource.value}")
        raise NotAuthorizedError(decision.why)

    def admit(self, caller: Caller, operation: Operation, resource: Resource, target: Target) -> None:
        """As ``allow``, to what everybody knows to be there, such as a list.

        Raises:
            NotAuthorizedError: it may not; the text says why.
        """
        decision = decide(caller.actor, operation, resource, target)
        if not decision.is_allowed:
            raise NotAuthorizedError(decision.why)

    def may(self, caller: Caller, operation: Operation, resource: Resource, target: Target) -> bool:
        """Might it? For what is shown or left out."""
        return decide(caller.actor, operation, resource, target).is_allowed

    def collaborations_of(self, organization: str) -> frozenset[str]:
        """Those that an organization is part of."""
        with reading(self.engine) as connection:
            query = select(PARTIES.c.collaboration).where(PARTIES.c.organization == organization)
            return frozenset(connection.execute(query).scalars())

    def did(self, caller: Caller, action: str, **more: Json) -> Callable[..., None]:
        """Writes a change down; for a store to call before it is made."""
        by: dict[str, Json] = {"organization": caller.user.organization}
        if caller.key is not None:
            by["key"] = caller.key
        return lambda *_: self.audit.operator(f"user:{caller.user.name}", action, by | more)
