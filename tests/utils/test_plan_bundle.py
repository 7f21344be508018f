import json

import numpy as np
import pytest
from fedveil.utils import plan_bundle
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import MalformedMessageError, PlanError
from fedveil.utils.plan_bundle import PlanKind
from fedveil.utils.tensors import Digest, ExactEntry, Layout, Role, canonical_json, digest_of
from hypothesis import given
from hypothesis import strategies as st

LAYOUT = Layout.of([("w", (2, 3), Role.PARAMETER)], [ExactEntry("steps", (), "I64")])
EXACT = np.array(7, "<i8").tobytes()


def write(folder, **changes):
    arguments = {
        "name": "toy",
        "kind": PlanKind.ARRAY,
        "entry": "plan.py:Toy",
        "sources": {"plan.py": b"class Toy: ...\n", "parts/net.py": b"x = 1\n"},
        "settings": {"lr": 0.5, "steps": 3, "fast": True, "name": "adam"},
        "layout": LAYOUT,
        "initial": (np.arange(6, dtype=np.float32), EXACT),
        "data": DataSpec("chest-xray", DataKind.IMAGES, (1, 28, 28), ("normal", "pneumonia")),
        "software": "0.1.0",
    }
    return plan_bundle.write_bundle(folder, **(arguments | changes))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_what_was_written_is_what_is_opened(folder):
    bundle = plan_bundle.open_bundle(folder)
    vector, exact = bundle.initial()
    assert bundle.manifest.settings == {"lr": 0.5, "steps": 3, "fast": True, "name": "adam"}
    assert type(bundle.manifest.settings["fast"]) is bool
    assert bundle.manifest.data.classes == ("normal", "pneumonia")
    assert bundle.layout == LAYOUT
    assert vector.tolist() == [0, 1, 2, 3, 4, 5]
    assert not vector.flags.writeable
    assert exact == EXACT
    assert bundle.blob("parts/net.py") == b"x = 1\n"


def test_digest_is_that_of_the_raw_bytes_and_the_same_for_the_same_plan(folder, tmp_path):
    assert plan_bundle.open_bundle(folder).digest == digest_of((folder / "manifest.json").read_bytes())
    assert write(tmp_path / "again").digest == plan_bundle.open_bundle(folder).digest
    assert write(tmp_path / "other", settings={"lr": 0.25}).digest != plan_bundle.open_bundle(folder).digest


def test_a_bundle_can_be_put_together_from_downloaded_blobs(folder, tmp_path):
    raw, new = (folder / "manifest.json").read_bytes(), tmp_path / "new"
    manifest = plan_bundle.store_manifest(new, raw)
    missing = plan_bundle.missing_blobs(new, manifest)
    assert set(missing) == set(manifest.blobs())
    downloaded = tmp_path / "download"
    for digest, size in missing:
        downloaded.write_bytes(plan_bundle.blob_file(folder, digest).read_bytes())
        assert downloaded.stat().st_size == size
        plan_bundle.adopt_blob(new, digest, downloaded)
    assert plan_bundle.missing_blobs(new, manifest) == ()
    assert plan_bundle.open_bundle(new, expected=manifest.digest).manifest == manifest


def test_wrong_bytes_are_not_stored(tmp_path):
    (tmp_path / "file").write_bytes(b"wrong")
    with pytest.raises(PlanError, match="another SHA-256"):
        plan_bundle.adopt_blob(tmp_path, digest_of(b"right"), tmp_path / "file")
    assert not (tmp_path / "blobs").exists()


@pytest.mark.parametrize("path", ["plan.py", "layout.json", "initial.safetensors", "parts/net.py"])
def test_a_blob_that_is_missing_short_or_changed_is_named(folder, path):
    blob = plan_bundle.open_bundle(folder).blob_path(path)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PlanError, match=f"{path} has SHA-256"):
        plan_bundle.open_bundle(folder)
    blob.write_bytes(content + b"x")
    with pytest.raises(PlanError, match=f"{path} has {len(content) + 1} bytes, expected {len(content)}"):
        plan_bundle.open_bundle(folder)
    blob.unlink()
    with pytest.raises(PlanError, match=f"{path} is missing"):
        plan_bundle.open_bundle(folder)


