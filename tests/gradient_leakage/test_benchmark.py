"""The benchmark on toys: nothing is lost, nothing is made twice, and the same seeds give the same rows."""

import dataclasses
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks import catalogue
from fedveil.gradient_leakage.benchmark import attack_one, run_cells
from fedveil.gradient_leakage.cells import Cell, Run
from fedveil.gradient_leakage.rows import RunStore
from fedveil.gradient_leakage.runners import InProcesses, in_this_process
from fedveil.utils.errors import AttackError, ConfigError, StorageError

SCRIPT = Path(__file__).with_name("toy_benchmark.py")
TIMES = {"cpu_seconds", "wall_seconds", "peak_mb"}


@pytest.fixture
def toys(monkeypatch):
    """The names of toy_benchmark.py, with its attack in the place of the catalogue."""
    names = runpy.run_path(str(SCRIPT))
    monkeypatch.setattr(catalogue, "ATTACKS", (names["TOY"],))
    monkeypatch.setattr(catalogue.Listed, "make", lambda _listed, **options: names["ToyAttack"](**options))
    return names


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path / "runs", writing=True) as opened:
        yield opened


def without_times(rows):
    return [{k: v for k, v in dataclasses.asdict(row).items() if k not in TIMES} for row in rows]


def test_a_known_attack_gets_the_figures_that_it_must(toys, store):
    clean, noisy = toys["cells"](4)
    rows = run_cells([clean, noisy], toys["ToyLaboratory"](), store, in_this_process)
    assert [row.target for row in rows] == [0, 1, 2, 3] * 2
    for row in rows[:4]:
        assert row.psnr > 100
        assert row.ssim > 0.999
        assert row.reid_rank1 == 1
        assert row.gallery == 100
        assert abs(row.null_ssim) < 0.3  # noise beside other noise
        assert row.label_recovery == 1
        assert row.network_rank1 is None
        assert row.error == ""
    assert max(row.psnr for row in rows[4:]) < 20
    assert {row.patients for row in rows[:4]} == {"p0", "p1", "p2", "p3"}


def test_the_null_is_what_the_same_attack_found_in_another_update(toys, store):
    (row, other) = run_cells([toys["cells"](2)[0]], toys["ToyLaboratory"](), store, in_this_process)
    mine, theirs = (store.outcome(one.run).arrays for one in (row, other))
    assert row.null_psnr == pytest.approx(-10 * np.log10(np.square(theirs["found"] - mine["truth"]).mean()), rel=1e-4)


@pytest.mark.parametrize("knowledge", [(), ("public_data",)])
def test_a_director_who_chooses_the_model_has_public_images_only_where_they_are_granted(toys, monkeypatch, knowledge):
    given = []

    def prepare(_attack, model, _domain, _rng, public):
        given.append(public)
        return model

    monkeypatch.setattr(toys["ToyAttack"], "prepare", prepare, raising=False)
    attack_one(toys["ToyLaboratory"](), Run(dataclasses.replace(toys["cells"](2)[0], knowledge=knowledge), 0))
    assert [public is not None for public in given] == [bool(knowledge)]


def test_fixed_seeds_give_the_same_rows_in_one_process_and_in_several(toys, store, tmp_path):
    rows = run_cells(toys["cells"](3), toys["ToyLaboratory"](), store, in_this_process)
    process = started(tmp_path / "other", 2, 0, 3)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    with RunStore(tmp_path / "other", writing=False) as other:
        assert without_times(other.rows()) == without_times(store.rows())
        for row in rows:
            arrays, again = store.outcome(row.run).arrays, other.outcome(row.run).arrays
            assert arrays.keys() == again.keys()
            assert all((arrays[name] == again[name]).all() for name in arrays)


