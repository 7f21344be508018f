"""All that four real envoys say to a real director in secure sums, byte for byte before TLS: nothing of one site."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.accepted_roster import load_roster
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.config import load_config
from fedveil.envoy.enrolment import load_credentials
from fedveil.envoy.session import Session
from fedveil.envoy.summing import SumIdentity
from fedveil.envoy.trainer import InProcessTrainer
from fedveil.utils import messages as m
from fedveil.utils import wire, wire_sums
from fedveil.utils.certificates import read_identity_key
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.secure_sum.fixed_point import FixedPoint
from fedveil.utils.secure_sum.spec import rounding_key
from fedveil.utils.tensors import Digest, read_model
from fedveil.workspace.local_federation import LocalFederation
from fedveil.workspace.own_plans import OwnPlans
from fedveil.workspace.plan_builder import build_plan

SECONDS = 60.0
SITES = ("site-a", "site-b", "site-c", "site-d")
SIZE, EXAMPLES, LOSS, BOUND, MOST = 10_000, 7919, 0.6180339887, 4.0, 10_000
PLAN = f"""
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {{"w": np.zeros({SIZE}, np.float32)}}

    def train(self, weights, data, rng):
        return {{"w": weights["w"] + np.linspace(-1, 1, {SIZE}, dtype=np.float32)}}, {EXAMPLES}

    def evaluate(self, weights, data):
        yield mean_of("loss", {LOSS} * {EXAMPLES}, {EXAMPLES})
"""
SETTINGS = f"""
name = "tapped"
seed = "00"
[study]
purpose = "a test"
min_approvals = 4
[rounds]
max_rounds = 2
min_participants = 3
[secure_sum]
clip = {BOUND}
max_examples = {MOST}
"""
UPDATE = np.linspace(-1, 1, SIZE, dtype=np.float32)


class Tapped(DirectorClient):
    """Keeps every byte that it sends, as it is before TLS."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.said: list[bytes] = []
        self.headers: list[m.UpdateHeader] = []
        self.vectors: list[bytes] = []

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        self.said.append(wire.work_request_to_wire(m.WorkRequest("", held, approved=approved)))
        return super().work(held, approved)

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        self.said.append(wire.header_to_wire(header))
        self.headers.append(header)
        return super().request_upload(header)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        vector = bytearray()

        def kept() -> Iterator[m.Part]:
            for part in parts:
                self.said.append(wire.part_to_wire(part))
                vector.extend(part.content if isinstance(part, m.Data) else b"")
                yield part

        receipt = super().upload(kept())
        self.vectors.append(bytes(vector))
        return receipt

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        self.said.append(wire_sums.statement_to_wire(statement))
        return super().tell_sum(statement)

    def report(self, report: m.MetricsReport) -> m.Receipt:
        raise AssertionError("metrics in the clear")

    def decline(self, refusal: m.Refusal) -> None:
        raise AssertionError(refusal)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        self.said.append(wire.heartbeat_to_wire(heartbeat))
        return super().beat(heartbeat)


def envoy(folder: Path, plan: Digest) -> tuple[Session, Tapped]:
    """As ``envoy start`` builds it."""
    credentials = load_credentials(folder, time.time())
    link = Tapped(credentials.addresses[0], credentials.chain, credentials.leaf_key, credentials.root)
    key = read_identity_key(credentials.identity_key, "the identity key")
    roster = partial(load_roster, folder, credentials.peer, credentials.public_identity)
    identity = SumIdentity(credentials.peer.federation, key.sign, roster)
    name = m.EnvoyName(credentials.peer.name)
    config, approvals = load_config(folder), OwnPlans(plan)
    return Session(name, folder, link, InProcessTrainer(), config, identity=identity, approvals=approvals), link


@pytest.fixture
def tapped(tmp_path: Path) -> tuple[list[Tapped], np.ndarray]:
    """A whole run of two rounds: what every site said, and the final model."""
    (tmp_path / "plan.py").write_text(PLAN)
    build_plan(tmp_path / "plan.py", tmp_path / "plan")
    bundle = open_bundle(tmp_path / "plan")
    with LocalFederation(tmp_path, "tapped") as federation:
        federation.found()
        federation.start_director()
        federation.wait_for_director()
        folders = [federation.join(name, name.title()) for name in SITES]
        made = [envoy(folder, bundle.digest) for folder in folders]
        threads = [threading.Thread(target=session.run, daemon=True) for session, _ in made]
        for thread in threads:
            thread.start()
        federation.envoys = dict.fromkeys(SITES)
        federation.wait_for_envoys()
        federation.envoys = {}
        view = federation.wait_for(federation.submit(SETTINGS, bundle), timeout_seconds=60.0)
        assert view.state == "finished", view
        with federation.operator() as operator:
            model, _ = read_model(bundle.layout, operator.fetch(view.model))
        for session, _ in made:
            session.end()
        for thread in threads:
            thread.join(SECONDS)
    assert view.rounds[-1].metrics["loss"] == pytest.approx(LOSS)
    return [link for _, link in made], model


def test_neither_update_nor_weight_nor_metric_of_a_site_goes_by(tapped):
    links, model = tapped
    np.testing.assert_allclose(model, 2 * UPDATE, atol=1e-6)  # the sum itself is right
    plain = np.empty(SIZE, np.uint32)
    numbers = FixedPoint((SIZE,), (BOUND,), len(SITES) * MOST)
    for link in links:
        said = b"\0".join(link.said)
        key = rounding_key(hashlib.sha256(b"00").digest(), m.TaskRef("tapped-1", 1, 1, "ab" * 32))
        numbers.encode(UPDATE, 0, EXAMPLES, key, plain, np.zeros(1, np.int64))
        secrets = [
            UPDATE[100:104].tobytes(),
            plain[100:104].tobytes(),
            np.float64(LOSS * EXAMPLES).tobytes(),
            np.int64(EXAMPLES).tobytes(),
            np.float64(EXAMPLES).tobytes(),
            np.int64(round(LOSS * EXAMPLES * 2**20)).tobytes(),
        ]
        assert [secret in said for secret in secrets] == [False] * len(secrets)
        assert {(one.num_examples, one.metrics, one.payload) for one in link.headers} == {(0, (), m.PayloadKind.MASKED)}
        assert len(link.vectors) == 3


def test_what_goes_by_looks_like_noise_and_is_another_in_each_round(tapped):
    """A smoke test: it shows no secrecy, it would show its absence."""
    links, _ = tapped
    for link in links:
        first, second, _ = (np.frombuffer(vector, np.uint8) for vector in link.vectors)
        for vector in (first, second):
            counts = np.bincount(vector, minlength=256)
            expected = vector.size / 256
            assert ((counts - expected) ** 2 / expected).sum() < 400  # chi-square, 255 degrees: 255 +- 23
        assert np.count_nonzero(first == second) < first.size / 128
        words = np.frombuffer(link.vectors[0], "<i4")[:SIZE].astype(np.float64)
        assert abs(np.corrcoef(words, UPDATE)[0, 1]) < 0.06  # six times what chance gives
