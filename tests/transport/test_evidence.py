"""What a director knows of what was done, exported while it runs, and checked by somebody who has the file alone."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.__main__ import app as director
from fedveil.director.audit import LOG_FILE, audit_key
from fedveil.utils import messages as m
from fedveil.utils.certificates import public_bytes
from fedveil.utils.evidence import read_evidence, write_evidence
from fedveil.utils.proposal import Step
from fedveil.utils.roster import key_fingerprint
from fedveil.workspace.__main__ import app as fedveil
from typer.testing import CliRunner


def typed(app, *words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, done.output
    return done.output.replace("\n", " ")


@pytest.fixture
def exported(federation, tmp_path: Path) -> Path:
    """Of two runs, one of which is over."""
    (envoy,) = federation.attending("site-a")
    run = federation.submit()
    envoy.send(envoy.task(), 1.0, leakage_score=0.125)
    assert federation.finished(run).state == "finished"
    waiting = federation.submit(quorum=3)
    with federation.operator() as operator:
        operator.steer(waiting, Step.PAUSE, reason="seen enough")
        operator.steer(waiting, Step.RESUME)
    out = tmp_path / "evidence.zip"
    said = typed(director, "audit", "export", out, "--folder", federation.folder)
    key = public_bytes(audit_key(federation.folder).public_key())
    assert key_fingerprint(key) in said
    return out


def test_a_bundle_holds_the_facts_and_is_checked_offline(federation, exported, tmp_path):
    found = read_evidence(exported)
    runs = json.loads(found.members["runs.json"])
    assert [run["run"] for run in runs] == ["toy-1", "toy-2"]
    assert (runs[0]["state"], runs[0]["reason"]) == ("finished", "max_rounds: 1 round is closed")
    (first,) = runs[0]["rounds"]
    assert (first["asked"], first["answered"], first["state"]) == (["site-a"], ["site-a"], "closed")
    (said, _) = json.loads(found.members["agreements.json"])
    proposal = json.loads(found.members[f"proposals/{said['proposal']}.json"])
    assert (said["purpose"], said["run"]) == (proposal["purpose"], "toy-1")
    assert f"plans/{runs[0]['plan']}.json" in found.members
    (score,) = json.loads(found.members["leakage.json"])["scores"]
    assert score == {"run": "toy-1", "round": 1, "attempt": 1, "site": "site-a", "score": 0.125}
    assert b"evidence exported" in found.members["audit.jsonl"]
    key = key_fingerprint(found.key)
    said = typed(fedveil, "audit", "verify", exported, "--key", key, "--against", federation.folder / LOG_FILE)
    assert "all as it was signed" in said
    assert "2 proposals and 2 patches, each signed by an operator" in said
    assert "2 runs, each in the log as it was submitted; 1 plans' manifests" in said
    assert "are one log" in said
    assert "another was expected" in typed(fedveil, "audit", "verify", exported, "--key", "ab" * 32, status=1)


def test_nothing_in_a_bundle_is_a_key_a_path_or_an_update(federation, exported):
    with zipfile.ZipFile(exported) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    for name, content in whole.items():
        assert b"PRIVATE KEY" not in content, name
        assert str(federation.folder).encode() not in content, name
        assert not name.endswith(".safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m | {"audit.jsonl": m["audit.jsonl"].replace(b"toy-1", b"toy-9", 1)}, "entry 1: was changed"),
        (lambda m: m | {"audit.jsonl": m["audit.jsonl"][: m["audit.jsonl"].rindex(b"\n", 0, -1) + 1]}, "cut off"),
        (lambda m: m | {"runs.json": m["runs.json"].replace(b'"run":"toy-1"', b'"run":"toy-8"')}, "nothing of it"),
        (lambda m: {k: v for k, v in m.items() if not k.startswith("patches/toy-2/0001")}, "number 1 was expected"),
        (lambda m: m | {"settings/toy-1.toml": b"name = 1"}, "toy-1: its SHA-256"),
        (lambda m: m | {k: b"{}" for k in m if k.startswith("plans/")}, "its SHA-256"),
        (
            lambda m: m | {k: v.replace(b"BEGIN", b"BEGUN") for k, v in m.items() if k.endswith("signature.json")},
            "signer",
        ),
        (lambda m: {k: v for k, v in m.items() if not k.startswith("proposals/")}, "proposal of toy-1 is missing"),
        (lambda m: {k: v for k, v in m.items() if k != "audit.jsonl"}, "holds no audit.jsonl"),
        (lambda m: m | {"runs.json": b'[{"run": 1}]'}, "does not say what it should"),
    ],
)
def test_a_director_that_signs_a_bundle_whose_parts_contradict_each_other_is_found(federation, exported, change, why):
    found = read_evidence(exported)
    write_evidence(exported, change(dict(found.members)), found.about, audit_key(federation.folder))
    assert why in typed(fedveil, "audit", "verify", exported, status=1)


def test_a_bundle_that_somebody_else_signed_is_found(exported):
    found = read_evidence(exported)
    write_evidence(exported, found.members, found.about, Ed25519PrivateKey.generate())
    assert "signed by another key than the log in it" in typed(fedveil, "audit", "verify", exported, status=1)


def test_a_head_that_a_site_kept_after_the_export_shows_that_the_bundle_is_older(federation, exported, tmp_path):
    federation.submit(quorum=3)
    heads = tmp_path / "heads"
    heads.write_text(federation.puppet("site-b").client.beat(m.Heartbeat()).audit_head.hex())
    assert "copy from before then" in typed(fedveil, "audit", "verify", exported, "--heads", heads, status=1)
    typed(director, "audit", "export", exported, "--folder", federation.folder)
    assert "holds all 1 heads" in typed(fedveil, "audit", "verify", exported, "--heads", heads)
