"""Plans and models come whole, or are refused before anything reads them."""

import json
import os
import threading

import numpy as np
import pytest
from fedveil.envoy.fetching import Fetcher
from fedveil.envoy.patience import Patience
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import (
    DigestMismatchError,
    FederationError,
    LengthMismatchError,
    MalformedMessageError,
    PlanError,
    ProtocolError,
    StorageError,
    UnknownArtifactError,
    UnreachableError,
)
from fedveil.utils.messages import Closing, Data, Opening, Task, TaskKind, TaskRef
from fedveil.utils.plan_bundle import PlanKind, open_bundle, write_bundle
from fedveil.utils.tensors import Layout, Role, canonical_json, digest_of, model_pieces

LAYOUT = Layout.of([("w", (1000,), Role.PARAMETER)])
INITIAL = np.arange(1000, dtype=np.float32)
MODEL = b"".join(model_pieces(LAYOUT, INITIAL + 1, b""))


class Director:
    """Gives what it has, in small parts, and breaks the line where it is told to."""

    def __init__(self, bundle):
        self.has = {bundle.digest: bundle.manifest.to_json(), digest_of(MODEL): MODEL}
        self.has |= {file.sha256: bundle.blob(file.path) for file in bundle.manifest.files}
        self.breaks = []  # offsets behind which a line breaks, once each
        self.damages = 0  # downloads that come with a wrong byte
        self.opening = lambda opening: opening
        self.parts = lambda parts: parts
        self.asked = []

    def download(self, request):
        self.asked.append((request.digest, request.offset))
        if request.digest not in self.has:
            raise UnknownArtifactError("there is none")
        content = self.has[request.digest]
        if self.damages:
            self.damages -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        yield self.opening(Opening(len(content), request.offset, digest=request.digest))
        yield from self.parts(self._data(content, request.offset))

    def _data(self, content, offset):
        while offset < len(content):
            end = min(offset + 97, len(content))
            if self.breaks and offset <= self.breaks[0] <= end:
                end = self.breaks.pop(0)
                yield Data(content[offset:end])
                raise UnreachableError("the line broke")
            yield Data(content[offset:end])
            offset = end


@pytest.fixture
def bundle(tmp_path):
    write_bundle(
        tmp_path / "bundle",
        name="Toy",
        kind=PlanKind.ARRAY,
        entry="plan.py:Toy",
        sources={"plan.py": b"class Toy: pass\n", "empty.py": b""},
        settings={},
        layout=LAYOUT,
        initial=(INITIAL, b""),
        data=DataSpec("none", DataKind.NONE),
        software="0.1.0",
    )
    return open_bundle(tmp_path / "bundle")


@pytest.fixture
def director(bundle):
    return Director(bundle)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "site"
    made.mkdir()
    return made


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr("fedveil.envoy.patience._FIRST_SECONDS", 0.0)
    return Patience(threading.Event())


@pytest.fixture
def fetcher(director, folder):
    return Fetcher(director, folder, 1 << 20)


def ref_of(bundle, **changes):
    return TaskRef(**({"run": "lungs-1", "round": 1, "attempt": 1, "plan": bundle.digest} | changes))


def task_of(bundle, **changes):
    fields = {
        "ref": ref_of(bundle),
        "kind": TaskKind.TRAIN,
        "model": digest_of(MODEL),
        "model_bytes": len(MODEL),
        "layout": LAYOUT.digest,
        "seed": bytes(32),
        "seconds_left": 60.0,
        "min_participants": 1,
        "cohort": ("site-a",),
    }
    return Task(**(fields | changes))


# plans


def test_a_plan_comes_whole_an_empty_file_too_and_only_once(fetcher, director, bundle, folder, patience):
    fetched = fetcher.plan(ref_of(bundle), patience)
    assert fetched.manifest == bundle.manifest
    assert fetched.blob("empty.py") == b""
    asked = len(director.asked)
    assert fetcher.plan(ref_of(bundle, round=2), patience) is fetched
    assert len(director.asked) == asked
    assert Fetcher(director, folder, 1 << 20).plan(ref_of(bundle), patience).digest == bundle.digest
    assert len(director.asked) == asked + 1  # after a restart, the manifest alone


def test_an_empty_file_may_come_after_another(fetcher, director, bundle, patience):
    (fetcher._work / "arriving").write_bytes(b"something longer")
    assert fetcher.plan(ref_of(bundle), patience).blob("empty.py") == b""


def test_a_plan_that_the_director_does_not_have_is_refused(fetcher, bundle, patience):
    with pytest.raises(UnknownArtifactError):
        fetcher.plan(ref_of(bundle, plan="ab" * 32), patience)


def test_a_plan_that_is_no_manifest_is_refused(fetcher, director, bundle, folder, patience):
    for raw in (b"no manifest", b"{}"):
        director.has[digest_of(raw)] = raw
        with pytest.raises(MalformedMessageError, match="not a plan manifest"):
            fetcher.plan(ref_of(bundle, plan=digest_of(raw)), patience)
    assert not (folder / "plans").exists()


