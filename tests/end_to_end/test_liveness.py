"""Who dies, falls silent or loses the line is noticed within five seconds, and is welcome when it is back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fedveil.director.attendance import COMEBACK_SECONDS
from fedveil.director.rounds import RoundState

SITES = ("site-a", "site-b", "site-c")


@pytest.mark.slow
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP], ids=lambda fate: fate.name)
def test_an_envoy_lost_in_mid_round_is_noticed_in_five_seconds_and_back_in_the_next_round(
    fate: signal.Signals, federation, settings, wait_until, record_property
):
    federation.wait_for_all()
    plan = federation.plan(seconds=0.6)
    run = federation.submit(settings(rounds=12, quorum=2), plan)
    wait_until(lambda: federation.says("site-b", "training begins"), "training")
    victim = federation.envoys["site-b"]
    victim.send_signal(fate)
    lost_at = time.time()
    first = federation.wait_for_round(run, 1, RoundState.CLOSED)
    noticed = first.closed_at - lost_at
    record_property("seconds from the loss to the closed round", noticed)
    print(f"{fate.name}: the round closed {noticed:.2f} s after the loss")  # noqa: T201
    assert noticed < 5.0
    assert first.round.cohort == set(SITES)
    assert (first.round.received, first.round.lost) == ({"site-a", "site-c"}, {"site-b"})
    wait_until(lambda: len(federation.rounds(run)) > 1, "another round")

    if fate is signal.SIGKILL:
        victim.wait()
        federation.start_envoy("site-b")
    else:
        victim.send_signal(signal.SIGCONT)
    federation.wait_for_all()
    present = federation.round(run).round.ref.round
    following = federation.wait_for_round(run, present + 1, RoundState.CLOSED)
    assert following.round.received == set(SITES)
    with federation.operator() as operator:
        operator.stop(run, "seen enough")


@pytest.mark.slow
def test_envoys_find_a_director_that_was_away_and_what_they_trained_meanwhile_counts(federation, settings, wait_until):
    federation.wait_for_all()
    run = federation.submit(settings(rounds=1), federation.plan(seconds=1.0))
    wait_until(lambda: all(federation.trainings().values()), "training")
    federation.kill_director()
    wait_until(lambda: all(federation.says(site, "training ends") for site in SITES), "the end of training")
    away = threading.Event()
    away.wait(4.0)  # long enough for the pauses between two attempts to have grown to their longest
    federation.start_director()
    federation.wait_for_director()
    began = time.monotonic()
    federation.wait_for_all()
    assert time.monotonic() - began < COMEBACK_SECONDS
    view = federation.finish(run)
    assert [(one.attempt, one.received) for one in view.rounds] == [(1, 3), (1, 3)]
    assert federation.trainings() == dict.fromkeys(SITES, 1)


@pytest.mark.slow
def test_an_envoy_that_died_while_the_director_was_away_is_lost_soon_after_and_not_at_the_timeout(
    federation, settings, wait_until
):
    federation.wait_for_all()
    run = federation.submit(settings(rounds=1, quorum=2, timeout=600.0), federation.plan(seconds=0.5))
    wait_until(lambda: all(federation.trainings().values()), "training")
    federation.kill_director()
    federation.kill_envoy("site-b")
    federation.start_director()
    federation.wait_for_director()
    began = time.time()
    first = federation.wait_for_round(run, 1, RoundState.CLOSED)
    assert first.closed_at - began < COMEBACK_SECONDS + 2.0
    assert (first.round.received, first.round.lost) == ({"site-a", "site-c"}, {"site-b"})


@pytest.mark.slow
def test_a_restart_does_not_change_who_is_asked(federation, settings, wait_until):
    """Two of three by lot, and a quorum of one: whoever comes back first must not be all that is asked."""
    federation.wait_for_all()
    plan = federation.plan()
    calm = federation.submit(settings("calm", rounds=4, quorum=1, cohort=2), plan)
    expected = federation.finish(calm)
    federation.kill_director()
    for place in (8, 7, 7):  # planning another round is the last that each of these directors does
        federation.start_doomed_director("--kill-at", str(place), "--when", "after")
        if not federation.record("wild"):
            federation.wait_for_all()
            federation.submit_once(settings("wild", rounds=4, quorum=1, cohort=2), plan)
        wait_until(lambda: federation.is_director_dead, "the director's death")
    federation.start_director()
    wait_until(lambda: federation.record("wild").state.is_over, "the end")
    assert (federation.director_folder / "log.txt").read_text("utf-8").count("dies after close_round") == 3
    wild = federation.record("wild")
    assert wild.model == expected.model
    cohorts = [sorted(one.round.cohort) for one in federation.rounds(wild.run)]
    assert cohorts == [sorted(one.round.cohort) for one in federation.rounds(calm)]


class CuttableLine:
    """A relay between an envoy and the director whose wires can be cut."""

    def __init__(self, port: int) -> None:
        self._target, self._server = port, socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._wires: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        with self._lock:
            for wire in self._wires:
                _end(wire)

    def close(self) -> None:
        _end(self._server)
        self._threads[0].join()
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._relay, args=(near,)))
                self._threads[-1].start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.socket() as far:
            with suppress(OSError):  # the director may be away
                far.connect(("127.0.0.1", self._target))
            with self._lock:
                self._wires |= {near, far}
            back = threading.Thread(target=self._pump, args=(far, near))
            back.start()
            self._pump(near, far)
            back.join()
            with self._lock:
                self._wires -= {near, far}

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                sink.sendall(content)
        _end(source)
        _end(sink)


def _end(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(federation) -> Iterator[CuttableLine]:
    """Between site-b and the director."""
    port = int(federation.wait_for_director().rpartition(":")[2])
    line = CuttableLine(port)
    federation.kill_envoy("site-b")
    file = federation.folder / "site-b" / "envoy.toml"
    file.write_text(f'addresses = ["127.0.0.1:{line.port}"]\n' + file.read_text("utf-8"), "utf-8")
    federation.start_envoy("site-b")
    yield line
    line.close()


@pytest.mark.slow
def test_a_line_cut_while_training_is_under_way_costs_no_training(federation, settings, wait_until, line):
    federation.wait_for_all()
    run = federation.submit(settings(rounds=2), federation.plan(seconds=0.8))
    for number in (1, 2):
        wait_until(lambda n=number: federation.says("site-b", "training begins") == n, "training")
        line.cut()
    view = federation.finish(run)
    assert [(one.attempt, one.received) for one in view.rounds] == [(1, 3)] * 3
    assert federation.trainings() == dict.fromkeys(SITES, 2)


@pytest.mark.slow
def test_a_line_that_is_cut_again_and_again_changes_nothing_of_what_comes_out(federation, settings, wait_until, line):
    federation.wait_for_all()
    plan = federation.plan()
    calm = federation.finish(federation.submit(settings("calm", rounds=5), plan))
    before = federation.trainings()["site-b"]
    ended = threading.Event()

    def cut_now_and_then() -> None:
        for nth in range(30):
            if ended.wait(0.02 + 0.01 * (nth % 7)):
                return
            line.cut()

    cutter = threading.Thread(target=cut_now_and_then)
    cutter.start()
    try:
        wild = federation.finish(federation.submit(settings("wild", rounds=5), plan))
    finally:
        ended.set()
        cutter.join()
    assert wild.model == calm.model
    assert federation.trainings()["site-b"] - before == 5