def test_what_is_there_is_not_made_again_and_more_targets_go_on_where_fewer_ended(toys, store):
    made = []
    cell = toys["cells"](2)[0]
    run_cells([cell], toys["ToyLaboratory"](), store, in_this_process, made.append)
    assert len(made) == 2
    again = run_cells([cell], toys["ToyLaboratory"](), store, in_this_process, made.append)
    assert len(made) == 2
    assert len(again) == 2
    longer = run_cells(
        [dataclasses.replace(cell, targets=5)], toys["ToyLaboratory"](), store, in_this_process, made.append
    )
    assert len(made) == 5
    assert [row.target for row in longer] == [0, 1, 2, 3, 4]
    assert len(store.rows()) == 7  # those of two targets have other nulls, and stay


def test_targets_that_are_skipped_are_not_attacked(toys, store):
    cell = dataclasses.replace(toys["cells"](2)[0], skip=5)
    first, second = run_cells([cell], toys["ToyLaboratory"](), store, in_this_process)
    assert (first.patients, second.patients) == ("p5", "p6")
    assert (first.target, second.target) == (5, 6)
    assert first.reid_rank1 == second.reid_rank1 == 1


def test_two_cells_that_share_a_run_make_it_once(toys, store):
    made = []
    cell = toys["cells"](3)[0]
    rows = run_cells(
        [cell, dataclasses.replace(cell, targets=2)], toys["ToyLaboratory"](), store, in_this_process, made.append
    )
    assert len(made) == 3
    assert len(rows) == 5


def test_an_attack_that_cannot_be_run_is_a_row_with_a_reason_and_no_figures(toys, store):
    cell = Cell("toy", "mlp", "toy", options=(("fails", True),), targets=2)
    rows = run_cells([cell], toys["ToyLaboratory"](), store, in_this_process)
    assert {row.error for row in rows} == {"AttackError: layer 0 cannot be attacked so: <give it another>"}
    assert {(row.psnr, row.ssim, row.null_ssim, row.reid_rank1, row.label_recovery) for row in rows} == {(None,) * 5}


def test_an_iterative_attack_leaves_its_losses_and_the_first_target_its_frames(toys, store):
    first, second = run_cells([toys["cells"](2)[0]], toys["ToyLaboratory"](), store, in_this_process)
    kept = store.outcome(first.run)
    assert kept.trace == ((0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625))
    assert kept.arrays["frames"].shape == (5, 1, 9, 9)
    assert kept.arrays["frames"].dtype == np.uint8
    np.testing.assert_allclose(kept.arrays["frames"][-1] / 255, kept.arrays["truth"][0], atol=1 / 255)
    assert "frames" not in store.outcome(second.run).arrays


def test_everything_that_determines_an_outcome_is_in_its_key_and_the_rest_is_not():
    cell = Cell("toy", "mlp", "toy")
    other_runs = {
        "case": "mnist",
        "model": "lenet",
        "attack": "dlg",
        "knowledge": ("labels",),
        "options": (("iterations", 3),),
        "state": "converged",
        "batch": 2,
        "local_steps": 4,
        "learning_rate": 0.5,
        "defense": "precode",
        "adaptive": True,
        "dtype": "float64",
        "seed": 1,
    }
    only_rows = {"targets": 9, "skip": 3, "gallery": 200}
    assert {*other_runs, *only_rows} == {field.name for field in dataclasses.fields(Cell)}
    keys = {Run(dataclasses.replace(cell, **{name: value}), 0).key for name, value in other_runs.items()}
    assert len({*keys, Run(cell, 0).key, Run(cell, 1).key}) == len(other_runs) + 2
    for name, value in only_rows.items():
        changed = Run(dataclasses.replace(cell, **{name: value}), 0)
        assert changed.key == Run(cell, 0).key
        assert changed.row_key != Run(cell, 0).row_key


def test_the_key_of_a_run_stays_what_it_was():
    assert Run(Cell("mnist", "lenet", "dlg", knowledge=("labels",)), 3).key.startswith("5932c9162e18f489")


