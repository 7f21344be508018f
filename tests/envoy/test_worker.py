import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.datasets import DataOptions, inspect
from fedveil.envoy.orders import WorkOrder, order_from_json, order_to_json
from fedveil.envoy.refusals import refusal_of
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.site_state import adopt_state, pending_path, state_before
from fedveil.envoy.trainer import ChildTrainer, InProcessTrainer
from fedveil.envoy.update_file import UpdateFile
from fedveil.utils import errors
from fedveil.utils.errors import FederationError, LayoutMismatchError, PlanError, StorageError, TrainingError
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.tensors import Digest
from fedveil.workspace.plan_builder import build_plan

TASK = TaskRef(RunId("run-1"), 1, 1, Digest("ab" * 32))
TOY = """
import ctypes, os, signal, sys, time
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {"w": np.zeros(4, np.float32)}

    def train(self, weights, data, rng):
        BODY
        return {"w": weights["w"] + rng.random(4, np.float32)}, 5

    def evaluate(self, weights, data):
        yield mean_of("mean", weights["w"].mean(), 1)
"""


class Site:
    """One envoy's folders, with a toy plan whose training does what the test says."""

    def __init__(self, folder):
        self.folder = folder

    def order(self, body="pass", number=1, kind=TaskKind.TRAIN, source=TOY, values=None, **changes):
        name = f"plan{abs(hash((body, source, str(values))))}"
        (self.folder / f"{name}.py").write_text(source.replace("BODY", body))
        bundle = self.folder / name
        build_plan(self.folder / f"{name}.py", bundle, values)
        opened = open_bundle(bundle)
        fields = {
            "ref": TaskRef(RunId("run-1"), number, 1, opened.digest),
            "kind": kind,
            "seed": bytes(32),
            "envoy": EnvoyName("site-a"),
            "bundle": bundle,
            "dataset": None,
            "index_path": None,
            "model_path": opened.blob_path("initial.safetensors"),
            "update_path": self.folder / "update.f32",
            "state_folder": self.folder / "state",
            "device": "cpu",
        }
        return WorkOrder(**(fields | changes))

    def update(self):
        return np.fromfile(self.folder / "update.f32", "<f4")


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def unboxed(folder):
    """No box: these tests are about the process; tests/envoy/sandbox is about the box."""
    return Sandbox.of_tier(Tier.NONE, SandboxPolicy(), folder)


@pytest.fixture
def trainer(tmp_path):
    child = ChildTrainer(tmp_path / "log", unboxed(tmp_path))
    yield child
    child.close()


def run(trainer, order, seconds=60.0):
    return trainer.run(order, seconds, threading.Event())


def test_the_child_does_what_the_same_process_would_do_bit_for_bit(site, trainer):
    order = site.order()
    result = run(trainer, order)
    update = site.update()
    assert update.shape == (4,)
    assert update.min() > 0
    (site.folder / "update.f32").unlink()
    assert run(InProcessTrainer(), order) == result
    assert np.array_equal(site.update(), update)


def test_one_child_serves_the_rounds_of_a_plan_and_another_plan_gets_another(site, trainer):
    run(trainer, site.order(number=1))
    first, update = trainer.pid, site.update()
    run(trainer, site.order(number=2))
    assert trainer.pid == first
    assert not np.array_equal(site.update(), update)
    run(trainer, site.order("x = 1"))
    assert trainer.pid != first


def test_a_second_attempt_and_another_site_draw_as_they_should(site):
    trainer, order = InProcessTrainer(), site.order()
    run(trainer, order)
    update = site.update()
    again = TaskRef(order.ref.run, order.ref.round, 2, order.ref.plan)
    run(trainer, site.order(ref=again))
    assert np.array_equal(site.update(), update)
    run(trainer, site.order(envoy=EnvoyName("site-b")))
    assert not np.array_equal(site.update(), update)


