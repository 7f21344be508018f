"""Listening on the wire: how many bytes an envoy sends to a real director, over TLS, where nothing may leave it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.config import EnvoyConfig, TrainingSettings
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED, ProtectionPolicy, Step
from fedveil.envoy.session import Session
from fedveil.envoy.trainer import InProcessTrainer
from fedveil.utils import messages as m
from fedveil.utils.addresses import Address
from fedveil.workspace.own_plans import OwnPlans

SECONDS = 60.0
UPDATE_BYTES = 40_000


class Tap:
    """A relay that counts what goes by, towards the director."""

    def __init__(self, target: str) -> None:
        self._target = (Address.parse(target).host, Address.parse(target).port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.bytes_up = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, sink is far), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                self.bytes_up += len(content) if is_up else 0
                sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tap(federation) -> Iterator[Tap]:
    """Between the envoy and the director."""
    made = Tap(federation.address)
    yield made
    made.close()


def run_with(federation, tap: Tap, folder: Path, policy: ProtectionPolicy | None, further: str = "") -> str:
    """How a run ends: one round of one envoy with this policy."""
    folder.mkdir()
    tls = federation.certificate(name="site-a")
    link = DirectorClient(tap.address, tls.chain, tls.key, tls.root)
    config = EnvoyConfig(
        training=TrainingSettings(preload_torch=False), protection=policy, secure_aggregation=PLAIN_ALLOWED
    )
    approvals = OwnPlans(federation.bundle.digest)
    session = Session(m.EnvoyName("site-a"), folder, link, InProcessTrainer(), config, approvals=approvals)
    envoy = threading.Thread(target=session.run, daemon=True)
    envoy.start()
    try:
        return federation.finished(federation.submit(further=further)).state
    finally:
        session.end()
        envoy.join(SECONDS)


@pytest.mark.parametrize(
    ("policy", "further"),
    [(None, ""), (OPEN_POLICY, "[protection]\nmax_norm = 1e-40\n")],
    ids=["no-policy", "asks-for-a-bound-of-nothing"],
)
def test_where_nothing_may_leave_no_update_goes_by(federation, tap, tmp_path, policy, further):
    assert run_with(federation, tap, tmp_path / "site", policy, further) == "failed"
    assert 0 < tap.bytes_up < UPDATE_BYTES / 4


def test_what_may_leave_goes_by(federation, tap, tmp_path):
    assert run_with(federation, tap, tmp_path / "site", OPEN_POLICY) == "finished"
    assert tap.bytes_up > UPDATE_BYTES


def test_a_withheld_update_makes_no_quorum(federation, tap, tmp_path):
    policy = ProtectionPolicy((Step.CHECK, Step.AUDIT), max_leakage=0.1)
    assert run_with(federation, tap, tmp_path / "site", policy) == "failed"
