"""A run with a codec: what is coded otherwise is refused before a byte of it, and the right codes are still taken."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.__main__ import app
from fedveil.director.config import load_config
from fedveil.director.server import Director
from fedveil.gradient_leakage.vae.codec import Codec, codec_bytes, round_seed
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.utils import messages as m
from fedveil.utils.errors import (
    FederationError,
    LayoutMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    PlanError,
    UnknownArtifactError,
    UnsendableUpdateError,
)
from fedveil.utils.tensors import Layout, Role, bytes_of, digest_of
from typer.testing import CliRunner

ELEMENTS = 10_000
OTHER = "ef" * 32
DROPPING = """
name = "drop"
secure_aggregation = "off"
[study]
purpose = "a test"
min_approvals = 2
[rounds]
max_rounds = 1
min_participants = 1
stragglers = "drop"
final_evaluation = false
"""
EXPERIMENT = """
name = "coded"
secure_aggregation = "off"
plan = "plan"
[study]
purpose = "a test"
[rounds]
max_rounds = 1
min_participants = 1
final_evaluation = false
[codec]
digest = "{digest}"
file = "codecs/x100.safetensors"
"""


def parts_of(turn: m.Turn, payload: np.ndarray) -> list[m.Part]:
    raw = bytes_of(payload)
    return [m.Opening(len(raw), turn.offset, turn.grant), m.Data(bytes(raw[turn.offset :])), m.Closing(digest_of(raw))]


def table(codec: Codec) -> str:
    return f'\n[codec]\ndigest = "{codec.digest}"\n'


@dataclass
class CodedRound:
    """A round of three whose updates are coded; `bad` says something else first."""

    federation: object
    codec: Codec
    file: Path

    def __post_init__(self) -> None:
        self.good = self.federation.attending("site-a", "site-b")
        (self.bad,) = self.federation.attending("site-c")
        self.run = self.federation.submit(quorum=3, further=table(self.codec), codec=self.file)
        self.task = self.bad.task()

    def header(self, number: int = 1, **changes: object) -> m.UpdateHeader:
        fields = {
            "ref": self.task.ref,
            "layout": self.task.layout,
            "length": 4 * self.codec.size,
            "num_examples": number,
            "payload": m.PayloadKind.CODED,
            "codec": self.codec.digest,
        }
        return m.UpdateHeader(**(fields | changes))

    def code(self, value: float) -> np.ndarray:
        """Of an update of one value everywhere."""
        seed = round_seed(self.task.ref, self.task.model, self.codec.digest)
        return self.codec.for_round(seed).encode(np.full(ELEMENTS, value, np.float32))

    def send(self, envoy, payload: np.ndarray, number: int = 1) -> None:
        turn = envoy.client.request_upload(self.header(number))
        assert isinstance(turn, m.Turn)
        envoy.client.upload(parts_of(turn, payload))

    def closes(self) -> np.ndarray:
        """The others answer; gives the model, and holds what went up against what codes take."""
        self.send(self.good[0], self.code(1.0))
        self.send(self.good[1], self.code(2.0))
        view = self.federation.finished(self.run)
        assert view.state == "finished", view.reason
        assert view.bytes_up == 3 * 4 * self.codec.size
        return self.federation.model(view)

    def closes_with_everybody(self) -> None:
        """Right codes of all three are taken, and the model is the mean of the updates."""
        self.send(self.bad, self.code(3.0), 2)
        np.testing.assert_allclose(self.closes(), 2.25, rtol=1e-4)


@pytest.fixture(scope="session")
def layout(bundle) -> Layout:
    return bundle.layout


@pytest.fixture(scope="session")
def codec(layout: Layout) -> Codec:
    """It can say "everywhere the same", and four directions of chance."""
    updates = np.random.default_rng(0).standard_normal((5, layout.size)).astype(np.float32) / 10
    updates[0] = 3.0  # by far the longest: the first direction
    return fit(layout, updates, 100.0)


@pytest.fixture
def codec_file(codec: Codec, tmp_path: Path) -> Path:
    file = tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(codec))
    return file


@pytest.fixture
def coded(federation, codec: Codec, codec_file: Path) -> CodedRound:
    return CodedRound(federation, codec, codec_file)


def test_the_envoys_are_told_of_the_codec_and_may_fetch_it(coded: CodedRound, codec_file: Path):
    assert (coded.task.payload, coded.task.codec) == (m.PayloadKind.CODED, coded.codec.digest)
    parts = coded.bad.client.download(m.DownloadRequest(coded.task.codec, 0, coded.task.ref))
    content = b"".join(bytes(part.content) for part in parts if isinstance(part, m.Data))
    assert content == codec_file.read_bytes()
    coded.closes_with_everybody()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"payload": m.PayloadKind.PLAIN, "codec": None, "length": 4 * ELEMENTS},
            UnsendableUpdateError,
            "site-c announces a plain update without a codec, expected a coded update of codec",
        ),
        ({"codec": OTHER}, UnsendableUpdateError, "a coded update of codec efefefefefef, expected"),
        ({"length": 4 * ELEMENTS}, LengthMismatchError, "site-c announces 40000 bytes, expected"),
        ({"length": 0}, LengthMismatchError, "site-c announces 0 bytes, expected"),
        ({"layout": OTHER}, LayoutMismatchError, "site-c announces layout efefefefefef"),
        ({"codec": None}, MalformedMessageError, "a coded payload without a codec"),
        ({"payload": m.PayloadKind.PLAIN}, MalformedMessageError, "a plain payload with a codec"),
    ],
)
def test_another_coding_is_refused_before_a_byte_is_sent(
    coded: CodedRound, changes: dict[str, object], error: type[FederationError], words: str
):
    with pytest.raises(error, match=words) as caught:
        coded.bad.client.request_upload(coded.header(**changes))
    assert type(caught.value) is error
    coded.closes_with_everybody()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_code_that_is_no_number_is_not_taken(coded: CodedRound, number: float):
    payload = coded.code(3.0)
    payload[-1] = number
    with pytest.raises(NonFiniteUpdateError, match="NaN or infinity; it was not taken"):
        coded.send(coded.bad, payload)
    coded.closes_with_everybody()


def test_a_withheld_update_counts_as_received_and_weighs_nothing(federation, codec: Codec, codec_file: Path):
    first, second, withholding = federation.attending("site-a", "site-b", "site-c")
    run = federation.submit(quorum=2, further=table(codec), codec=codec_file)
    opened = CodedRound.__new__(CodedRound)
    opened.federation, opened.codec, opened.run, opened.task = federation, codec, run, first.task()
    opened.send(withholding, np.zeros(codec.size, np.float32), 0)
    opened.send(first, opened.code(1.0))
    opened.send(second, opened.code(4.0), 2)
    view = federation.finished(run)
    assert (view.state, view.rounds[0].received, view.rounds[0].invited) == ("finished", 3, 3)
    np.testing.assert_allclose(federation.model(view), 3.0, rtol=1e-4)


def test_stragglers_are_not_dropped_for_one_that_withheld(federation):
    quick, slow = federation.attending("site-a", "site-b")
    with federation.operator() as operator:
        run = operator.submit(DROPPING, federation.bundle)
    quick.send(quick.task(), 0.0, 0)
    slow.send(slow.task(), 5.0)
    view = federation.finished(run)
    assert (view.state, view.rounds[0].attempt, view.rounds[0].received) == ("finished", 1, 2)
    assert np.array_equal(federation.model(view), np.full(ELEMENTS, 5.0, np.float32))


def test_a_round_in_which_too_many_withhold_fails_and_names_none_of_them(federation):
    envoys = federation.attending("site-a", "site-b", "site-c")
    run = federation.submit(quorum=3)
    for envoy, number in zip(envoys, (1, 1, 0), strict=True):
        envoy.send(envoy.task(), 1.0 if number else 0.0, number)
    view = federation.finished(run)
    assert view.state == "failed"
    assert "NoQuorumError" in view.reason
    assert "2 of 3 answers needed were not withheld" in view.reason
    assert "site-" not in view.reason


def test_a_codec_of_another_model_is_refused_when_it_is_submitted(federation, tmp_path: Path):
    other = seeded(Layout.of([("w", (ELEMENTS + 1,), Role.PARAMETER)]), 100.0)
    file = tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(other))
    with pytest.raises(LayoutMismatchError, match="codes layout"):
        federation.submit(further=table(other), codec=file)


def test_a_file_that_is_no_codec_is_refused_when_it_is_submitted(federation, tmp_path: Path):
    file = tmp_path / "codec.safetensors"
    file.write_bytes(b"these are no bases")
    with pytest.raises(MalformedMessageError, match=f"codec.digest {digest_of(file.read_bytes())[:12]}"):
        federation.submit(further=f'\n[codec]\ndigest = "{digest_of(file.read_bytes())}"\n', codec=file)


def test_an_experiment_with_a_codec_is_typed_as_any_other_and_what_is_wrong_is_one_line(
    federation, codec: Codec, tmp_path: Path
):
    shutil.copytree(federation.bundle.folder, tmp_path / "plan")
    file, codec_file = tmp_path / "experiment.toml", tmp_path / "codecs" / "x100.safetensors"
    file.write_text(EXPERIMENT.format(digest=codec.digest), "utf-8")

    def submitted(status: int) -> list[str]:
        command = ["experiment", "submit", str(file), "--folder", str(federation.folder)]
        done = CliRunner().invoke(app, command, env={"COLUMNS": "400"})
        assert done.exit_code == status, done.output
        return (done.stderr if status else done.stdout).splitlines()

    (line,) = submitted(1)
    assert "codec.file:" in line
    assert "x100.safetensors cannot be read: No such file" in line
    codec_file.parent.mkdir()
    codec_file.write_bytes(codec_bytes(codec)[:-1])
    (line,) = submitted(1)
    assert f"codec.digest is {codec.digest}, and" in line
    with federation.operator() as operator:
        assert operator.list() == ()
    codec_file.write_bytes(codec_bytes(codec))
    said = " ".join(submitted(0))
    assert "coded-1 is queued" in said
    assert codec.digest in said


def test_the_codec_of_a_run_outlives_the_director(federation, codec: Codec, codec_file: Path):
    federation.submit(further=table(codec), codec=codec_file)
    codec_file.unlink()
    artifacts = federation.folder / "artifacts"
    forgotten = artifacts / digest_of(b"nobody's")
    forgotten.write_bytes(b"nobody's")
    federation.director.close()
    federation.director = Director(federation.folder, load_config(federation.folder))
    federation.address = f"127.0.0.1:{federation.director.port}"
    puppet = federation.puppet("site-a")
    parts = puppet.client.download(m.DownloadRequest(codec.digest))
    assert b"".join(bytes(part.content) for part in parts if isinstance(part, m.Data)) == codec_bytes(codec)
    assert not forgotten.exists()


def test_a_codec_that_nobody_puts_is_asked_for(federation, codec: Codec):
    with pytest.raises(PlanError, match="no file of the plan, and no codec is given"):
        federation.submit(further=table(codec))


def test_another_file_than_the_one_that_is_named_is_not_kept(federation, codec: Codec, tmp_path: Path):
    file = tmp_path / "codec.safetensors"
    file.write_bytes(codec_bytes(codec) + b"\0")
    with pytest.raises(UnsendableUpdateError):
        federation.submit(further=table(codec), codec=file)
    puppet = federation.puppet("site-a")
    with pytest.raises(UnknownArtifactError):
        list(puppet.client.download(m.DownloadRequest(codec.digest)))