def test_an_evaluation_writes_no_update(site, trainer):
    assert run(trainer, site.order(kind=TaskKind.EVALUATE)).metrics[0].name == "mean"
    assert not (site.folder / "update.f32").exists()


def test_what_a_plan_prints_is_harmless_and_ends_in_the_sites_log(site, trainer):
    run(trainer, site.order("print('{\"num_examples\": 1}', flush=True); os.write(2, b'on stderr\\n')"))
    log = (site.folder / "log" / "worker.log").read_text()
    assert '{"num_examples": 1}' in log
    assert "on stderr" in log


def test_a_plan_that_raises_shows_its_class_alone_and_the_child_goes_on(site, trainer):
    order = site.order("raise KeyError('patient 17')")
    with pytest.raises(TrainingError) as caught:
        run(trainer, order)
    assert str(caught.value) == "the plan raised KeyError in train; the site's worker log has the details"
    log = (site.folder / "log" / "worker.log").read_text()
    assert "patient 17" in log
    assert "raise KeyError('patient 17')" in log
    before = trainer.pid
    with pytest.raises(TrainingError):
        run(trainer, order)
    assert trainer.pid == before


def test_a_wrong_layout_is_its_own_error_over_the_process_border(site, trainer):
    with pytest.raises(LayoutMismatchError, match="w as float64"):
        run(trainer, site.order("return {'w': np.zeros(4)}, 1"))


def test_a_plan_that_loops_is_ended_in_time_and_the_next_order_works(site, trainer):
    with pytest.raises(TrainingError, match=r"did not finish within 1\.5 s"):
        run(trainer, site.order("while True: pass"), seconds=1.5)
    assert run(trainer, site.order()).num_examples == 5


def test_a_withdrawn_order_ends_at_once(site, trainer):
    cancelled = threading.Event()
    looping = site.order(f"open({str(site.folder / 'began')!r}, 'w').close()\n        while True: pass")

    def withdraw():
        while not (site.folder / "began").exists():
            cancelled.wait(0.01)
        withdraw.at = time.monotonic()
        cancelled.set()

    thread = threading.Thread(target=withdraw)
    thread.start()
    with pytest.raises(TrainingError, match="withdrawn"):
        trainer.run(looping, 60, cancelled)
    assert time.monotonic() - withdraw.at < 2
    thread.join()
    assert trainer.pid is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL; out of memory"),
        ("ctypes.string_at(0)", "ended by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "ended by signal 40"),
        ("os._exit(3)", "ended with code 3"),
        ("sys.exit(3)", "raised SystemExit in train"),
    ],
)
def test_the_death_of_the_child_is_a_training_error(site, trainer, body, message):
    with pytest.raises(TrainingError, match=message):
        run(trainer, site.order(body))
    assert run(trainer, site.order()).num_examples == 5


def test_how_a_plan_ends_its_process_is_not_told_to_the_director(site, trainer):
    told = set()
    for way in ("os._exit(3)", "os._exit(77)", "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), 40)"):
        order = site.order(way)
        with pytest.raises(TrainingError) as raised:
            run(trainer, order)
        refusal = refusal_of(TASK, raised.value)
        told.add((refusal.error, refusal.reason))
    assert told == {("TrainingError", "the plan could not be carried out; the site's worker log has the details")}


SPEAKING = """
        import json, socket
        for name in os.listdir("/proc/self/fd"):
            try:
                line = socket.socket(fileno=os.dup(int(name)))
                line.sendall(json.dumps(ANSWER).encode() + b"\\n")
            except OSError:
                pass
        time.sleep(600)
"""


