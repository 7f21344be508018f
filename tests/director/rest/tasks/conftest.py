"""Two hospitals under a permit, a director that runs, and envoys that are the test's puppets."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from fedveil.director.audit import DirectorAudit
from fedveil.director.coordinator import Coordinator
from fedveil.director.experiment_desk import ExperimentDesk
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.history import History
from fedveil.director.hub.agreements import Agreement, Collaboration, Kind, Permit
from fedveil.director.hub.mandates import TaskMandates
from fedveil.director.hub.organizations import Organization
from fedveil.director.hub.roles import PRESETS
from fedveil.director.hub.store import new_id
from fedveil.director.hub.tables import AGREEMENTS
from fedveil.director.identity_store import Identity, IdentityStore
from fedveil.director.lines import Line
from fedveil.director.proposals import propose
from fedveil.director.records import RunRecord
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.director.uploads import Uploads
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.certificates import make_issuer, make_root, public_bytes
from fedveil.utils.config import parse_toml
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import Closing, Data, EnvoyName, Opening, RunId, Task, UpdateHeader
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.utils.proposal import Patch, Proposal, Step, sign
from fedveil.utils.renewal import identity_text
from fedveil.utils.tensors import Digest, bytes_of, digest_of
from fedveil.workspace.plan_builder import build_plan
from sqlalchemy import update


class Study:
    """A collaboration of two hospitals under a permit, a director that runs, and envoys that are the test's puppets."""

    Step = Step
    PLAN = """
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec

class Adding(ArrayPlan):
    data = DataSpec("{dataset}", DataKind.{kind}, {shape})

    def initial(self):
        return {{"weights": np.zeros({elements}, np.float32)}}

    def train(self, weights, data, rng):
        return {{name: value + np.float32(1) for name, value in weights.items()}}, 1

    def evaluate(self, weights, data):
        return ()
"""

    def __init__(self, world: Any, folder: Path, plans: Path) -> None:
        self.world, self.folder, self.hub, self.plans = world, folder, world.hub, plans
        engine, now = world.hub.engine, world.clock()
        authority = make_root("lungs", now)
        self.issuer = make_issuer(authority, "lungs", now)
        self.root = authority.certificate
        self.audit = DirectorAudit.open(folder, "lungs", durable=False, clock=world.clock)
        self.history, self.artifacts = History(engine), ArtifactStore(folder / "artifacts", durable=False)
        self.uploads, self.members = Uploads(folder / "uploads", 4, durable=False), IdentityStore(engine)
        self.registrar = Registrar("lungs", self.issuer, self.root, self.members, Revocations(engine))
        self.envoys: set[EnvoyName] = set()
        self.start()
        self.organizations = {
            name: world.hub.organizations.first(world.hub.organizations.table.c.name == f"{name.title()} Hospital")
            for name in ("north", "south")
        }
        for name, one in self.organizations.items():
            self.envoy(f"{name}-1", one)
        self.collaboration = self.agree("Lungs of the west", "north", "south")
        self.keys: dict[str, Ed25519PrivateKey] = {}
        self.chains: dict[str, str] = {}

    def start(self) -> None:
        """A director's parts, over what lies in the folder and the database."""
        self.coordinator = Coordinator(
            self.history,
            self.artifacts,
            self.uploads,
            lambda: frozenset(self.envoys),
            mandates=TaskMandates(self.hub.engine, needs_infrastructure_user=self.hub.needs_infrastructure_user),
            audit=self.audit,
            now=self.world.clock,
        )
        desk = ExperimentDesk(
            "lungs",
            self.history,
            self.artifacts,
            self.coordinator,
            self.members,
            self.root,
            max_model_bytes=1 << 20,
            now=self.world.clock,
        )
        self.works = self.world.app.state.works = replace(
            self.world.works,
            folder=self.folder,
            root=self.root,
            coordinator=self.coordinator,
            desk=desk,
            history=self.history,
            artifacts=self.artifacts,
            members=self.members,
            registrar=self.registrar,
        )
        self.coordinator.start()

    def restart(self) -> None:
        """As after a kill -9, but for what is in memory."""
        self.coordinator.close()
        self.start()

    def envoy(self, name: str, organization: Organization) -> None:
        """One that joined."""
        self.hub.stations.take(name, organization.id, self.world.clock())
        self.envoys.add(EnvoyName(name))

    def agree(self, name: str, *organizations: str, datasets: tuple[str, ...] = ("xrays",)) -> Collaboration:
        """A collaboration with all that it takes to start tasks, of which the first organization may."""
        now, parties = self.world.clock(), frozenset(self.organizations[one].id for one in organizations)
        permit = Permit(f"P-{name[:5]}", "The Ministry", "research", now - 10, now + 1000, frozenset(datasets))
        made = self.hub.collaborations.add(Collaboration(new_id(), name, parties, permit, now))
        self.sign(made, Kind.CONSORTIUM, may_start_tasks=frozenset([self.organizations[organizations[0]].id]))
        self.sign(made, Kind.DATA_PROCESSING)
        for party in parties:
            self.sign(None, Kind.INFRASTRUCTURE_USER, frozenset([party]))
        return made

    def agreeless(self, name: str) -> Collaboration:
        """A collaboration of both hospitals without any agreement of its own."""
        now, permit = self.world.clock(), self.collaboration.permit
        return self.hub.collaborations.add(Collaboration(new_id(), name, self.collaboration.organizations, permit, now))

    def end_agreement(self, one: Agreement, until: float) -> None:
        """As if it had been made for so long; over HTTP an agreement is never changed."""
        with self.hub.engine.begin() as connection:
            connection.execute(update(AGREEMENTS).where(AGREEMENTS.c.id == one.id).values(valid_until=until))

    def joined(self, name: str, role: str) -> None:
        """A member that joined by an invitation."""
        self.members.add_identity(Identity(name, role, "South Hospital", "ab" * 32, bytes(32), self.world.clock()))

    def logged(self, what: str) -> list[dict[str, Any]]:
        """Entries of the audit log."""
        return [one.event for one in read_entries(self.folder / "audit.jsonl") if one.event["what"] == what]

    def sign(
        self, of: Collaboration | None, kind: Kind, parties: frozenset[str] | None = None, **more: Any
    ) -> Agreement:
        """An agreement that every party signed."""
        whose = parties if parties is not None else of.organizations
        until = self.world.clock() + 1e6
        draft = Agreement(new_id(), kind, 1, "00" * 32, whose, of.id if of else None, 0.0, until, **more)
        made = self.hub.agreements.add(draft, self.world.clock(), lambda: None)
        signer = self.hub.users.all()[0]
        for one in whose:
            self.hub.agreements.sign(made.id, one, signer.id, self.world.clock(), lambda: None)
        return made

    def researcher(self, name: str, organization: str = "north") -> TestClient:
        """Somebody with a certified key."""
        user = self.world.user(name, self.organizations[organization], "researcher")
        client = self.world.anonymous()
        rules, now = PRESETS["researcher"].rules, self.world.clock()
        _, key = self.hub.sign_in.make_key(user, "a test's", rules, now, now + 1e7)  # quicker than a password
        client.headers["Authorization"] = f"Bearer {key}"
        self.certify(client, name)
        return client

    def certify(self, client: TestClient, name: str) -> Any:
        """The answer to a request for a certificate of a new key."""
        key = Ed25519PrivateKey.generate()
        raw, proof = public_bytes(key.public_key()), key.sign(identity_text(PeerId("lungs", Role.OPERATOR, name)))
        body = {"identity_key": b64(raw), "identity_proof": b64(proof)}
        answer = client.post("/api/v1/me/identity", json=body)
        if answer.status_code == 201:
            self.keys[name], self.chains[name] = key, answer.json()["chain"]
        return answer

    def plan(self, dataset: str = "xrays", kind: str = "IMAGES", elements: int = 4) -> Bundle:
        """A bundle whose plan reads that dataset."""
        folder = self.plans / f"plan-{dataset}-{kind}-{elements}"
        if not folder.exists():
            folder.mkdir()
            shape = {"IMAGES": "(1, 8, 8)", "NONE": "()"}[kind]
            file = folder / "plan.py"
            file.write_text(self.PLAN.format(dataset=dataset, kind=kind, shape=shape, elements=elements))
            build_plan(file, folder / "bundle", {})
        return open_bundle(folder / "bundle")

    def bring(self, client: TestClient, plan: Bundle) -> None:
        """PUT a plan with all its blobs."""
        url = f"/api/v1/plans/{plan.manifest.digest}"
        answer = client.put(url, content=plan.manifest.to_json())
        assert answer.status_code == 200, answer.text
        for digest in answer.json()["missing"]:
            path = next(one.path for one in plan.manifest.files if one.sha256 == digest)
            answer = client.put(f"{url}/blobs/{digest}", content=plan.blob(path))
            assert answer.status_code == 204, answer.text

    def experiment(self, *, name: str = "study", rounds: int = 2, sites: tuple[str, ...] = ()) -> str:
        """The text of experiment.toml."""
        named = f"sites = {json.dumps(sites)}\n" if sites else ""
        return (
            f'name = "{name}"\nsecure_aggregation = "off"\n[study]\npurpose = "a test"\n{named}'
            f"[rounds]\nmax_rounds = {rounds}\nmin_participants = 2\nfinal_evaluation = false\n"
        )

    def signed(self, name: str, text: Proposal | Patch) -> dict[str, str]:
        """A document as it goes over HTTP."""
        done = sign(text, self.keys[name], self.chains[name].encode())
        return {"content": b64(done.content), "signature": b64(done.signature), "chain": self.chains[name]}

    def body(self, name: str, plan: Bundle, text: str = "", **more: Any) -> dict[str, Any]:
        """Of POST /tasks."""
        text = text or self.experiment()
        settings = parse_toml(text, ExperimentSettings, "experiment.toml")
        peer = PeerId("lungs", Role.OPERATOR, name)
        proposal = propose(settings, text, plan.manifest, "lungs", peer, self.world.clock())
        return {
            "collaboration_id": self.collaboration.id,
            "experiment": text,
            "plan_digest": plan.manifest.digest,
            "proposal": self.signed(name, proposal),
        } | more

    def submit(self, client: TestClient, name: str, text: str = "") -> dict[str, Any]:
        """A task that was taken."""
        self.bring(client, self.plan())
        answer = client.post("/api/v1/tasks", json=self.body(name, self.plan(), text))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def patch(self, name: str, task: dict[str, Any], step: Step, number: int = 1, **more: Any) -> dict[str, str]:
        """A signed change to a task, as it goes over HTTP."""
        said: dict[str, Any] = {"settings": {}, "sites": None, "stop": {}, "to_round": None, "reason": ""} | more
        return self.signed(
            name,
            Patch(
                run=RunId(task["task_id"]),
                proposal=Digest(task["proposal_digest"]),
                number=number,
                step=step,
                signed_by=PeerId("lungs", Role.OPERATOR, name),
                signed_at=self.world.clock(),
                **said,
            ),
        )

    def there(self, *envoys: str) -> dict[str, Line]:
        """Envoys open lines; their sites approved all there is."""
        approved = tuple(one.proposal_digest for one in self.history.runs())
        return {one: self.coordinator.open_line(EnvoyName(one), (), approved) for one in envoys}

    def order(self, line: Line) -> Task:
        """The next task that came down a line."""
        while not isinstance(item := line.next(20), Task):
            assert item is not None, "no task came"
        return item

    def answer(self, envoy: str, task: Task) -> None:
        """An envoy gives its update."""
        raw = bytes_of(np.ones(4, np.float32))
        header = UpdateHeader(task.ref, task.layout, len(raw), 1)
        turn = self.coordinator.request_upload(EnvoyName(envoy), header)
        parts = [Opening(len(raw), turn.offset, turn.grant), Data(raw), Closing(digest_of(raw))]
        self.coordinator.upload(EnvoyName(envoy), iter(parts))

    def until(self, task: dict[str, Any], is_so: Callable[[RunRecord], bool]) -> RunRecord:
        """Wait for the coordinator's word."""
        for _ in range(200):
            record = self.history.run(RunId(task["task_id"]))
            if is_so(record):
                return record
            self.coordinator.wait_for_change(record.run, 0.1)
        raise AssertionError(f"{record.run} is {record.state}: {record.reason}")

    def close(self) -> None:
        """End its threads."""
        self.coordinator.close()
        self.audit.close()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans that were built, each once."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def study(world: Any, tmp_path: Path, plans: Path) -> Iterator[Study]:
    """Two hospitals that may begin."""
    made = Study(world, tmp_path, plans)
    yield made
    made.close()
