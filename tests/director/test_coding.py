"""Rounds whose updates are coded: summed as codes, decoded once; and codecs that do not fit."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.active_run import ActiveRun
from fedveil.director.coding import read_run_codec
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.records import RunRecord, RunState, SubmissionRecord
from fedveil.director.rounds import Round, RoundState
from fedveil.director.spool import Spool
from fedveil.director.uploads import Uploads
from fedveil.gradient_leakage.vae.codec import Codec, codec_bytes, read_codec, round_seed
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.config import parse_toml
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import (
    ConfigError,
    LayoutMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    NoQuorumError,
    UnknownArtifactError,
    UnsendableUpdateError,
)
from fedveil.utils.messages import AskedProtection, PayloadKind, TaskKind, UpdateHeader
from fedveil.utils.plan_bundle import PlanKind, open_bundle, write_bundle
from fedveil.utils.tensors import Layout, Role, digest_of, read_model
from hypothesis import given, settings
from hypothesis import strategies as st

LAYOUT = Layout.of([("w", (2, 3), Role.PARAMETER), ("b", (2,), Role.PARAMETER), ("mean", (1,), Role.BUFFER)])
INITIAL = np.arange(9, dtype=np.float32)
UPDATES = np.zeros((2, 9), np.float32)
UPDATES[0, 0], UPDATES[1, 1] = 3.0, 2.0
CODEC = fit(LAYOUT, UPDATES, 3.0)
"""Two directions, the first two weights; the buffer passes. What moves other weights is lost."""
SEEDED = seeded(LAYOUT, 3.0)
PLAIN = 'name = "toy"\nsecure_aggregation = "off"\n[rounds]\nmax_rounds = 9\nmin_participants = 1\n'
ANOTHER = "ab" * 32


def coded(codec: Codec, further: str = "") -> str:
    return PLAIN + further + f'[codec]\ndigest = "{codec.digest}"\n'


class CodedRun:
    """Artifacts, uploads and one run of a plan of nine numbers."""

    def __init__(self, folder: Path, text: str, codec: Codec | None = CODEC, layout: Layout = LAYOUT) -> None:
        self.artifacts = ArtifactStore(folder / "artifacts", durable=False)
        self.uploads = Uploads(folder / "uploads", 4, durable=False)
        write_bundle(
            folder / "bundle",
            name="Toy",
            kind=PlanKind.ARRAY,
            entry="plan.py:Toy",
            sources={"plan.py": b"class Toy: pass\n"},
            settings={},
            layout=layout,
            initial=(np.arange(layout.size, dtype=np.float32), b""),
            data=DataSpec("none", DataKind.NONE),
            software="0.1.0",
        )
        bundle = open_bundle(folder / "bundle")
        for file in bundle.manifest.files:
            self.artifacts.put([bundle.blob(file.path)])
        self.artifacts.put([bundle.manifest.to_json()])
        if codec is not None:
            assert self.artifacts.put([codec_bytes(codec)]) == codec.digest
        self.record = RunRecord(
            run="toy-1",
            name="toy",
            state=RunState.RUNNING,
            settings=text,
            plan=bundle.manifest.digest,
            layout=layout.digest,
            seed=bytes(32),
            submitted_at=0.0,
            started_at=0.0,
            ended_at=None,
            reason="",
            model=bundle.manifest.file("initial.safetensors").sha256,
        )
        self.run = ActiveRun(self.record, self.artifacts)

    def round(self, number: int = 1) -> Round:
        return Round(replace(self.run.ref, round=number), TaskKind.TRAIN, 0.0, RoundState.AGGREGATING)

    def answered(self, envoy: str, payload: np.ndarray, examples: int = 1, number: int = 1) -> SubmissionRecord:
        raw, ref = payload.astype(np.float32).tobytes(), self.round(number).ref
        spool = Spool(self.uploads.path(envoy), ref, len(raw), durable=False)
        spool.reset()
        spool.write(raw)
        spool.finish(digest_of(raw))
        spool.close()
        return SubmissionRecord(ref, envoy, digest_of(raw), len(raw), examples, (), f"{envoy}.spool")

    def encoded(self, update: np.ndarray, number: int = 1) -> np.ndarray:
        """As the envoy does it."""
        codec = self.run.codec
        seed = round_seed(self.round(number).ref, self.run.model, codec.digest)
        return codec.for_round(seed).encode(update.astype(np.float32))

    def concluded(self, *answers: SubmissionRecord, number: int = 1) -> np.ndarray:
        outcome = self.run.conclude(self.round(number), answers, self.uploads, 4)
        self.run.adopt(outcome)
        return read_model(LAYOUT, self.artifacts.read(outcome.model))[0].copy()


@pytest.fixture
def coded_run(tmp_path: Path) -> CodedRun:
    return CodedRun(tmp_path, coded(CODEC))


def test_codes_are_averaged_and_decoded_and_what_the_codec_cannot_say_is_lost(coded_run: CodedRun):
    first = coded_run.encoded(np.array([1, 2, 0, 0, 0, 9, 0, 0, 4]))
    second = coded_run.encoded(np.array([5, 6, 0, 9, 0, 0, 0, 0, 8]))
    model = coded_run.concluded(coded_run.answered("a", first, 1), coded_run.answered("b", second, 3))
    np.testing.assert_allclose(model - INITIAL, [4, 5, 0, 0, 0, 0, 0, 0, 7], atol=1e-5)
    assert model[8] == 15.0  # the buffer passes as it is


def test_a_coded_update_is_as_short_as_its_codec_says(coded_run: CodedRun):
    assert CODEC.size == 3
    task = coded_run.run.task(coded_run.round(), 0.0)
    assert (task.payload, task.codec, task.layout) == (PayloadKind.CODED, CODEC.digest, LAYOUT.digest)


@pytest.mark.parametrize("codec", [CODEC, SEEDED], ids=["learned", "seeded"])
def test_a_round_is_decoded_once_however_many_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec):
    run = CodedRun(tmp_path, coded(codec), codec)
    rng = np.random.default_rng(1)
    updates = {name: rng.standard_normal(9) for name in "abcde"}
    answers = [run.answered(name, run.encoded(update), ord(name)) for name, update in updates.items()]
    decode, times = Codec.decode, []
    monkeypatch.setattr(Codec, "decode", lambda *given, **named: (times.append(1), decode(*given, **named))[1])
    model = run.concluded(*answers)
    assert len(times) == 1
    fresh = codec.for_round(round_seed(run.round().ref, run.record.model, codec.digest))
    weights = np.array([ord(name) for name in updates], np.float64)
    decoded = [fresh.decode(fresh.encode(update.astype(np.float32))) for update in updates.values()]
    np.testing.assert_allclose(model, INITIAL + np.average(decoded, axis=0, weights=weights), rtol=1e-5, atol=1e-5)


def test_a_seeded_basis_is_another_in_each_round_and_the_same_in_each_attempt(tmp_path: Path):
    run = CodedRun(tmp_path, coded(SEEDED), SEEDED)
    first = run.encoded(np.ones(9))
    again = round_seed(replace(run.round().ref, attempt=2), run.run.model, SEEDED.digest)
    assert np.array_equal(SEEDED.for_round(again).encode(np.ones(9, np.float32)), first)
    assert not np.array_equal(run.encoded(np.ones(9), number=2), first)


@settings(deadline=None, max_examples=20)
@given(st.permutations("abcd"), st.integers(0, 2**32 - 1), st.sampled_from([CODEC, SEEDED]))
def test_the_model_does_not_depend_on_who_answers_first(tmp_path_factory, order: list[str], seed: int, codec: Codec):
    models = []
    for names in ("abcd", order):
        run = CodedRun(tmp_path_factory.mktemp("run"), coded(codec), codec)
        rng = np.random.default_rng(seed)
        updates = {name: rng.standard_normal(9) * 1e3 for name in "abcd"}
        models.append(run.concluded(*[run.answered(name, run.encoded(updates[name]), ord(name)) for name in names]))
    assert np.array_equal(models[0], models[1])


@pytest.mark.parametrize("optimizer", ["fedavg", "fedadam", "fedyogi", "fedadagrad"])
@pytest.mark.parametrize("codec", [CODEC, SEEDED], ids=["learned", "seeded"])
def test_a_director_that_was_killed_decodes_on_to_the_same_bits(tmp_path: Path, codec: Codec, optimizer: str):
    text = coded(codec, f'[server_optimizer]\nname = "{optimizer}"\n')
    undisturbed, killed = CodedRun(tmp_path / "one", text, codec), CodedRun(tmp_path / "two", text, codec)
    for number in range(1, 5):
        update = np.array([0.1 * number, -0.2, 0.3, 0, 0.5, 0, 0, 1, 1.0])
        for run in (undisturbed, killed):
            answer = run.answered("a", run.encoded(update, number), 1, number)
            outcome = run.run.conclude(run.round(number), [answer], run.uploads, 1)
            run.run.adopt(outcome)
        resumed = replace(killed.record, model=outcome.model)
        killed.run = ActiveRun(resumed, killed.artifacts, outcome.optimizer_state)
    assert killed.run.model == undisturbed.run.model


def test_a_code_that_decodes_out_of_the_range_of_a_float_keeps_the_model_before_it(coded_run: CodedRun):
    largest = np.full(CODEC.size, np.finfo(np.float32).max)
    coded_run.concluded(coded_run.answered("a", largest))
    before, answer = coded_run.run.model, coded_run.answered("a", largest, 1, 2)
    with pytest.raises(NonFiniteUpdateError):
        coded_run.run.conclude(coded_run.round(2), [answer], coded_run.uploads, 1)
    assert coded_run.run.model == before


def test_a_withheld_update_is_no_answer_and_changes_nothing(coded_run: CodedRun):
    given = coded_run.answered("a", coded_run.encoded(np.array([1, 2, 0, 0, 0, 0, 0, 0, 4])), 2)
    withheld = coded_run.answered("b", np.zeros(CODEC.size), 0)
    model = coded_run.concluded(given, withheld)
    np.testing.assert_allclose(model - INITIAL, [1, 2, 0, 0, 0, 0, 0, 0, 4], atol=1e-5)


def header(run: CodedRun, **changes: object) -> UpdateHeader:
    fields = {
        "ref": run.run.ref,
        "layout": LAYOUT.digest,
        "length": 4 * CODEC.size,
        "num_examples": 1,
        "payload": PayloadKind.CODED,
        "codec": CODEC.digest,
    }
    return UpdateHeader(**(fields | changes))


@pytest.mark.parametrize("examples", [0, 1])
def test_a_header_that_fits_is_taken_withheld_or_not(coded_run: CodedRun, examples: int):
    coded_run.run.check_header(header(coded_run, num_examples=examples), "a")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"layout": ANOTHER}, LayoutMismatchError, "a announces layout abababababab"),
        ({"codec": ANOTHER}, UnsendableUpdateError, "a coded update of codec abababababab, expected a coded update of"),
        (
            {"payload": PayloadKind.PLAIN, "codec": None, "length": LAYOUT.num_bytes},
            UnsendableUpdateError,
            "a plain update without a codec, expected a coded update of codec",
        ),
        ({"length": LAYOUT.num_bytes}, LengthMismatchError, "a announces 36 bytes, expected 12"),
        ({"length": 4 * CODEC.size - 4}, LengthMismatchError, "a announces 8 bytes, expected 12"),
        ({"length": 4 * CODEC.size + 4}, LengthMismatchError, "a announces 16 bytes, expected 12"),
    ],
)
def test_a_header_that_announces_another_code_is_refused(
    coded_run: CodedRun, changes: dict[str, object], error: type[Exception], words: str
):
    with pytest.raises(error, match=words) as caught:
        coded_run.run.check_header(header(coded_run, **changes), "a")
    assert type(caught.value) is error


def test_a_coded_update_is_refused_where_nothing_is_coded(tmp_path: Path):
    run = CodedRun(tmp_path, PLAIN)
    with pytest.raises(UnsendableUpdateError, match="expected a plain update without a codec"):
        run.run.check_header(header(run), "a")


def test_a_task_says_what_the_experiment_asks_the_sites_to_add(tmp_path: Path):
    run = CodedRun(tmp_path, PLAIN + "[protection]\nmax_norm = 2.0\nnoise_multiplier = 0.5\n")
    task = run.run.task(run.round(), 0.0)
    assert (task.asked, task.payload, task.codec) == (AskedProtection(2.0, 0.5), PayloadKind.PLAIN, None)


OTHER_LAYOUT = Layout.of([("w", (3, 2), Role.PARAMETER), ("b", (2,), Role.PARAMETER), ("mean", (1,), Role.BUFFER)])
SCAFFOLD = Layout.of([("w", (8,), Role.PARAMETER), ("control/w", (8,), Role.CONTROL)])


@pytest.mark.parametrize(
    ("layout", "error", "words"),
    [
        (OTHER_LAYOUT, LayoutMismatchError, "codes layout .* and the plan has .*`fedveil codec fit` makes one"),
        (SCAFFOLD, ConfigError, "the plan uses SCAFFOLD, whose control variates are not coded"),
    ],
)
def test_a_codec_of_another_model_is_refused(tmp_path: Path, layout: Layout, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        CodedRun(tmp_path, coded(CODEC), layout=layout)


def test_a_file_that_is_no_codec_is_refused_by_its_digest(tmp_path: Path):
    artifacts = ArtifactStore(tmp_path, durable=False)
    whole = codec_bytes(CODEC)
    for raw in (b"", b"no codec", whole[:-1], whole + b"\0", whole[:-4] + np.float32(np.nan).tobytes()):
        text = PLAIN + f'[codec]\ndigest = "{artifacts.put([raw])}"\n'
        with pytest.raises(MalformedMessageError, match=f"codec.digest {digest_of(raw)[:12]}"):
            read_run_codec(parse_toml(text, ExperimentSettings, "experiment.toml"), LAYOUT, artifacts)


def test_a_codec_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UnknownArtifactError):
        CodedRun(tmp_path, coded(CODEC), codec=None)


def test_the_codec_of_a_run_is_the_one_that_was_put(coded_run: CodedRun):
    assert coded_run.run.codec.digest == CODEC.digest == read_codec(codec_bytes(CODEC)).digest


@pytest.mark.parametrize("examples", [(1, 0, 0), (0, 0, 0), (5, 0, 0)])
def test_withheld_updates_make_no_quorum(tmp_path: Path, examples: tuple[int, ...]):
    run = CodedRun(tmp_path, coded(CODEC).replace("min_participants = 1", "min_participants = 2"))
    answers = [run.answered(name, np.zeros(CODEC.size), count) for name, count in zip("abc", examples, strict=True)]
    held = sum(map(bool, examples))
    with pytest.raises(NoQuorumError, match=f"{held} of 2 answers needed were not withheld"):
        run.run.conclude(run.round(), answers, run.uploads, 3)


def test_twenty_four_coded_updates_take_no_more_memory_than_three(tmp_path: Path):
    """A model has four megabytes, a code forty kilobytes, and the codec lies in memory before the round."""
    layout = Layout.of([("w", (1024, 1024), Role.PARAMETER)])
    codec = fit(layout, np.random.default_rng(0).standard_normal((3, layout.size)).astype(np.float32), 100.0)
    peaks = []
    for count in (3, 24):
        run = CodedRun(tmp_path / str(count), coded(codec), codec, layout)
        names = [f"site-{nth:02}" for nth in range(count)]
        answers = [run.answered(name, np.full(codec.size, nth, np.float32)) for nth, name in enumerate(names)]
        tracemalloc.start()
        try:
            run.run.conclude(run.round(), answers, run.uploads, count)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 250_000
    assert peaks[1] < 2 * layout.num_bytes
