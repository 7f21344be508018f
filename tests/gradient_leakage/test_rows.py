"""The store of the benchmark: what it is given it keeps, once."""

import dataclasses
import json
import math
import sqlite3

import numpy as np
import pytest
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.rows import FILE_NAME, Outcome, Row, RunStore
from fedveil.utils.errors import StorageError

ROW = Row(
    key="r1",
    run="k1",
    case="pneumonia28",
    model="lenet",
    state="fresh",
    batch=1,
    local_steps=0,
    defense="none",
    attack="dlg",
    adaptive=False,
    psnr=40.5,
    ssim=None,
    null_ssim=0.25,
    reid_rank1=1.0,
    cpu_seconds=0.5,
    mse=1e-4,
    psnr_best=40.5,
    pictured=1.0,
    null_psnr=12.0,
    baseline_psnr=18.0,
    baseline_ssim=0.4,
    reid_rank5=1.0,
    network_rank1=None,
    network_rank5=None,
    gallery=100,
    label_recovery=None,
    knowledge="labels",
    options="{}",
    learning_rate=0.01,
    dtype="float32",
    targets=2,
    skip=0,
    target=0,
    seed=0,
    patients="a",
    loss=1e-9,
    wall_seconds=0.6,
    peak_mb=300.0,
    error="",
)


def outcome(key="k1", **changes):
    images = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    made = Outcome(
        key=key,
        spec={"case": "pneumonia28", "batch": 1},
        arrays={"truth": images, "labels": np.array([1]), "patients": np.array(["a"])},
        loss=0.25,
        cpu_seconds=1.5,
        wall_seconds=2.5,
        peak_mb=100.0,
        trace=((0, 1.0), (10, 0.25)),
        versions={"torch": "2"},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path, writing=True) as opened:
        yield opened


def test_a_run_comes_back_as_it_was_written(store):
    store.add(outcome())
    found = store.outcome("k1")
    for name in ("spec", "loss", "cpu_seconds", "wall_seconds", "peak_mb", "trace", "error", "versions"):
        assert getattr(found, name) == getattr(outcome(), name)
    for name, array in outcome().arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    assert store.outcome("k2") is None


def test_a_run_that_is_there_already_stays_as_it_is(store):
    store.add(outcome())
    store.add(outcome(loss=99.0))
    assert store.keys() == {"k1"}
    assert store.outcome("k1").loss == 0.25


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_none_reads_as_none(store, loss):
    store.add(outcome(loss=loss))
    assert store.outcome("k1").loss is None


def test_rows_come_back_as_they_were_written_and_a_second_writing_takes_the_place_of_the_first(store):
    store.put_rows([ROW])
    assert store.rows() == (ROW,)
    store.put_rows([dataclasses.replace(ROW, psnr=None, adaptive=True)])
    assert store.rows() == (dataclasses.replace(ROW, psnr=None, adaptive=True),)


def test_rows_are_written_all_or_none(store):
    with pytest.raises(StorageError):
        store.put_rows([ROW, dataclasses.replace(ROW, key="r2", psnr=object())])
    assert store.rows() == ()
    store.put_rows([ROW])
    assert store.rows() == (ROW,)


def test_what_was_added_is_there_for_another_process_at_once(store, tmp_path):
    store.add(outcome())
    with RunStore(tmp_path, writing=False) as reader:
        assert reader.keys() == {"k1"}


def test_one_process_writes_at_a_time(store, tmp_path):
    with pytest.raises(StorageError, match="another benchmark is writing"):
        RunStore(tmp_path, writing=True)
    store.close()
    RunStore(tmp_path, writing=True).close()


def test_a_reader_of_an_empty_folder_hears_how_it_is_filled(tmp_path):
    with pytest.raises(StorageError, match="fedveil attack bench --out"):
        RunStore(tmp_path, writing=False)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database, " * 99)
    with pytest.raises(StorageError, match=FILE_NAME.replace(".", r"\.")):
        RunStore(tmp_path, writing=True)
    (tmp_path / FILE_NAME).unlink()
    RunStore(tmp_path, writing=True).close()  # and the lock was let go


def test_rows_of_an_older_version_go_and_its_runs_stay(store, tmp_path):
    store.add(outcome())
    store.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("DROP TABLE rows")
        connection.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, psnr REAL)")
    with RunStore(tmp_path, writing=True) as again:
        assert again.keys() == {"k1"}
        assert again.rows() == ()


def test_a_row_names_its_cell():
    cell = Cell("pneumonia28", "lenet", "dlg", ("labels",), (("iterations", 3),), learning_rate=0.5, skip=7)
    assert dataclasses.replace(ROW, options='{"iterations": 3}', learning_rate=0.5, skip=7).cell() == cell


def test_a_row_holds_the_columns_that_were_promised_and_fits_into_json():
    promised = ["case", "model", "state", "batch", "local_steps", "defense", "attack", "adaptive"]
    promised += ["psnr", "ssim", "null_ssim", "reid_rank1", "cpu_seconds"]
    described = dataclasses.replace(ROW, loss=math.inf, mse=math.nan).as_json()
    assert [name for name in promised if name not in described] == []
    assert json.loads(json.dumps(described, allow_nan=False))["loss"] is None
