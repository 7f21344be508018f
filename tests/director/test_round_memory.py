"""A round's arithmetic needs no more memory for more envoys."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.active_run import ActiveRun
from fedveil.director.records import RunRecord, RunState, SubmissionRecord
from fedveil.director.rounds import Round, RoundState
from fedveil.director.spool import Spool
from fedveil.director.uploads import Uploads
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.messages import PART_BYTES, EnvoyName, RunId, TaskKind
from fedveil.utils.plan_bundle import INITIAL_FILE, Bundle, open_bundle
from fedveil.utils.tensors import digest_of
from fedveil.workspace.benchmarks import noop_plan
from fedveil.workspace.plan_builder import build_plan

ELEMENTS = 1 << 20
SETTINGS = """
name = "wide"
secure_aggregation = "off"
[rounds]
max_rounds = 1
min_participants = 1
[aggregation]
{aggregation}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    build_plan(Path(noop_plan.__file__), tmp_path / "bundle", {"elements": ELEMENTS})
    return open_bundle(tmp_path / "bundle")


def run_of(bundle: Bundle, folder: Path, aggregation: str) -> ActiveRun:
    artifacts = ArtifactStore(folder / "artifacts", durable=False)
    artifacts.put([bundle.manifest.to_json()])
    for file in bundle.manifest.files:
        artifacts.put([bundle.blob(file.path)])
    initial = bundle.manifest.file(INITIAL_FILE).sha256
    text, run = SETTINGS.format(aggregation=aggregation), RunId("wide-1")
    state = RunState.RUNNING
    record = RunRecord(
        run, "wide", state, text, bundle.digest, bundle.layout.digest, bytes(32), 0.0, 0.0, None, "", initial
    )
    return ActiveRun(record, artifacts)


def conclude(run: ActiveRun, uploads: Uploads, count: int) -> tuple[int, np.ndarray]:
    """Close a round of so many answers; the peak of what that allocates, and the new model."""
    names = [EnvoyName(f"site-{number:02}") for number in range(count)]
    cohort = frozenset(names)
    this = Round(run.ref, TaskKind.TRAIN, 0.0, RoundState.AGGREGATING, cohort, cohort)
    answers = []
    for number, name in enumerate(names):
        content = np.full(ELEMENTS, number, np.float32).tobytes()
        spool = Spool(uploads.path(name), run.ref, len(content), durable=False)
        for start in range(spool.offset, len(content), PART_BYTES):
            spool.write(content[start : start + PART_BYTES])
        spool.finish(digest_of(content))
        spool.close()
        answers.append(SubmissionRecord(run.ref, name, digest_of(content), len(content), 1, (), f"{name}.spool"))
    tracemalloc.start()
    try:
        outcome = run.conclude(this, answers, uploads, count)
        return tracemalloc.get_traced_memory()[1], outcome.vector.copy()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("aggregation", "most", "more"),
    [
        ("", 1 << 20, 250_000),  # a block of half a megabyte; names, files and shares
        ('method = "norm_bounding"\nmax_norm = 1e9', 2 << 20, 250_000),
        ('method = "coordinate_median"', 5 << 20, 5 << 20),  # rows of all updates: four megabytes together
    ],
)
def test_twenty_four_envoys_take_no_more_memory_than_three(
    bundle: Bundle, tmp_path: Path, aggregation: str, most: int, more: int
):
    """A model has four megabytes, twenty-four updates ninety-six."""
    few, mean = conclude(run_of(bundle, tmp_path / "few", aggregation), Uploads(tmp_path / "u3", 4, durable=False), 3)
    many, _ = conclude(run_of(bundle, tmp_path / "many", aggregation), Uploads(tmp_path / "u24", 4, durable=False), 24)
    np.testing.assert_allclose(mean, 1.0, rtol=1e-6)
    assert many < few + more
    assert many < most