def test_a_blob_that_is_swapped_after_opening_is_not_handed_out(folder):
    bundle = plan_bundle.open_bundle(folder)
    bundle.blob_path("plan.py").write_bytes(b"class Evil:..\n")
    with pytest.raises(PlanError, match="was changed on disk"):
        bundle.blob("plan.py")


def test_a_folder_that_is_no_bundle_or_another_plans_is_refused(folder, tmp_path):
    with pytest.raises(PlanError, match="no plan bundle"):
        plan_bundle.open_bundle(tmp_path / "nothing")
    with pytest.raises(PlanError, match="expected 000000000000"):
        plan_bundle.open_bundle(folder, expected=Digest("0" * 64))


@pytest.mark.parametrize(
    "path", ["../plan.py", "/plan.py", "a//b.py", "a/../b.py", "a\\b.py", "", ".", "..", "a/", "ä.py", "x" * 300]
)
def test_a_path_that_leaves_the_bundle_is_refused(tmp_path, path):
    with pytest.raises(PlanError, match="plan file"):
        write(tmp_path, sources={"plan.py": b"", path: b""})


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": "other.py:Toy"},
        {"entry": "plan.py"},
        {"entry": "plan.py:not a name"},
        {"name": "no/slash"},
        {"settings": {"lr": float("nan")}},
        {"settings": {"lr": [1]}},
        {"settings": {"two words": 1}},
        {"settings": {"n": 1 << 63}},
    ],
)
def test_what_makes_no_manifest_is_refused_before_anything_is_written(tmp_path, changes):
    with pytest.raises(PlanError):
        write(tmp_path / "bundle", **changes)
    assert not (tmp_path / "bundle").exists()


def _changed(document, keys, value):
    *path, last = keys
    target = document
    for key in path:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return canonical_json(document)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["schema"], "fedveil.plan/2"),
        (["name"], None),
        (["more"], 1),
        (["kind"], "jax"),
        (["files"], {}),
        (["files", 0, "size"], -1),
        (["files", 0, "size"], True),
        (["files", 0, "sha256"], "abc"),
        (["files", 0, "path"], "../x"),
        (["settings"], []),
        (["settings", "lr"], [1]),
        (["data", "shape"], [1, 28]),
        (["data", "kind"], "video"),
        (["data", "classes"], [1]),
        (["data"], 3),
    ],
)
def test_a_manifest_is_read_strictly(folder, keys, value):
    document = json.loads((folder / "manifest.json").read_bytes())
    with pytest.raises(MalformedMessageError, match="not a plan manifest"):
        plan_bundle.read_manifest(_changed(document, keys, value))


def test_a_manifest_with_one_file_twice_or_in_other_bytes_is_refused(folder):
    raw = (folder / "manifest.json").read_bytes()
    document = json.loads(raw)
    document["files"].append(document["files"][0])
    with pytest.raises(MalformedMessageError, match="comes twice"):
        plan_bundle.read_manifest(canonical_json(document))
    with pytest.raises(MalformedMessageError, match="canonical"):
        plan_bundle.read_manifest(raw + b"\n")
    with pytest.raises(MalformedMessageError, match="at most"):
        plan_bundle.read_manifest(b" " * (plan_bundle.MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.from_regex(rb"\{.*\}"))
def test_any_bytes_give_a_manifest_or_one_clear_error(raw):
    with pytest.raises(MalformedMessageError):
        plan_bundle.read_manifest(raw)


def test_initial_weights_of_another_layout_are_refused(tmp_path):
    other = Layout.of([("w", (3, 2), Role.PARAMETER)])
    manifest = write(tmp_path)
    document = json.loads(manifest.to_json())
    (tmp_path / "other").write_bytes(other.to_json())
    plan_bundle.adopt_blob(tmp_path, other.digest, tmp_path / "other")
    for file in document["files"]:
        if file["path"] == "layout.json":
            file.update(sha256=other.digest, size=len(other.to_json()))
    plan_bundle.store_manifest(tmp_path, canonical_json(document))
    with pytest.raises(PlanError, match="is layout"):
        plan_bundle.open_bundle(tmp_path)
