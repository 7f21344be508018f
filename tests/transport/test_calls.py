"""Over real sockets: how many calls one name may hold open, and that nobody else is held up by them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedveil.director.admission import MAX_CALLS
from fedveil.envoy.client import _in_our_words
from fedveil.envoy.config import EnvoyConfig, TrainingSettings, Work
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED
from fedveil.envoy.session import Session
from fedveil.envoy.trainer import InProcessTrainer
from fedveil.utils import messages as m
from fedveil.utils.errors import FederationError, TooManyCallsError, UnreachableError
from fedveil.utils.tensors import Digest
from fedveil.workspace.own_plans import OwnPlans

SECONDS = 60.0


def test_a_new_work_stream_of_an_envoy_ends_its_older_one(federation):
    puppet = federation.puppet("site-a")
    older = puppet.client.work(())
    assert next(older) == m.Idle()
    newer = puppet.client.work(())
    assert next(newer) == m.Idle()
    assert list(older) == []
    run = federation.submit()
    offer = next(newer)
    assert isinstance(offer, m.Offer)
    puppet.approve(offer)
    puppet.send(next(newer), 1.0)
    assert federation.finished(run).state == "finished"


def test_uploads_that_never_begin_hold_up_their_own_name_alone(federation):
    silent = federation.puppet("site-a")
    release = threading.Event()

    def nothing() -> Iterator[m.Part]:
        release.wait(SECONDS)
        yield from ()

    def upload() -> None:
        with pytest.raises(FederationError) as caught:
            silent.client.upload(nothing())
        if isinstance(caught.value, TooManyCallsError) and not release.is_set():  # a beat below had its place
            upload()

    threads = [threading.Thread(target=upload, daemon=True) for _ in range(MAX_CALLS)]
    for thread in threads:
        thread.start()

    def is_full() -> bool:
        try:
            silent.client.beat(m.Heartbeat())
        except TooManyCallsError as error:
            assert "envoy/site-a has 8 calls open already: too many calls at once" in str(error)  # noqa: PT017
            return True
        return False

    try:
        federation.until(is_full)
        (other,) = federation.attending("site-b")
        run = federation.submit()
        other.send(other.task(), 1.0)
        assert federation.finished(run).state == "finished"
    finally:
        release.set()
        for thread in threads:
            thread.join(SECONDS)
    silent.client.beat(m.Heartbeat())  # its threads are free again


def test_a_thousand_work_streams_of_one_envoy_leave_room_for_the_others(federation):
    greedy = federation.puppet("site-a")
    lines = [greedy.client.work(()) for _ in range(1_100)]
    for line in lines:
        try:
            next(line, None)
        except TooManyCallsError:
            continue
    (other,) = federation.attending("site-b")
    run = federation.submit()
    other.send(other.task(), 1.0)
    assert federation.finished(run).state == "finished"


def test_an_envoy_that_polls_does_a_run_in_few_calls(federation, tmp_path: Path):
    link = federation.puppet("site-a").client
    polls: list[m.WorkItem] = []

    def counted(
        held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = (), ask=link.next_work
    ) -> m.WorkItem:
        polls.append(ask(held, wait_seconds, approved))
        return polls[-1]

    link.next_work = counted
    config = EnvoyConfig(
        work=Work.POLL,
        training=TrainingSettings(preload_torch=False),
        protection=OPEN_POLICY,
        secure_aggregation=PLAIN_ALLOWED,
    )
    session = Session(
        m.EnvoyName("site-a"),
        tmp_path,
        link,
        InProcessTrainer(),
        config,
        approvals=OwnPlans(federation.bundle.digest),
    )
    envoy = threading.Thread(target=session.run, daemon=True)
    envoy.start()
    try:
        assert federation.finished(federation.submit(rounds=3)).state == "finished"
    finally:
        session.end()
        envoy.join(SECONDS)
    assert len([item for item in polls if isinstance(item, m.Task)]) >= 3
    assert len(polls) <= 20


@pytest.mark.parametrize(
    "said",
    ["Cannot invoke RPC on closed channel!", "Cannot invoke RPC: Channel closed!", "Cannot invoke RPC: Channel closed"],
)
def test_a_call_on_a_connection_that_was_closed_here_is_an_error_of_ours(said):
    with pytest.raises(UnreachableError, match="this connection was closed"), _in_our_words():
        raise ValueError(said)


def test_another_mistake_is_not_taken_for_a_closed_connection():
    with pytest.raises(ValueError, match="no such thing"), _in_our_words():
        raise ValueError("no such thing")
