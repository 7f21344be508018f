"""Who may do what, over HTTP: every route, every scope, whosesoever the thing is; what the rules say and nothing else.

A table says which rule each route asks and what it is then about; a route that is missing from it fails. Each cell is
asked of a user with just that rule, and of one with every rule but that.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from fedveil.director.audit import DirectorAudit
from fedveil.director.body_uploads import BodyUploads
from fedveil.director.database import open_database
from fedveil.director.hub.agreements import Agreement, Collaboration, Kind, Permit
from fedveil.director.hub.datasets import Dataset
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.models import Model
from fedveil.director.hub.organizations import Organization, Status
from fedveil.director.hub.plans import Brought
from fedveil.director.hub.rules import Operation, Resource, Rule, Scope, Target, decide
from fedveil.director.hub.store import new_id
from fedveil.director.hub.tasks import Task
from fedveil.director.hub.users import OwnRole, User
from fedveil.director.identity_store import Identity, Invitation
from fedveil.director.records import RunRecord, RunState
from fedveil.director.rest.app import make_app
from fedveil.utils.certificates import public_bytes
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import RunId
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind
from fedveil.utils.renewal import identity_text
from fedveil.utils.tensors import Digest

V, C, E, D, A = Operation.VIEW, Operation.CREATE, Operation.EDIT, Operation.DELETE, Operation.APPROVE
X = Operation.EXPORT


class Whose(Enum):
    """Whose the thing is that a call is about, as the caller sees it."""

    OWN = "own"
    ORGANIZATION = "of its organization"
    COLLABORATION = "of its collaboration"
    ELSEWHERE = "elsewhere"


EVERYBODYS = tuple(Whose)
NOBODYS_OWN = (Whose.ORGANIZATION, Whose.COLLABORATION, Whose.ELSEWHERE)
SHARED = (Whose.COLLABORATION, Whose.ELSEWHERE)


@dataclass(frozen=True)
class Case:
    """One call."""

    path: str
    target: Target  # what it is about
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    anyway: bool = False  # allowed to whoever has no rule about it too
    also_refused: str = ""  # another law refuses it, in these words, where the rules allow it


@dataclass(frozen=True)
class Ask:
    """What a route asks before it does anything."""

    operation: Operation
    resource: Resource
    case: Callable[[Matrix, Whose, User], Case]
    whose: tuple[Whose, ...] = NOBODYS_OWN
    given: tuple[str, ...] = ()  # other rules, that every caller has
    passes: str = ""  # words of the refusal by what comes after the rules; "": it is done
    is_written: bool | None = None  # in the audit log; None: where it is a change
    is_known: bool = False  # everybody knows that it is there, so that it is refused as that (403, not 404)


class Log(DirectorAudit):
    """Counts what is written down."""

    entries = 0

    def _append(self, what: str, more: Any) -> None:
        self.entries += 1


class Matrix:
    """Three hospitals: the caller's (north), one that works with it (south), one that does not (east)."""

    now = 1_800_000_000.0

    def __init__(self, hub: Hub, app: Any, works: Any, log: Log) -> None:
        self.hub, self.app, self.works, self.log = hub, app, works, log
        self._numbers, self._clients = itertools.count(1), list[TestClient]()
        self.north, self.south, self.east = (
            hub.organizations.add(Organization(new_id(), name, status=Status.ACTIVE)).id
            for name in ("north", "south", "east")
        )
        self.together = self.collaboration(self.north, self.south)
        self.apart = self.collaboration(self.south, self.east)
        signer = self.person(Whose.ELSEWHERE, None)
        for one in (self.north, self.south, self.east):
            made = self.agreement(Kind.INFRASTRUCTURE_USER, [one])
            hub.agreements.sign(made.id, one, signer.id, self.now, lambda: None)

    def close(self) -> None:
        for client in self._clients:
            client.__exit__()

    def name(self, of: str) -> str:
        """One that nothing else has."""
        return f"{of}-{next(self._numbers)}"

    def caller(self, *rules: str | Rule) -> tuple[User, TestClient]:
        """Somebody of north, signed in, with these rules alone."""
        user = self.person(Whose.ORGANIZATION, None)
        parsed = frozenset(one if isinstance(one, Rule) else Rule.parse(one) for one in rules)
        if parsed:
            role = self.hub.own_roles.add(OwnRole(new_id(), self.name("role"), self.north, parsed))
            self.hub.roles.give(user.id, [role.id])
        address = next(self._numbers)
        client = TestClient(
            self.app,
            "https://director",
            raise_server_exceptions=False,
            client=(f"10.{address >> 16}.{address >> 8 & 255}.{address & 255}", 1),
            headers={"Authorization": f"Bearer {self.hub.sign_in.open(user, self.now).token}"},
        )
        self._clients.append(client.__enter__())
        return user, client

    # ------------------------------------------------------------ things, and whose they are

    def organization(self, whose: Whose) -> str:
        """Of a thing."""
        return {Whose.COLLABORATION: self.south, Whose.ELSEWHERE: self.east}.get(whose, self.north)

    def collaboration_of(self, whose: Whose) -> str:
        """Of a thing; one of north's own belongs to none that north is part of any more."""
        return self.together if whose is Whose.COLLABORATION else self.apart

    def person(self, whose: Whose, caller: User | None) -> User:
        """The caller, or somebody else."""
        if whose is Whose.OWN and caller is not None:
            return self.hub.users.get(caller.id)
        return self.hub.users.add(User(new_id(), self.name("user"), "", self.organization(whose), created_at=self.now))

    def of(self, user: User, *collaborations: str) -> Target:
        return Target(user.organization, frozenset(collaborations), user.id)

    def collaboration(self, *organizations: str) -> str:
        permit = Permit("7", "the board", "pneumonia", 0.0, 1e11, frozenset({"x-rays"}))
        made = Collaboration(new_id(), self.name("collaboration"), frozenset(organizations), permit)
        return self.hub.collaborations.add(made).id

    def agreement(self, kind: Kind, parties: list[str], collaboration: str | None = None) -> Agreement:
        made = Agreement(new_id(), kind, 1, "ab" * 32, frozenset(parties), collaboration, 1.0)
        return self.hub.agreements.add(made, self.now, lambda: None)

    def envoy(self, organization: str) -> str:
        """One that a join file is out for."""
        name = self.name("envoy")
        self.hub.stations.take(name, organization, self.now)
        self.works.members.add_invitation(Invitation(new_id(), name, "envoy", "a hospital", self.now + 3600))
        return name

    def member(self, organization: str) -> str:
        """An envoy that joined."""
        name = self.envoy(organization)
        key = public_bytes(Ed25519PrivateKey.generate().public_key())
        self.works.members.add_identity(Identity(name, "envoy", "a hospital", "ab" * 32, key, self.now))
        return name

    def dataset(self, organization: str) -> Dataset:
        return self.hub.datasets.add(Dataset(new_id(), "x-rays", organization, self.envoy(organization)))

    def reading_x_rays(self, organization: str) -> Target:
        """Of an organization's data of that name."""
        found = self.hub.collaborations.all()
        return Target(organization, frozenset(one.id for one in found if organization in one.organizations))

    def role(self, organization: str) -> OwnRole:
        rules = frozenset({Rule(V, Resource.KEY, Scope.OWN)})
        return self.hub.own_roles.add(OwnRole(new_id(), self.name("role"), organization, rules))

    def plan(self, user: User) -> Manifest:
        """One that a user brought."""
        made = replace(MANIFEST, name=self.name("plan"))
        self.works.artifacts.put([made.to_json()])
        self.hub.plans.bring(Brought(made.digest, user.id, user.organization, self.now), lambda: None)
        return made

    def task(self, whose: Whose, caller: User) -> tuple[Task, Target]:
        user, collaboration = self.person(whose, caller), self.collaboration_of(whose)
        agreement = self.agreement(Kind.DATA_PROCESSING, [self.south], collaboration)
        run = RunRecord(
            run=RunId(self.name("study")),
            name="study",
            state=RunState.STOPPED,
            settings='name = "study"\nsecure_aggregation = "off"\n[rounds]\nmax_rounds = 1\nmin_participants = 1\n',
            plan=Digest("ab" * 32),
            layout=Digest("ab" * 32),
            seed=bytes(32),
            submitted_at=self.now,
            started_at=None,
            ended_at=self.now,
            reason="",
            model=Digest("ab" * 32),
        )
        task = Task(run.run, collaboration, user.organization, user.id, agreement.id, None, self.now)
        self.works.history.enqueue(run, lambda connection: self.hub.tasks.add(connection, task))
        return task, self.of(user, collaboration)


