"""The REST API of a hub with some organizations and people, called as over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fedveil.director.admission import Admission
from fedveil.director.audit import DirectorAudit
from fedveil.director.coordinator import Coordinator
from fedveil.director.envoy_calls import EnvoyCalls
from fedveil.director.experiment_desk import ExperimentDesk
from fedveil.director.history import History
from fedveil.director.hub.agreements import Agreement, Kind
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.organizations import Organization, Status
from fedveil.director.hub.passwords import hashed
from fedveil.director.hub.store import new_id
from fedveil.director.hub.users import User
from fedveil.director.identity_store import IdentityStore
from fedveil.director.membership import roster_of
from fedveil.director.registrar import Registrar
from fedveil.director.rest.app import make_app
from fedveil.director.rest.works import Works
from fedveil.director.revocations import Revocations
from fedveil.director.site_heads import SiteHeads
from fedveil.director.standing import Standing
from fedveil.director.uploads import Uploads
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.certificates import Authority, make_issuer, make_root
from fedveil.utils.roster import Roster
from sqlalchemy import Engine

PASSWORD = "correct horse battery staple"
_KEPT = hashed(PASSWORD)


@dataclass
class Clock:
    """Stands still until it is moved."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A hub and its door."""

    hub: Hub
    app: FastAPI
    clock: Clock
    works: Works
    clients: list[TestClient] = field(default_factory=list)

    def organization(self, name: str) -> Organization:
        """A new one that takes part."""
        return self.hub.organizations.add(Organization(new_id(), name, status=Status.ACTIVE, created_at=self.clock()))

    def user(self, name: str, organization: Organization, *roles: str) -> User:
        """A new one with a password."""
        user = self.hub.users.add(User(new_id(), name, name.title(), organization.id, _KEPT, created_at=self.clock()))
        self.hub.roles.give(user.id, roles)
        return user

    def agreed(self, organization: Organization) -> None:
        """An infrastructure-user agreement of an organization is in force."""
        kind, parties = Kind.INFRASTRUCTURE_USER, frozenset({organization.id})
        signer = self.user(f"signer-{organization.id}", organization)
        made = self.hub.agreements.add(
            Agreement(new_id(), kind, 1, "ab" * 32, parties, None, 1.0), self.clock(), lambda: None
        )
        self.hub.agreements.sign(made.id, organization.id, signer.id, self.clock(), lambda: None)

    def anonymous(self) -> TestClient:
        """Somebody who is not signed in."""
        client = TestClient(self.app, "https://director", raise_server_exceptions=False)
        self.clients.append(client)
        return client

    def signed_in(self, name: str) -> TestClient:
        """Somebody who is."""
        client = self.anonymous()
        answer = client.post("/api/v1/sessions", json={"name": name, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        return client


@pytest.fixture(scope="session")
def authorities() -> tuple[Authority, Authority]:
    """A federation's root and issuer."""
    root = make_root("lungs", Clock.now)
    return root, make_issuer(root, "lungs", Clock.now)


def works_of(hub: Hub, folder: Path, root: Authority, issuer: Authority) -> Works:
    """The parts of a director that is running but for its doors, on the hub's database and clock."""
    engine, audit, clock = hub.engine, hub.audit, hub.now
    members, revocations = IdentityStore(engine), Revocations(engine)
    kept, artifacts = History(engine), ArtifactStore(folder / "artifacts", durable=False)
    heads = SiteHeads(audit, (), lambda _: None)
    uploads = Uploads(folder / "uploads", 2, durable=False)

    def envoys() -> frozenset[Any]:
        return frozenset(one.name for one in members.identities() if one.role == "envoy")

    coordinator = Coordinator(kept, artifacts, uploads, envoys, audit=audit, now=clock)
    registrar = Registrar(hub.federation, issuer, root.certificate, members, revocations, audit=audit)
    standing = Standing(revocations)

    def roster() -> Roster:
        return roster_of(hub.federation, members.identities())

    return Works(
        folder=folder,
        addresses=("127.0.0.1:9443",),
        root=root.certificate,
        coordinator=coordinator,
        desk=ExperimentDesk(
            hub.federation, kept, artifacts, coordinator, members, root.certificate, max_model_bytes=1 << 20, now=clock
        ),
        history=kept,
        artifacts=artifacts,
        members=members,
        registrar=registrar,
        roster=roster,
        heads=heads,
        standing=standing,
        calls=EnvoyCalls(coordinator, artifacts, registrar, roster, heads),
        site_admission=Admission(standing),
    )


@pytest.fixture(scope="session")
def running(authorities: tuple[Authority, Authority]) -> Callable[[Hub, Path], Works]:
    """Makes the parts of a director, of a hub and in a folder."""
    return lambda hub, folder: works_of(hub, folder, *authorities)


@pytest.fixture
def world(engine: Engine, tmp_path: Path, authorities: tuple[Authority, Authority]) -> Iterator[World]:
    """An admin of the director's own organization, and two hospitals with an administrator each."""
    clock = Clock()
    (tmp_path / "director").mkdir()
    audit = DirectorAudit.open(tmp_path / "director", "lungs", durable=False, clock=clock)
    hub = Hub("lungs", engine, audit, clock, os.urandom)
    works = works_of(hub, tmp_path / "director", *authorities)
    made = World(hub, make_app(hub, works), clock, works)
    made.user("root", made.organization("The director's"), "admin")
    for name in ("north", "south"):
        made.user(f"{name}-admin", made.organization(f"{name.title()} Hospital"), "organization-admin")
    yield made
    for client in made.clients:
        client.close()
    audit.close()


def problem_of(answer: Any, status: int) -> dict[str, Any]:
    """The problem that an answer states; it must be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["type"].startswith("urn:fedveil:problem:")
    return found


@pytest.fixture(name="problem_of")
def _problem_of() -> Callable[..., dict[str, Any]]:
    """Reads and checks a problem."""
    return problem_of