def test_the_order_of_names_and_options_makes_no_other_cell():
    one = Cell("toy", "mlp", "toy", knowledge=("labels", "defense"), options=(("a", 1), ("b", 2)))
    two = Cell("toy", "mlp", "toy", knowledge=("defense", "labels"), options=(("b", 2), ("a", 1)))
    assert one == two


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"knowledge": ("truth",)}, "grants truth, of which no threat model knows"),
        ({"state": "half"}, "state 'half'"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"batch": 0}, "batch 0"),
        ({"targets": 0}, "targets 0"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(wrong, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Cell("toy", "mlp", "toy", **wrong)


def test_two_attacks_meet_the_same_site_with_the_same_lot():
    one, two = (Run(Cell("toy", "mlp", name), 1).generator("site").initial_seed() for name in ("toy", "dlg"))
    assert one == two
    assert one != Run(Cell("toy", "mlp", "toy"), 2).generator("site").initial_seed()
    assert one != Run(Cell("toy", "mlp", "toy"), 1).generator("attack").initial_seed()


def test_no_process_wide_generator_moves_and_the_number_of_threads_is_put_back(toys):
    torch.set_num_threads(2)
    before = torch.random.get_rng_state()
    (run,) = list(
        in_this_process(lambda one: attack_one(toys["ToyLaboratory"](), one).key, [Run(toys["cells"](1)[0], 0)])
    )
    assert run
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == 2


def started(folder, workers, seconds, targets):
    """A benchmark of toys in a process of its own, in a group of its own."""
    words = [sys.executable, SCRIPT, folder, workers, seconds, targets]
    return subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended_by(sign, folder, seed, workers):
    """Start, let some runs end, send the signal at a moment drawn from the seed; what the process had said by then."""
    lot = random.Random(seed)
    process = started(folder, workers, 0.05, 6)
    said = [process.stdout.readline().strip() for _ in range(lot.randint(1, 8))]
    time.sleep(lot.random() * 0.1)
    workers = children_of(process.pid)
    os.kill(process.pid, sign)
    rest, complaint = process.communicate(timeout=30)
    wait_for(lambda: not any(is_alive(worker) for worker in workers))
    return [*said, *rest.split()], complaint


@pytest.mark.parametrize(
    ("seed", "sign", "workers"), [(1, signal.SIGKILL, 2), (2, signal.SIGKILL, 0), (3, signal.SIGINT, 2)]
)
def test_a_benchmark_that_is_ended_in_the_midst_loses_no_run_makes_none_twice_and_leaves_no_process(
    seed, sign, workers, toys, tmp_path
):
    said, _ = ended_by(sign, tmp_path, seed, workers)
    with RunStore(tmp_path, writing=False) as store:
        kept = store.keys()
    assert set(said) - {"rows"} <= kept  # whatever was told is on the disk
    assert len(kept) < 12
    made = []
    with RunStore(tmp_path, writing=True) as store:
        rows = run_cells(toys["cells"](6, 0.05), toys["ToyLaboratory"](), store, in_this_process, made.append)
        keys = [outcome.key for outcome in made]
        assert len(keys) == len(set(keys)) == 12 - len(kept)
        assert not set(keys) & kept
        assert store.keys() == kept | set(keys)
        assert len(rows) == len(store.rows()) == 12


def test_a_second_benchmark_in_the_same_folder_is_refused_while_the_first_runs(tmp_path):
    with RunStore(tmp_path, writing=True), pytest.raises(StorageError, match="another benchmark"):
        RunStore(tmp_path, writing=True)


def test_a_worker_that_the_system_ends_is_named_and_no_process_stays_behind():
    before = set(multiprocessing.active_children())
    with pytest.raises(AttackError, match="for want of memory"):
        list(InProcesses(2)(os._exit, [3]))
    assert set(multiprocessing.active_children()) == before


def test_whoever_stops_listening_stops_the_workers():
    before = set(multiprocessing.active_children())
    results = InProcesses(2)(time.sleep, [0.0, 60.0])
    start = time.monotonic()
    assert next(results) is None
    results.close()
    assert time.monotonic() - start < 40
    assert set(multiprocessing.active_children()) == before
