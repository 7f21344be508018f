"""From joining to a roster that is accepted, by the very commands that people type, over real sockets."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.accepted_roster import load_roster
from fedveil.envoy.enrolment import load_credentials
from fedveil.utils.errors import ConfigError, IdentityError
from fedveil.utils.roster import Roster, grouped, roster_of
from typer.testing import CliRunner

RUNNER = CliRunner()


def typed(app, *words: str, status: int = 0) -> str:
    done = RUNNER.invoke(app, words)
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def join(federation, tmp_path: Path):
    """A site that joins by its join file; gives its folder."""

    def site(name: str, organization: str) -> str:
        file, folder = tmp_path / f"{name}.join", str(tmp_path / name)
        typed(
            director,
            "invite",
            name,
            "--organization",
            organization,
            "--folder",
            str(federation.folder),
            "--out",
            str(file),
        )
        typed(envoy, "join", str(file), "--folder", folder, "--yes")
        return folder

    return site


def digest_in(output: str) -> str:
    found = re.search(r"envoy roster accept ([0-9a-f]{64})", output)
    assert found, output
    return found[1]


def held_by(folder: str, now: float) -> Roster:
    credentials = load_credentials(Path(folder), now)
    return load_roster(Path(folder), credentials.peer, credentials.public_identity)


def test_a_site_fetches_compares_and_accepts_and_sees_who_comes_later(federation, join):
    now = time.time()
    a, b = join("a", "Hospital A"), join("b", "Hospital B")
    shown = typed(director, "roster", "show", "--folder", str(federation.folder))
    with pytest.raises(IdentityError, match="accepted no roster"):
        held_by(a, now)
    first = typed(envoy, "roster", "fetch", "--folder", a)
    key_of_b = load_credentials(Path(b), now).public_identity
    assert "+ a ('Hospital A')" in first
    assert "Nothing was accepted" in first
    assert grouped(digest_in(first)) in shown
    typed(envoy, "roster", "accept", digest_in(first), "--folder", a)
    assert held_by(a, now).entry("b").identity_key == key_of_b
    assert "No change" in typed(envoy, "roster", "fetch", "--folder", a)
    join("c", "Hospital C")
    second = typed(envoy, "roster", "fetch", "--folder", a)
    assert "+ c ('Hospital C')" in second
    assert "+ b" not in second
    assert "c" not in held_by(a, now)
    assert "IdentityError" in typed(envoy, "roster", "accept", digest_in(first), "--folder", a, status=1)
    typed(envoy, "roster", "accept", digest_in(second), "--folder", a)
    assert held_by(a, now).names == ("a", "b", "c")
    assert "3 envoys of 3 organizations" in typed(envoy, "roster", "show", "--folder", a)


def test_the_operator_sees_the_roster_that_sites_are_offered(federation, join):
    a = join("a", "Hospital A")
    with federation.operator() as operator:
        offered = roster_of(operator.roster())
    assert digest_in(typed(envoy, "roster", "fetch", "--folder", a)) == offered.digest


def test_an_aggregator_that_never_joined_is_refused_when_the_experiment_is_submitted(federation, join):
    join("a", "Hospital A")
    with federation.operator() as operator:
        for name in ("university", "operator"):
            rounds = '[study]\npurpose = "a test"\n[rounds]\nmax_rounds = 1\nmin_participants = 3\n'
            text = f'name = "toy"\n{rounds}[secure_sum]\naggregator = "envoy:{name}"\n'
            with pytest.raises(ConfigError, match=f"no envoy {name} has joined"):
                operator.submit(text, federation.bundle)


def test_a_director_that_never_summed_has_a_log_that_verifies(federation):
    run = federation.submit(quorum=1)
    (one,) = federation.attending("a")
    one.send(one.task(), 1.0)
    federation.finished(run)
    assert "entries, whole" in typed(director, "audit", "verify", "--folder", str(federation.folder))


def test_a_changed_log_of_the_director_is_found(federation):
    federation.submit(quorum=1)
    log = federation.folder / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"run submitted", b"run Submitted"))
    done = typed(director, "audit", "verify", "--folder", str(federation.folder), status=1)
    assert "SuspectLogError" in done
    assert "entry 1" in done
