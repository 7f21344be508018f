"""Over real sockets: runs that are paused, resumed, rolled back and changed between rounds, and who may do it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from fedveil.director.__main__ import app
from fedveil.director.config import load_config
from fedveil.director.operator_identity import load_operator_identity
from fedveil.director.server import Director
from fedveil.utils import messages as m
from fedveil.utils import wire_control as control
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.certificates import certificate_pem, issue_identity
from fedveil.utils.errors import ConfigError, FederationError, IdentityError, MalformedMessageError, ProtocolError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.proposal import Patch, Step, read_patch, sign
from typer.testing import CliRunner

ADAM = '[server_optimizer]\nname = "fedadam"\n'


def steer(federation, run: m.RunId, step: Step, **change: object) -> m.ExperimentView:
    with federation.operator() as operator:
        return operator.steer(run, step, **change)


def show(federation, run: m.RunId) -> m.ExperimentView:
    with federation.operator() as operator:
        return operator.show(run)


def restart(federation) -> None:
    """The director ends and another begins, at the same address."""
    federation.director.close()
    config = replace(load_config(federation.folder), listen=federation.address)
    federation.director = Director(federation.folder, config)


def closes(federation, run: m.RunId, number: int) -> None:
    """Wait until so many rounds are closed."""
    federation.until(lambda: sum(one.state == "closed" for one in show(federation, run).rounds) == number)


def trained(federation, run: m.RunId, envoy, values: list[float]) -> np.ndarray:
    """The model after some rounds, each with an update of one value."""
    for value in values:
        envoy.send(envoy.task(), value)
    view = federation.finished(run)
    assert view.state == "finished", view.reason
    return federation.model(view)


def test_a_paused_run_finishes_its_round_and_begins_no_other_until_it_is_resumed(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=2)
    first = envoy.task()
    assert steer(federation, run, Step.PAUSE, reason="the ward moves").state == "paused"
    envoy.send(first, 1.0)
    closes(federation, run, 1)
    view = show(federation, run)
    assert (view.state, view.reason, view.patches) == ("paused", "paused by operator: the ward moves", 1)
    assert [one.state for one in view.rounds] == ["closed", "planned"]
    with pytest.raises(ProtocolError, match="paused already"):
        steer(federation, run, Step.PAUSE)
    assert steer(federation, run, Step.RESUME).state == "running"
    second = envoy.task()
    assert [len(task.patches) for task in (first, second)] == [0, 2]
    envoy.send(second, 1.0)
    assert federation.finished(run).state == "finished"


def test_a_paused_run_waits_longer_than_any_round_and_over_a_restart(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=2, timeout=1.0)
    first = envoy.task()
    steer(federation, run, Step.PAUSE)
    envoy.send(first, 1.0)
    closes(federation, run, 1)
    envoy.close()
    restart(federation)
    time.sleep(1.5)  # longer than a round waits for envoys
    assert [one.state for one in show(federation, run).rounds] == ["closed", "planned"]
    assert show(federation, run).state == "paused"
    (again,) = federation.attending("site-b")
    steer(federation, run, Step.RESUME)
    again.send(again.task(), 1.0)
    assert federation.model(federation.finished(run))[0] == 2.0


def test_a_run_that_waits_for_its_turn_can_be_paused_and_lets_others_pass(federation):
    (envoy,) = federation.attending("site-a")
    running, waiting = federation.submit(), federation.submit()
    task = envoy.task()
    assert steer(federation, waiting, Step.PAUSE).state == "paused"
    third = federation.submit()
    envoy.send(task, 1.0)
    assert federation.finished(running).state == "finished"
    task = envoy.task()
    assert task.ref.run == third
    envoy.send(task, 1.0)
    federation.finished(third)
    steer(federation, waiting, Step.RESUME)
    envoy.send(envoy.task(), 1.0)
    assert federation.finished(waiting).state == "finished"


@pytest.mark.parametrize("is_restarted", [False, True], ids=["live", "restarted"])
def test_a_run_that_was_rolled_back_is_the_run_without_those_rounds_to_the_last_bit(federation, is_restarted: bool):
    """Model and moments of the server optimizer; numbers go on, and the history keeps what was."""
    (envoy,) = federation.attending("site-a")
    plain = trained(federation, federation.submit(rounds=2, further=ADAM), envoy, [1.0, 5.0])
    run = federation.submit(rounds=4, further=ADAM)
    for value in (1.0, 2.0):
        envoy.send(envoy.task(), value)
    third = envoy.task()
    steer(federation, run, Step.ROLL_BACK, to_round=1, reason="it diverged")
    if is_restarted:
        envoy.close()
        restart(federation)
        (envoy,) = federation.attending("site-a")
        assert envoy.task().ref == third.ref
    envoy.send(third, 3.0)  # under way: it finishes as it is
    last = envoy.task()
    rounds = show(federation, run).rounds
    assert last.model == rounds[0].model
    assert last.ref.round == 4
    view_before = [one.model for one in rounds]
    assert np.array_equal(trained_last(federation, run, envoy, last, 5.0), plain)
    assert [one.model for one in show(federation, run).rounds][:3] == view_before[:3]


def trained_last(federation, run: m.RunId, envoy, task: m.Task, value: float) -> np.ndarray:
    envoy.send(task, value)
    return federation.model(federation.finished(run))


def test_rolled_back_before_its_last_round_closes_a_run_ends_with_the_model_it_went_back_to(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=2)
    envoy.send(envoy.task(), 1.0)
    last = envoy.task()
    steer(federation, run, Step.ROLL_BACK, to_round=0)
    envoy.send(last, 1.0)
    view = federation.finished(run)
    assert view.state == "finished"
    assert federation.model(view)[0] == 0.0


def test_a_model_that_is_not_kept_is_said_with_those_that_are(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=9)
    for _ in range(8):
        envoy.send(envoy.task(), 1.0)
    task = envoy.task()
    with pytest.raises(ProtocolError, match="cannot go back to round 1: models are kept of rounds 0, 4, 5, 6, 7, 8"):
        steer(federation, run, Step.ROLL_BACK, to_round=1)
    steer(federation, run, Step.ROLL_BACK, to_round=4)
    envoy.send(task, 1.0)
    assert federation.model(federation.finished(run))[0] == 4.0  # its model stayed until it was taken


def test_sites_and_stop_rule_change_from_the_next_round_on(federation):
    a, b = federation.attending("site-a", "site-b")
    join(federation, "site-a", "site-b")
    run = federation.submit(rounds=5)
    first = a.task()
    assert b.task() == first
    steer(federation, run, Step.SET, sites=["site-b"], stop={"max_rounds": 2})
    a.send(first, 1.0)
    b.send(first, 1.0)
    second = b.task()
    assert second.cohort == ("site-b",)
    patch = read_patch(second.patches[0], federation.root, "lungs", time.time())
    assert (patch.sites, dict(patch.stop), patch.number) == (("site-b",), {"max_rounds": 2}, 1)
    b.send(second, 1.0)
    view = federation.finished(run)
    assert (view.reason, view.max_rounds) == ("max_rounds: 2 rounds are closed", 2)


def join(federation, *names: str) -> None:
    """Make members of them, as far as the director knows."""
    from fedveil.director.database import open_database
    from fedveil.director.identity_store import Identity, IdentityStore

    engine = open_database(load_config(federation.folder).database_url(federation.folder), durable=False)
    for number, name in enumerate(names):
        IdentityStore(engine).add_identity(Identity(name, "envoy", name, "", bytes([number]) * 32, 0.0))
    engine.dispose()


def test_what_would_loosen_what_was_proposed_is_refused(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=3)
    envoy.task()
    for change, words in (
        ({"stop": {"max_rounds": 4}}, "max_rounds is 4, and the sites are asked for 3"),
        ({"sites": ["site-x"]}, "site-x: not among the sites that have joined"),
        ({"stop": {"patience": 2}}, "patience is given without metric"),
    ):
        with pytest.raises(ConfigError, match=words):
            steer(federation, run, Step.SET, **change)
    assert show(federation, run).patches == 0


def test_two_operators_at_once_and_the_second_is_told_who_was_first(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=2)
    envoy.task()
    first, second = (signed(federation, run, 1, step) for step in (Step.PAUSE, Step.STOP))
    say(federation, first)
    with pytest.raises(ProtocolError, match=r"patch 1 of toy-1 is taken: operator gave it, to pause; look at the run"):
        say(federation, second)
    with pytest.raises(ProtocolError, match="patch 1 of toy-1 is taken"):
        say(federation, first)  # the very same again
    with pytest.raises(ProtocolError, match="expected 2: one is missing"):
        say(federation, signed(federation, run, 3, Step.RESUME))


def signed(federation, run: m.RunId, number: int, step: Step, *, at: float = 0.0, name: str = "operator", **change):
    """A patch as an operator of that name signs it."""
    _, key, chain = load_operator_identity(federation.folder, time.time())
    peer = PeerId("lungs", Role.OPERATOR, name)
    if name != "operator":
        identity = issue_identity(federation.issuer, key.public_key(), peer, time.time())
        chain = certificate_pem(identity, federation.issuer.certificate)
    fields = {"settings": {}, "sites": None, "stop": {}, "to_round": None, "reason": ""} | change
    proposal = show(federation, m.RunId("toy-1")).proposal
    assert proposal is not None
    patch = Patch(run, proposal, number, step, **fields, signed_by=peer, signed_at=time.time() + at)
    return sign(patch, key, chain)


def say(federation, document) -> bytes:
    with federation.operator() as operator:
        return operator._ask("Steer", control.patch_to_wire(document))


def test_a_patch_of_another_signer_time_or_run_is_refused_and_changes_nothing(federation):
    federation.attending("site-a")
    run, other = federation.submit(), federation.submit()
    good = signed(federation, run, 1, Step.PAUSE)
    bad: list[tuple[object, type[FederationError]]] = [
        (signed(federation, run, 1, Step.PAUSE, name="mallory"), IdentityError),
        (signed(federation, run, 1, Step.PAUSE, at=3600.0), ProtocolError),
        (signed(federation, run, 1, Step.PAUSE, at=-3600.0), ProtocolError),
        (signed(federation, other, 1, Step.PAUSE), ProtocolError),  # under the first run's proposal
        (signed(federation, m.RunId("toy-9"), 1, Step.PAUSE), ProtocolError),
        (replace(good, content=good.content.replace(b"pause", b"stop")), IdentityError),
        (replace(good, content=b"{}"), MalformedMessageError),
        (replace(good, signature=bytes(64)), IdentityError),
    ]
    for document, refusal in bad:
        with pytest.raises(refusal):
            say(federation, document)
    for one in (run, other):
        assert (show(federation, one).patches, show(federation, one).state == "paused") == (0, False)


def test_a_run_that_is_over_is_steered_no_more_and_an_unknown_one_never(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit()
    envoy.send(envoy.task(), 1.0)
    federation.finished(run)
    with pytest.raises(ProtocolError, match="toy-1 is finished; only a queued or running one"):
        steer(federation, run, Step.RESUME)
    with pytest.raises(ProtocolError, match="there is no run toy-9"):
        steer(federation, m.RunId("toy-9"), Step.PAUSE)


def test_each_patch_stands_in_the_audit_log_before_what_follows_from_it(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=2)
    first = envoy.task()
    steer(federation, run, Step.ROLL_BACK, to_round=0)
    envoy.send(first, 1.0)
    envoy.send(envoy.task(), 1.0)
    federation.finished(run)
    events = [entry.event for entry in read_entries(federation.folder / "audit.jsonl")]
    said = [event["what"] for event in events]
    assert said.index("proposed") < said.index("patched") < said.index("rolled back")
    patched = events[said.index("patched")]
    assert (patched["run"], patched["number"], patched["step"]) == (run, 1, "rollback")
    assert events[said.index("rolled back") + 1]["what"] == "round opened"


def test_what_an_operator_types_is_what_happens(federation):
    (envoy,) = federation.attending("site-a")
    run = federation.submit(rounds=5)

    def typed(*words: str) -> str:
        result = CliRunner().invoke(app, ["experiment", *words, "--folder", str(federation.folder)])
        return f"{result.exit_code}: {result.output}"

    task = envoy.task()
    assert "0: patch 1 of toy-1: pause" in typed("pause", run, "--reason", "look first")
    assert "paused by operator: look" in typed("list")
    assert "0: patch 2 of toy-1: set" in typed("set", run, "--max-rounds", "4", "--wall-clock-seconds", "3600")
    assert "1: " in typed("set", run)
    assert "0: patch 3 of toy-1: rollback" in typed("rollback", run, "--to", "0")
    assert "0: patch 4 of toy-1: resume" in typed("resume", run)
    assert "cannot go back to round 7" in typed("rollback", run, "--to", "7")
    envoy.send(task, 1.0)
    assert len(envoy.task().patches) == 4
    assert "0: patch 5 of toy-1: stop" in typed("stop", run, "--reason", "enough")
    view = federation.finished(run)
    assert (view.state, view.reason, view.max_rounds) == ("stopped", "stopped: enough", 4)
