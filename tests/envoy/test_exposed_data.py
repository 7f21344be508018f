"""What a plan's process gets of a dataset, and what it cannot get."""

import dataclasses
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.datasets import DataOptions, DatasetRegistry, inspect
from fedveil.envoy.exposed_data import expose, new_file, read_exposed, write_exposed
from fedveil.envoy.exposures import Exposures
from fedveil.envoy.orders import WorkOrder
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.splits import SplitRule
from fedveil.envoy.trainer import ChildTrainer, InProcessTrainer
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.differential_privacy import DifferentialPrivacy
from fedveil.utils.errors import DatasetError, PlanError, StorageError, TrainingError
from fedveil.utils.messages import EnvoyName, RunId, TaskKind, TaskRef
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.plan_builder import build_plan
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

ROWS = "patient,age,weight,income,ill\n" + "".join(
    f"marked-{n},{40 + n},{60 + n},{7000 + n},{n % 2}\n" for n in range(20)
)
CLASSES = ("well", "ill")
PER_PATIENT = DifferentialPrivacy("patient", 1.0, 1.0, 0.5, 10)

PLAN = """
import gc, os, sys
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Looks(ArrayPlan):
    data = DataSpec("people", DataKind.TABLE, (2,), ("well", "ill"), ("weight", "age"))

    def initial(self):
        return {"w": np.zeros(4, np.float32)}

    def train(self, weights, data, rng):
        BODY
        return {"w": np.array([*data.features[0], *data.features[-1]], np.float32)}, len(data)

    def evaluate(self, weights, data):
        return []
"""


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(ROWS)
    options = DataOptions(
        ("well=0", "ill=1"), "patient", "ill", ("age", "weight", "income"), rule=SplitRule(0.8, 0.1, 0.1)
    )
    return inspect("people", path, options, 1.0)


@pytest.fixture
def order(tmp_path, people):
    """An order of the plan above, whose training does what the test says."""
    registry = DatasetRegistry(tmp_path / "datasets")
    registry.add(people.record, people.index)

    def make(body="pass", number=1):
        source, folder = tmp_path / "looks.py", tmp_path / f"bundle-{abs(hash(body))}"
        source.write_text(PLAN.replace("BODY", body))
        bundle = open_bundle(folder, build_plan(source, folder).digest)
        return WorkOrder(
            ref=TaskRef(RunId("run-1"), number, 1, bundle.digest),
            kind=TaskKind.TRAIN,
            seed=bytes(32),
            envoy=EnvoyName("site-a"),
            bundle=folder,
            dataset=people.record,
            index_path=registry.index_path(people.record),
            model_path=bundle.blob_path("initial.safetensors"),
            update_path=tmp_path / "update.f32",
            state_folder=tmp_path / "state",
            device="cpu",
        )

    make.log = tmp_path / "log"
    return make


@pytest.fixture
def trainer(tmp_path):
    child = ChildTrainer(tmp_path / "log", Sandbox.of_tier(Tier.NONE, SandboxPolicy(), tmp_path))
    yield child
    child.close()


def run(trainer, order, seconds=60.0):
    trainer.run(order, seconds, threading.Event())
    return np.fromfile(order.update_path, "<f4")


@given(
    st.sampled_from([np.uint8, np.float32]).flatmap(
        lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5))
    ),
    st.booleans(),
)
def test_what_is_written_is_what_is_read(features, has_patients):
    number = len(features)
    labels, split = np.arange(number), (np.arange(number) % 3).astype(np.uint8)
    file = new_file()
    with os.fdopen(os.dup(file), "wb") as stream:
        write_exposed(LoadedDataset(features, labels, split, labels if has_patients else None), stream)
    read = read_exposed(file)
    assert read.features.dtype == features.dtype
    assert read.features.tobytes() == features.tobytes()
    assert read.features.shape == features.shape
    assert read.labels.tolist() == labels.tolist()
    assert read.split.tolist() == split.tolist()
    assert (read.patients is not None) == has_patients


def test_whoever_holds_the_file_can_only_read_it():
    file = new_file()
    with os.fdopen(os.dup(file), "wb") as stream:
        write_exposed(LoadedDataset(np.ones((2, 2), np.float32), np.arange(2), np.zeros(2, np.uint8)), stream)
    for change in (
        lambda: os.pwrite(file, b"x", 0),
        lambda: os.ftruncate(file, 0),
        lambda: os.ftruncate(file, 1 << 20),
    ):
        with pytest.raises(PermissionError):
            change()
    read = read_exposed(file)
    with pytest.raises(ValueError, match="read-only"):
        read.features[0] = 0


def test_a_plan_gets_the_columns_that_it_declares_in_its_order(people):
    exposed = expose(
        people.record, people.index, DataSpec("people", DataKind.TABLE, (2,), CLASSES, ("weight", "age")), None
    )
    assert exposed.features.shape == (20, 2)
    assert sorted(exposed.features[:, 1].tolist()) == list(range(40, 60))
    assert (exposed.features[:, 0] - exposed.features[:, 1]).tolist() == [20] * 20


