"""The arithmetic of a round, and what fits a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.active_run import ActiveRun, check_plan
from fedveil.director.records import RunRecord, RunState, SubmissionRecord
from fedveil.director.rounds import Round, RoundState
from fedveil.director.spool import Spool
from fedveil.director.uploads import Uploads
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import (
    LayoutMismatchError,
    LengthMismatchError,
    NonFiniteUpdateError,
    NoQuorumError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import PayloadKind, TaskKind, TaskRef, UpdateHeader
from fedveil.utils.metrics import auc_of, mean_of
from fedveil.utils.plan_bundle import Manifest, PlanKind, open_bundle, write_bundle
from fedveil.utils.tensors import ExactEntry, Layout, Role, digest_of, exact_arrays, exact_bytes, read_model
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUT = Layout.of([("w", (3,), Role.PARAMETER), ("mean", (1,), Role.BUFFER)], [ExactEntry("n", (2,), "I64")])
INITIAL = np.array([1.0, 2.0, 3.0, 10.0], np.float32)
EXACT = exact_bytes(LAYOUT, {"n": np.array([7, -(2**62)])})
SETTINGS = 'name = "toy"\nsecure_aggregation = "off"\n[rounds]\nmax_rounds = 9\nmin_participants = 1\n'


class Director:
    """Artifacts, uploads and one run."""

    def __init__(
        self,
        folder: Path,
        text: str = SETTINGS,
        layout: Layout = LAYOUT,
        initial: tuple[np.ndarray, bytes] = (INITIAL, EXACT),
    ) -> None:
        self.artifacts = ArtifactStore(folder / "artifacts", durable=False)
        self.uploads = Uploads(folder / "uploads", 4, durable=False)
        manifest = self._bundle(folder, layout, initial)
        self.record = RunRecord(
            run="toy-1",
            name="toy",
            state=RunState.RUNNING,
            settings=text,
            plan=manifest.digest,
            layout=layout.digest,
            seed=bytes(32),
            submitted_at=0.0,
            started_at=0.0,
            ended_at=None,
            reason="",
            model=manifest.file("initial.safetensors").sha256,
        )
        self.run = ActiveRun(self.record, self.artifacts)

    def _bundle(self, folder: Path, layout: Layout, initial: tuple[np.ndarray, bytes]) -> Manifest:
        write_bundle(
            folder / "bundle",
            name="Toy",
            kind=PlanKind.ARRAY,
            entry="plan.py:Toy",
            sources={"plan.py": b"class Toy: pass\n"},
            settings={},
            layout=layout,
            initial=initial,
            data=DataSpec("none", DataKind.NONE),
            software="0.1.0",
        )
        bundle = open_bundle(folder / "bundle")
        for file in bundle.manifest.files:
            self.artifacts.put([bundle.blob(file.path)])
        self.artifacts.put([bundle.manifest.to_json()])
        return bundle.manifest

    @property
    def ref(self) -> TaskRef:
        return self.run.ref

    def answered(self, envoy: str, update: list[float], number: int = 1, metrics: tuple = ()) -> SubmissionRecord:
        raw = np.array(update, np.float32).tobytes()
        spool = Spool(self.uploads.path(envoy), self.ref, len(raw), durable=False)
        spool.reset()  # of the round before
        spool.write(raw)
        spool.finish(digest_of(raw))
        spool.close()
        return SubmissionRecord(self.ref, envoy, digest_of(raw), len(raw), number, metrics, f"{envoy}.spool")

    def round(self, kind: TaskKind = TaskKind.TRAIN, *, state: RoundState = RoundState.AGGREGATING) -> Round:
        return Round(self.ref, kind, 0.0, state, frozenset({"a", "b", "c"}), frozenset({"a", "b"}))

    def model(self, digest: str) -> tuple[np.ndarray, np.ndarray]:
        vector, exact = read_model(LAYOUT, self.artifacts.read(digest))
        return vector, exact_arrays(LAYOUT, exact)["n"]


@pytest.fixture
def director(tmp_path: Path) -> Director:
    return Director(tmp_path)


def test_a_round_adds_the_weighted_mean_and_carries_integers_bit_by_bit(director: Director):
    answers = [
        director.answered("a", [1, 1, 1, 4], 1, (mean_of("loss", 2.0, 1),)),
        director.answered("b", [5, 5, 5, 8], 3, (mean_of("loss", 6.0, 3),)),
    ]
    outcome = director.run.conclude(director.round(), answers, director.uploads, 2)
    vector, exact = director.model(outcome.model)
    assert vector.tolist() == [5.0, 6.0, 7.0, 17.0]
    assert exact.tolist() == [7, -(2**62)]
    assert outcome.metrics == (mean_of("loss", 8.0, 4),)
    assert outcome.num_examples == 4


def test_nothing_changes_before_an_outcome_is_adopted(director: Director):
    answers = [director.answered("a", [1, 1, 1, 1])]
    before = director.run.model
    first = director.run.conclude(director.round(), answers, director.uploads, 1)
    assert director.run.model == before
    assert director.run.progress == []
    again = director.run.conclude(director.round(), answers, director.uploads, 1)  # killed, or the disk was full
    assert again.model == first.model
    director.run.adopt(again)
    assert director.run.model == first.model
    assert director.run.conclude(director.round(), answers, director.uploads, 1).model != first.model


@settings(deadline=None, max_examples=25)
@given(st.permutations("abcd"), st.integers(0, 2**32 - 1))
def test_the_model_does_not_depend_on_who_answers_first(tmp_path_factory, order: list[str], seed: int):
    """As ``coordinator`` sorts the answers by name."""
    models = set()
    for names in ("abcd", order):
        director = Director(tmp_path_factory.mktemp("run"))
        rng = np.random.default_rng(seed)
        updates = {name: (rng.standard_normal(4) * 1e3).tolist() for name in "abcd"}
        answers = [director.answered(name, updates[name], ord(name)) for name in names]
        answers.sort(key=lambda one: one.envoy)
        models.add(director.run.conclude(director.round(), answers, director.uploads, 4).model)
    assert len(models) == 1


def test_an_evaluation_sums_metrics_and_leaves_the_model(director: Director):
    answers = [
        SubmissionRecord(director.ref, name, "ab" * 32, 0, 0, (mean_of("loss", value, 1),), "")
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    outcome = director.run.conclude(director.round(TaskKind.EVALUATE), answers, director.uploads, 2)
    assert outcome.model == director.run.model
    assert outcome.metrics[0].value == 1.5
    assert outcome.vector is None


def test_a_metric_that_one_site_means_otherwise_is_summed_over_the_others(director: Director):
    answers = [
        director.answered("a", [1, 1, 1, 1], 1, (auc_of("x", [0.5], [1]),)),
        director.answered("b", [1, 1, 1, 1], 1, (mean_of("x", 1, 1), mean_of("y", 2, 1))),
        director.answered("c", [1, 1, 1, 1], 1, (mean_of("x", 3, 1),)),
    ]
    outcome = director.run.conclude(director.round(), answers, director.uploads, 3)
    assert {metric.name: metric.value for metric in outcome.metrics} == {"x": 2.0, "y": 2.0}


def test_a_step_out_of_the_range_of_a_float_keeps_the_model_before_it(director: Director):
    largest = float(np.finfo(np.float32).max)
    answers = [director.answered("a", [largest] * 4)]
    first = director.run.conclude(director.round(), answers, director.uploads, 1)
    director.run.adopt(first)
    with np.errstate(over="ignore"), pytest.raises(NonFiniteUpdateError):
        director.run.conclude(director.round(), answers, director.uploads, 1)
    assert director.run.model == first.model


@pytest.mark.parametrize("withheld", [0, 1, 2])
def test_without_an_answer_there_is_no_model(director: Director, withheld: int):
    answers = [director.answered(name, [0, 0, 0, 0], 0) for name in "ab"[:withheld]]
    with pytest.raises(NoQuorumError, match="0 of 1 answers needed were not withheld"):
        director.run.conclude(director.round(), answers, director.uploads, 2)


def test_a_withheld_update_moves_nothing_whatever_its_bytes_and_whatever_the_rule(tmp_path: Path):
    text = SETTINGS.replace("min_participants = 1", "min_participants = 3")
    director = Director(tmp_path, text + '[aggregation]\nmethod = "coordinate_median"\n')
    answers = [director.answered(name, [float(nth)] * 4) for nth, name in enumerate("abc", 1)]
    answers += [director.answered(name, [9, 9, 9, 9], 0) for name in "de"]
    outcome = director.run.conclude(director.round(), answers, director.uploads, 5)
    assert director.model(outcome.model)[0].tolist() == (INITIAL + 2).tolist()
    with pytest.raises(NoQuorumError, match="2 of 3 answers needed were not withheld"):
        director.run.conclude(director.round(), answers[1:], director.uploads, 5)


def test_a_site_that_withholds_counts_for_no_share_of_the_control_variates(tmp_path: Path):
    """SCAFFOLD: each site that answered moves them by the same, whoever else withheld."""
    layout = Layout.of([("w", (1,), Role.PARAMETER), ("control/w", (1,), Role.CONTROL)])
    director = Director(tmp_path, layout=layout, initial=(np.zeros(2, np.float32), b""))
    answers = [director.answered("a", [1, 8]), director.answered("b", [3, 16]), director.answered("c", [0, 0], 0)]
    outcome = director.run.conclude(director.round(), answers, director.uploads, 4)
    assert outcome.vector.tolist() == [2.0, 6.0]  # (8 + 16) / 4


def test_an_update_that_is_gone_from_the_disk_fails_the_round_and_not_the_director(director: Director):
    answer = director.answered("a", [1, 1, 1, 1])
    director.uploads.path("a").write_bytes(director.uploads.path("a").read_bytes()[:-4])
    with pytest.raises(UnsendableUpdateError, match="what a had sent is damaged or gone"):
        director.run.conclude(director.round(), [answer], director.uploads, 1)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam", "fedyogi", "fedadagrad"])
def test_a_director_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path, optimizer: str):
    text = SETTINGS + f'[server_optimizer]\nname = "{optimizer}"\n'
    text += "momentum = 0.9\n" if optimizer == "fedavg" else ""
    undisturbed, killed = Director(tmp_path / "one", text), Director(tmp_path / "two", text)
    for number in range(1, 5):
        update = [0.1 * number, -0.2, 0.3 * number, 1.0]
        for director in (undisturbed, killed):
            outcome = director.run.conclude(director.round(), [director.answered("a", update)], director.uploads, 1)
            director.run.adopt(outcome)
        resumed = replace(killed.record, model=outcome.model)
        killed.run = ActiveRun(resumed, killed.artifacts, outcome.optimizer_state)
    assert killed.run.model == undisturbed.run.model


def _header(director: Director, **changes: object) -> UpdateHeader:
    fields = {"ref": director.ref, "layout": LAYOUT.digest, "length": LAYOUT.num_bytes, "num_examples": 1}
    return UpdateHeader(**(fields | changes))


def test_a_header_that_fits_is_taken(director: Director):
    director.run.check_header(_header(director), "a")
    director.run.check_header(_header(director, num_examples=0), "a")  # withheld


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"layout": "ab" * 32}, LayoutMismatchError),
        ({"length": LAYOUT.num_bytes + 4}, LengthMismatchError),
        ({"length": 0}, LengthMismatchError),
        ({"codec": "ab" * 32, "payload": PayloadKind.CODED}, UnsendableUpdateError),
    ],
)
def test_a_header_that_does_not_fit_is_refused(director: Director, changes: dict[str, object], error: type[Exception]):
    with pytest.raises(error, match="a announces"):
        director.run.check_header(_header(director, **changes), "a")


def test_the_plan_of_a_run_gives_its_layout_and_first_model(director: Director):
    layout, initial = check_plan(director.run.manifest, director.artifacts)
    assert layout == LAYOUT
    assert initial == director.record.model


def test_a_task_says_what_the_envoys_need(director: Director):
    task = director.run.task(director.round(state=RoundState.OPEN), 100.0)
    assert task.cohort == ("a", "b", "c")
    assert task.seconds_left == 500.0
    assert task.model_bytes == director.artifacts.size(task.model)
    assert director.run.task(director.round(), 1e9).seconds_left == 0.0
