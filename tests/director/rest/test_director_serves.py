"""A director that was told to serves its API, to the people whom its own commands made."""

import json
import ssl
import urllib.request
import zipfile
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE
from fedveil.director.server import REST_ADDRESS_FILE, Director
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.errors import NotAuthorizedError
from fedveil.utils.rest_calls import RestCalls
from fedveil.workspace.__main__ import app as fedveil
from typer.testing import CliRunner

PASSWORD = "correct horse battery staple"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A director's, as `director init` makes it."""
    (tmp_path / "passphrase").write_text("a passphrase of the root")
    folder = tmp_path / "director"
    words = ["init", "lungs", "--address", "127.0.0.1", "--folder", folder, "--listen", "127.0.0.1:0"]
    typed(*words, "--passphrase-file", tmp_path / "passphrase")
    file = folder / "director.toml"
    file.write_text(file.read_text().replace('[rest]\nlisten = ""', '[rest]\nlisten = "127.0.0.1:0"'))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    return folder


def typed(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(director, list(map(str, words)))
    assert done.exit_code == status, done.output
    return done.output


def asked(folder: Path, path: str, body: dict[str, str] | None = None, token: str = "") -> dict[str, object]:
    request = urllib.request.Request(
        (folder / REST_ADDRESS_FILE).read_text() + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
    context = ssl.create_default_context(cafile=str(folder / ROOT_FILE))
    with urllib.request.urlopen(request, context=context, timeout=20) as answer:
        return json.load(answer)


def test_the_first_admin_is_made_by_a_command_and_signs_in_over_https(folder, tmp_path):
    words = ["user", "add", "root", "--organization", "The director's", "--role", "admin", "--folder", folder]
    assert "may sign in" in typed(*words, "--password-file", tmp_path / "password")
    running = Director(folder, load_config(folder))
    try:
        token = asked(folder, "/api/v1/sessions", {"name": "root", "password": PASSWORD})["token"]
        assert asked(folder, "/api/v1/me", token=str(token))["roles"] == ["admin"]
        made = asked(folder, "/api/v1/organizations", {"name": "North Hospital"}, str(token))
        assert made["status"] == "pending"
    finally:
        running.close()
    said = [entry.event for entry in read_entries(folder / "audit.jsonl")]
    assert [one["action"] for one in said if one["what"] == "operator"] == [
        "organization registered",
        "user added",
        "organization registered",
    ]
    assert PASSWORD not in (folder / "audit.jsonl").read_text()


def test_a_director_that_was_not_told_to_serves_no_api(folder):
    file = folder / "director.toml"
    file.write_text(file.read_text().replace('[rest]\nlisten = "127.0.0.1:0"', '[rest]\nlisten = ""'))
    running = Director(folder, load_config(folder))
    running.close()
    assert not (folder / REST_ADDRESS_FILE).exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--role", "emperor"], "expected one of"),
        (["--password-file", "/nothing"], "cannot be read"),
        ([], "no terminal"),
    ],
)
def test_a_user_that_cannot_be_is_refused(folder, tmp_path, words, why):
    given = words if "--password-file" in words or not words else [*words, "--password-file", tmp_path / "password"]
    said = typed("user", "add", "anna", "--organization", "North", "--folder", folder, *given, status=1)
    assert why in said


@pytest.fixture
def served(folder, tmp_path):
    """Calls of a director that runs, by name: of its admin, an auditor, and an organization's administrator."""
    words = ["--folder", folder, "--password-file", tmp_path / "password"]
    for name, organization, role in (
        ("root", "The director's", "admin"),
        ("vera", "Inspectors", "auditor"),
        ("noor", "North Hospital", "organization-admin"),
    ):
        typed("user", "add", name, "--organization", organization, "--role", role, *words)
    running, calls = Director(folder, load_config(folder)), {}
    try:
        for name in ("root", "vera", "noor"):
            one = RestCalls((folder / REST_ADDRESS_FILE).read_text(), "", (folder / ROOT_FILE).read_bytes())
            one.bearer = one.json("POST", "/api/v1/sessions", {"name": name, "password": PASSWORD})["token"]
            calls[name] = one
        yield calls
    finally:
        for one in calls.values():
            one.close()
        running.close()


def test_an_auditor_gets_the_log_and_the_evidence_and_checks_both_at_home(served, tmp_path):
    served["root"].json("POST", "/api/v1/organizations", {"name": "South Hospital"})
    log, bundle = tmp_path / "log.jsonl", tmp_path / "evidence.zip"
    log.write_bytes(served["vera"].send("GET", "/api/v1/audit/log", b"", "text/plain"))
    bundle.write_bytes(served["vera"].send("POST", "/api/v1/audit/evidence", b"", "text/plain"))
    for file in (log, bundle):
        done = CliRunner().invoke(fedveil, ["audit", "verify", str(file)])
        assert done.exit_code == 0, done.output
    with zipfile.ZipFile(bundle) as files:
        assert "South Hospital" in files.read("organizations.json").decode()
        assert '"evidence exported"' in files.read("audit.jsonl").decode()


def test_entries_come_in_pages_and_each_organization_sees_its_own(served):
    for name in ("First", "Second", "Third"):
        served["root"].json("POST", "/api/v1/organizations", {"name": name})
    found, after = [], -1
    while after is not None:
        page = served["vera"].json("GET", "/api/v1/audit/entries", params={"limit": 2, "after": after})
        assert len(page["items"]) <= 2
        found += page["items"]
        after = page["next"]
    assert [one["number"] for one in found] == list(range(len(found)))
    assert sum(one["event"].get("action") == "organization registered" for one in found) >= 3
    served["noor"].json("POST", "/api/v1/keys", {"label": "mine", "rules": ["view:key:own"], "days": 1})
    own = served["noor"].json("GET", "/api/v1/audit/entries")["items"]
    assert own
    assert {one["event"]["by"] for one in own} == {"user:noor"}


def test_nobody_but_who_may_export_gets_log_or_evidence(served):
    for method, path in (("GET", "/api/v1/audit/log"), ("POST", "/api/v1/audit/evidence")):
        with pytest.raises(NotAuthorizedError, match="export:audit"):
            served["noor"].send(method, path, b"", "text/plain")
