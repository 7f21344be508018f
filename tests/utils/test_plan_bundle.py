import json
import os

import numpy as np
import pytest
from fedveil.utils import plan_bundle
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import MalformedMessageError, PlanError
from fedveil.utils.plan_bundle import PlanKind
from fedveil.utils.recipe import Choice, Recipe
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


# bundles from somebody who means harm


def replaced(path, how):
    """Put something else in a file's place."""
    content = path.read_bytes()
    path.unlink()
    if how == "link":
        (path.parent / "elsewhere").write_bytes(content)
        path.symlink_to(path.parent / "elsewhere")
    elif how == "dangling":
        path.symlink_to("/nowhere")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["link", "dangling", "pipe", "folder", "device"])
@pytest.mark.parametrize("file", ["manifest.json", "plan.py", "layout.json", "initial.safetensors"])
def test_only_plain_files_are_read_and_nothing_is_followed_or_waited_for(folder, file, how):
    bundle = plan_bundle.open_bundle(folder)
    path = folder / file if file == "manifest.json" else bundle.blob_path(file)
    replaced(path, how)
    with pytest.raises(PlanError, match=r"is a link|no plain file|has 0 bytes"):
        plan_bundle.open_bundle(folder)
    if file != "manifest.json":
        with pytest.raises(PlanError, match=r"is a link|no plain file"):
            bundle.blob(file)


def test_an_empty_file_of_a_plan_cannot_be_a_pipe(tmp_path):
    """Its size and digest would fit, if anybody waited for the other end."""
    write(tmp_path, sources={"plan.py": b"class Toy: ...\n", "empty.py": b""})
    replaced(plan_bundle.blob_file(tmp_path, digest_of(b"")), "pipe")
    with pytest.raises(PlanError, match=r"empty\.py is no plain file"):
        plan_bundle.open_bundle(tmp_path)


@pytest.mark.parametrize("how", ["link", "pipe", "device"])
def test_a_download_that_is_no_plain_file_is_not_adopted(tmp_path, how):
    (tmp_path / "came").write_bytes(b"right")
    replaced(tmp_path / "came", how)
    with pytest.raises(PlanError, match=r"is a link|no plain file"):
        plan_bundle.adopt_blob(tmp_path, digest_of(b"right"), tmp_path / "came")
    assert not (tmp_path / "blobs").exists()


def test_names_that_differ_in_capital_letters_alone_and_too_many_files_are_refused(tmp_path):
    with pytest.raises(PlanError, match="capital letters"):
        write(tmp_path, sources={"plan.py": b"", "Plan.py": b""})
    with pytest.raises(PlanError, match="more than 1000"):
        write(tmp_path, sources={"plan.py": b""} | {f"f{n}.txt": b"" for n in range(1000)})


def forged(folder, files):
    """A manifest that fits the bytes of these files, whatever they are."""
    document = json.loads((folder / "manifest.json").read_bytes())
    for path, raw in files.items():
        (folder / "new").write_bytes(raw)
        plan_bundle.adopt_blob(folder, digest_of(raw), folder / "new")
        entry = next(one for one in document["files"] if one["path"] == path)
        entry.update(sha256=digest_of(raw), size=len(raw))
        if path == "layout.json":
            document["layout"] = digest_of(raw)
    return plan_bundle.store_manifest(folder, canonical_json(document))


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [10**30]])
def test_a_layout_that_announces_more_than_the_weights_hold_is_refused_before_anything_is_made_of_it(folder, shape):
    raw = canonical_json({"entries": [["w", shape, 0, "parameter"]], "exact": []})
    forged(folder, {"layout.json": raw})
    with pytest.raises(PlanError, match=r"initial\.safetensors is no model of its layout"):
        plan_bundle.open_bundle(folder)


@pytest.mark.parametrize(
    "head", [b"\xff" * 8, (1 << 62).to_bytes(8, "little"), (1 << 20).to_bytes(8, "little"), bytes(8)]
)
def test_weights_whose_header_announces_something_else_are_refused(folder, head):
    raw = plan_bundle.open_bundle(folder).blob("initial.safetensors")
    forged(folder, {"initial.safetensors": head + raw[8:]})
    with pytest.raises(PlanError, match=r"initial\.safetensors is no model of its layout"):
        plan_bundle.open_bundle(folder)


def test_a_layout_of_more_extents_than_arrays_have_or_of_too_many_bytes_is_refused(folder, monkeypatch):
    forged(folder, {"layout.json": canonical_json({"entries": [["w", [1] * 65, 0, "parameter"]], "exact": []})})
    with pytest.raises(MalformedMessageError, match="at most 32 extents"):
        plan_bundle.open_bundle(folder)
    monkeypatch.setattr(plan_bundle, "MAX_LAYOUT_BYTES", 10)
    with pytest.raises(PlanError, match="expected 10 at most"):
        plan_bundle.open_bundle(folder)


def test_an_example_of_endless_size_is_refused():
    with pytest.raises(PlanError, match="numbers of an example"):
        DataSpec("x", DataKind.IMAGES, (1, 1 << 20, 1 << 20))


# plans that hold no code

RECIPE = Recipe(Choice("small-cnn", {"width": 16}), Choice("cross-entropy", {}), Choice("sgd", {}), (), ("loss",))


def test_a_declarative_plan_has_a_recipe_and_no_file_of_its_own(tmp_path):
    declared = {"kind": PlanKind.DECLARATIVE, "entry": "", "sources": {}, "recipe": RECIPE}
    manifest = write(tmp_path / "a", **declared)
    assert manifest.is_declarative
    assert (
        plan_bundle.open_bundle(tmp_path / "a", manifest.digest).manifest.recipe.to_document() == RECIPE.to_document()
    )
    for changes in (
        {"recipe": None},
        {"sources": {"plan.py": b""}},
        {"entry": "plan.py:Toy", "sources": {"plan.py": b""}},
        {"kind": PlanKind.TORCH},
    ):
        with pytest.raises(PlanError):
            write(tmp_path / "b", **(declared | changes))
    assert not (tmp_path / "b").exists()


def test_plans_without_recipe_or_modality_have_the_bytes_that_they_always_had(tmp_path):
    """The digest is the one that version 0.1.0 gave before there were recipes."""
    assert write(tmp_path).digest == "60106362a3183f6b2bc85199bed9e8eeea0abb9e7c71eb661b0d67f13cab5375"
    seen = write(tmp_path, data=DataSpec("x", DataKind.IMAGES, (1, 2, 2), modality="DX"))
    assert plan_bundle.read_manifest(seen.to_json()).data.modality == "DX"
