"""Over real sockets: what operators may ask for, and how runs end that cannot go on."""

from __future__ import annotations

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.__main__ import app
from fedveil.director.config import load_config
from fedveil.director.founding import init_federation
from fedveil.director.operator_client import OperatorClient
from fedveil.director.server import Director
from fedveil.utils import messages as m
from fedveil.utils import transport, wire
from fedveil.utils import wire_control as control
from fedveil.utils.errors import (
    ConfigError,
    FederationError,
    MalformedMessageError,
    PlanError,
    ProtocolError,
    StorageError,
    UnknownArtifactError,
    UnreachableError,
)
from fedveil.utils.plan_bundle import open_bundle, read_manifest
from fedveil.utils.tensors import canonical_json, digest_of
from typer.testing import CliRunner

GOOD = """
name = "toy"
secure_aggregation = "off"
[study]
purpose = "a test"
[rounds]
max_rounds = 1
min_participants = 1
final_evaluation = false
"""


def submit(federation, settings: str = GOOD, bundle=None) -> m.RunId:
    with federation.operator() as operator:
        return operator.submit(settings, bundle or federation.bundle)


def one_round(federation) -> None:
    (envoy,) = federation.attending("site-good")
    run = submit(federation)
    envoy.send(envoy.task(), 1.0)
    view = federation.finished(run)
    assert view.state == "finished"
    assert np.array_equal(federation.model(view), np.ones(10_000, np.float32))


# runs that cannot go on


def test_without_approvals_a_run_waits_longer_than_any_round_and_says_for_how_many(federation):
    run = federation.submit(quorum=2, timeout=0.3, attempts=2)

    def says(reason: str) -> bool:
        with federation.operator() as operator:
            view = operator.show(run)
        assert (view.state, view.rounds) == ("queued", ())
        return view.reason == reason

    federation.until(lambda: says("waits for approval: 0 of 2 sites"))
    (first,) = federation.attending("site-a")
    federation.until(lambda: says("waits for approval: 1 of 2 sites"))
    (other,) = federation.attending("site-b", approve=False)
    time.sleep(0.7)  # longer than a round waits
    assert says("waits for approval: 1 of 2 sites")
    other.approve(other.offer())
    first.send(first.task(), 1.0)
    other.send(other.task(), 1.0)
    assert federation.finished(run).state == "finished"


def test_a_later_run_that_is_approved_goes_first(federation):
    (envoy,) = federation.attending("site-a", approve=False)
    first, second = federation.submit(), federation.submit()
    offers = {offer.run: offer for offer in (envoy.offer(), envoy.offer())}
    envoy.approve(offers[second])
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(second).state == "finished"
    with federation.operator() as operator:
        assert operator.show(first).state == "queued"
    envoy.approve(offers[first])
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(first).state == "finished"


def test_a_site_that_withdraws_its_approval_is_not_asked_in_the_next_round_and_one_that_approves_late_is(federation):
    a, b = federation.attending("site-a", "site-b")
    (late,) = federation.attending("site-c", approve=False)
    run = federation.submit(quorum=2, rounds=2)
    first = a.task()
    assert first.cohort == ("site-a", "site-b")
    b.send(first, 1.0)
    b.withdraw()
    late.approve(late.offer())
    a.send(first, 1.0)
    second = a.task()
    assert second.cohort == ("site-a", "site-c")
    a.send(second, 1.0)
    late.send(second, 1.0)
    assert federation.finished(run).state == "finished"


def test_with_too_few_envoys_left_a_run_fails_with_the_reason(federation):
    a, b = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=2, rounds=2, timeout=1.0, attempts=2)
    task = a.task()
    b.withdraw()
    a.send(task, 1.0)
    b.send(task, 1.0)
    view = federation.finished(run)
    assert view.state == "failed"
    assert view.reason == "round 2 (attempt 2) of toy-1: fewer than 2 envoys that approved were there for 1 s"
    assert [(one.attempt, one.state) for one in view.rounds] == [(1, "closed"), (1, "failed"), (2, "failed")]


def test_with_too_few_answers_in_time_a_run_fails_with_the_reason_and_answers_come_too_late(federation):
    envoys = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=2, timeout=0.5)
    task = envoys[0].task()
    envoys[0].send(task, 1.0)
    view = federation.finished(run)
    assert view.reason == "round 1 of toy-1: 1 of 2 answers needed came within 0.5 s"
    with pytest.raises(ProtocolError):
        envoys[1].send(task, 1.0)


def test_when_time_is_over_a_quorum_is_enough(federation):
    envoys = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=1, timeout=0.5, approvals=2)
    envoys[0].send(envoys[0].task(), 1.0)
    view = federation.finished(run)
    assert (view.state, view.rounds[0].received, view.rounds[0].invited) == ("finished", 1, 2)


