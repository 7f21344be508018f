"""What leaves an envoy at work: only what passed the chain, and nothing at all where something is not right.

The director here is a wire that takes down all that is said to it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.__main__ import app
from fedveil.envoy.config import ApprovalSettings, EnvoyConfig, TrainingSettings
from fedveil.envoy.journal import read_outbox
from fedveil.envoy.orders import WorkOrder, WorkResult
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED, CodecRule, ProtectionPolicy, Step
from fedveil.envoy.protection import Closed, Off, Open, Verdict
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.session import Session
from fedveil.envoy.site_state import RESIDUAL, pending_path, state_before
from fedveil.envoy.trainer import ChildTrainer, Trainer
from fedveil.gradient_leakage.vae.codec import Codec, codec_bytes, round_seed
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils import messages as m
from fedveil.utils.errors import ConfigError, UnreachableError
from fedveil.utils.metrics import mean_of
from fedveil.utils.plan_bundle import Bundle, open_bundle
from fedveil.utils.tensors import Digest, Layout, Role, digest_of
from fedveil.workspace.own_plans import OwnPlans
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

SECONDS = 60.0
NUMBER = 1000
CHECK, ENCODE, CLIP, NOISE, AUDIT = Step
PLAN = f"""
from pathlib import Path
import os, sys, threading, time
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {{"w": np.zeros({NUMBER}, np.float32)}}

    def train(self, weights, data, rng):
        BODY
        return {{"w": weights["w"] + 1}}, 5

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""


