"""A federation whose director serves REST, and organizations that agreed on everything, all of it said over HTTP."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fedveil.director.__main__ import app as director_app
from fedveil.director.founding import ROOT_FILE
from fedveil.director.server import REST_ADDRESS_FILE
from typer.testing import CliRunner

PASSWORD = "correct horse battery staple"


class Consortium:
    """What people do at a director's REST API, each as themselves. Its first user is made at the director's folder.

    Args:
        folder: the director's; it runs, with ``[rest]``.
    """

    def __init__(self, folder: Path) -> None:
        self.url, self.root = (folder / REST_ADDRESS_FILE).read_text("utf-8"), folder / ROOT_FILE
        self._tls = ssl.create_default_context(cafile=str(self.root))
        self._open: list[httpx.Client] = []
        self.organizations: dict[str, str] = {}  # ids by name
        password = folder.parent / "password"
        password.write_text(PASSWORD, "utf-8")
        words = ["user", "add", "root", "--organization", "The director's", "--role", "admin", "--folder", str(folder)]
        done = CliRunner().invoke(director_app, [*words, "--password-file", str(password)])
        assert done.exit_code == 0, done.output
        self.admin = self.signed_in("root")
        self.organizations["the director's"] = said(self.admin.get("/api/v1/me"), 200)["organization_id"]

    def close(self) -> None:
        """End all connections."""
        for one in self._open:
            one.close()

    def client(self, bearer: str = "") -> httpx.Client:
        """Somebody with a token, a key, or nothing."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        made = httpx.Client(base_url=self.url, verify=self._tls, headers=headers, trust_env=False, timeout=60.0)
        self._open.append(made)
        return made

    def signed_in(self, name: str) -> httpx.Client:
        """A user, by password."""
        body = {"name": name, "password": PASSWORD}
        return self.client(said(self.client().post("/api/v1/sessions", json=body), 201)["token"])

    def organization(self, name: str) -> str:
        """One that registers and is accepted, with an administrator ``NAME-admin``; gives its id."""
        made = said(self.admin.post("/api/v1/organizations", json={"name": name, "contact": f"it@{name}"}), 201)
        id_ = str(made["organization_id"])
        tag = {"If-Match": f'"{made["version"]}"'}
        said(self.admin.patch(f"/api/v1/organizations/{id_}", json={"status": "active"}, headers=tag), 200)
        self.organizations[name] = id_
        self.user(f"{name}-admin", name, "organization-admin", by=self.admin)
        return id_

    def user(self, name: str, organization: str, *roles: str, by: httpx.Client | None = None) -> httpx.Client:
        """A new one, made by their organization's administrator, and signed in."""
        body = {
            "name": name,
            "organization_id": self.organizations[organization],
            "password": PASSWORD,
            "roles": list(roles),
        }
        said((by or self.signed_in(f"{organization}-admin")).post("/api/v1/users", json=body), 201)
        return self.signed_in(name)

    def key(self, client: httpx.Client, *rules: str) -> str:
        """An API key of a user, for these rules alone."""
        return str(
            said(client.post("/api/v1/keys", json={"label": "a test", "rules": list(rules), "days": 1}), 201)["api_key"]
        )

    def collaboration(
        self, name: str, organizations: list[str], datasets: list[str], *, seconds: float = 86_400.0
    ) -> str:
        """Organizations under a permit for so long; gives its id."""
        now = time.time()
        permit = {
            "number": "P-2026-17",
            "authority": "The Health Data Authority",
            "purpose": "pneumonia in chest X-rays",
            "starts_at": now - 60,
            "ends_at": now + seconds,
            "datasets": datasets,
        }
        body = {"name": name, "organizations": [self.organizations[one] for one in organizations], "permit": permit}
        return str(said(self.admin.post("/api/v1/collaborations", json=body), 201)["collaboration_id"])

    def sign(self, kind: str, organizations: list[str], collaboration: str | None = None, **more: Any) -> str:
        """An agreement that each organization's administrator signs; gives its id."""
        ids = {key: [self.organizations[one] for one in value] for key, value in more.items() if key[:4] == "may_"}
        body = {
            "kind": kind,
            "document_sha256": hashlib.sha256(f"the text of {kind}".encode()).hexdigest(),
            "parties": [self.organizations[one] for one in organizations],
            "collaboration_id": collaboration,
            "valid_from": time.time() - 60,
        }
        body |= more | ids
        made = said(self.admin.post("/api/v1/agreements", json=body), 201)
        for one in organizations:
            path = f"/api/v1/agreements/{made['agreement_id']}/signatures"
            said(self.signed_in(f"{one}-admin").post(path), 200, 201)
        return str(made["agreement_id"])

    def agree(self, name: str, organizations: list[str], datasets: list[str], **more: Any) -> str:
        """A collaboration with all that it takes; the first organization may start tasks and publish."""
        id_ = self.collaboration(name, organizations, datasets, **more)
        for one in organizations:
            self.sign("infrastructure-user", [one])
        first = organizations[:1]
        self.sign(
            "consortium", organizations, id_, may_start_tasks=first, may_publish=first, intellectual_property="All"
        )
        self.sign("joint-controller", organizations, id_)
        return id_


def said(answer: httpx.Response, *expected: int) -> Any:
    """What an answer says; its status must be one of these."""
    assert answer.status_code in expected, f"{answer.request.method} {answer.request.url}: {answer.text}"
    return answer.json() if answer.content else None


@pytest.fixture(name="said")
def _said() -> Callable[..., Any]:
    """Reads an answer."""
    return said


@pytest.fixture(scope="session")
def consortium_of(wait_until: Callable[..., None]) -> Callable[[Path], Consortium]:
    """Makes one of a director's folder, once that serves the API; to be closed."""

    def make(folder: Path) -> Consortium:
        wait_until((folder / REST_ADDRESS_FILE).exists, "the API")
        return Consortium(folder)

    return make


@pytest.fixture(scope="session")
def three_hospitals(
    toy_federation: Callable[..., Any], free_port: Callable[[], int], consortium_of: Callable[[Path], Consortium]
) -> Callable[[Path], AbstractContextManager[tuple[Any, Consortium]]]:
    """Makes a federation and its people: three envoys that joined by invitation, each of a hospital of its own.

    The director keeps its API's port. The hospitals agreed to nothing yet.
    """

    @contextmanager
    def make(folder: Path) -> Iterator[tuple[Any, Consortium]]:
        with toy_federation(folder, "", "allowed") as federation:
            federation.sites = federation.sites[:3]
            federation.director_settings = {"rest.listen": f'"127.0.0.1:{free_port()}"'}
            federation.set_up()
            consortium = consortium_of(federation.director_folder)
            for name, site in zip(("north", "south", "west"), federation.sites, strict=True):
                body = {"organization_id": consortium.organization(name)}
                said(consortium.admin.put(f"/api/v1/envoys/{site}/organization", json=body), 200)
            yield federation, consortium
            consortium.close()
            federation.history._engine.dispose()

    return make


@pytest.fixture
def hospitals(tmp_path: Path, three_hospitals: Callable[..., Any]) -> Iterator[tuple[Any, Consortium]]:
    """Three, and their director."""
    with three_hospitals(tmp_path) as made:
        yield made


@pytest.fixture
def federation(hospitals: tuple[Any, Consortium]) -> Any:
    """The processes."""
    return hospitals[0]


@pytest.fixture
def consortium(hospitals: tuple[Any, Consortium]) -> Consortium:
    """The people."""
    return hospitals[1]
