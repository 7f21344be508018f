"""The envoy at work, against a director in memory that refuses, forgets, and breaks the line."""

import os
import queue
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from fedveil.envoy.config import ApprovalSettings, EnvoyConfig, TrainingSettings, Work
from fedveil.envoy.orders import WorkResult
from fedveil.envoy.policy import OPEN_POLICY, PLAIN_ALLOWED
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.session import Session
from fedveil.envoy.trainer import ChildTrainer, InProcessTrainer
from fedveil.utils import messages as m
from fedveil.utils.errors import (
    DatasetError,
    DigestMismatchError,
    IdentityError,
    MalformedMessageError,
    NotApprovedError,
    PlanError,
    ProtocolError,
    StorageError,
    TrainingError,
    UnknownArtifactError,
    UnreachableError,
    WrongRoundError,
)
from fedveil.utils.metrics import mean_of
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.tensors import digest_of, model_pieces
from fedveil.workspace.own_plans import OwnPlans
from fedveil.workspace.plan_builder import build_plan

SECONDS = 60.0
TOY = """
import time
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {"w": np.zeros(1000, np.float32)}

    def train(self, weights, data, rng):
        BODY
        return {"w": weights["w"] + 1}, 5

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""
UPDATE = np.full(1000, 2.5, np.float32)


class Director:
    """A link to a director that lives in memory."""

    def __init__(self, bundle):
        self.has = {bundle.digest: bundle.manifest.to_json()}
        self.has |= {file.sha256: bundle.blob(file.path) for file in bundle.manifest.files}
        self.items = queue.SimpleQueue()
        self.held = []  # what the envoy said it holds, each time it opened a line
        self.opened = 0
        self.polls, self.repeats = [], False  # repeats: a poll is answered at once with the task that is held
        self.is_down = threading.Event()  # nothing is answered
        self.failures = {}  # method: errors to raise first
        self.receipts, self.reports, self.refusals, self.headers = {}, {}, [], []
        self.spool, self.part_bytes = b"", 1024
        self.cuts = []  # lengths behind which an upload breaks
        self.on_upload = lambda: None
        self._closed = threading.Event()

    def fail(self, method, *errors):
        self.failures.setdefault(method, []).extend(errors)

    def _answers(self, method):
        if self.is_down.is_set() or self._closed.is_set():
            raise UnreachableError("the line is down")
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def work(self, held, approved=()):
        self._answers("work")
        self.opened += 1
        self.held.append(held)
        yield m.Idle()
        while (item := self.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def next_work(self, held, wait_seconds, approved=()):
        self._answers("work")
        self.held.append(held)
        self.polls.append(time.monotonic())
        if self.repeats and held:
            return self.task
        self.task = item = self.items.get()
        return m.Idle() if item is None else item

    def download(self, request):
        self._answers("download")
        if request.digest not in self.has:
            raise UnknownArtifactError(f"there is no artifact {request.digest[:12]}")
        content = self.has[request.digest]
        yield m.Opening(len(content), request.offset, digest=request.digest)
        yield m.Data(content[request.offset :])

    def request_upload(self, header):
        self._answers("request_upload")
        self.headers.append(header)
        if header.ref in self.receipts:
            return self.receipts[header.ref]
        return m.Turn(header.ref, "0" * 32, len(self.spool), self.part_bytes)

    def upload(self, parts):
        self._answers("upload")
        self.on_upload()
        opening = next(iter(parts))
        assert opening.offset == len(self.spool)
        for part in parts:
            if isinstance(part, m.Closing):
                whole, self.spool = self.spool, b""
                if len(whole) != opening.length or digest_of(whole) != part.digest:
                    raise DigestMismatchError("the update's SHA-256 is not as announced; send it again")
                receipt = m.Receipt(self.headers[-1].ref, part.digest, len(whole))
                self.updates = whole
                self.receipts[receipt.ref] = receipt
                self._answers("after_upload")
                return receipt
            content = bytes(part.content)
            if self.cuts and len(self.spool) + len(content) > self.cuts[0]:
                self.spool += content[: self.cuts.pop(0) - len(self.spool)]
                raise UnreachableError("the line broke")
            self.spool += content
        raise MalformedMessageError("an upload without a closing")

    def report(self, report):
        self._answers("report")
        self.reports[report.ref] = report.metrics
        return m.Receipt(report.ref, "ab" * 32, 0)

    def decline(self, refusal):
        self._answers("decline")
        self.refusals.append(refusal)

    def beat(self, heartbeat):
        self._answers("beat")

    def close(self):
        self._closed.set()
        self.items.put(None)


@dataclass
class Trainer:
    """Gives one update, and counts."""

    orders: list = field(default_factory=list)
    update: np.ndarray = field(default_factory=UPDATE.copy)
    metrics: tuple = (mean_of("loss", 1.5, 3),)
    before: object = lambda order, seconds, cancelled: None
    is_closed: bool = False

    def run(self, order, timeout_seconds, cancelled):
        self.orders.append(order)
        self.before(order, timeout_seconds, cancelled)
        if order.kind is m.TaskKind.TRAIN:
            order.update_path.write_bytes(self.update.tobytes())
            return WorkResult(5, self.metrics)
        return WorkResult(0, self.metrics)

    def warm_up(self):
        pass

    def close(self):
        self.is_closed = True


class Site:
    """An envoy in its folder, started and ended as often as a test likes."""

    def __init__(self, folder, bundle):
        self.folder, self.bundle, self.director = folder, bundle, Director(bundle)
        training = TrainingSettings(preload_torch=False)
        self.config, self.trainer = (
            EnvoyConfig(
                training=training,
                protection=OPEN_POLICY,
                secure_aggregation=PLAIN_ALLOWED,
                approval=ApprovalSettings(imports=("os", "sys")),
            ),
            Trainer(),
        )
        folder.mkdir(exist_ok=True)
        self.session = self._thread = self.approvals = None

    def start(self):
        self.session = Session(
            "site-a",
            self.folder,
            self.director,
            self.trainer,
            self.config,
            approvals=self.approvals or OwnPlans(self.bundle.digest),
        )
        self._thread = threading.Thread(target=self.session.run, daemon=True)
        self._thread.start()

    def end(self):
        if self._thread is not None:
            self.session.end()
            self._thread.join(SECONDS)
            assert not self._thread.is_alive()
            self._thread = None

    def restart(self):
        """Another process, as it were; what the director has stays."""
        self.end()
        before = self.director
        self.director = Director(self.bundle)
        self.director.receipts, self.director.spool = before.receipts, before.spool
        self.start()

    def task(self, number=1, **changes):
        fields = {
            "ref": m.TaskRef("lungs-1", number, 1, self.bundle.digest),
            "kind": m.TaskKind.TRAIN,
            "model": self.bundle.manifest.file("initial.safetensors").sha256,
            "model_bytes": self.bundle.manifest.file("initial.safetensors").size,
            "layout": self.bundle.layout.digest,
            "seed": bytes(32),
            "seconds_left": 60.0,
            "min_participants": 1,
            "cohort": ("site-a", "site-b"),
        }
        return m.Task(**(fields | changes))

    def give(self, task):
        self.director.items.put(task)
        return task.ref

    def received(self, task):
        ref = self.give(task)
        until(lambda: ref in self.director.receipts and self.session.status().rounds_received)
        return self.director.receipts[ref]

    def refused(self, task):
        before = len(self.director.refusals)
        self.give(task)
        until(lambda: len(self.director.refusals) > before)
        return self.director.refusals[-1]


def until(is_so):
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline
        pause.wait(0.005)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("fedveil.envoy.patience._FIRST_SECONDS", 0.001)
    monkeypatch.setattr("fedveil.envoy.patience._MOST_SECONDS", 0.01)


def bundle_of(folder, body="pass"):
    folder.mkdir(exist_ok=True)
    (folder / "toy.py").write_text(TOY.replace("BODY", body))
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


# a task, from its order to its receipt


@pytest.mark.parametrize("work", Work)
def test_a_task_is_trained_sent_and_received(site, work):
    site.config = replace(site.config, work=work)
    site.start()
    receipt = site.received(site.task())
    assert receipt.digest == digest_of(UPDATE.tobytes())
    assert site.director.updates == UPDATE.tobytes()
    (header,) = site.director.headers
    assert (header.num_examples, header.metrics) == (5, site.trainer.metrics)
    assert site.session.status().rounds_received == 1
    until(lambda: not site.session.status().task)


def test_an_evaluation_is_reported_and_nothing_is_uploaded(site):
    site.start()
    ref = site.give(site.task(kind=m.TaskKind.EVALUATE))
    until(lambda: ref in site.director.reports)
    assert site.director.reports[ref] == site.trainer.metrics
    assert site.director.headers == []


def test_the_same_task_twice_is_done_once(site):
    site.start()
    task = site.task()
    site.give(task)
    site.received(task)
    until(lambda: not site.session.status().task)
    site.give(task)
    site.received(site.task(2))
    assert [order.ref.round for order in site.trainer.orders] == [1, 2]


def test_an_end_is_clean_whatever_goes_on(site):
    started = threading.Event()

    def long(order, seconds, cancelled):
        started.set()
        assert cancelled.wait(SECONDS)
        raise TrainingError("withdrawn")

    site.trainer.before = long
    site.start()
    site.give(site.task())
    assert started.wait(SECONDS)
    site.end()
    assert site.trainer.is_closed
    assert site.director.refusals == []


def test_a_signal_to_the_thread_that_holds_the_lock_ends_the_envoy(site):
    site.start()
    until(lambda: site.session.status().is_connected)
    with site.session._lock:
        site.session.end()
    site.end()


# the line breaks


def test_the_line_is_opened_again_for_as_long_as_it_takes(site):
    site.director.fail("work", *[UnreachableError("refused")] * 30)
    site.start()
    site.received(site.task())
    site.director.items.put(UnreachableError("cut"))
    until(lambda: site.director.opened == 2)
    site.received(site.task(2))


def test_the_envoy_goes_on_listening_whatever_a_line_gives(site, caplog):
    site.start()
    until(lambda: site.director.opened == 1)
    site.director.items.put(ZeroDivisionError("a fault of ours"))
    until(lambda: site.director.opened == 2)
    assert "the line to the director is opened again" in caplog.text
    site.received(site.task())


def test_finished_training_is_not_repeated_in_a_storm_of_broken_lines(site):
    broken = [UnreachableError("the line broke")] * 20
    for method in ("download", "request_upload", "upload", "after_upload"):
        site.director.fail(method, *broken[: 1 if method == "after_upload" else 20])
    site.start()
    site.received(site.task())
    assert len(site.trainer.orders) == 1
    assert site.director.refusals == []


def test_an_upload_cut_at_every_tenth_is_resumed_to_the_same_digest(site):
    site.director.cuts = [400 * tenth for tenth in range(1, 10)]
    site.start()
    assert site.received(site.task()).digest == digest_of(UPDATE.tobytes())
    assert len(site.trainer.orders) == 1


def test_a_task_that_comes_again_over_a_new_line_is_not_begun_again(site):
    release = threading.Event()
    site.trainer.before = lambda *_: release.wait(SECONDS)
    site.start()
    task = site.task()
    site.give(task)
    until(lambda: site.trainer.orders)
    site.director.items.put(UnreachableError("cut"))
    until(lambda: site.director.opened == 2)
    assert site.director.held[-1] == (task.ref,)
    site.give(task)
    release.set()
    site.received(site.task(2))
    assert [order.ref.round for order in site.trainer.orders] == [1, 2]


def test_while_the_directors_disk_is_full_the_update_waits(site):
    site.director.fail("upload", *[StorageError("the director's disk is full")] * 5)
    site.start()
    site.received(site.task())
    assert len(site.trainer.orders) == 1
    assert site.director.refusals == []
    assert "the director's disk is full" in site.session.status().last_error


@pytest.mark.parametrize("method", ["download", "request_upload", "report"])
def test_a_director_whose_disk_is_full_is_asked_again_whatever_it_is_asked(site, method):
    site.director.fail(method, *[StorageError("the director's disk is full")] * 5)
    site.start()
    ref = site.give(site.task(kind=m.TaskKind.EVALUATE if method == "report" else m.TaskKind.TRAIN))
    until(lambda: ref in site.director.receipts or ref in site.director.reports)
    assert not site.director.failures[method]
    assert site.director.refusals == []


def test_a_poll_that_is_answered_with_the_task_that_is_held_is_repeated_after_a_pause(site, monkeypatch):
    for name in ("_FIRST_SECONDS", "_MOST_SECONDS"):
        monkeypatch.setattr(f"fedveil.envoy.patience.{name}", 0.1)  # of which lots take half at most
    site.config = replace(site.config, work=Work.POLL)
    site.director.repeats = True
    site.trainer.before = lambda *_: until(lambda: len(site.director.polls) > 5)
    site.start()
    site.received(site.task())
    polls = site.director.polls
    assert polls[5] - polls[1] >= 4 * 0.05
    site.received(site.task(2))


# the process ends


def test_finished_training_is_not_repeated_after_a_restart(site):
    site.director.fail("upload", *[UnreachableError("down")] * 1_000_000)
    site.start()
    task = site.task()
    site.give(task)
    until(lambda: site.session._journal.finished(task.ref))
    site.restart()
    assert site.received(task).digest == digest_of(UPDATE.tobytes())
    assert len(site.trainer.orders) == 1


def test_a_half_sent_update_goes_on_after_a_restart(site):
    site.director.cuts = [1500]
    site.start()
    task = site.task()
    site.director.on_upload = lambda: site.director.is_down.set() if site.director.spool else None
    site.give(task)
    until(site.director.is_down.is_set)
    site.restart()
    assert site.received(task).digest == digest_of(UPDATE.tobytes())
    assert len(site.trainer.orders) == 1


def test_a_receipt_that_was_lost_is_asked_for_again_after_a_restart(site):
    site.start()
    site.director.fail("after_upload", UnreachableError("the answer was lost"))
    site.director.on_upload = site.director.failures.setdefault("request_upload", []).clear
    task = site.task()
    site.give(task)
    until(lambda: task.ref in site.director.receipts)
    site.restart()
    site.received(task)
    assert len(site.trainer.orders) == 1
    assert site.session.status().rounds_received == 1


def test_a_director_that_lost_what_it_gave_a_receipt_for_gets_it_again(site):
    site.start()
    task = site.task()
    site.received(task)
    until(lambda: not site.session._held())
    site.director.receipts.clear()
    receipt = site.received(task)
    assert receipt.digest == digest_of(UPDATE.tobytes())
    assert len(site.trainer.orders) == 1


def test_what_it_lost_is_trained_again_where_later_work_took_its_place(site):
    site.start()
    task = site.task()
    site.received(task)
    site.trainer.update += 1
    site.received(site.task(2))
    until(lambda: not site.session._held())
    ref = site.give(task)  # the director has it: nothing is to be done
    site.give(site.task(3))
    until(lambda: len(site.trainer.orders) == 3 and not site.session._held())
    site.director.receipts.clear()
    site.give(task)
    until(lambda: ref in site.director.receipts)
    assert [order.ref.round for order in site.trainer.orders] == [1, 2, 3, 1]
    assert site.director.refusals == []


def test_an_evaluation_is_answered_as_often_as_it_is_asked_for(site):
    site.start()
    task = site.task(kind=m.TaskKind.EVALUATE)
    for _ in range(2):
        site.give(task)
        until(lambda: task.ref in site.director.reports)
        until(lambda: not site.session._held())
        site.director.reports.clear()
    assert len(site.trainer.orders) == 1


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty"])
def test_an_update_that_was_damaged_at_the_site_is_trained_again_and_never_sent(site, damage):
    site.director.fail("upload", *[UnreachableError("down")] * 1_000_000)
    site.start()
    task = site.task()
    site.give(task)
    until(lambda: site.session._journal.finished(task.ref))
    site.end()
    path = site.folder / "work" / "update.f32"
    match damage:
        case "changed":
            path.write_bytes(b"\0" * path.stat().st_size)
        case "cut":
            path.write_bytes(path.read_bytes()[:-4])
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
    site.restart()
    assert site.received(task).digest == digest_of(UPDATE.tobytes())
    assert len(site.trainer.orders) == 2


def test_the_beginning_of_another_training_at_the_director_is_replaced(site):
    """It was trained again after it was half sent, and another device gave other numbers."""
    site.director.spool = bytes(2000)
    site.start()
    assert site.received(site.task()).digest == digest_of(UPDATE.tobytes())
    assert site.director.refusals == []


def test_a_receipt_for_another_update_is_no_receipt(site):
    task = site.task()
    site.director.receipts[task.ref] = m.Receipt(task.ref, "ab" * 32, 4000)
    site.start()
    refusal = site.refused(task)
    assert refusal.error == "DigestMismatchError"
    assert "holds another update of site-a" in refusal.reason
    assert site.session.status().rounds_received == 0


# the director withdraws


def test_work_that_is_withdrawn_stops_and_nothing_is_said_of_it(site):
    started = threading.Event()

    def long(order, seconds, cancelled):
        if order.ref.round == 1:
            started.set()
            assert cancelled.wait(SECONDS)
            raise TrainingError("withdrawn while it was trained")

    site.trainer.before = long
    site.start()
    ref = site.give(site.task())
    assert started.wait(SECONDS)
    site.director.items.put(m.Withdrawal(ref, "the round closed"))
    site.received(site.task(2))
    assert site.director.refusals == []
    assert ref not in site.director.receipts


def test_an_update_that_nobody_wants_any_more_is_not_insisted_upon(site):
    site.director.fail("request_upload", *[UnreachableError("down")] * 1_000_000)
    site.start()
    ref = site.give(site.task())
    until(lambda: site.session._journal.finished(ref))
    site.director.items.put(m.Withdrawal(ref, "the round closed"))
    until(lambda: not site.session.status().task)
    site.director.failures.clear()
    site.received(site.task(2))
    assert site.director.refusals == []


def test_a_task_that_was_withdrawn_before_its_turn_is_not_begun(site):
    release = threading.Event()
    site.trainer.before = lambda *_: release.wait(SECONDS)
    site.start()
    site.give(site.task())
    second = site.give(site.task(2))
    site.director.items.put(m.Withdrawal(second, "stopped"))
    until(lambda: second in site.session._commissions and site.session._commissions[second].withdrawn.is_set())
    release.set()
    site.received(site.task(3))
    assert [order.ref.round for order in site.trainer.orders] == [1, 3]


# what the envoy refuses


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"cohort": ("site-b", "site-c")}, "NotInvitedError", "addressed to others than site-a"),
        ({"cohort": ()}, "NotInvitedError", "addressed to others"),
        ({"cohort": ("site-a", "site-b", "site-a")}, "ProtocolError", "names an envoy twice in its cohort of 3"),
        ({"min_participants": 3}, "ProtocolError", "fewer than its own minimum"),
        ({"model_bytes": 1 << 40}, "LengthMismatchError", "announces a model of 1099511627776 bytes"),
        ({"layout": "ab" * 32}, "LengthMismatchError", "announces a model"),
        ({"model": "ab" * 32}, "UnknownArtifactError", "no artifact abababababab"),
        ({"ref": m.TaskRef("lungs-1", 1, 1, "ab" * 32)}, "NotApprovedError", "is of another plan"),
    ],
)
def test_a_task_that_cannot_be_right_is_declined_with_the_reason_and_the_next_is_done(site, changes, error, words):
    site.start()
    refusal = site.refused(site.task(**changes))
    assert refusal.error == error
    assert words in refusal.reason
    assert site.trainer.orders == []
    site.received(site.task(2))


def test_of_a_flood_of_tasks_five_are_taken_and_the_rest_declined(site):
    release = threading.Event()
    site.trainer.before = lambda *_: release.wait(SECONDS)
    site.start()
    for number in range(1, 101):
        site.give(site.task(number))
    until(lambda: len(site.director.refusals) == 95)
    refusal = site.director.refusals[0]
    assert (refusal.ref.round, refusal.error) == (6, "ProtocolError")
    assert refusal.reason == "5 tasks are here already; round 6 of lungs-1 is one too many"
    release.set()
    until(lambda: len(site.director.receipts) == 5)


@pytest.mark.parametrize(
    ("left", "most", "given"), [(60.0, None, 60.0), (60.0, 5.0, 5.0), (0.0, None, 1.0), (0.2, 5.0, 1.0)]
)
def test_training_has_the_time_that_is_left_and_at_least_a_second(site, left, most, given):
    seen = []
    site.config = replace(site.config, training=TrainingSettings(preload_torch=False, max_train_seconds=most))
    site.trainer.before = lambda order, seconds, cancelled: seen.append(seconds)
    site.start()
    site.received(site.task(seconds_left=left))
    assert seen == [given]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatasetError, "the site has no dataset that fits the plan; its envoy's log has the details"),
        (StorageError, "the site cannot read or keep what the task needs; its envoy's log has the details"),
        (PlanError, "the plan cannot be fetched, read or built at the site; its envoy's log has the details"),
        (IdentityError, "the site cannot do the task; its envoy's log has the details"),
    ],
)
def test_names_and_paths_of_the_site_stay_in_its_log(site, error, words, caplog):
    secret = "no dataset x here; known: hiv-cohort-2024, in /srv/ward-7"

    def broken(*_):
        raise error(secret)

    site.trainer.before = broken
    site.start()
    refusal = site.refused(site.task())
    assert (refusal.error, refusal.reason) == (error.__name__, words)
    assert secret in caplog.text
    assert secret in site.session.status().last_error


@pytest.mark.parametrize("place", [0, 500, 999])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_do_not_leave(site, place, bad):
    site.trainer.update[place] = bad
    site.start()
    refusal = site.refused(site.task())
    assert refusal.error == "NonFiniteUpdateError"
    assert site.director.headers == []


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_an_update_of_another_length_does_not_leave(site, size):
    site.trainer.update = np.zeros(size, np.float32)
    site.start()
    refusal = site.refused(site.task())
    assert refusal.error == "LengthMismatchError"
    assert f"has {4 * size} bytes, the plan's layout 4000" in refusal.reason
    assert site.director.headers == []


def test_an_unexpected_error_ends_one_task_and_says_only_its_kind(site):
    def broken(order, *_):
        if order.ref.round == 1:
            raise ZeroDivisionError("patient 17")

    site.trainer.before = broken
    site.start()
    refusal = site.refused(site.task())
    assert refusal.reason == "ZeroDivisionError in the envoy itself; see its log"
    assert "patient" not in str(refusal)
    site.received(site.task(2))


def test_a_director_that_refuses_an_update_is_heard(site):
    site.director.fail("request_upload", WrongRoundError("round 2 of lungs-1 is open"))
    site.start()
    refusal = site.refused(site.task())
    assert (refusal.error, refusal.reason) == ("WrongRoundError", "round 2 of lungs-1 is open")
    site.received(site.task(2))


def test_a_director_that_does_not_want_the_refusal_either_is_no_trouble(site):
    site.director.fail("decline", ProtocolError("no round is open"))
    site.start()
    site.give(site.task(cohort=("site-b",)))
    site.received(site.task(2))


# what a plan does


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("raise KeyError('patient 17')", "TrainingError", "the plan raised KeyError in train"),
        ("return {'w': np.zeros(7, np.float32)}, 5", "LayoutMismatchError", "w as float32 (7,)"),
        ("return {'v': weights['w']}, 5", "LayoutMismatchError", "v"),
        ("return {'w': weights['w'].astype(np.float64)}, 5", "LayoutMismatchError", "w as float64"),
        ("return {'w': weights['w'] * np.float32('nan')}, 5", "NonFiniteUpdateError", "NaN or infinity"),
        ("return {'w': weights['w']}, 0", "TrainingError", "no number of examples"),
        ("return {'w': weights['w']}, 'many'", "TrainingError", "no number of examples"),
        ("return None", "TrainingError", "the plan"),
        ("import sys; sys.exit(3)", "TrainingError", "the plan raised SystemExit in train"),
    ],
)
def test_a_plan_that_does_wrong_is_declined_in_words_without_its_traceback(tmp_path, body, error, words):
    site = Site(tmp_path / "site", bundle_of(tmp_path / "plan", body))
    site.trainer = InProcessTrainer()
    site.start()
    try:
        refusal = site.refused(site.task())
    finally:
        site.end()
    assert error in refusal.error
    assert words in refusal.reason
    for secret in ("Traceback", "patient 17", "toy.py", str(tmp_path)):
        assert secret not in refusal.reason
    assert site.director.headers == []


def test_plans_that_raise_or_loop_in_a_process_of_their_own_are_declined_and_a_good_one_follows(tmp_path):
    site = Site(tmp_path / "site", bundle_of(tmp_path / "bad", "raise KeyError('patient 17')"))
    site.config = replace(site.config, training=TrainingSettings(preload_torch=False, max_train_seconds=8.0))
    unboxed = Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path / "site")
    site.trainer = ChildTrainer(tmp_path / "site" / "state", unboxed)
    bad, looping, good = (
        site.bundle,
        bundle_of(tmp_path / "looping", "while True: pass"),
        bundle_of(tmp_path / "good"),
    )
    for bundle in (looping, good):
        site.director.has |= Director(bundle).has
    site.approvals = OwnPlans(site.bundle.digest, looping.digest, good.digest)
    site.start()
    try:
        refusal = site.refused(site.task())
        assert refusal.reason == "the plan raised KeyError in train; the site's worker log has the details"
        site.bundle = looping
        refusal = site.refused(site.task(2))
        assert refusal.error == "TrainingError"
        assert "did not finish within 8 s and was ended" in refusal.reason
        site.bundle = good
        site.received(site.task(3))
        assert site.director.updates == np.ones(1000, np.float32).tobytes()
    finally:
        site.end()
    assert bad.digest != good.digest


def test_a_model_that_is_not_of_the_plans_layout_is_declined(tmp_path, bundle):
    site = Site(tmp_path / "site", bundle)
    site.trainer = InProcessTrainer()
    raw = bytearray(b"".join(model_pieces(bundle.layout, UPDATE, b"")))
    raw[20] ^= 1
    site.director.has[digest_of(raw)] = bytes(raw)
    site.start()
    try:
        refusal = site.refused(site.task(model=digest_of(raw)))
    finally:
        site.end()
    assert refusal.error == "LayoutMismatchError"


# the data manager's word


def vetoing(site, named="", **how):
    return site.session.veto(named, "wrong data", "ada", **how)


@pytest.mark.parametrize("named", ["", "lungs-1", "lungs-1/1", "PLAN"])
def test_a_veto_ends_local_work_wipes_what_it_left_and_tells_the_director_no_reason(tmp_path, named):
    site = Site(tmp_path / "site", bundle_of(tmp_path / "plan", "print('training begins'); time.sleep(600)"))
    unboxed = Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path / "site")
    site.trainer = ChildTrainer(tmp_path / "site" / "state", unboxed)
    site.start()
    log = tmp_path / "site" / "state" / "worker.log"
    try:
        task = site.task()
        site.give(task)
        until(lambda: site.session.status().task and site.trainer.pid and log.exists())
        (tmp_path / "site" / "work" / "update.f32").write_bytes(b"half an update")
        pid = site.trainer.pid
        assert vetoing(site, named.replace("PLAN", site.bundle.digest[:12])) == (str(task.ref),)
        until(lambda: site.director.refusals)
        assert site.director.refusals == [m.Refusal(task.ref, "VetoedError", "this site's data manager ended it")]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert not (tmp_path / "site" / "work" / "update.f32").exists()
        assert site.director.headers == []
        assert "was vetoed" in site.session.status().last_error
    finally:
        site.end()


def test_the_director_is_told_the_reason_where_the_data_manager_says_so(site):
    started = threading.Event()

    def long(order, seconds, cancelled):
        started.set()
        assert cancelled.wait(SECONDS)
        raise TrainingError("withdrawn")

    site.trainer.before = long
    site.start()
    site.give(site.task())
    assert started.wait(SECONDS)
    vetoing(site, tell=True)
    until(lambda: site.director.refusals)
    assert site.director.refusals[0].reason == "wrong data"


def test_what_was_made_ready_before_a_veto_does_not_leave_after_it(site):
    site.director.fail("request_upload", *[UnreachableError("down")] * 1_000_000)
    site.start()
    task = site.task()
    site.give(task)
    until(lambda: site.session._journal.finished(task.ref))
    vetoing(site)
    site.director.failures.clear()
    until(lambda: site.director.refusals)
    assert site.session._journal.finished(task.ref) is None
    assert not list((site.folder / "work").glob("*.f32"))
    assert site.director.receipts == {}


def test_a_veto_of_a_task_that_waits_ends_it_before_it_begins_and_the_other_goes_on(site):
    release = threading.Event()
    site.trainer.before = lambda *_: release.wait(SECONDS)
    site.start()
    site.give(site.task())
    until(lambda: site.trainer.orders)
    second = site.give(site.task(2))
    until(lambda: second in site.session._commissions)
    site.session._approvals.veto = lambda *_: release.set()
    vetoing(site, "lungs-1/2")
    until(lambda: site.director.refusals)
    until(lambda: site.director.receipts)
    assert [refusal.ref for refusal in site.director.refusals] == [second]
    assert [order.ref.round for order in site.trainer.orders] == [1]


def test_a_veto_of_nothing_says_so(site):
    site.start()
    with pytest.raises(NotApprovedError, match="nothing is at work here"):
        vetoing(site)
    with pytest.raises(NotApprovedError, match="no proposal"):
        vetoing(site, "other-7")


def test_a_task_without_approval_is_declined_counted_and_not_trained(site):
    site.approvals = OwnPlans()
    site.start()
    assert site.refused(site.task()).error == "NotApprovedError"
    assert site.session.status().not_approved == 1
    assert site.trainer.orders == []


def test_settings_that_a_patch_changed_are_those_of_the_training(site):
    class Patched(OwnPlans):
        def admit(self, task):
            return replace(super().admit(task), settings={"local_epochs": 3})

    site.approvals = Patched(site.bundle.digest)
    site.start()
    site.received(site.task())
    assert site.trainer.orders[0].settings == {"local_epochs": 3}


def test_a_plan_that_was_changed_on_disk_after_its_approval_does_not_run(site):
    site.start()
    site.received(site.task())
    site.end()
    path = open_bundle(site.folder / "plans" / site.bundle.digest).blob_path("toy.py")
    path.write_bytes(path.read_bytes().replace(b"+ 1", b"+ 2"))
    site.restart()
    assert site.refused(site.task(2)).error == "PlanError"
    assert [order.ref.round for order in site.trainer.orders] == [1]


def test_what_is_told_as_approved_goes_with_lines_and_heartbeats(site):
    class Approving(OwnPlans):
        def approved(self):
            return ("ab" * 32,)

    site.approvals = Approving(site.bundle.digest)
    told = []
    site.director.beat = lambda heartbeat: told.append(heartbeat.approved)
    site.start()
    until(lambda: told)
    assert told[0] == ("ab" * 32,)