def test_numbers_of_patients_come_with_training_that_is_private_by_the_patient_alone(people):
    spec = DataSpec("people", DataKind.TABLE, (1,), CLASSES, ("age",))
    assert expose(people.record, people.index, spec, None).patients is None
    assert expose(people.record, people.index, spec, DifferentialPrivacy("record", 1.0, 1.0, 0.5, 10)).patients is None
    assert sorted(expose(people.record, people.index, spec, PER_PATIENT).patients.tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("age", "height"), "no feature height"),
        (("patient", "age"), "no feature patient"),
        (("ill", "age"), "no feature ill"),
        ((), "names no columns"),
    ],
)
def test_columns_that_the_site_did_not_add_as_features_are_refused_by_name(people, columns, message):
    with pytest.raises(DatasetError, match=message):
        expose(people.record, people.index, DataSpec("people", DataKind.TABLE, (2,), CLASSES, columns), None)


def test_a_modality_that_is_not_the_sites_is_refused(image_folder):
    spec = DataSpec("xray", DataKind.IMAGES, (1, 8, 8), ("normal", "pneumonia"), modality="DX")
    for said in ("", "CR"):
        added = inspect("xray", image_folder, DataOptions(modality=said), 1.0)
        with pytest.raises(DatasetError, match=f"of modality {said or 'unknown'}, the plan asks for DX"):
            expose(added.record, added.index, spec, None)
    added = inspect("xray", image_folder, DataOptions(modality="DX"), 1.0)
    assert len(expose(added.record, added.index, spec, None)) == 20


@pytest.mark.parametrize("modality", ["x-ray", "dx", "D X", "A" * 17])
def test_a_word_that_is_no_modality_is_refused_on_both_sides(modality):
    with pytest.raises(PlanError, match="modality"):
        DataSpec("x", DataKind.IMAGES, (1, 8, 8), modality=modality)
    with pytest.raises(DatasetError, match="modality"):
        DataOptions(modality=modality)


def test_the_child_trains_on_what_was_handed_over_as_this_process_does(order, trainer):
    first, second = order(), order(number=2)
    update = run(trainer, first)
    child = trainer.pid
    assert np.array_equal(run(trainer, second), update)
    assert trainer.pid == child
    assert np.array_equal(run(InProcessTrainer(), first), update)
    assert update[0] - update[1] == 20


def test_no_value_of_another_column_no_patients_name_and_no_path_is_in_the_childs_memory(order, trainer):
    """The plan looks through all pages of its own process; the patterns do not match their own text."""
    body = """
        import re
        income = np.float32(7003).tobytes()
        found = []
        for line in open("/proc/self/maps"):
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if not rights.startswith("r") or "[v" in line:
                continue
            with open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(start)
                piece = memory.read(end - start)
            found += re.findall(rb"mar[k]ed-1[0-9]", piece) + re.findall(rb"people[.]csv", piece)
            if "fedveil-data" in line:
                found += ["income"] * (income in piece)
                found += ["no weight"] * (np.float32(63).tobytes() not in piece)
                print("the file was looked through", flush=True)
        assert not found, found
    """
    run(trainer, order(body.strip()))
    assert (order.log / "worker.log").read_text().count("the file was looked through") == 1


def test_the_child_holds_no_open_file_of_the_dataset_and_no_record(order, trainer):
    body = """
        import re
        held = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        paths = [os.readlink(one) for one in held if os.path.lexists(one)]
        assert not [one for one in paths if re.search("people|/datasets/", one)], paths
        assert not [one for one in gc.get_objects() if type(one).__name__ in ("DatasetRecord", "DatasetIndex")]
    """
    run(trainer, order(body.strip()))


def test_a_dataset_that_was_added_anew_is_handed_over_anew(order, trainer, tmp_path, people):
    first = order()
    update = run(trainer, first)
    path = Path(people.record.path)
    path.write_text(ROWS.replace(",6", ",5"))
    again = inspect("people", path, people.record.options, 2.0)
    registry = DatasetRegistry(tmp_path / "datasets")
    registry.add(again.record, again.index, replace=True)
    renewed = dataclasses.replace(first, dataset=again.record, index_path=registry.index_path(again.record))
    assert not np.array_equal(run(trainer, renewed), update)


def test_what_the_reader_refuses_comes_as_its_own_error_and_the_next_order_is_done(order, trainer, people):
    first = order()
    path = Path(people.record.path)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read as it was recorded"):
        run(trainer, first)
    path.write_text(ROWS)
    assert len(run(trainer, first)) == 4


def test_a_withdrawal_ends_the_reading(order, people):
    exposures, cancelled, first = Exposures(), threading.Event(), order()
    Path(people.record.path).unlink()
    os.mkfifo(people.record.path)  # whoever opens it waits for ever
    threading.Timer(0.3, cancelled.set).start()
    begun = time.monotonic()
    with pytest.raises(TrainingError, match="withdrawn while the dataset was read"):
        exposures.of(first, open_bundle(first.bundle).manifest, begun + 60.0, cancelled)
    assert time.monotonic() - begun < 30


def test_a_reader_that_dies_is_told_in_words(order, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    first = order()
    with pytest.raises(StorageError, match="ended with code"):
        Exposures().of(first, open_bundle(first.bundle).manifest, time.monotonic() + 60.0, threading.Event())