@pytest.mark.parametrize("key", ["error", "cannot_narrow"])
def test_what_a_plan_says_in_its_workers_name_stays_within_a_line_and_moves_no_cursor(site, trainer, key, caplog):
    said = "no\n2026-11-21 INFO fedveil received\x1b[2J\u202e" + "x" * 10_000
    answer = {"error": "TrainingError", "message": said} if key == "error" else {key: said}
    with pytest.raises(FederationError, match=r"no\\n2026-11-21") as raised:
        run(trainer, site.order(SPEAKING.replace("ANSWER", repr(answer)).strip()))
    texts = [str(raised.value), *(record.getMessage() for record in caplog.records)]
    assert all(text.isprintable() and len(text) < 3000 for text in texts)
    assert "received" not in refusal_of(TASK, raised.value).reason


def test_an_answer_that_is_nested_without_end_is_a_training_error(site, trainer):
    body = SPEAKING.replace("json.dumps(ANSWER)", "('[' * 100000)").strip()
    with pytest.raises(TrainingError, match="no JSON"):
        run(trainer, site.order(body))


def test_a_child_that_died_between_two_orders_is_replaced(site, trainer):
    run(trainer, site.order())
    os.kill(trainer.pid, signal.SIGKILL)
    trainer._child._boxed.process.wait()
    assert run(trainer, site.order()).num_examples == 5


def test_closing_ends_an_order_of_another_thread(site, trainer):
    order = site.order(f"open({str(site.folder / 'began')!r}, 'w').close()\n        while True: pass")
    raised = []

    def work():
        try:
            run(trainer, order)
        except TrainingError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    pause = threading.Event()
    while not (site.folder / "began").exists():
        pause.wait(0.01)
    trainer.close()
    thread.join(60.0)
    assert not thread.is_alive()
    assert raised
    with pytest.raises(TrainingError, match="shutting down"):
        run(trainer, order)


@pytest.mark.parametrize("body", ["while True: pass", "ctypes.PyDLL(None).sleep(600)"])
def test_the_child_dies_with_its_parent_also_in_a_loop_that_never_lets_python_run(site, body):
    began = site.folder / "began"
    order = site.order(f"open({str(began)!r}, 'w').write(str(os.getpid()))\n        {body}")
    code = """
import json, sys, threading
from pathlib import Path
from fedveil.envoy.orders import order_from_json
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.trainer import ChildTrainer
trainer = ChildTrainer(Path(sys.argv[2]), Sandbox.of_tier(Tier.NONE, SandboxPolicy(), Path(sys.argv[2])))
trainer.run(order_from_json(json.loads(sys.argv[1])), 600, threading.Event())
"""
    arguments = [json.dumps(order_to_json(order)), str(site.folder / "log")]
    with subprocess.Popen([sys.executable, "-c", code, *arguments]) as parent:
        pause = threading.Event()
        while not began.exists() or not began.read_text():
            assert parent.poll() is None
            pause.wait(0.01)
        child = os.pidfd_open(int(began.read_text()))
        parent.kill()
    try:
        assert select.select([child], [], [], 5)[0], "the child outlived its parent"
    finally:
        os.close(child)


def test_another_plan_than_the_order_names_is_not_run(site, trainer):
    order, other = site.order(), site.order("x = 2")
    with pytest.raises(PlanError, match="expected"):
        run(trainer, site.order(ref=other.ref, bundle=order.bundle))


def test_a_model_file_of_another_layout_is_refused(site, trainer):
    (site.folder / "model").write_bytes(b"x" * 100)
    with pytest.raises(LayoutMismatchError, match="a model file of 100 bytes"):
        run(trainer, site.order(model_path=site.folder / "model"))
    with pytest.raises(PlanError, match="cannot be read"):
        run(trainer, site.order(model_path=site.folder / "nowhere"))


def test_every_error_keeps_its_class_over_the_process_border(site, trainer):
    for name in ("NonFiniteUpdateError", "DatasetError", "StorageError"):
        assert issubclass(getattr(errors, name), errors.FederationError)
    with pytest.raises(StorageError, match="no room"):
        run(trainer, site.order(update_path=Path("/proc/update.f32")))


