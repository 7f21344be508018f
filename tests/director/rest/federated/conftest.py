"""Two hospitals whose programs post, and a coordinator that runs on a clock which the test moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from fedveil.director.identity_store import Identity
from fedveil.director.records import RunRecord, RunState
from fedveil.utils import messages as m
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.utils.proposal import Output, Proposal
from fedveil.utils.signed_document import SignedDocument
from fedveil.workspace.plan_builder import build_plan

PLAN = Path(__file__).parents[4] / "workspace" / "benchmarks" / "noop_plan.py"
SETTINGS = """
name = "toy"
secure_aggregation = "{secure}"
[rounds]
max_rounds = {rounds}
min_participants = {quorum}
final_evaluation = {evaluates}
"""
ELEMENTS = 4


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of four numbers."""
    folder = tmp_path_factory.mktemp("plan")
    build_plan(PLAN, folder / "plan", {"elements": ELEMENTS})
    return open_bundle(folder / "plan")


@dataclass
class Stage:
    """A federation of sites that post."""

    world: Any
    bundle: Bundle
    organizations: dict[str, str] = field(default_factory=dict)  # ids, by the name of their envoy
    clients: dict[str, TestClient] = field(default_factory=dict)

    def join(self, envoy: str, organization: Any, *roles: str) -> None:
        """An envoy that joined, and a program of its organization."""
        world = self.world
        world.works.members.add_identity(Identity(envoy, "envoy", "x", "00" * 32, os.urandom(32), world.clock()))
        world.hub.stations.take(envoy, organization.id, world.clock())
        roles = roles or ("site", "reviewer", "researcher", "data-manager")
        user = world.user(f"{envoy}-program", organization, *roles)
        self.organizations[envoy] = organization.id
        self.clients[envoy] = self.signed_in(user)

    def signed_in(self, user: Any) -> TestClient:
        """Without a password, which would take a while to look at."""
        client = self.world.anonymous()
        token = self.world.hub.sign_in.open(user, self.world.clock()).token
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    def submit(
        self, more: str = "", *, rounds: int = 1, quorum: int = 1, secure: str = "off", final: bool = False
    ) -> str:
        """Queue an experiment, as the director's operator does."""
        works, manifest = self.world.works, self.bundle.manifest
        for file in manifest.files:
            works.artifacts.put([self.bundle.blob(file.path)])
        plan = works.artifacts.put([manifest.to_json()])
        run = f"toy-{len(works.history.runs()) + 1}"
        operator = PeerId("lungs", Role.OPERATOR, "alice")
        asked, outputs = m.AskedProtection(), (Output.MODEL,)
        proposal = Proposal(
            "lungs", run, plan, "00" * 32, "a test", "", 100, secure == "required", "director", None, asked, (),
            outputs, operator, 0.0, 4e9,
        )  # fmt: skip
        head = SETTINGS.format(secure=secure, rounds=rounds, quorum=quorum, evaluates=str(final).lower())
        settings = head + more
        layout = self.bundle.layout.digest
        record = RunRecord(
            m.RunId(run), "toy", RunState.QUEUED, settings, plan, layout, bytes(32), 0.0, None, None,
            "", manifest.file("initial.safetensors").sha256,
            proposal=SignedDocument(proposal.to_json(), bytes(64), b""),
        )  # fmt: skip
        works.coordinator.enqueue(record)
        return run

    def approve(self, *envoys: str, seconds: float = 3600.0) -> None:
        """What is proposed."""
        for envoy in envoys or tuple(self.clients):
            found = self.clients[envoy].get("/api/v1/federated/proposals").json()["items"]
            body = {
                "organization_id": self.organizations[envoy],
                "approved": [one["proposal_digest"] for one in found],
                "available_seconds": seconds,
            }
            answer = self.clients[envoy].post("/api/v1/federated/approvals", json=body)
            assert answer.status_code == 200, answer.text

    def open(self, number: int = 1, kind: str = "gradients", envoy: str = "north-1") -> dict[str, Any]:
        """The round, once it is open."""
        found: dict[str, Any] = {}

        def is_open() -> bool:
            answer = self.clients[envoy].get("/api/v1/federated/round")
            found.update(answer.json() if answer.status_code == 200 else {})
            return found.get("round") == number and found.get("takes") == kind

        self.until(is_open)
        return found

    def body(self, envoy: str = "north-1", **changes: Any) -> dict[str, Any]:
        """Everything right for round 1."""
        this = self.world.works.coordinator.present()
        right = {
            "organization_id": self.organizations[envoy],
            "round": 1,
            "gradients_encrypted": "0x" + update(1.0).hex(),
            "model_version": this.model if this is not None else "0" * 64,
            "sample_count": 10,
        }
        return {name: value for name, value in (right | changes).items() if value is not None}

    def post(self, envoy: str = "north-1", **changes: Any) -> Any:
        """Post it."""
        return self.clients[envoy].post("/api/v1/federated/gradients", json=self.body(envoy, **changes))

    def ended(self, run: str) -> RunRecord:
        """The run, once it is over."""
        self.until(lambda: self.world.works.history.run(m.RunId(run)).state.is_over)
        return self.world.works.history.run(m.RunId(run))

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what the coordinator's thread does."""
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline
            with self.world.works.coordinator._lock:
                self.world.works.coordinator._lock.wait(0.02)


def update(*values: float) -> bytes:
    """An update: these numbers, or one everywhere."""
    return np.array(values if len(values) > 1 else values * ELEMENTS, "<f4").tobytes()


@pytest.fixture(name="update")
def _update() -> Callable[..., bytes]:
    """Makes an update."""
    return update


@pytest.fixture
def stage(world: Any, plan: Bundle) -> Iterator[Stage]:
    """North and South with an envoy each, which are away until they say otherwise: nobody waits for them."""
    made = Stage(world, plan)
    for name in ("north", "south"):
        made.join(f"{name}-1", world.organization(f"{name} clinic"))
        world.works.coordinator.stay(f"{name}-1", (), world.clock() - 1)
    world.works.coordinator.start()
    yield made
    world.works.coordinator.close()
