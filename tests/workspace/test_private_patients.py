"""AUC by the patient: who is at which hospital, rows that are made once, what the table says."""

import dataclasses

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.confidence import Interval
from fedveil.utils.errors import StorageError
from fedveil.workspace.benchmarks import private_patients
from fedveil.workspace.benchmarks.auc_intervals import auc_difference, auc_interval
from fedveil.workspace.benchmarks.private_patients import PatientComparison, PatientRow, Scale, divided
from fedveil.workspace.benchmarks.private_patients_bench import as_markdown
from fedveil.workspace.benchmarks.private_rows import rows_in
from fedveil.workspace.chest_xrays import Images3, Part

LABELS = np.arange(60) % 2


def part(count, patients=2, size=28):
    rng, groups = np.random.default_rng(count), np.arange(count) // patients
    labels = groups % 2
    pixels = rng.integers(0, 100, (count, size, size))
    pixels[:, :, ::3] += 150 * labels[:, None, None]
    return Part(pixels.astype(np.uint8), labels.astype(np.int64), tuple(f"person{one}" for one in groups))


@pytest.fixture
def images(monkeypatch):
    found = Images3("made up", False, part(120), part(20), part(24))
    monkeypatch.setattr(private_patients, "find_images", lambda *_: found)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does
    yield found
    torch.set_num_threads(before)


def test_no_patient_is_at_two_hospitals_and_none_is_lost(images):
    hospitals = divided(images, seed=1)
    owners = [set(hospital.patients) for hospital in hospitals]
    assert sum(len(one) for one in owners) == len(set.union(*owners)) == 60
    assert sum(len(hospital) for hospital in hospitals) == 120


def test_every_arm_gets_what_validation_chose_and_nothing_is_run_twice(images, tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    scales = {"histogram": Scale(3, 0.5, 20), "network": Scale(2, 0.5, 20)}
    found = list(PatientComparison(tmp_path, tmp_path, scales).rows(seeds=(1,), epsilons=(8.0,)))
    assert [(one.model, one.epsilon) for one in found] == [
        ("histogram", None),
        ("histogram", 8.0),
        ("network", None),
        ("network", 8.0),
    ]
    assert [one.noise_multiplier > 0 for one in found] == [False, True, False, True]
    assert all(one.unit == "patient" and len(one.scores) == 24 for one in found)
    tried = rows_in(tmp_path / "rows.jsonl", PatientRow)
    for one in found:
        choices = [o for o in tried if (o.model, o.epsilon, o.seed) == (one.model, one.epsilon, 0)]
        assert max(choices, key=lambda other: other.auc_validation).learning_rate == one.learning_rate
    monkeypatch.setattr(private_patients, "local_update", None)
    again = PatientComparison(tmp_path, tmp_path, scales)
    assert list(again.rows(seeds=(1,), epsilons=(8.0,))) == found
    lines = list(as_markdown(found, images.test, again.steps))
    assert len({line.count("|") for line in lines}) == 1
    assert "per patient" in lines[3]
    assert "delta 1e-05" in lines[3]


def row(seed, shift):
    scores = np.random.default_rng(seed).standard_normal(60) + shift * LABELS
    return PatientRow("histogram", None, 1e-5, "patient", 1.0, 0.1, seed, 1.0, 0.9, 0.8, 1.0, "x", tuple(scores))


def test_images_of_one_patient_are_drawn_together():
    scores = [row(1, 1.0).scores]
    alone = auc_interval(LABELS, scores)
    each = auc_interval(LABELS, scores, patients=[f"{n:02}" for n in range(60)])
    copies = np.repeat(np.array(scores), 4, axis=1)
    whose = [f"{n // 4}" for n in range(240)]
    together = auc_interval(np.repeat(LABELS, 4), copies, patients=whose)
    apart = auc_interval(np.repeat(LABELS, 4), copies)
    assert width(each) == pytest.approx(width(alone), rel=0.2)
    assert width(together) == pytest.approx(width(alone), rel=0.2)
    assert width(apart) < 0.7 * width(together)
    assert together.value == pytest.approx(alone.value)
    assert auc_difference(LABELS, scores, scores, patients=whose[:60]) == Interval(0.0, 0.0, 0.0)


def width(interval):
    return interval.high - interval.low


def test_damaged_rows_are_said(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"model": "histogram"}\n', "utf-8")
    with pytest.raises(StorageError, match="is damaged"):
        rows_in(tmp_path / "rows.jsonl", PatientRow)
    assert dataclasses.fields(PatientRow)