class Wire:
    """A link whose other end only listens."""

    def __init__(self, artifacts: dict[Digest, bytes]) -> None:
        self.artifacts = artifacts
        self.items: queue.SimpleQueue[m.WorkItem | None] = queue.SimpleQueue()
        self.refusals: list[m.Refusal] = []
        self.headers: list[m.UpdateHeader] = []
        self.reports: list[m.MetricsReport] = []
        self.payloads: dict[m.TaskRef, bytes] = {}
        self.data: list[bytes] = []  # of updates, as it went by
        self.is_deaf = False  # to the metrics of evaluations
        self.breaks_after: int | None = None  # bytes of an upload, behind which the line is gone

    @property
    def nothing_left(self) -> bool:
        """But refusals."""
        return not (self.headers or self.reports or self.data)

    def work(self, _: tuple[m.TaskRef, ...], __: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        yield m.Idle()
        while (item := self.items.get()) is not None:
            yield item

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        raise NotImplementedError

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        content = self.artifacts[request.digest]
        yield m.Opening(len(content), request.offset, digest=request.digest)
        yield m.Data(content[request.offset :])

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        self.headers.append(header)
        if header.ref in self.payloads:
            whole = self.payloads[header.ref]
            return m.Receipt(header.ref, digest_of(whole), len(whole))
        return m.Turn(header.ref, "0" * 32, 0, 1024)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        stream, ref = iter(parts), self.headers[-1].ref
        next(stream)
        start = len(self.data)
        for part in stream:
            if isinstance(part, m.Data):
                self.data.append(bytes(part.content))
            if self.breaks_after is not None and sum(map(len, self.data)) >= self.breaks_after:
                raise UnreachableError("the line is cut")
        self.payloads[ref] = b"".join(self.data[start:])
        return m.Receipt(ref, digest_of(self.payloads[ref]), len(self.payloads[ref]))

    def report(self, report: m.MetricsReport) -> m.Receipt:
        if self.is_deaf:
            raise UnreachableError("no answer")
        self.reports.append(report)
        return m.Receipt(report.ref, Digest("ab" * 32), 0)

    def decline(self, refusal: m.Refusal) -> None:
        self.refusals.append(refusal)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        return m.Acknowledgement()

    def close(self) -> None:
        self.items.put(None)


class Training:
    """Gives one update, and metrics that a site may not wish to share."""

    def __init__(self) -> None:
        self.orders: list[WorkOrder] = []
        self.update = np.linspace(-1, 1, NUMBER, dtype=np.float32)
        self.meanwhile: Callable[[WorkOrder], None] = lambda _: None

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        self.orders.append(order)
        metrics = mean_of("auc", 1.0, 2), mean_of("oldest_patient", 97.0, 1)
        if order.kind is m.TaskKind.EVALUATE:
            return WorkResult(0, metrics)
        order.update_path.write_bytes(self.update.tobytes())
        self.meanwhile(order)
        return WorkResult(5, metrics)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        pass


class Gates:
    """A leak test that says what a test wants said, each time it is asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.asked_of: list[tuple[Digest, str]] = []

    def interrupt(self) -> None:
        raise NotImplementedError

    def gate(self, plan: Bundle, model: Path, chain: object) -> Callable[[], Verdict]:
        assert model.exists()
        self.asked_of.append((plan.digest, str(chain)))
        return lambda: self.verdicts.pop(0)


class Site:
    """An envoy in its folder, started as often as a test likes; each start knows only what is on disk."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder, self.bundle = folder, bundle
        self.artifacts = {bundle.digest: bundle.manifest.to_json()}
        self.artifacts |= {file.sha256: bundle.blob(file.path) for file in bundle.manifest.files}
        self.policy: ProtectionPolicy | None = OPEN_POLICY
        self.training: Trainer = Training()
        self.gates: Gates | None = None
        self.wire = Wire(self.artifacts)
        self._running: tuple[Session, threading.Thread] | None = None
        folder.mkdir(exist_ok=True)

    def start(self) -> None:
        self.end()
        self.wire = Wire(self.artifacts)
        config = EnvoyConfig(
            approval=ApprovalSettings(imports=("json", "os", "pathlib", "stat", "sys", "threading")),
            training=TrainingSettings(preload_torch=False),
            protection=self.policy,
            secure_aggregation=PLAIN_ALLOWED,
        )
        approvals = OwnPlans(self.bundle.digest)
        name = m.EnvoyName("site-a")
        session = Session(name, self.folder, self.wire, self.training, config, self.gates, approvals=approvals)
        thread = threading.Thread(target=session.run, daemon=True)
        self._running = session, thread
        thread.start()

    def end(self) -> None:
        if self._running is not None:
            session, thread = self._running
            session.end()
            thread.join(SECONDS)
            assert not thread.is_alive()
            self._running = None

    def codec(self, codec: Codec) -> Digest:
        """Have the director keep a codec."""
        self.artifacts[codec.digest] = codec_bytes(codec)
        return codec.digest

    def task(self, number: int = 1, codec: Digest | None = None, **changes: object) -> m.Task:
        fields = {
            "ref": m.TaskRef(m.RunId("lungs-1"), number, 1, self.bundle.digest),
            "kind": m.TaskKind.TRAIN,
            "model": self.bundle.manifest.file("initial.safetensors").sha256,
            "model_bytes": self.bundle.manifest.file("initial.safetensors").size,
            "layout": self.bundle.layout.digest,
            "seed": bytes(32),
            "seconds_left": 60.0,
            "min_participants": 1,
            "cohort": ("site-a",),
            "payload": m.PayloadKind.CODED if codec else m.PayloadKind.PLAIN,
            "codec": codec,
        }
        return m.Task(**(fields | changes))

    def sends(self, task: m.Task) -> np.ndarray:
        """Let a task be done, and take what left."""
        self.wire.items.put(task)
        until(lambda: task.ref in self.wire.payloads and self.departures()[-1].received_at)
        return np.frombuffer(self.wire.payloads[task.ref], np.float32)

    def refuses(self, task: m.Task) -> m.Refusal:
        before = len(self.wire.refusals)
        self.wire.items.put(task)
        until(lambda: len(self.wire.refusals) > before)
        return self.wire.refusals[-1]

    def departures(self):
        return read_outbox(self.folder)


def until(is_so: Callable[[], object]) -> None:
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline
        pause.wait(0.005)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("fedveil.envoy.patience._FIRST_SECONDS", 0.001)
    monkeypatch.setattr("fedveil.envoy.patience._MOST_SECONDS", 0.01)


def bundle_of(folder: Path, body: str = "pass") -> Bundle:
    folder.mkdir(exist_ok=True)
    (folder / "toy.py").write_text(PLAN.replace("BODY", body.strip().replace("\n", "\n        ")))
    build_plan(folder / "toy.py", folder / "bundle")
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundle_of(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def site(tmp_path, bundle):
    made = Site(tmp_path / "site", bundle)
    yield made
    made.end()


def learned(layout: Layout) -> Codec:
    updates = np.random.default_rng(0).standard_normal((8, layout.size)).astype(np.float32)
    return fit(layout, updates, 200.0)


# nothing leaves


def test_without_a_policy_nothing_leaves_and_the_reason_says_what_to_do(site, caplog):
    site.policy = None
    site.start()
    for kind in m.TaskKind:
        refusal = site.refuses(site.task(kind=kind))
        assert refusal.error == "ConfigError"
        assert "no [protection] table, so nothing leaves it; `envoy join` writes one" in refusal.reason
    assert "every task will be declined" in caplog.text
    assert site.training.orders == []
    assert site.wire.nothing_left
    assert site.departures() == []


OTHER = Layout.of([("w", (NUMBER + 1,), Role.PARAMETER)])
STRICT = ProtectionPolicy((CHECK, ENCODE), codec=CodecRule.REQUIRED)


@pytest.mark.parametrize(
    ("policy", "prepare", "error", "words"),
    [
        (
            ProtectionPolicy((CHECK,)),
            lambda s: s.task(codec=s.codec(learned(s.bundle.layout))),
            "ConfigError",
            "encodes nothing",
        ),
        (STRICT, lambda s: s.task(), "ConfigError", "sends codes alone"),
        (OPEN_POLICY, lambda s: s.task(codec=s.codec(learned(OTHER))), "LayoutMismatchError", "is for layout"),
        (OPEN_POLICY, lambda s: s.task(codec=spoil(s, b"no codec")), "MalformedMessageError", "codec"),
        (OPEN_POLICY, lambda s: s.task(codec=shorter(s)), "MalformedMessageError", "codec"),
        (OPEN_POLICY, lambda s: s.task(codec=exchanged(s)), "DigestMismatchError", "came damaged 3 times"),
        (OPEN_POLICY, lambda s: s.task(codec=spoil(s, bytes(6 << 20))), "LengthMismatchError", "bytes, expected"),
        (OPEN_POLICY, lambda s: s.task(asked=m.AskedProtection(1e-45)), "ConfigError", "the task's max_norm"),
    ],
    ids=["codec-not-taken", "codec-required", "other-model", "garbage", "wrong-r", "other-digest", "huge", "tiny-norm"],
)
def test_a_task_that_the_chain_cannot_do_is_declined_before_training(site, policy, prepare, error, words):
    site.policy = policy
    site.start()
    refusal = site.refuses(prepare(site))
    assert (refusal.error, words in refusal.reason) == (error, True), refusal
    assert site.training.orders == []
    assert site.wire.nothing_left


def spoil(site: Site, content: bytes) -> Digest:
    site.artifacts[digest_of(content)] = content
    return digest_of(content)


def shorter(site: Site) -> Digest:
    """A codec whose file says that it keeps more directions than it holds."""
    return spoil(site, codec_bytes(learned(site.bundle.layout)).replace(b'\\"learned\\":5', b'\\"learned\\":6'))


def exchanged(site: Site) -> Digest:
    """The director has another codec's file under a codec's digest."""
    digest = learned(site.bundle.layout).digest
    site.artifacts[digest] = codec_bytes(seeded(site.bundle.layout, 100.0))
    return digest


@pytest.mark.parametrize(
    ("update", "error"),
    [
        (np.full(NUMBER, np.nan, np.float32), "NonFiniteUpdateError"),
        (np.zeros(NUMBER, np.float32), "UnsendableUpdateError"),
        (np.ones(NUMBER - 1, np.float32), "LengthMismatchError"),
        (np.frombuffer(b"a picture, say" * 300, np.uint8), "LengthMismatchError"),
    ],
    ids=["nan", "zeros", "short", "no-update"],
)
@pytest.mark.parametrize("is_coded", [False, True])
def test_what_is_no_update_is_declined_and_nothing_of_it_left(site, update, error, is_coded):
    site.policy = ProtectionPolicy((CHECK, ENCODE, CLIP, NOISE), max_norm=1.0, noise_multiplier=1.0)
    site.training.update = update
    site.start()
    codec = site.codec(learned(site.bundle.layout)) if is_coded else None
    assert site.refuses(site.task(codec=codec)).error == error
    assert site.wire.nothing_left
    assert site.departures() == []


@pytest.mark.parametrize("what", ["missing", "pipe"])
def test_an_update_that_is_no_file_is_declined_without_waiting_for_it(site, what):
    def exchange(order: WorkOrder) -> None:
        order.update_path.unlink()
        if what == "pipe":
            os.mkfifo(order.update_path)

    site.training.meanwhile = exchange
    site.start()
    assert site.refuses(site.task()).error == "StorageError"
    assert site.wire.nothing_left


# the leak test


def test_a_leak_test_that_says_no_declines_the_task_before_training(site):
    site.policy = ProtectionPolicy((CHECK, AUDIT), max_leakage=0.1)
    site.gates = Gates(Closed("the plan leaks on public images"))
    site.start()
    assert site.refuses(site.task()).reason == "round 1 of lungs-1: the plan leaks on public images"
    assert site.training.orders == []
    assert site.wire.nothing_left
    assert site.gates.asked_of[0][0] == site.bundle.digest


def test_a_leak_test_that_says_no_after_training_sends_zeros_of_weight_zero(site):
    site.policy = ProtectionPolicy((CHECK, CLIP, NOISE, AUDIT), 1.0, 1.0, max_leakage=0.1)
    site.gates = Gates(Open(0.01), Closed("no longer"))
    site.training.meanwhile = leave_state
    site.start()
    assert not site.sends(site.task()).any()
    (header,) = site.wire.headers
    assert (header.num_examples, header.metrics, header.length) == (0, (), 4 * NUMBER)
    (row,) = site.departures()
    assert (row.is_withheld, row.has_noise, row.score) == (True, False, None)
    assert state_before(site.folder / "state", site.task(2).ref) is None  # it counted for nothing


def leave_state(order: WorkOrder) -> None:
    path = pending_path(order.state_folder, order.ref)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"state")


def test_a_leak_test_that_says_yes_lets_the_update_out_with_its_score_in_the_outbox(site):
    site.policy = ProtectionPolicy((CHECK, AUDIT), max_leakage=0.1)
    site.gates = Gates(Open(0.02), Open(0.02))
    site.training.meanwhile = leave_state
    site.start()
    assert np.array_equal(site.sends(site.task()), site.training.update)
    assert site.departures()[0].score == 0.02
    assert state_before(site.folder / "state", site.task(2).ref)


@pytest.mark.parametrize("publishes", [True, False])
def test_the_score_is_told_to_the_director_where_the_site_publishes_it_and_else_not(site, publishes):
    site.policy = ProtectionPolicy((CHECK, AUDIT), max_leakage=0.1, publish_leakage=publishes)
    site.gates = Gates(Open(0.02), Open(0.02))
    site.start()
    site.sends(site.task())
    (header,) = site.wire.headers
    assert header.leakage_score == (0.02 if publishes else None)


def test_to_publish_what_is_not_measured_is_refused():
    with pytest.raises(ConfigError, match="publish_leakage without max_leakage"):
        ProtectionPolicy((CHECK,), publish_leakage=True)


def test_an_audit_without_anybody_who_tests_lets_nothing_but_zeros_out(site):
    site.policy = ProtectionPolicy((CHECK, AUDIT), max_leakage=0.1)
    site.start()
    assert not site.sends(site.task()).any()
    site.gates = Gates(Off(), Off())
    site.start()
    assert not site.sends(site.task(2)).any()


# what leaves


def test_what_a_task_asks_for_is_added(site):
    site.start()
    site.training.update *= 100
    sent = site.sends(site.task(asked=m.AskedProtection(2.0)))
    assert np.linalg.norm(sent) == pytest.approx(2.0, rel=1e-5)
    assert np.linalg.norm(site.sends(site.task(2))) > 1000
    assert [row.chain for row in site.departures()] == ["check, clip 2", "check"]


def test_an_update_that_nothing_changes_leaves_as_it_was_trained(site):
    site.policy = ProtectionPolicy((CHECK, CLIP), max_norm=1e6)
    site.start()
    assert site.sends(site.task()).tobytes() == site.training.update.tobytes()
    assert not (site.folder / "work" / "payload.f32").exists()


def test_a_code_leaves_with_its_kind_its_codec_and_its_length(site):
    codec = learned(site.bundle.layout)
    task = site.task(codec=site.codec(codec))
    site.start()
    sent = site.sends(task)
    (header,) = site.wire.headers
    assert (header.payload, header.codec, header.length) == (m.PayloadKind.CODED, codec.digest, 4 * codec.size)
    assert np.array_equal(sent, codec.encode(site.training.update))
    assert site.departures()[0].num_bytes == 4 * codec.size < 4 * NUMBER / 100


def test_a_drawn_codec_has_the_rounds_own_basis_and_gives_back_what_it_lost(site):
    codec = seeded(site.bundle.layout, 50.0)
    site.codec(codec)
    site.start()
    update, lost = site.training.update, np.zeros(NUMBER, np.float32)
    for number in (1, 2, 3):
        task = site.task(number, codec.digest)
        of_round = codec.for_round(round_seed(task.ref, task.model, codec.digest))
        sent = site.sends(task)
        np.testing.assert_allclose(sent, of_round.encode(update + lost), rtol=1e-4, atol=1e-5)
        lost = update + lost - of_round.decode(sent)
    assert RESIDUAL.before(site.folder / "state", site.task(4).ref)


def test_with_noise_nothing_is_carried_to_later_rounds(site):
    site.policy = ProtectionPolicy((CHECK, ENCODE, CLIP, NOISE), max_norm=1.0, noise_multiplier=0.1)
    site.start()
    site.sends(site.task(codec=site.codec(seeded(site.bundle.layout, 50.0))))
    assert RESIDUAL.before(site.folder / "state", site.task(2).ref) is None


def test_metrics_that_the_site_does_not_name_stay_at_the_site(site):
    site.policy = ProtectionPolicy((CHECK,), metrics=("auc",))
    site.start()
    site.sends(site.task())
    site.wire.items.put(site.task(2, kind=m.TaskKind.EVALUATE))
    until(lambda: site.wire.reports)
    left = [*site.wire.headers[0].metrics, *site.wire.reports[0].metrics]
    assert [metric.name for metric in left] == ["auc", "auc"]
    until(lambda: len(site.departures()) == 2)
    assert [(row.kind, row.metrics) for row in site.departures()] == [("plain", ("auc",)), ("metrics", ("auc",))]


def test_the_metrics_of_an_evaluation_are_not_said_once_the_site_keeps_them(site):
    site.start()
    site.wire.is_deaf = True
    task = site.task(kind=m.TaskKind.EVALUATE)
    site.wire.items.put(task)
    until(site.departures)
    site.policy = replace(OPEN_POLICY, metrics=("auc",))
    site.start()
    site.wire.items.put(task)
    until(lambda: site.wire.reports)
    assert [metric.name for metric in site.wire.reports[0].metrics] == ["auc"]


# noise, and the end of a process


NOISY = ProtectionPolicy((CHECK, CLIP, NOISE), max_norm=1.0, noise_multiplier=1.0)


@pytest.fixture
def noisy(site):
    site.policy = NOISY
    return site


def test_noise_is_another_in_each_run(noisy):
    noisy.start()
    first, second = noisy.sends(noisy.task(1)), noisy.sends(noisy.task(2))
    assert np.corrcoef(first - second, first)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.1)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("sent_bytes", [1, 2048])