def test_a_manifest_that_is_too_long_is_refused_before_it_is_taken(fetcher, director, bundle, folder, patience):
    raw = b"x" * ((1 << 20) + 1)
    director.has[digest_of(raw)] = raw
    with pytest.raises(LengthMismatchError, match="expected 1048576 at most"):
        fetcher.plan(ref_of(bundle, plan=digest_of(raw)), patience)
    assert (folder / "work" / "arriving").stat().st_size == 0


def manifest_with(director, bundle, **changes):
    document = json.loads(bundle.manifest.to_json())
    for path, values in changes.pop("files", {}).items():
        next(file for file in document["files"] if file["path"] == path).update(values)
    raw = canonical_json(document | changes)
    director.has[digest_of(raw)] = raw
    return digest_of(raw)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"files": {"plan.py": {"size": 1 << 30}}},
            PlanError,
            r"Toy holds \d+ bytes; this envoy takes 1048576 at most",
        ),
        ({"files": {p: {"size": 600 << 10} for p in ("plan.py", "empty.py")}}, PlanError, r"Toy holds \d+ bytes"),
        ({"files": {"plan.py": {"size": 3}}}, LengthMismatchError, "has 16 bytes, expected 3 at most"),
        ({"files": {"plan.py": {"size": 17}}}, PlanError, "has 16 bytes, expected 17"),
        ({"files": {"plan.py": {"sha256": "ab" * 32}}}, UnknownArtifactError, "none"),
        ({"layout": "ab" * 32}, PlanError, "layout.json is layout"),
    ],
)
def test_a_plan_whose_files_are_not_what_it_says_is_refused(fetcher, director, bundle, patience, changes, error, words):
    with pytest.raises(error, match=words):
        fetcher.plan(ref_of(bundle, plan=manifest_with(director, bundle, **changes)), patience)
    assert fetcher.plan(ref_of(bundle), patience).digest == bundle.digest


def test_a_layout_that_would_fill_the_memory_is_refused_before_it_is_taken(director, bundle, folder, patience):
    fetcher = Fetcher(director, folder, 1 << 30)
    digest = manifest_with(director, bundle, files={"layout.json": {"size": (16 << 20) + 1}})
    with pytest.raises(PlanError, match=r"layout\.json has 16777217 bytes, expected 16777216 at most"):
        fetcher.plan(ref_of(bundle, plan=digest), patience)
    assert [asked for asked, _ in director.asked] == [digest]


def test_of_many_plans_the_last_used_ones_are_kept(fetcher, director, bundle, folder, patience):
    digests = [manifest_with(director, bundle, settings={"step": step}) for step in range(12)]
    for digest in digests:
        fetcher.plan(ref_of(bundle, plan=digests[0]), patience)  # used again before each
        assert fetcher.plan(ref_of(bundle, plan=digest), patience).digest == digest
    kept = {path.name for path in (folder / "plans").iterdir()}
    assert kept == {digests[0], *digests[-7:]}
    assert fetcher.plan(ref_of(bundle, plan=digests[1]), patience).digest == digests[1]  # fetched again


def test_plans_that_never_came_whole_do_not_pile_up_either(fetcher, director, bundle, folder, patience):
    for step in range(12):
        files = {"files": {"plan.py": {"sha256": "ab" * 32}}}
        with pytest.raises(UnknownArtifactError):
            fetcher.plan(
                ref_of(bundle, plan=manifest_with(director, bundle, settings={"step": step}, **files)), patience
            )
    assert len(list((folder / "plans").iterdir())) == 8


def test_a_plan_that_was_changed_at_the_site_is_noticed_after_a_restart(fetcher, director, bundle, folder, patience):
    fetched = fetcher.plan(ref_of(bundle), patience)
    fetched.blob_path("plan.py").write_bytes(b"class Toy: evil\n")
    with pytest.raises(PlanError, match=r"plan\.py has SHA-256"):
        Fetcher(director, folder, 1 << 20).plan(ref_of(bundle), patience)


# models


@pytest.fixture
def plan(fetcher, bundle, patience):
    return fetcher.plan(ref_of(bundle), patience)


def test_a_model_comes_whole_and_once(fetcher, director, plan, bundle, patience):
    path = fetcher.model(task_of(bundle), plan, patience)
    assert path.read_bytes() == MODEL
    asked = len(director.asked)
    assert fetcher.model(task_of(bundle), plan, patience) == path
    assert len(director.asked) == asked


def test_the_first_model_is_the_plans_own(fetcher, director, plan, bundle, patience):
    asked = len(director.asked)
    initial = bundle.manifest.file("initial.safetensors").sha256
    path = fetcher.model(task_of(bundle, model=initial), plan, patience)
    assert digest_of(path.read_bytes()) == initial
    assert len(director.asked) == asked


@pytest.mark.parametrize("tenth", range(10))
def test_a_download_cut_at_any_tenth_is_resumed_where_it_was_cut(fetcher, director, plan, bundle, patience, tenth):
    cut = len(MODEL) * tenth // 10
    director.breaks = [cut]
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL
    assert director.asked[-2:] == [(digest_of(MODEL), 0), (digest_of(MODEL), cut)]