FILES = tuple(PlanFile(name, 1, Digest("cd" * 32)) for name in ("layout.json", "initial.safetensors", "plan.py"))
MANIFEST = Manifest(
    "p", PlanKind.ARRAY, "plan.py:P", FILES, {}, Digest("ef" * 32), DataSpec("x-rays", DataKind.NONE), "1"
)
PERMIT = {"number": "8", "authority": "b", "purpose": "p", "starts_at": 0, "ends_at": 1e10, "datasets": ["x-rays"]}
DOCUMENT = {"content": "AAAA", "signature": "AAAA", "chain": ""}


def seen(version: int) -> tuple[tuple[str, str], ...]:
    return (("If-Match", f'"{version}"'),)


# ------------------------------------------------------------ what each route is about


def an_agreement(m: Matrix, whose: Whose, user: User) -> tuple[Agreement, Target]:
    """An infrastructure agreement is a party's own; one of a collaboration, of all in it."""
    if whose is Whose.COLLABORATION:
        made = m.agreement(Kind.CONSORTIUM, [m.south, m.north], m.together)
        return made, Target(m.north, frozenset([m.together]))
    made = m.agreement(Kind.INFRASTRUCTURE_USER, [m.organization(whose)])
    return made, Target(m.north if whose is Whose.ORGANIZATION else None)


def agreement(suffix: str = "") -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one, target = an_agreement(m, whose, user)
        no_party = "only its parties sign" if suffix and whose is Whose.ELSEWHERE else ""
        return Case(f"/api/v1/agreements/{one.id}{suffix}", target, also_refused=no_party)

    return case


def new_agreement(m: Matrix, whose: Whose, user: User) -> Case:
    party = m.organization(whose)
    body = {"kind": "infrastructure-user", "document_sha256": "ab" * 32, "parties": [party], "valid_from": 1}
    return Case("/api/v1/agreements", Target(party if party == user.organization else None), body)