def test_an_order_is_the_same_after_a_message(site):
    order = site.order()
    assert order_from_json(json.loads(json.dumps(order_to_json(order)))) == order


NET = """
import torch
from fedveil import BATCH_NORM_LAYERS, DataKind, DataSpec, TrainingPlan, mean_of

class Net(TrainingPlan):
    data = DataSpec("points", DataKind.TABLE, (2,), ("low", "high"), ("a", "b"))
    site_local = (BATCH_NORM_LAYERS,)

    def model(self):
        return torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2))

    def train_step(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model, loader):
        for features, labels in loader:
            yield mean_of("accuracy", (model(features).argmax(1) == labels).sum(), len(labels))
"""


@pytest.mark.slow
def test_a_torch_plan_trains_on_a_dataset_and_its_state_counts_once_there_is_a_receipt(site, tmp_path):
    rows = [f"{i % 7},{i % 5},{'high' if i % 7 > 3 else 'low'}" for i in range(60)]
    (tmp_path / "points.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    found = inspect("points", tmp_path / "points.csv", DataOptions(label_column="label"), 0.0)
    record = found.record
    (tmp_path / "index").write_bytes(found.index.to_json())
    trainer = ChildTrainer(tmp_path / "log", unboxed(tmp_path), preload_torch=True)
    try:
        orders = [
            site.order(source=NET, number=n, dataset=record, index_path=tmp_path / "index", values={"batch_size": 8})
            for n in (1, 2)
        ]
        result = run(trainer, orders[0])
        assert result.num_examples == record.num_train
        assert {"accuracy", "train_loss"} == {metric.name for metric in result.metrics}
        first = site.update()
        run(trainer, orders[1])
        second = site.update()
        adopt_state(orders[0].state_folder, orders[0].ref)
        run(trainer, orders[0])
        assert np.array_equal(site.update(), first), "a repeated round starts from the state of the round before"
        run(trainer, orders[1])
        assert not np.array_equal(site.update(), second), "the second round starts from the adopted state"
    finally:
        trainer.close()


def test_a_state_is_in_force_once_it_is_adopted_and_older_ones_are_forgotten(tmp_path):
    refs = [TaskRef(RunId("run-1"), number, 1, "0" * 64) for number in range(1, 6)]
    assert state_before(tmp_path, refs[0]) is None
    for ref in refs[:4]:
        pending_path(tmp_path, ref).parent.mkdir(exist_ok=True)
        pending_path(tmp_path, ref).write_text(str(ref.round))
        adopt_state(tmp_path, ref)
        adopt_state(tmp_path, ref)
    assert state_before(tmp_path, refs[4]).read_text() == "4"
    assert state_before(tmp_path, refs[3]).read_text() == "3"
    assert len(list((tmp_path / "run-1").iterdir())) == 2
    with pytest.raises(StorageError, match="not a name"):
        adopt_state(tmp_path, TaskRef(RunId("../evil"), 1, 1, "0" * 64))


@contextlib.contextmanager
def opened(path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_an_update_file_is_used_again_and_made_anew_when_it_was_taken_away(tmp_path):
    file, path = UpdateFile(), tmp_path / "update.f32"
    with opened(path) as descriptor:
        file.vector(descriptor, 3)[...] = [1, 2, 3]
        assert file.vector(descriptor, 3).tolist() == [1, 2, 3]
    path.rename(tmp_path / "sent")
    with opened(path) as descriptor:
        assert file.vector(descriptor, 3).tolist() == [0, 0, 0]
        assert np.fromfile(tmp_path / "sent", "<f4").tolist() == [1, 2, 3]
        assert file.vector(descriptor, 5).shape == (5,)
    assert path.stat().st_size == 20
    file.close()


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        opened(tmp_path / "update.f32") as descriptor,
        pytest.raises(StorageError, match="no room for an update of 40 bytes: No space left"),
    ):
        UpdateFile().vector(descriptor, 10)