def test_a_download_cut_at_every_tenth_comes_whole(fetcher, director, plan, bundle, patience):
    cuts = [len(MODEL) * tenth // 10 for tenth in range(1, 10)]
    director.breaks = list(cuts)
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL
    assert [offset for _, offset in director.asked[-10:]] == [0, *cuts]


def test_a_damaged_download_is_fetched_again(fetcher, director, plan, bundle, patience):
    director.damages = 2
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL


def test_a_model_that_comes_damaged_three_times_is_refused_and_may_be_fetched_later(
    fetcher, director, plan, bundle, patience
):
    director.damages = 3
    with pytest.raises(DigestMismatchError, match="came damaged 3 times"):
        fetcher.model(task_of(bundle), plan, patience)
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL


@pytest.mark.parametrize("length", [len(MODEL) + 1, 1 << 20, 1 << 40])
def test_a_lying_length_is_refused_before_room_is_made_for_it(
    fetcher, director, plan, bundle, folder, patience, length
):
    director.opening = lambda opening: Opening(length, opening.offset)
    with pytest.raises(LengthMismatchError, match=f"has {length} bytes, expected {len(MODEL)} at most"):
        fetcher.model(task_of(bundle), plan, patience)
    assert (folder / "work" / "model.safetensors").stat().st_size == 0


@pytest.mark.parametrize(
    ("opening", "parts", "error"),
    [
        (lambda opening: Opening(opening.length, 4), None, MalformedMessageError),
        (lambda _: Data(b"x"), None, MalformedMessageError),
        (lambda opening: Opening(opening.length - 1, 0), None, MalformedMessageError),  # more than announced
        (None, lambda _: [], LengthMismatchError),
        (None, lambda parts: [next(parts)], LengthMismatchError),
        (None, lambda _: [Closing("ab" * 32)], MalformedMessageError),
        (None, lambda _: [Opening(3)], MalformedMessageError),
        (None, lambda parts: [*parts, Data(b"x")], MalformedMessageError),
    ],
)
def test_a_stream_that_is_no_download_is_refused(fetcher, director, plan, bundle, patience, opening, parts, error):
    director.opening, director.parts = opening or director.opening, parts or director.parts
    with pytest.raises(error):
        fetcher.model(task_of(bundle), plan, patience)
    director.opening = director.parts = lambda same: same
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL


def test_an_empty_answer_is_refused(fetcher, director, plan, bundle, patience):
    director.download = lambda _: iter(())
    with pytest.raises(MalformedMessageError):
        fetcher.model(task_of(bundle), plan, patience)


@pytest.mark.parametrize("changes", [{"model_bytes": len(MODEL) + 4}, {"layout": "ab" * 32}, {"model_bytes": 1 << 40}])
def test_a_task_that_contradicts_its_plan_is_refused_before_anything_is_fetched(
    fetcher, director, plan, bundle, patience, changes
):
    asked = len(director.asked)
    with pytest.raises(LengthMismatchError):
        fetcher.model(task_of(bundle, **changes), plan, patience)
    assert len(director.asked) == asked


def test_a_model_larger_than_the_envoy_takes_is_refused_before_room_is_made(director, folder, plan, bundle, patience):
    fetcher = Fetcher(director, folder, len(MODEL) - 1)
    with pytest.raises(LengthMismatchError, match=f"a model of {len(MODEL)} bytes; this envoy takes {len(MODEL) - 1}"):
        fetcher.model(task_of(bundle), plan, patience)
    assert not (folder / "work" / "model.safetensors").exists()


def test_while_the_directors_disk_is_full_a_download_is_asked_for_again(fetcher, director, plan, bundle, patience):
    download, failures = director.download, [StorageError("the director's disk is full")] * 3

    def full(request):
        if failures:
            raise failures.pop()
        yield from download(request)

    director.download = full
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL
    assert not failures


def test_a_model_that_follows_another_overwrites_all_of_it(fetcher, director, plan, bundle, patience):
    other = b"".join(model_pieces(LAYOUT, INITIAL - 7, b""))
    director.has[digest_of(other)] = other
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL
    assert fetcher.model(task_of(bundle, model=digest_of(other)), plan, patience).read_bytes() == other


def test_a_download_ends_when_nobody_wants_it_any_more(director, folder, bundle):
    withdrawn = threading.Event()
    withdrawn.set()
    director.breaks = [10]
    with pytest.raises(ProtocolError, match="nobody waits"):
        Fetcher(director, folder, 1 << 20).plan(ref_of(bundle), Patience(withdrawn))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_at_the_site_is_said(fetcher, director, plan, bundle, patience, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match="site: No space left on device") as caught:
        fetcher.model(task_of(bundle), plan, patience)
    assert isinstance(caught.value, FederationError)
    monkeypatch.undo()
    assert fetcher.model(task_of(bundle), plan, patience).read_bytes() == MODEL