def test_when_envoys_decline_the_round_closes_with_the_others(federation):
    envoys = federation.attending("site-a", "site-b", "site-c")
    run = federation.submit(quorum=2)
    task = envoys[0].task()
    envoys[0].client.decline(m.Refusal(task.ref, "TrainingError", "the plan raised KeyError in train"))
    envoys[1].send(task, 1.0)
    envoys[2].send(task, 3.0)
    view = federation.finished(run)
    assert np.array_equal(federation.model(view), np.full(10_000, 2.0, np.float32))


def test_when_too_many_decline_the_reason_says_so_and_why(federation):
    envoys = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=2)
    task = envoys[0].task()
    envoys[0].client.decline(m.Refusal(task.ref, "TrainingError", "the plan raised KeyError in train"))
    view = federation.finished(run)
    assert view.state == "failed"
    assert view.reason == (
        "round 1 of toy-1: 0 of 2 answers needed: 1 of 2 envoys declined "
        "(site-a: TrainingError: the plan raised KeyError in train)"
    )
    others = envoys[1].items.queue[-1]
    assert isinstance(others, m.Withdrawal)
    assert "KeyError" not in others.reason  # what one site said is the operator's to read


def test_an_envoy_that_declined_may_still_answer(federation):
    envoys = federation.attending("site-a", "site-b")
    run = federation.submit(quorum=1, approvals=2)
    task = envoys[0].task()
    envoys[0].client.decline(m.Refusal(task.ref, "StorageError", "the site's disk is full"))
    envoys[0].send(task, 1.0)
    envoys[1].send(task, 3.0)
    assert federation.model(federation.finished(run))[0] == 2.0


def test_a_run_that_is_stopped_withdraws_its_task_and_the_next_one_starts(federation):
    (envoy,) = federation.attending("site-a")
    first, second = federation.submit(), federation.submit()
    task = envoy.task()
    with federation.operator() as operator:
        view = operator.stop(first, "wrong learning rate")
        assert (view.state, view.reason) == ("stopped", "stopped: wrong learning rate")
        with pytest.raises(ProtocolError, match="toy-1 is stopped; only a queued or running one"):
            operator.stop(first, "again")
    while not isinstance(withdrawal := envoy.items.get(timeout=60.0), m.Withdrawal):
        assert isinstance(withdrawal, m.Offer)
    assert (withdrawal.ref, withdrawal.reason) == (task.ref, "stopped: wrong learning rate")
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(second).state == "finished"


def test_a_long_reason_to_stop_reaches_everybody(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit()
    envoy.task()
    with federation.operator() as operator:
        assert operator.stop(run, "x" * 2_000).reason.startswith("stopped: xxx")
        assert operator.show(run).state == "stopped"
    while not isinstance(item := envoy.items.get(timeout=60.0), m.Withdrawal):
        assert isinstance(item, m.Offer)
    following = federation.submit()
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(following).state == "finished"


# what operators ask for


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("name = ", "experiment.toml"),
        (GOOD + "max_round = 3", "did you mean max_rounds"),
        (GOOD.replace("= 1", '= "1"', 1), "max_rounds"),
        (GOOD + "cohort_size = 0", "cohort_size is 0, which cannot give the 1 answers"),
        (GOOD + '[aggregation]\nmethod = "krum"\nbyzantine = 2', "krum needs"),
        (GOOD + "[aggregation]\nmax_norm = 1.0", "max_norm belongs to norm_bounding"),
        (GOOD + "[stop]\npatience = 3", "patience is given without metric"),
        (GOOD.replace("toy", "../toy"), "name: expected 1 to 56"),
    ],
)
def test_settings_that_are_wrong_or_contradict_are_refused_by_the_director(federation, settings: str, words: str):
    with pytest.raises(ConfigError, match=words):
        submit(federation, settings)
    one_round(federation)


def test_the_longest_name_makes_a_run_that_everybody_can_name(federation):
    (envoy,) = federation.attending("site-a")
    run = submit(federation, GOOD.replace("toy", "t" * 56))
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(run).run == "t" * 56 + "-1"


@pytest.mark.parametrize("run", ["toy-9", "TOY", "../x", "a" * 64])
def test_a_run_that_is_none_is_refused(federation, run: str):
    with federation.operator() as operator, pytest.raises((ProtocolError, MalformedMessageError)):
        operator.show(m.RunId(run))


def manifest_with(federation, **changes: object) -> bytes:
    document = json.loads(federation.bundle.manifest.to_json()) | changes
    return canonical_json(document)


def submission(federation, manifest: bytes) -> bytes:
    """As an operator sends it who means this manifest."""
    with federation.operator() as operator:
        proposal = operator._propose(GOOD, read_manifest(manifest))
    return control.submission_to_wire(m.Submission(GOOD, manifest, proposal))


