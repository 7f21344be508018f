"""The REST API of a hub with some organizations and people, called as over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fedveil.director.audit import DirectorAudit
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.organizations import Organization, Status
from fedveil.director.hub.passwords import hashed
from fedveil.director.hub.store import new_id
from fedveil.director.hub.users import User
from fedveil.director.rest.app import make_app
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
    clients: list[TestClient] = field(default_factory=list)

    def organization(self, name: str) -> Organization:
        """A new one that takes part."""
        return self.hub.organizations.add(Organization(new_id(), name, status=Status.ACTIVE, created_at=self.clock()))

    def user(self, name: str, organization: Organization, *roles: str) -> User:
        """A new one with a password."""
        user = self.hub.users.add(User(new_id(), name, name.title(), organization.id, _KEPT, created_at=self.clock()))
        self.hub.roles.give(user.id, roles)
        return user

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


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    """An admin of the director's own organization, and two hospitals with an administrator each."""
    clock = Clock()
    hub = Hub("lungs", engine, DirectorAudit(), clock, os.urandom)
    made = World(hub, make_app(hub), clock)
    made.user("root", made.organization("The director's"), "admin")
    for name in ("north", "south"):
        made.user(f"{name}-admin", made.organization(f"{name.title()} Hospital"), "organization-admin")
    yield made
    for client in made.clients:
        client.close()


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