def collaboration(suffix: str = "", body: Any = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        id_ = m.collaboration(*((m.north, m.south) if whose is Whose.COLLABORATION else (m.south, m.east)))
        return Case(f"/api/v1/collaborations/{id_}{suffix}", Target(None, frozenset([id_])), body, seen(1))

    return case


def new_collaboration(m: Matrix, whose: Whose, user: User) -> Case:
    body = {"name": m.name("new"), "organizations": [m.north], "permit": PERMIT}
    return Case("/api/v1/collaborations", Target(), body)


def site(suffix: str, body: Any = b"\xff") -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        of = m.organization(whose)
        others = "" if of == user.organization else "spoken for by its own organization alone"
        headers = (("Content-Type", "application/x-protobuf"),)
        return Case(f"/api/v1/federated/sites/{m.member(of)}{suffix}", Target(of), body, headers, also_refused=others)

    return case


def new_site(m: Matrix, whose: Whose, user: User) -> Case:
    key = base64.b64encode(bytes(32)).decode()
    body = {"name": m.name("new"), "signing_request": "AAAA", "identity_key": key}
    body["identity_proof"] = base64.b64encode(bytes(64)).decode()
    return Case("/api/v1/federated/sites", Target(user.organization), body)


def gradients(suffix: str, **body: Any) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        of = m.organization(whose)
        said = {"organization_id": of, "envoy": m.member(of)} | body
        return Case(f"/api/v1/federated/{suffix}", Target(of), said)

    return case


def upload(query: str = "", body: bytes | None = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        of = m.organization(whose)
        shutil.rmtree(m.works.folder / "posted", ignore_errors=True)  # an organization has few at once
        made = BodyUploads(m.works.folder / "posted").begin(new_id(), of, 8, m.now)
        others = "" if of == user.organization else "no such upload"
        return Case(f"/api/v1/federated/gradients/uploads/{made.id}{query}", Target(of), body, also_refused=others)

    return case


def fairness(m: Matrix, whose: Whose, user: User) -> Case:
    one, target = m.task(whose, user)
    return Case(f"/api/v1/reports/fairness/{one.run}", target)


def register(m: Matrix, whose: Whose, user: User) -> Case:
    id_ = m.collaboration(*((m.north, m.south) if whose is Whose.COLLABORATION else (m.south, m.east)))
    return Case(f"/api/v1/reports/processing-register/{id_}", Target(None, frozenset([id_])))


def my_round(m: Matrix, whose: Whose, user: User) -> Case:
    own = user.organization
    return Case(f"/api/v1/federated/round?envoy={m.member(own)}", Target(own))


def audit(suffix: str) -> Callable[..., Case]:
    return lambda m, whose, user: Case(f"/api/v1/audit/{suffix}", Target())


def my_entries(m: Matrix, whose: Whose, user: User) -> Case:
    return Case("/api/v1/audit/entries", Target(user.organization))


def model(suffix: str = "") -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one, target = m.task(whose, user)
        made = Model(
            new_id(),
            m.name("model"),
            "1.0.0",
            m.works.artifacts.put([b"a model"]),
            RunId(one.run),
            1,
            Digest("ab" * 32),
            one.collaboration,
            {"lineage": {}, "file": {"bytes": 7}, "withdrawn_datasets": []},
            bytes(32),
            bytes(64),
            one.organization,
            one.user,
            False,
            m.now,
        )
        m.hub.models.add(made)
        return Case(f"/api/v1/models/{made.id}{suffix}", target)

    return case


def new_model(m: Matrix, whose: Whose, user: User) -> Case:
    one, target = m.task(whose, user)
    body = {"name": m.name("new"), "semver": "1.0.0", "task_id": one.run, "intended_use": "x", "limitations": "y"}
    return Case("/api/v1/models", target, body)


def my_proposals(m: Matrix, whose: Whose, user: User) -> Case:
    own = user.organization
    return Case("/api/v1/federated/proposals", Target(own, m.hub.collaborations_of(own)))


def of_task(path: str) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one, target = m.task(whose, user)
        return Case(f"/api/v1/federated/{path}?task={one.run}", target)

    return case


def dataset(suffix: str = "", body: Any = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one = m.dataset(m.organization(whose))
        return Case(f"/api/v1/datasets/{one.id}{suffix}", m.reading_x_rays(one.organization), body, seen(1))

    return case


def new_dataset(m: Matrix, whose: Whose, user: User) -> Case:
    organization = m.organization(whose)
    body = {"name": "x-rays", "envoy": m.envoy(organization)}
    return Case("/api/v1/datasets", m.reading_x_rays(organization), body)


def envoy(suffix: str = "", body: Callable[[Matrix, str], Any] = lambda _, __: None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        of = m.organization(whose)
        return Case(f"/api/v1/envoys/{m.envoy(of)}{suffix}", m.reading_x_rays(of), body(m, of))

    return case


def new_envoy(m: Matrix, whose: Whose, user: User) -> Case:
    of = m.organization(whose)
    return Case("/api/v1/envoys", m.reading_x_rays(of), {"name": m.name("new"), "organization_id": of})


def my_keys(body: Any = None) -> Callable[..., Case]:
    return lambda m, whose, user: Case("/api/v1/keys", m.of(user), body)


def key(m: Matrix, whose: Whose, user: User) -> Case:
    owner = m.person(whose, user)
    made, _ = m.hub.sign_in.make_key(owner, "a program", frozenset(), m.now, m.now + 1000)
    return Case(f"/api/v1/keys/{made.id}", m.of(owner))


def organization(body: Any = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one = m.hub.organizations.get(m.organization(whose))
        return Case(f"/api/v1/organizations/{one.id}", Target(one.id), body, seen(one.version))

    return case


def new_organization(m: Matrix, whose: Whose, user: User) -> Case:
    return Case("/api/v1/organizations", Target(), {"name": m.name("new")})


def role(suffix: str = "", is_renamed: bool = False) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one = m.role(m.organization(whose))
        body = {"name": m.name("renamed")} if is_renamed else None
        return Case(f"/api/v1/roles/{one.id}{suffix}", Target(one.organization), body, seen(1))

    return case


def new_role(m: Matrix, whose: Whose, user: User) -> Case:
    of = m.organization(whose)
    body = {"name": m.name("new"), "organization_id": of, "rules": ["create:role:own"]}
    return Case("/api/v1/roles", Target(of), body)


def person(suffix: str = "", body: Any = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one = m.person(whose, user)
        return Case(f"/api/v1/users/{one.id}{suffix}", m.of(one), body, seen(one.version))

    return case


def new_user(m: Matrix, whose: Whose, user: User) -> Case:
    of = m.organization(whose)
    return Case("/api/v1/users", Target(of), {"name": m.name("new"), "organization_id": of})


def task(suffix: str = "", body: Any = None) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one, target = m.task(whose, user)
        return Case(f"/api/v1/tasks/{one.run}{suffix}", target, body)

    return case


def new_task(m: Matrix, whose: Whose, user: User) -> Case:
    in_ = m.collaboration_of(whose)
    body = {"collaboration_id": in_, "experiment": "x", "plan_digest": "00" * 32, "proposal": DOCUMENT}
    return Case("/api/v1/tasks", Target(None, frozenset([in_])), body)


def plan(m: Matrix, whose: Whose, user: User) -> Case:
    owner = m.person(whose, user)
    may_bring = m.hub.sign_in.actor(user.id).grants(C, R.PLAN)  # who brings plans sees its own
    return Case(f"/api/v1/plans/{m.plan(owner).digest}", m.of(owner), anyway=whose is Whose.OWN and bool(may_bring))


def plan_remarks(body: Any = None, *, may_own: bool = True) -> Callable[..., Case]:
    def case(m: Matrix, whose: Whose, user: User) -> Case:
        one = plan(m, whose, user)
        own = "" if may_own or whose is not Whose.OWN else "you brought this plan"
        return replace(one, path=f"{one.path}/remarks", body=body, anyway=one.anyway and not body, also_refused=own)

    return case


def shown_plan(m: Matrix, whose: Whose, user: User) -> Case:
    to = m.collaboration_of(whose)
    return Case(f"/api/v1/plans/{m.plan(user).digest}/collaborations/{to}", Target(None, frozenset([to])))


def brought_plan(m: Matrix, whose: Whose, user: User) -> Case:
    made = replace(MANIFEST, name=m.name("plan"))
    return Case(f"/api/v1/plans/{made.digest}", m.of(user), made.to_json())


def brought_blob(m: Matrix, whose: Whose, user: User) -> Case:
    return Case(f"/api/v1/plans/{m.plan(user).digest}/blobs/{'cd' * 32}", m.of(user), b"too long")


def identity(m: Matrix, whose: Whose, user: User) -> Case:
    key = Ed25519PrivateKey.generate()
    proof = key.sign(identity_text(PeerId("lungs", Role.OPERATOR, user.name)))
    body = {
        "identity_key": base64.b64encode(public_bytes(key.public_key())).decode(),
        "identity_proof": base64.b64encode(proof).decode(),
    }
    return Case("/api/v1/me/identity", m.of(user), body)


SITE_CALLS = ("work", "parts", "turns", "updates", "reports", "statements", "refusals", "beats", "renewals")
SEEN_TASK = ("view:task:federation",)
TO_START = frozenset({"create:task:federation", "start:task:federation", "view:collaboration:federation"})
OWN = (Whose.OWN,)
MINE = (Whose.ORGANIZATION,)
NOBODYS = (Whose.ELSEWHERE,)
WHY = {"reason": "because"}
R = Resource


def others_to_start(operation: Operation, resource: Resource) -> tuple[str, ...]:
    """What else it takes to start a task."""
    return tuple(sorted(TO_START - {f"{operation.value}:{resource.value}:federation"}))


ASKS: dict[tuple[str, str], tuple[Ask, ...]] = {
    ("POST", "/api/v1/agreements"): (Ask(C, R.AGREEMENT, new_agreement),),
    ("GET", "/api/v1/agreements/{agreement_id}"): (Ask(V, R.AGREEMENT, agreement()),),
    ("POST", "/api/v1/agreements/{agreement_id}/signatures"): (Ask(A, R.AGREEMENT, agreement("/signatures")),),
    ("POST", "/api/v1/collaborations"): (Ask(C, R.COLLABORATION, new_collaboration, NOBODYS),),
    ("GET", "/api/v1/collaborations/{collaboration_id}"): (Ask(V, R.COLLABORATION, collaboration(), SHARED),),
    ("PATCH", "/api/v1/collaborations/{collaboration_id}"): (
        Ask(E, R.COLLABORATION, collaboration(body={"permit": PERMIT}), SHARED),
    ),
    ("GET", "/api/v1/collaborations/{collaboration_id}/standing"): (
        Ask(V, R.COLLABORATION, collaboration("/standing"), SHARED),
    ),
    ("POST", "/api/v1/datasets"): (Ask(C, R.DATASET, new_dataset),),
    ("GET", "/api/v1/datasets/{dataset_id}"): (Ask(V, R.DATASET, dataset()),),
    ("PATCH", "/api/v1/datasets/{dataset_id}"): (Ask(E, R.DATASET, dataset(body={"modality": "CR"})),),
    ("POST", "/api/v1/datasets/{dataset_id}/withdrawal"): (Ask(D, R.DATASET, dataset("/withdrawal", WHY)),),
    ("POST", "/api/v1/envoys"): (Ask(C, R.ENVOY, new_envoy),),
    ("GET", "/api/v1/envoys/{name}"): (Ask(V, R.ENVOY, envoy()),),
    ("DELETE", "/api/v1/envoys/{name}"): (Ask(D, R.ENVOY, envoy(body=lambda _, __: WHY)),),
    ("PUT", "/api/v1/envoys/{name}/organization"): (
        Ask(E, R.ENVOY, envoy("/organization", lambda _, of: {"organization_id": of})),
    ),
    ("POST", "/api/v1/federated/sites"): (Ask(C, R.ENVOY, new_site, MINE, passes="signing request"),),
    ("GET", "/api/v1/federated/sites/{name}/roster"): (Ask(E, R.ENVOY, site("/roster", None)),),
    **{
        ("POST", f"/api/v1/federated/sites/{{name}}/{call}"): (Ask(E, R.ENVOY, site(f"/{call}"), passes="bytes"),)
        for call in SITE_CALLS
    },
    ("POST", "/api/v1/federated/gradients"): (
        Ask(E, R.ENVOY, gradients("gradients", round=1, model_version="x", sample_count=1), passes="no round is open"),
    ),
    ("POST", "/api/v1/federated/gradients/uploads"): (
        Ask(E, R.ENVOY, gradients("gradients/uploads", length=8), passes="no run is under way"),
    ),
    ("GET", "/api/v1/federated/gradients/uploads/{upload_id}"): (Ask(E, R.ENVOY, upload()),),
    ("PUT", "/api/v1/federated/gradients/uploads/{upload_id}"): (
        Ask(E, R.ENVOY, upload("?offset=0", bytes(8)), is_written=False),
    ),
    ("DELETE", "/api/v1/federated/gradients/uploads/{upload_id}"): (Ask(E, R.ENVOY, upload(), is_written=False),),
    ("GET", "/api/v1/federated/round"): (Ask(E, R.ENVOY, my_round, MINE, passes="under way"),),
    ("GET", "/api/v1/federated/proposals"): (Ask(V, R.PLAN, my_proposals, MINE),),
    ("POST", "/api/v1/federated/approvals"): (
        Ask(E, R.ENVOY, gradients("approvals", approved=[]), given=("approve:plan:federation",)),
        Ask(A, R.PLAN, gradients("approvals", approved=["ab" * 32]), given=("edit:envoy:federation",), passes="open"),
    ),
    ("GET", "/api/v1/federated/model"): (
        Ask(V, R.MODEL, of_task("model"), EVERYBODYS, passes="were not asked for the model"),
    ),
    ("GET", "/api/v1/federated/privacy-report"): (Ask(V, R.REPORT, of_task("privacy-report"), EVERYBODYS),),
    ("GET", "/api/v1/federated/budget"): (Ask(V, R.REPORT, of_task("budget"), EVERYBODYS),),
    ("GET", "/api/v1/audit/entries"): (Ask(V, R.AUDIT, my_entries, MINE, is_known=True),),
    ("GET", "/api/v1/audit/log"): (Ask(X, R.AUDIT, audit("log"), NOBODYS, is_known=True, is_written=True),),
    ("POST", "/api/v1/audit/evidence"): (
        Ask(X, R.AUDIT, audit("evidence"), NOBODYS, passes="director.toml", is_known=True),
    ),
    ("POST", "/api/v1/models"): (Ask(C, R.MODEL, new_model, EVERYBODYS, SEEN_TASK, passes="closed no training round"),),
    ("GET", "/api/v1/models/{model_id}"): (Ask(V, R.MODEL, model(), EVERYBODYS),),
    ("GET", "/api/v1/models/{model_id}/card"): (Ask(V, R.MODEL, model("/card?format=json"), EVERYBODYS),),
    ("GET", "/api/v1/models/{model_id}/file"): (Ask(V, R.MODEL, model("/file"), EVERYBODYS),),
    ("POST", "/api/v1/models/{model_id}/publication"): (
        Ask(Operation.PUBLISH, R.MODEL, model("/publication"), EVERYBODYS, ("view:model:federation",), "may publish"),
    ),
    ("GET", "/api/v1/reports/fairness/{task_id}"): (Ask(V, R.REPORT, fairness, EVERYBODYS),),
    ("GET", "/api/v1/reports/processing-register/{collaboration_id}"): (Ask(V, R.REPORT, register, SHARED),),
    ("GET", "/api/v1/keys"): (Ask(V, R.KEY, my_keys(), OWN, is_known=True),),
    ("POST", "/api/v1/keys"): (Ask(C, R.KEY, my_keys({"label": "x", "rules": ["create:key:own"], "days": 1}), OWN),),
    ("DELETE", "/api/v1/keys/{key_id}"): (Ask(D, R.KEY, key, EVERYBODYS),),
    ("POST", "/api/v1/organizations"): (Ask(C, R.ORGANIZATION, new_organization, NOBODYS),),
    ("GET", "/api/v1/organizations/{organization_id}"): (Ask(V, R.ORGANIZATION, organization()),),
    ("PATCH", "/api/v1/organizations/{organization_id}"): (
        Ask(E, R.ORGANIZATION, organization({"contact": "somebody"})),
        Ask(A, R.ORGANIZATION, organization({"status": "active"})),
    ),
    ("POST", "/api/v1/roles"): (Ask(C, R.ROLE, new_role),),
    ("GET", "/api/v1/roles/{role_id}"): (Ask(V, R.ROLE, role()),),
    ("GET", "/api/v1/roles/{role_id}/rules"): (Ask(V, R.ROLE, role("/rules")),),
    ("PATCH", "/api/v1/roles/{role_id}"): (Ask(E, R.ROLE, role(is_renamed=True)),),
    ("DELETE", "/api/v1/roles/{role_id}"): (Ask(D, R.ROLE, role()),),
    ("POST", "/api/v1/users"): (Ask(C, R.USER, new_user),),
    ("GET", "/api/v1/users/{user_id}"): (Ask(V, R.USER, person(), EVERYBODYS),),
    ("PATCH", "/api/v1/users/{user_id}"): (Ask(E, R.USER, person(body={"full_name": "Rita"}), EVERYBODYS),),
    ("DELETE", "/api/v1/users/{user_id}/codes"): (Ask(E, R.USER, person("/codes"), EVERYBODYS),),
    ("GET", "/api/v1/users/{user_id}/may"): (
        Ask(V, R.USER, person("/may?operation=view&resource=task"), EVERYBODYS, ("view:role:federation",)),
        Ask(V, R.ROLE, person("/may?operation=view&resource=task"), EVERYBODYS, ("view:user:federation",)),
    ),
    ("POST", "/api/v1/me/identity"): (Ask(C, R.PLAN, identity, OWN),),
    ("PUT", "/api/v1/plans/{plan_digest}"): (Ask(C, R.PLAN, brought_plan, OWN),),
    ("PUT", "/api/v1/plans/{plan_digest}/blobs/{blob}"): (
        Ask(C, R.PLAN, brought_blob, OWN, passes="the manifest says that this blob has 1 bytes"),
    ),
    ("GET", "/api/v1/plans/{plan_digest}"): (Ask(V, R.PLAN, plan, EVERYBODYS),),
    ("GET", "/api/v1/plans/{plan_digest}/remarks"): (Ask(V, R.PLAN, plan_remarks(), EVERYBODYS),),
    ("POST", "/api/v1/plans/{plan_digest}/remarks"): (
        Ask(C, R.REMARK, plan_remarks({"text": "Why?"}), EVERYBODYS, ("view:plan:federation",)),
        Ask(
            A,
            R.PLAN,
            plan_remarks({"text": "No.", "verdict": "rejected"}, may_own=False),
            EVERYBODYS,
            ("view:plan:federation", "create:remark:federation"),
        ),
    ),
    ("PUT", "/api/v1/plans/{plan_digest}/collaborations/{collaboration_id}"): (
        Ask(C, R.PLAN, shown_plan, SHARED, ("view:collaboration:federation",)),
        Ask(V, R.COLLABORATION, shown_plan, SHARED, ("create:plan:federation",)),
    ),
    ("GET", "/api/v1/tasks/{task_id}/remarks"): (Ask(V, R.TASK, task("/remarks"), EVERYBODYS),),
    ("POST", "/api/v1/tasks/{task_id}/remarks"): (
        Ask(C, R.REMARK, task("/remarks", {"text": "Why?"}), EVERYBODYS, SEEN_TASK),
    ),
    ("POST", "/api/v1/tasks"): tuple(
        Ask(operation, resource, new_task, SHARED, others_to_start(operation, resource), "no such plan")
        for operation, resource in ((C, R.TASK), (Operation.START, R.TASK), (V, R.COLLABORATION))
    ),
    ("GET", "/api/v1/tasks/{task_id}"): (Ask(V, R.TASK, task(), EVERYBODYS),),
    ("POST", "/api/v1/tasks/{task_id}/patches"): (
        Ask(Operation.STEER, R.TASK, task("/patches", DOCUMENT), EVERYBODYS, SEEN_TASK, "a signed text"),
    ),
    ("GET", "/api/v1/tasks/{task_id}/events"): (Ask(V, R.TASK, task("/events"), EVERYBODYS),),
    ("GET", "/api/v1/tasks/{task_id}/model"): (
        Ask(V, R.MODEL, task("/model"), EVERYBODYS, SEEN_TASK, "were not asked for the model"),
    ),
    ("GET", "/api/v1/tasks/{task_id}/privacy-report"): (
        Ask(V, R.REPORT, task("/privacy-report"), EVERYBODYS, SEEN_TASK),
    ),
}
LISTS = {  # each shows just what its other route would: by the name of the id in it
    "/api/v1/agreements": ("agreement_id", "/api/v1/agreements/{agreement_id}"),
    "/api/v1/collaborations": ("collaboration_id", "/api/v1/collaborations/{collaboration_id}"),
    "/api/v1/datasets": ("dataset_id", "/api/v1/datasets/{dataset_id}"),
    "/api/v1/envoys": ("name", "/api/v1/envoys/{name}"),
    "/api/v1/models": ("model_id", "/api/v1/models/{model_id}"),
    "/api/v1/organizations": ("organization_id", "/api/v1/organizations/{organization_id}"),
    "/api/v1/roles": ("role_id", "/api/v1/roles/{role_id}"),
    "/api/v1/tasks": ("task_id", "/api/v1/tasks/{task_id}"),
    "/api/v1/users": ("user_id", "/api/v1/users/{user_id}"),
}
ONESELF = {  # no rule helps: only who is signed in as that user
    ("PUT", "/api/v1/users/{user_id}/password"): {"old": "x", "new": "four other random words"},
    ("POST", "/api/v1/users/{user_id}/codes"): {"password": "x"},
}
ANYBODY = {  # they ask no rule: what they tell is of the caller, or of nobody
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("POST", "/api/v1/federated/organizations"),  # it waits to be let in
    ("POST", "/api/v1/sessions"),
    ("DELETE", "/api/v1/sessions/current"),
    ("POST", "/api/v1/sessions/device"),
    ("POST", "/api/v1/sessions/device/{sign_in_id}"),
    ("GET", "/api/v1/me"),
    ("GET", "/api/v1/me/may"),
}
CELLS = [
    pytest.param(method, ask, id=f"{method} {path} {ask.operation.value}:{ask.resource.value}")
    for (method, path), asks in ASKS.items()
    for ask in asks
]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def matrix(tmp_path_factory: Any, running: Any, request: pytest.FixtureRequest) -> Iterator[Matrix]:
    folder, log = tmp_path_factory.mktemp("matrix"), Log()
    url = f"sqlite:///{folder / 'director.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")()
    engine = open_database(url, durable=False)
    hub = Hub("lungs", engine, log, lambda: Matrix.now, os.urandom)
    works = running(hub, folder)
    (folder / "audit.jsonl").touch()
    made = Matrix(hub, make_app(hub, works), works, log)
    yield made
    made.close()
    engine.dispose()


def sent(client: TestClient, method: str, case: Case) -> Any:
    body = {"content": case.body} if isinstance(case.body, bytes) else {"json": case.body} if case.body else {}
    return client.request(method, case.path, headers=dict(case.headers), **body)


def check(m: Matrix, method: str, ask: Ask, case: Case, user: User, client: TestClient) -> bool:
    """One cell; gives whether it was allowed."""
    actor = m.hub.sign_in.actor(user.id)
    expected = decide(actor, ask.operation, ask.resource, case.target)
    may_see = decide(actor, V, ask.resource, case.target).is_allowed
    before = m.log.entries
    answer = sent(client, method, case)
    what = f"{method} {case.path}: {expected}; it answered {answer.status_code} {answer.text}"
    written = m.log.entries - before
    if expected.is_allowed and case.also_refused:
        assert answer.status_code in (403, 404), what
        assert case.also_refused in answer.json()["detail"], what
        assert not written, what
    elif expected.is_allowed and ask.passes:
        assert answer.status_code < 500, what
        assert ask.passes in answer.json()["detail"], what
    elif expected.is_allowed or case.anyway:
        assert answer.is_success, what
        assert bool(written) is (method != "GET" if ask.is_written is None else ask.is_written), what
    else:
        is_there = may_see or ask.is_known or ask.operation is C
        # Of two rules, or a rule and another law, either may be the one whose refusal is told.
        either = ask.given or case.also_refused
        assert answer.status_code in ((403, 404) if either else (403,) if is_there else (404,)), what
        assert answer.headers["content-type"] == "application/problem+json"
        assert not ask.passes or ask.passes not in answer.json()["detail"], what
        assert not written, what
    return expected.is_allowed


def routes_of(routes: Any) -> set[tuple[str, str]]:
    """Every method and path, also of the routers that were taken in; HEAD asks what GET does."""
    found: set[tuple[str, str]] = set()
    for one in routes:
        if (router := getattr(one, "original_router", None)) is not None:
            found |= routes_of(router.routes)
        elif isinstance(one, APIRoute):
            found |= {(method, one.path) for method in one.methods}
        else:
            assert one.path == "/api/v1/openapi.json", one
    return {(method, path) for method, path in found if method != "HEAD" or ("GET", path) not in found}


def test_every_route_says_which_rule_it_asks(matrix: Matrix) -> None:
    known = ASKS.keys() | ONESELF.keys() | ANYBODY | {("GET", path) for path in LISTS}
    routes = routes_of(matrix.app.routes)
    assert {(method.upper(), path) for path, ways in matrix.app.openapi()["paths"].items() for method in ways} >= routes
    assert sorted(routes - known) == []
    assert sorted(known - routes) == []


@pytest.mark.parametrize(("method", "ask"), CELLS)
def test_a_rule_allows_what_is_within_its_scope_and_nothing_else(matrix: Matrix, method: str, ask: Ask) -> None:
    answers = set()
    for scope, whose in itertools.product(Scope, ask.whose):
        user, client = matrix.caller(Rule(ask.operation, ask.resource, scope), *ask.given)
        answers.add(check(matrix, method, ask, ask.case(matrix, whose, user), user, client))
    assert answers == ({True} if ask.whose == OWN else {True, False})


@pytest.mark.parametrize(("method", "ask"), CELLS)
def test_without_that_rule_all_others_together_do_not_help(matrix: Matrix, method: str, ask: Ask) -> None:
    others = [
        Rule(operation, resource, Scope.FEDERATION)
        for operation, resource in itertools.product(Operation, Resource)
        if (operation, resource) != (ask.operation, ask.resource)
    ]
    for whose in ask.whose:
        user, client = matrix.caller(*others)
        assert not check(matrix, method, ask, ask.case(matrix, whose, user), user, client)


@pytest.mark.parametrize(("method", "ask"), CELLS)
def test_nobody_who_is_not_signed_in_does_anything(matrix: Matrix, method: str, ask: Ask) -> None:
    user, client = matrix.caller()
    client.headers.pop("Authorization")
    before = matrix.log.entries
    assert sent(client, method, ask.case(matrix, ask.whose[0], user)).status_code == 401
    assert matrix.log.entries == before


@pytest.mark.parametrize("path", sorted(LISTS))
def test_a_list_shows_what_may_be_seen_and_nothing_else(matrix: Matrix, path: str) -> None:
    name, of_one = LISTS[path]
    ask = ASKS["GET", of_one][0]
    for scope in Scope:
        user, client = matrix.caller(Rule(V, ask.resource, scope))
        cases = [ask.case(matrix, whose, user) for whose in ask.whose]
        actor = matrix.hub.sign_in.actor(user.id)
        expected = {
            one.path.rsplit("/", 1)[1] for one in cases if decide(actor, V, ask.resource, one.target).is_allowed
        }
        listed, after = set(), ""
        while True:
            answer = client.get(path, params={"limit": 200, "after": after} if path != "/api/v1/agreements" else {})
            if answer.status_code == 403:
                break
            assert answer.status_code == 200, answer.text
            listed |= {one[name] for one in answer.json()["items"]}
            after = answer.json().get("next")
            if not after:
                break
        assert listed & {one.path.rsplit("/", 1)[1] for one in cases} == expected, scope


@pytest.mark.parametrize(("method", "path"), sorted(ONESELF))
def test_what_one_does_about_oneself_nobody_else_does(matrix: Matrix, method: str, path: str) -> None:
    everything = [Rule(operation, resource, Scope.FEDERATION) for operation in Operation for resource in Resource]
    for rules, whose in itertools.product(([], everything), EVERYBODYS):
        user, client = matrix.caller(*rules)
        case = person(path.rsplit("}", 1)[1], ONESELF[method, path])(matrix, whose, user)
        answer = sent(client, method, case)
        if whose is Whose.OWN:
            assert "password is not right" in answer.text
        else:
            assert answer.status_code == (403 if rules else 404)


# ------------------------------------------------------------ guessed, changed by two, and injected

EVERYTHING = [Rule(operation, resource, Scope.FEDERATION) for operation in Operation for resource in Resource]
OF_ONE = [one for one in CELLS if "}" in str(one.id)]
CHANGES = [one for one in CELLS if str(one.id).startswith("PATCH")]
WITH_BODY = [one for one in CELLS if not str(one.id).startswith("GET")]
JSON = {"Content-Type": "application/json"}
INJECTIONS = (
    "'; DROP TABLE hub_users; --",
    '" OR ""="',
    "{{7*7}}${7*7}<%= 7*7 %>",
    "<script>alert(1)</script>",
    "%s%n{0}{self}",
    "../../../../etc/passwd",
    "x\r\nX-Injected: 1",
    "\0",
    "\ud800",
    "\u202egnp.exe",
)


@pytest.mark.parametrize(("method", "ask"), OF_ONE)
def test_a_guessed_id_and_one_that_may_not_be_seen_are_answered_alike(
    matrix: Matrix, method: str, ask: Ask, request: pytest.FixtureRequest
) -> None:
    user, client = matrix.caller()
    case = ask.case(matrix, Whose.ELSEWHERE, user)
    path, mark, query = case.path.partition("?")
    parts = path.split("/")
    where = next(number for number, one in enumerate(path_of(request).split("/")) if one.startswith("{"))
    parts[where] = re.sub("[0-9]", "f", parts[where])[:-1] + "f"
    guessed = replace(case, path="/".join(parts) + mark + query)
    there, not_there = sent(client, method, case), sent(client, method, guessed)
    assert (there.status_code, there.json()["detail"]) == (not_there.status_code, not_there.json()["detail"])
    assert there.status_code in (403, 404, 422)  # or refused before anything is looked for


@pytest.mark.parametrize(("method", "ask"), CHANGES)
def test_of_two_who_change_what_both_saw_the_second_is_told(matrix: Matrix, method: str, ask: Ask) -> None:
    user, client = matrix.caller(*EVERYTHING)
    case = ask.case(matrix, ask.whose[-1], user)
    assert sent(client, method, case).status_code == 200
    again = sent(client, method, case)
    assert again.status_code == 412
    assert "read it again" in again.json()["detail"]
    assert sent(client, method, replace(case, headers=())).status_code == 422


def path_of(request: pytest.FixtureRequest) -> str:
    """Of the route that a test is about."""
    return str(request.node.callspec.id).split(" ")[1]


def texts_of(schema: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where a body may hold a text, as paths; ``*`` stands for each of a list."""
    for name, one in schema.get("properties", {}).items():
        for kind in one.get("anyOf", [one]):
            if "$ref" in kind:
                yield from ((name, *rest) for rest in texts_of(schemas[kind["$ref"].rsplit("/", 1)[1]], schemas))
            elif kind.get("type") == "string":
                yield (name,)
            elif kind.get("type") == "array" and kind["items"].get("type") == "string":
                yield (name, "*")


def with_text(body: Any, path: tuple[str, ...], text: str) -> Any:
    """The body with a text at that place."""
    if not path:
        return text
    if path[0] == "*":
        return [text]
    return {**body, path[0]: with_text((body or {}).get(path[0]), path[1:], text)}


def at(body: Any, path: tuple[str, ...]) -> Any:
    """What stands at that place of an answer, if it is there."""
    for name in path:
        body = body[0] if name == "*" and body else body.get(name) if isinstance(body, dict) else None
    return body


@pytest.mark.parametrize(("method", "ask"), WITH_BODY)
def test_what_looks_like_code_is_kept_as_the_text_that_it_is_or_refused(
    matrix: Matrix, method: str, ask: Ask, request: pytest.FixtureRequest
) -> None:
    path = path_of(request)
    document = matrix.app.openapi()
    content = document["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return
    schemas = document["components"]["schemas"]
    body_of = schemas[content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]]
    found = list(texts_of(body_of, schemas))
    assert found
    user, client = matrix.caller(*EVERYTHING)
    for text in INJECTIONS:  # as a field's name
        raw = json.dumps({text: 1}).encode()
        case = ask.case(matrix, ask.whose[0], user)
        answer = client.request(method, case.path, content=raw, headers=dict(case.headers) | JSON)
        assert answer.status_code == 422, answer.text
    for where, text in itertools.product(found, INJECTIONS):
        case = ask.case(matrix, ask.whose[0], user)
        raw = json.dumps(with_text(case.body, where, text)).encode()  # lone surrogates too
        answer = client.request(method, case.path, content=raw, headers=dict(case.headers) | JSON)
        assert answer.status_code < 500, (where, text, answer.text)
        assert "x-injected" not in answer.headers
        if answer.is_success and answer.content and at(answer.json(), where) is not None:
            assert at(answer.json(), where) == text
    assert matrix.hub.users.all()