def say(federation, method: str, raw: bytes) -> bytes:
    with federation.operator() as operator:
        return operator._ask(method, raw)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[1]", b"x" * (1 << 20 | 1), b'{"schema":"fedveil.plan/2"}', b"[" * 90_000]
)
def test_what_is_no_manifest_is_refused(federation, raw: bytes):
    with pytest.raises(MalformedMessageError, match="manifest"):
        say(federation, "Submit", control.submission_to_wire(m.Submission(GOOD, raw)))
    one_round(federation)


@pytest.mark.parametrize("method", ["Submit", "Show", "Steer"])
def test_bytes_that_are_no_message_are_refused(federation, method: str):
    with pytest.raises(MalformedMessageError):
        say(federation, method, b"\xff" * 50)


def test_a_plan_whose_blobs_are_missing_is_not_queued(federation):
    raw = submission(federation, federation.bundle.manifest.to_json())
    reply = control.submit_reply_from_wire(say(federation, "Submit", raw))
    assert reply.run is None
    assert set(reply.missing) == {digest for digest, _ in federation.bundle.manifest.blobs()}
    with federation.operator() as operator:
        assert operator.list() == ()
    one_round(federation)


def test_a_plan_with_another_layout_than_its_manifest_says_is_refused(federation):
    submit(federation)  # its blobs are there
    raw = submission(federation, manifest_with(federation, layout="ab" * 32))
    with pytest.raises(PlanError, match=r"layout.json is layout .*, not abababababab"):
        say(federation, "Submit", raw)


def test_a_plan_with_files_of_other_sizes_than_its_manifest_says_is_refused(federation):
    submit(federation)
    files = json.loads(federation.bundle.manifest.to_json())["files"]
    files[0]["size"] += 1
    raw = submission(federation, manifest_with(federation, files=files))
    with pytest.raises(PlanError, match=r"has \d+ bytes, expected \d+"):
        say(federation, "Submit", raw)


def test_initial_weights_of_another_layout_are_refused(federation):
    submit(federation)
    files = json.loads(federation.bundle.manifest.to_json())["files"]
    by_path = {file["path"]: file for file in files}
    by_path["initial.safetensors"] |= {key: by_path["layout.json"][key] for key in ("size", "sha256")}
    raw = submission(federation, manifest_with(federation, files=files))
    with pytest.raises(FederationError, match="does not have layout"):
        say(federation, "Submit", raw)
    one_round_after(federation)


def one_round_after(federation) -> None:
    """As ``one_round``, with one run that is queued already."""
    (envoy,) = federation.attending("site-a")
    envoy.send(envoy.task(), 1.0)
    federation.until(lambda: _state(federation, "toy-1") == "finished")


def _state(federation, run: str) -> str:
    with federation.operator() as operator:
        return operator.show(m.RunId(run)).state


def put_blob(federation, *parts: m.Part) -> None:
    with federation.operator() as operator:
        call = operator._channel.stream_unary(f"/{transport.CONTROL}/PutBlob")
        try:
            call(map(wire.part_to_wire, parts), timeout=60.0)
        except transport.grpc.RpcError as failure:
            raise transport.error_of(failure) from failure


BLOB = b"some bytes"
DIGEST = digest_of(BLOB)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "starts with an opening"),
        ([m.Data(BLOB)], "starts with an opening"),
        ([m.Opening(len(BLOB))], "says its SHA-256"),
        ([m.Opening(len(BLOB), 1, "", DIGEST), m.Data(BLOB[1:])], "opening at 0"),
        ([m.Opening(1 << 39, digest=DIGEST), m.Data(BLOB)], "this director takes .* at most"),
        ([m.Opening(3, digest=DIGEST), m.Data(BLOB)], "3 bytes were announced"),
        ([m.Opening(len(BLOB) + 1, digest=DIGEST), m.Data(BLOB)], "11 bytes were announced, 10 came"),
        ([m.Opening(len(BLOB), digest="ab" * 32), m.Data(BLOB)], "digest abababababab were announced"),
        ([m.Opening(len(BLOB), digest=DIGEST)], "10 bytes were announced, 0 came"),
    ],
)
def test_a_blob_that_is_not_what_it_says_leaves_no_trace(federation, parts: list[m.Part], words: str):
    artifacts = federation.folder / "artifacts"
    before = sorted(artifacts.iterdir())
    with pytest.raises(FederationError, match=words):
        put_blob(federation, *parts)
    assert sorted(artifacts.iterdir()) == before
    put_blob(federation, m.Opening(len(BLOB), digest=DIGEST), m.Data(BLOB))
    assert (artifacts / DIGEST).read_bytes() == BLOB