def test_an_envoy_that_ends_while_it_sends_sends_the_very_same_noise_afterwards(noisy, sent_bytes):
    noisy.start()
    noisy.wire.breaks_after = sent_bytes
    task = noisy.task()
    noisy.wire.items.put(task)
    until(lambda: len(noisy.wire.data) > 2)  # again and again
    begun = b"".join(noisy.wire.data[: -(-sent_bytes // 1024)])
    (row,) = noisy.departures()
    noisy.start()
    again = noisy.sends(task).tobytes()
    assert again.startswith(begun)
    assert digest_of(again) == row.digest
    assert len(noisy.training.orders) == 1


KILLED = """
import importlib.util, os, signal, sys, threading
from pathlib import Path
spec = importlib.util.spec_from_file_location("leaving", sys.argv[1])
leaving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(leaving)

class Killed(leaving.Wire):
    def upload(self, parts):
        stream = iter(parts)
        next(stream)
        Path(sys.argv[4]).write_bytes(bytes(next(stream).content))
        os.kill(os.getpid(), signal.SIGKILL)

leaving.Wire = Killed
site = leaving.Site(Path(sys.argv[2]), leaving.open_bundle(Path(sys.argv[3])))
site.policy = leaving.NOISY
site.start()
site.wire.items.put(site.task())
threading.Event().wait(20)
"""


def test_an_envoy_that_is_killed_while_it_sends_sends_the_very_same_noise_afterwards(site, tmp_path):
    begun = tmp_path / "begun"
    arguments = [__file__, str(tmp_path / "other"), str(site.bundle.folder), str(begun)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    again = Site(tmp_path / "other", site.bundle)
    again.policy = NOISY
    again.start()
    try:
        sent = again.sends(again.task()).tobytes()
    finally:
        again.end()
    assert begun.stat().st_size == 1024
    assert sent.startswith(begun.read_bytes())
    assert again.training.orders == []


def test_noise_is_not_drawn_twice_for_a_task_whose_answer_is_lost(noisy):
    noisy.start()
    task = noisy.task()
    noisy.sends(task)
    (noisy.folder / "work" / "payload.f32").write_bytes(bytes(4 * NUMBER))
    noisy.start()
    noisy.wire.payloads.clear()
    refusal = noisy.refuses(task)
    assert refusal.error == "ProtocolError"
    assert "noise was drawn for round 1 of lungs-1 already" in refusal.reason
    assert not noisy.wire.data


def test_an_answer_that_was_made_under_another_policy_is_made_anew(site):
    site.start()
    site.wire.breaks_after = 1
    task = site.task()
    site.wire.items.put(task)
    until(lambda: site.wire.data)
    site.policy = ProtectionPolicy((CHECK, CLIP), max_norm=1.0, metrics=())
    site.start()
    assert np.linalg.norm(site.sends(task)) == pytest.approx(1.0, rel=1e-5)
    assert [header.metrics for header in site.wire.headers] == [()]
    assert [row.received_at is None for row in site.departures()] == [True, False]


def test_metrics_of_an_earlier_answer_are_not_said_again_once_the_site_keeps_them(site):
    site.start()
    site.wire.breaks_after = 1
    site.wire.items.put(site.task())
    until(lambda: site.wire.data)
    site.policy = replace(OPEN_POLICY, metrics=())
    site.start()
    site.sends(site.task(2))
    assert [(header.ref.round, header.metrics) for header in site.wire.headers] == [(2, ())]


# a plan that means harm, by the ordinary path

PATCHING = """
find = __import__("importlib").import_module
edge, protection = find("fedveil.envoy.edge"), find("fedveil.envoy.protection")
clip = find("fedveil.gradient_leakage.defenses.clip")
edge.protect = protection.protect = lambda update, *_, **__: update
protection.check = lambda *_: None
clip.Clip.__call__ = lambda self, vector, rng: vector
return {"w": weights["w"] + np.float32(1000)}, 5
"""
RACING = """
mapped = next(line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith("update.f32"))
secret = np.full(1000, 1000, np.float32).tobytes()

def overwrite():
    while True:
        for name in ("update.f32", "payload.f32"):
            file = os.open(Path(mapped).with_name(name), os.O_RDWR | os.O_CREAT)
            os.pwrite(file, secret, 0)
            os.close(file)

threading.Thread(target=overwrite, daemon=True).start()
"""


@pytest.mark.parametrize("body", [PATCHING, RACING], ids=["patches-the-chain", "overwrites-its-update"])
def test_a_plan_gets_no_unprotected_byte_out_by_patching_or_racing_the_chain(tmp_path, body):
    site = Site(tmp_path / "site", bundle_of(tmp_path / "plan", body))
    site.policy = ProtectionPolicy((CHECK, CLIP), max_norm=1.0)
    unboxed = Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path / "site")
    site.training = ChildTrainer(tmp_path / "site" / "state", unboxed)
    site.start()
    try:
        for number in range(1, 6):
            sent = site.sends(site.task(number))
            assert np.linalg.norm(sent) == pytest.approx(1.0, rel=1e-5)
            assert site.departures()[-1].digest == digest_of(sent.tobytes())
        assert b"".join(site.wire.data).count(np.float32(1000).tobytes()) == 0
    finally:
        site.end()


ANSWERING = """
import json, stat
mapped = next(line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith("update.f32"))
Path(mapped).open("r+b").write(np.ones(1000, np.float32).tobytes())
for number in range(3, 64):
    try:
        is_line = stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        continue
    if is_line:
        os.write(number, json.dumps(ANSWER).encode() + b"\\n")
os._exit(0)
"""


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        ({"num_examples": 0, "metrics": []}, "UnsendableUpdateError", "training names no example that it used"),
        ({"error": "TrainingError", "message": "patient 17"}, "TrainingError", "the plan could not be carried out;"),
        ({"error": "ConfigError", "message": "patient 17"}, "ConfigError", "the plan could not be carried out;"),
        ({"error": "NonFiniteUpdateError"}, "NonFiniteUpdateError", "training gave NaN or infinity;"),
        (
            {"error": "TrainingError", "message": "the plan raised KeyError in train; patient 17"},
            "TrainingError",
            "the plan raised KeyError in train;",
        ),
    ],
)
def test_a_plan_that_answers_in_the_workers_place_gets_none_of_its_words_out(tmp_path, answer, error, reason):
    site = Site(tmp_path / "site", bundle_of(tmp_path / "plan", ANSWERING.replace("ANSWER", repr(answer))))
    site.policy = ProtectionPolicy((CHECK, CLIP, NOISE), max_norm=1.0, noise_multiplier=1.0)
    unboxed = Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path / "site")
    site.training = ChildTrainer(tmp_path / "site" / "state", unboxed)
    site.start()
    try:
        refusal = site.refuses(site.task())
        assert (refusal.error, refusal.reason.startswith(reason)) == (error, True)
        assert "17" not in refusal.reason
        assert site.wire.nothing_left
        assert site.departures() == []
    finally:
        site.end()


# what the site can look up


def test_the_outbox_shows_what_left(site):
    site.start()
    sent = site.sends(site.task())
    site.end()
    shown = CliRunner().invoke(app, ["outbox", "--folder", str(site.folder), "--json"])
    (row,) = json.loads(shown.stdout)
    assert (row["kind"], row["num_bytes"], row["digest"]) == ("plain", 4 * NUMBER, digest_of(sent.tobytes()))
    assert (row["chain"], row["metrics"], row["is_withheld"]) == ("check", ["auc", "oldest_patient"], False)
    assert row["received_at"] >= row["ready_at"]
    words = (
        "ready_at ref kind num_bytes digest codec chain has_noise score metrics num_examples received_at is_withheld"
    )
    assert list(row) == words.split()  # and no value that was sent
    table = CliRunner().invoke(app, ["outbox", "--folder", str(site.folder)]).stdout
    assert "plain" in table
    assert row["digest"][:12] in table
