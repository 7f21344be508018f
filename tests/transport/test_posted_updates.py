"""Sites that post, beside envoys that hold lines: a real director and real sockets, and the same model as by gRPC."""

from __future__ import annotations

import base64
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fedveil.director.audit import LOG_FILE, DirectorAudit, verify_log
from fedveil.director.config import load_config
from fedveil.director.database import open_database
from fedveil.director.founding import ROOT_FILE
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.organizations import Organization, Status
from fedveil.director.hub.store import new_id
from fedveil.director.hub.users import User
from fedveil.director.identity_store import Identity, IdentityStore
from fedveil.director.server import REST_ADDRESS_FILE, Director
from fedveil.utils import messages as m
from fedveil.utils.audit_chain import SignedHead, read_entries
from fedveil.utils.sealed_update import Destination, sealed
from fedveil.utils.tensors import bytes_of, digest_of
from fedveil.utils.update_receipt import read_receipt

ELEMENTS = 10_000
SITE = "site-c"


@dataclass
class Site:
    """An organization's program that only posts."""

    organization: str
    http: httpx.Client

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        answer = self.http.get(f"/api/v1/federated/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, status: int = 201, **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"/api/v1/federated/{path}", json={"organization_id": self.organization} | body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def approve(self) -> None:
        """Whatever is proposed to it."""
        proposals = [one["proposal_digest"] for one in self.get("proposals")["items"]]
        assert proposals
        self.post("approvals", 200, approved=proposals)


def database(folder: Path) -> Hub:
    engine = open_database(load_config(folder).database_url(folder), durable=False)
    return Hub("lungs", engine, DirectorAudit())


def called(folder: Path, token: str) -> httpx.Client:
    return httpx.Client(
        base_url=(folder / REST_ADDRESS_FILE).read_text(),
        verify=ssl.create_default_context(cafile=str(folder / ROOT_FILE)),
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )


@pytest.fixture
def site(served) -> Iterator[Site]:
    """One that joined, and whose organization has somebody who may do all that is asked here."""
    hub = database(served.folder)
    organization = hub.organizations.add(Organization(new_id(), "South", status=Status.ACTIVE, created_at=1.0))
    user = hub.users.add(User(new_id(), "program", "Program", organization.id, "", created_at=1.0))
    hub.roles.give(user.id, ["site", "reviewer"])
    IdentityStore(hub.engine).add_identity(Identity(SITE, "envoy", "South", "00" * 32, os.urandom(32), time.time()))
    hub.stations.take(SITE, organization.id, 1.0)
    http = called(served.folder, hub.sign_in.open(user, time.time()).token)
    made = Site(organization.id, http)
    yield made
    made.http.close()
    hub.engine.dispose()


def update(value: float) -> bytes:
    return bytes_of(np.full(ELEMENTS, value, np.float32)).tobytes()


def test_a_site_that_posts_and_envoys_by_grpc_end_with_the_same_model_as_envoys_by_grpc_alone(served, site):
    lines = served.attending("site-a", "site-b", SITE)
    run = served.submit(quorum=3, rounds=2)
    for number in (1, 2):
        for place, envoy in enumerate(lines, 1):
            envoy.send(envoy.task(), place * number, place)
    alone = served.finished(run)
    lines.pop().close()

    run = served.submit(quorum=3, rounds=2, approvals=3)
    site.approve()
    for number in (1, 2):
        tasks = [envoy.task() for envoy in lines]
        served.until(lambda now=number: site.get("round")["round"] == now and site.get("round")["takes"] == "gradients")
        for place, (envoy, task) in enumerate(zip(lines, tasks, strict=True), 1):
            envoy.send(task, place * number, place)
        receipt = site.post(
            "gradients",
            round=number,
            gradients_encrypted="0x" + update(3.0 * number).hex(),
            model_version=site.get("round")["model_version"],
            sample_count="3-9",
        )
        assert receipt["sample_count"] == 3
    together = served.finished(run)
    assert together.state == "finished", together.reason
    assert together.model == alone.model
    assert not np.array_equal(served.model(together), np.zeros(ELEMENTS, np.float32))
    model = site.get("model")
    assert (model["sha256"], model["training_round"]) == (together.model, 2)
    assert digest_of(bytes.fromhex(model["weights"][2:])) == together.model
    assert model["organizations_contributed"] == 3


def test_a_sealed_body_in_pieces_is_taken_and_its_receipt_is_in_the_directors_log(served, site):
    served.submit(approvals=1)
    site.approve()
    served.until(lambda: site.http.get("/api/v1/federated/round").status_code == 200)
    served.until(lambda: site.get("round")["takes"] == "gradients")
    this = site.get("round")
    ref = m.TaskRef(m.RunId(this["task_id"]), 1, this["attempt"], this["plan_digest"])
    to = Destination("lungs", ref, this["model_version"], site.organization, m.EnvoyName(SITE))
    raw = sealed(to, update(1.5), bytes.fromhex(this["sealing"]["key"]))
    upload = site.post("gradients/uploads", length=len(raw))
    for offset in range(0, len(raw), 15_000):
        piece = site.http.put(
            f"/api/v1/federated/gradients/uploads/{upload['upload_id']}?offset={offset}",
            content=raw[offset : offset + 15_000],
            headers={"Content-Type": "application/octet-stream"},
        )
        assert piece.status_code == 200, piece.text
    told = site.post(
        "gradients",
        round=1,
        upload_id=upload["upload_id"],
        sealed_to=this["sealing"]["key"],
        model_version=this["model_version"],
        sample_count=100,
    )
    document, key = base64.b64decode(told["document"]), bytes.fromhex(this["log_key"])
    receipt = read_receipt(document, bytes.fromhex(told["signature"]), key)
    assert receipt.update == digest_of(update(1.5)) == told["update_sha256"]
    served.finished(m.RunId(this["task_id"]))
    log = list(read_entries(served.folder / LOG_FILE))
    entry = log[receipt.entry]
    assert (entry.hash.hex(), entry.event["update"]) == (receipt.entry_hash, receipt.update)
    assert verify_log(served.folder, [SignedHead.from_bytes(bytes.fromhex(told["audit_head"]))]).heads == 1
    assert not list((served.folder / "posted").glob("*.body"))


def test_what_a_site_that_posts_said_and_sent_outlives_the_director(served, site):
    run = served.submit(rounds=2, approvals=1)
    site.approve()
    served.until(lambda: site.http.get("/api/v1/federated/round").status_code == 200)
    served.until(lambda: site.get("round")["takes"] == "gradients")
    first = site.get("round")
    body = {
        "round": 1,
        "gradients_encrypted": "0x" + update(1.0).hex(),
        "model_version": first["model_version"],
        "sample_count": 1,
    }
    site.post("gradients", **body)
    served.until(lambda: site.get("round")["round"] == 2)
    token = site.http.headers["Authorization"].removeprefix("Bearer ")
    site.http.close()
    served.director.close()
    served.director = Director(served.folder, load_config(served.folder))
    site.http = called(served.folder, token)
    served.until(lambda: site.get("round")["takes"] == "gradients")
    again = site.post("gradients", 410, **body)
    assert again["type"].endswith("RoundOverError")
    site.post("gradients", **body | {"round": 2, "model_version": site.get("round")["model_version"]})
    with served.operator() as operator:
        served.until(lambda: operator.show(run).is_over)
        assert operator.show(run).state == "finished"