def test_what_is_not_there_is_not_downloaded(federation):
    puppet = federation.puppet("site-a")
    put_blob(federation, m.Opening(len(BLOB), digest=DIGEST), m.Data(BLOB))
    for digest in ("ab" * 32, DIGEST):  # what no study asks this site to work with is not there for it
        with pytest.raises(UnknownArtifactError, match=f"there is no artifact {digest} for site-a"):
            list(puppet.client.download(m.DownloadRequest(digest)))
    federation.submit()
    plan = federation.bundle.manifest.digest
    raw = (federation.folder / "artifacts" / plan).read_bytes()
    parts = list(puppet.client.download(m.DownloadRequest(plan, 4)))
    assert parts == [m.Opening(len(raw), 4, digest=plan), m.Data(raw[4:])]
    assert list(puppet.client.download(m.DownloadRequest(plan, len(raw))))[1:] == []
    with pytest.raises(ProtocolError, match=f"a download from {len(raw) + 1} on of {len(raw)} bytes"):
        list(puppet.client.download(m.DownloadRequest(plan, len(raw) + 1)))


# starting a director


def test_a_port_that_is_taken_is_said_and_the_next_start_finds_everything_free(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        init_federation(tmp_path / "d", "lungs", ["127.0.0.1"], b"x", time.time(), listen=listen)
        config = load_config(tmp_path / "d")
        with pytest.raises(ConfigError, match=f"cannot listen on {listen}: the port is taken"):
            Director(tmp_path / "d", config)
    Director(tmp_path / "d", config).close()


def test_a_second_director_on_one_database_is_refused_and_the_first_goes_on(federation):
    config = replace(load_config(federation.folder), listen="127.0.0.1:0")
    with pytest.raises(StorageError, match="another director is running with this database"):
        Director(federation.folder, config)
    one_round(federation)


def test_an_operator_without_a_director_is_told(tmp_path: Path):
    init_federation(tmp_path / "d", "lungs", ["127.0.0.1"], b"x", time.time())
    with OperatorClient(tmp_path / "d", "127.0.0.1:1", time.time()) as operator, pytest.raises(UnreachableError):
        operator.status()


def run_cli(*arguments: str) -> list[str]:
    """The lines on standard error of a command that must fail with status 1 and say nothing else."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("leaf_days", "leaf_day", "did you mean leaf_days"),
        ('federation = "lungs"', 'federation = "Lungs"', "no name for federation"),
        ("leaf_days = 7 ", "leaf_days = 9000", "leaf_days is 9000"),
        ('durability = "page-cache"', 'durability = "tape"', "durability"),
        ("slots = 4", "slots = 0", "slots is 0"),
        ('listen = "127.0.0.1:0"', 'listen = "127.0.0.1"', "expected host:port"),
        ("[database]", "[database", "director.toml"),
        ('url = ""', 'url = "mysql://x/y"', "expected sqlite or postgresql"),
    ],
)
def test_a_wrong_setting_is_one_line_on_standard_error(tmp_path: Path, old: str, new: str, words: str):
    folder = tmp_path / "d"
    init_federation(folder, "lungs", ["127.0.0.1"], b"x", time.time(), listen="127.0.0.1:0")
    file = folder / "director.toml"
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new), "utf-8")
    (line,) = run_cli("start", "--folder", str(folder))
    assert words in line


def test_a_director_that_is_not_there_is_one_line_on_standard_error(tmp_path: Path):
    for command in (["start"], ["status"], ["experiment", "list"], ["experiment", "show", "x"]):
        (line,) = run_cli(*command, "--folder", str(tmp_path / "nothing"))
        assert "director init" in line, line


def test_an_experiment_that_is_wrong_is_one_line_on_standard_error(federation, tmp_path: Path):
    shutil.copytree(federation.bundle.folder, tmp_path / "plan")
    file = tmp_path / "experiment.toml"
    good = 'plan = "plan"\n' + GOOD
    submitting = ("experiment", "submit", str(file), "--folder", str(federation.folder))
    for text, words in [
        (good + "max_round = 1", "did you mean max_rounds"),
        (good + "cohort_size = 0", "cohort_size is 0"),
        (good.replace('"plan"', '"elsewhere"'), "no plan bundle in"),
        ("plan = ", "experiment.toml"),
    ]:
        file.write_text(text, "utf-8")
        (line,) = run_cli(*submitting)
        assert words in line
    (line,) = run_cli("experiment", "submit", str(tmp_path / "none.toml"), "--folder", str(federation.folder))
    assert "none.toml" in line
    blob = next((tmp_path / "plan" / "blobs").iterdir())
    blob.unlink()
    file.write_text(good, "utf-8")
    (line,) = run_cli(*submitting)
    assert "is missing" in line
    with pytest.raises(PlanError):
        open_bundle(tmp_path / "plan")
    with federation.operator() as operator:
        assert operator.list() == ()
