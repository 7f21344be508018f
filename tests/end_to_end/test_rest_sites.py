"""A hospital out of whose network HTTP/1.1 alone gets: over HTTPS it takes part as the others do over gRPC."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fedveil
import pytest
from fedveil.director.founding import ROOT_FILE
from fedveil.director.server import REST_ADDRESS_FILE
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.enrolment import load_credentials
from fedveil.envoy.journal import read_outbox
from fedveil.envoy.registration import ACCESS_FILE
from fedveil.utils.messages import ExperimentView
from fedveil.utils.rest_calls import RestCalls
from typer.testing import CliRunner

GRPC = ("site-a", "site-b", "site-c")
SITE = "site-d"
FOUR = (*GRPC, SITE)
PASSWORD = "correct horse battery staple"
SECURE = "[secure_sum]\nclip = 4.0\nmax_examples = 100\nstage_timeout_seconds = 20\n"


def typed(app: object, *words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def api_key(director: Path, tmp: Path) -> str:
    """Of a program that takes part for North Hospital; its administrator made it over HTTPS."""
    from fedveil.director.__main__ import app

    (tmp / "password").write_text(PASSWORD + "\n")
    words = ["user", "add", "north", "--organization", "North Hospital", "--role", "organization-admin"]
    typed(app, *words, "--folder", director, "--password-file", tmp / "password")
    url, root = (director / REST_ADDRESS_FILE).read_text(), (director / ROOT_FILE).read_bytes()
    with RestCalls(url, "", root) as calls:
        calls.bearer = calls.json("POST", "/api/v1/sessions", {"name": "north", "password": PASSWORD})["token"]
        new = {"label": "site", "rules": ["create:envoy:organization", "edit:envoy:organization"], "days": 1}
        made = calls.json("POST", "/api/v1/keys", new)
        return str(made["api_key"])


@pytest.fixture
def mixed(tmp_path: Path, toy_federation: Callable[..., object]) -> Iterator[object]:
    """Three envoys that joined by invitation, and a site that registers and works over HTTPS."""
    with toy_federation(tmp_path / "federation", "", "allowed") as federation:
        federation.sites = GRPC
        federation.director_settings = {
            "rest.listen": '"127.0.0.1:0"',
            "rest.needs_infrastructure_user": "false",
        }
        federation.set_up()
        director = federation.director_folder
        (tmp_path / "key").write_text(api_key(director, tmp_path) + "\n")
        (tmp_path / "key").chmod(0o600)
        folder = federation.folder / SITE
        said = typed(
            envoy,
            *("register", SITE, "--url", (director / REST_ADDRESS_FILE).read_text(), "--root", director / ROOT_FILE),
            *("--key-file", tmp_path / "key", "--folder", folder, "--yes"),
        )
        assert f"spiffe://toys/envoy/{SITE} (North Hospital) joined" in said
        (folder / "envoy.toml").write_text(federation.envoy_settings)
        federation.adopt(folder)
        federation.sites = FOUR
        federation.start_envoy(SITE)
        federation.wait_for_all(90.0)
        yield federation
        federation.history._engine.dispose()


def fetched(federation: object, view: ExperimentView) -> bytes:
    with federation.operator() as operator:
        return operator.fetch(view.model)


def test_three_grpc_envoys_and_a_rest_site_end_with_the_model_of_four_grpc_envoys_bit_for_bit(mixed, settings):
    plan = mixed.plan()
    secure = settings("simulation", rounds=2, quorum=4, secure="required")
    view = mixed.finish(mixed.submit(secure + SECURE, plan))
    assert [one.sum.survivors for one in view.rounds] == [FOUR] * 3
    # What a simulation gives is what four gRPC envoys give: test_secure_sums.py holds them equal.
    seed, terms = int.from_bytes(hashlib.sha256(b"toy").digest()), 'secure_aggregation = "required"\n' + SECURE
    same = fedveil.simulate(plan, dict.fromkeys(FOUR), rounds=2, seed=seed, experiment=terms).model
    assert fetched(mixed, view) == same
    assert [row.kind for row in read_outbox(mixed.folder / SITE)] == ["masked"] * 2 + ["masked metrics"]
    over_https = mixed.finish(mixed.submit(settings("plain", rounds=2, quorum=4), plan))
    assert [(one.state, one.invited, one.received) for one in over_https.rounds] == [("closed", 4, 4)] * 3
    # The very same folder works over gRPC too: its credentials are those of any envoy.
    mixed.kill_envoy(SITE)
    (mixed.folder / SITE / ACCESS_FILE).unlink()
    mixed.start_envoy(SITE)
    mixed.wait_for_all(90.0)
    over_grpc = mixed.finish(mixed.submit(settings("again", rounds=2, quorum=4), plan))
    assert fetched(mixed, over_grpc) == fetched(mixed, over_https)
    assert mixed.trainings() == dict.fromkeys(FOUR, 6)


def test_the_commands_of_a_rest_site_ask_over_https(mixed, tmp_path):
    folder = mixed.folder / SITE
    held = load_credentials(folder, time.time())
    typed(envoy, "renew", "--folder", folder)
    assert load_credentials(folder, time.time()).chain != held.chain
    assert "No change: this site has accepted" in typed(envoy, "roster", "fetch", "--folder", folder)
    assert typed(envoy, "audit", "verify", "--folder", folder)
    (tmp_path / "key").write_text("fv_of-another\n")
    url = json.loads((folder / ACCESS_FILE).read_text())["url"]
    typed(envoy, "register", SITE, "--url", url, "--key-file", tmp_path / "key", "--folder", folder)
    assert json.loads((folder / ACCESS_FILE).read_text())["api_key"] == "fv_of-another"
    assert (folder / ACCESS_FILE).stat().st_mode & 0o777 == 0o600
