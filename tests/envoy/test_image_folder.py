import contextlib
import io
import zipfile

import numpy as np
import pytest
from fedveil.envoy import pictures
from fedveil.envoy.datasets import DataOptions, GivenSplits, Split, SplitRule, check, inspect, load
from fedveil.envoy.image_folder import arrange
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import DatasetError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

CLASSES = ("normal", "pneumonia")


def images(*shape, classes=CLASSES):
    return DataSpec("xrays", DataKind.IMAGES, shape, classes)


def reasons(inspection):
    return {one.id.rpartition("/")[2]: one.reason for one in inspection.report.quarantined}


def zipped(folder, path, wrapper=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, wrapper + file.relative_to(folder).as_posix())
    return path


def test_a_folder_is_a_class_and_pixels_come_back_as_they_are(image_folder):
    added = inspect("xrays", image_folder, DataOptions(), 1.0)
    loaded = load(added.record, added.index, images(1, 10, 12))
    assert added.record.classes == CLASSES
    assert loaded.features.dtype == np.uint8
    assert loaded.features.shape == (20, 1, 10, 12)
    assert np.bincount(loaded.labels).tolist() == [10, 10]
    ordered = sorted(added.index.examples, key=lambda example: example.split)
    for example, pixels, label in zip(ordered, loaded.features, loaded.labels, strict=True):
        assert np.array_equal(pixels[0], np.asarray(Image.open(image_folder / example.id)))
        assert example.id.startswith(CLASSES[label])


def test_unreadable_images_are_quarantined_with_the_reason_and_the_rest_goes_on(image_folder, jpeg, png):
    bad = image_folder / "normal"
    (bad / "cut.jpg").write_bytes(jpeg(1)[:-200])
    (bad / "cut.png").write_bytes(png(1)[:60])
    (bad / "text.png").write_text("patient has a cough")
    (bad / "empty.png").write_bytes(b"")
    (bad / "gone.png").symlink_to("nowhere.png")
    (image_folder / "stray.png").write_bytes(png(2))
    (image_folder / "notes.txt").write_text("x")
    (image_folder / ".hidden.png").write_bytes(b"x")
    added = inspect("xrays", image_folder, DataOptions(), 1.0)
    assert added.record.num_examples == 20
    assert added.record.num_quarantined == 6
    assert reasons(added) == {
        "cut.jpg": "damaged or cut short",
        "cut.png": "damaged or cut short",
        "text.png": "neither PNG nor JPEG inside",
        "empty.png": "neither PNG nor JPEG inside",
        "gone.png": "cannot be read: No such file or directory",
        "stray.png": "not in the folder of a class",
    }
    assert any("1 files are no PNG or JPEG" in line for line in added.report.lines())
    assert len(load(added.record, added.index, images(1, 10, 12))) == 20


def test_deep_pixels_become_float32_and_mix_with_shallow_ones(tmp_path, png):
    for label, dtype in (("normal", np.uint16), ("pneumonia", np.uint8)):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(png(3, dtype=dtype))
    added = inspect("xrays", tmp_path, DataOptions(), 1.0)
    loaded = load(added.record, added.index, images(1, 10, 12))
    assert added.record.has_deep_pixels
    assert loaded.features.dtype == np.float32
    for label, dtype in enumerate((np.uint16, np.uint8)):
        truth = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (10, 12), dtype, True) / np.iinfo(dtype).max
        assert np.allclose(loaded.features[loaded.labels == label][0, 0], truth, atol=1e-6)


def test_colour_becomes_grey_grey_becomes_colour_and_both_are_resized_as_pillow_does(tmp_path, jpeg, png):
    for label, raw in (("normal", png(1)), ("pneumonia", jpeg(2))):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(raw)
    added = inspect("xrays", tmp_path, DataOptions(), 1.0)
    for channels, mode in ((1, "L"), (3, "RGB")):
        loaded = load(added.record, added.index, images(channels, 7, 5))
        assert loaded.features.shape == (2, channels, 7, 5)
        for label, raw in enumerate((png(1), jpeg(2))):
            oracle = Image.open(io.BytesIO(raw)).convert(mode).resize((5, 7), Image.Resampling.BILINEAR)
            truth = np.asarray(oracle).reshape(7, 5, channels).transpose(2, 0, 1)
            assert np.array_equal(loaded.features[loaded.labels == label][0], truth)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_png_and_jpeg_is_read(mode):
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, "JPEG" if mode == "CMYK" else "PNG")
    pixels = pictures.decode(file.getvalue())
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 4, 1 if mode in ("1", "L", "LA") else 3)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_bytes_are_either_read_or_refused(data):
    file = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    raw = bytearray(file.getvalue()[: data.draw(st.integers(0, len(file.getvalue())))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(raw) - 1)), max_size=4)) if raw else ():
        raw[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetError):  # and nothing else
        assert pictures.decode(bytes(raw)).dtype == np.uint8


def test_an_image_that_claims_to_be_huge_is_not_decoded(monkeypatch, png):
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match="12 x 10 pixels"):
        pictures.decode(png(1))


def test_all_images_of_a_patient_are_in_one_split(image_folder):
    options = DataOptions(patient=r"(person\d+)", rule=SplitRule(0.4, 0.3, 0.3))
    added = inspect("xrays", image_folder, options, 1.0)
    pairs = {(example.id.split("/")[1].split("_")[0], example.split) for example in added.index.examples}
    assert len(pairs) == 5
    assert len({split for _, split in pairs}) > 1


def test_a_name_that_the_patient_pattern_does_not_fit_is_quarantined(image_folder, png):
    (image_folder / "normal" / "scan.png").write_bytes(png(500))
    added = inspect("xrays", image_folder, DataOptions(patient=r"(person\d+)"), 1.0)
    assert reasons(added) == {"scan.png": "its name does not fit the patient pattern"}


@pytest.mark.parametrize(("pattern", "words"), [("(person", "not a regular expression"), (r"person\d+", "no group")])
def test_a_wrong_patient_pattern_is_refused(image_folder, pattern, words):
    with pytest.raises(DatasetError, match=words):
        inspect("xrays", image_folder, DataOptions(patient=pattern), 1.0)


def test_given_split_folders_are_respected(tmp_path, png):
    for place, part in enumerate(("train", "val", "test", "train")):
        folder = tmp_path / part / CLASSES[place % 2] / "deeper"
        folder.mkdir(parents=True)
        (folder / f"{place}.png").write_bytes(png(place))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(png(9))
    added = inspect("xrays", tmp_path, DataOptions(), 1.0)
    assert {example.id.split("/")[0]: example.split.word for example in added.index.examples} == {
        "train": "train",
        "val": "validation",
        "test": "test",
    }
    assert added.record.classes == CLASSES
    assert reasons(added) == {"x.png": "outside the train, val and test folders"}


def test_a_zip_gives_what_its_folder_gives(tmp_path, image_folder):
    path = zipped(image_folder, tmp_path / "xrays.zip", wrapper="chest/xray/")
    folder, archive = (inspect("xrays", where, DataOptions(), 1.0) for where in (image_folder, path))
    assert archive.record.format.value == "zip"
    assert [(e.label, e.split, e.digest) for e in archive.index.examples] == [
        (e.label, e.split, e.digest) for e in folder.index.examples
    ]
    spec = images(1, 8, 8)
    assert np.array_equal(
        load(archive.record, archive.index, spec).features, load(folder.record, folder.index, spec).features
    )


def test_an_entry_that_is_damaged_in_the_zip_is_quarantined(tmp_path, image_folder):
    path = zipped(image_folder, tmp_path / "xrays.zip")
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 10] ^= 255
    path.write_bytes(raw)
    added = inspect("xrays", path, DataOptions(), 1.0)
    assert [one.reason for one in added.report.quarantined] == ["damaged in the zip"]
    assert added.record.num_examples == 19


def test_a_class_outside_the_given_ones_is_quarantined(image_folder, png):
    (image_folder / "cat").mkdir()
    (image_folder / "cat" / "c.png").write_bytes(png(900))
    added = inspect("xrays", image_folder, DataOptions(classes=("Pneumonia", "NORMAL")), 1.0)
    assert added.record.classes == ("Pneumonia", "NORMAL")
    assert reasons(added) == {"c.png": "label outside the classes"}
    assert {example.label for example in added.index.examples if example.id.startswith("normal")} == {1}


def test_the_folder_of_a_known_class_is_not_taken_for_a_wrapper():
    names = ["normal/person1/a.png", "normal/person2/b.png"]
    assert {place.label for place in arrange(names, frozenset({"normal"}), may_unwrap=True)[0]} == {"normal"}
    assert {place.label for place in arrange(names, frozenset(), may_unwrap=False)[0]} == {"normal"}


@pytest.mark.parametrize("content", [None, "text.txt", "a/text.png"])
def test_an_empty_folder_is_refused(tmp_path, content):
    if content:
        (tmp_path / content).parent.mkdir(exist_ok=True)
        (tmp_path / content).write_text("no image")
    with pytest.raises(DatasetError, match="xrays is empty"):
        inspect("xrays", tmp_path, DataOptions(), 1.0)


def test_copies_of_one_image_are_in_one_split_and_are_told(image_folder):
    raw = (image_folder / "normal" / "person0_0.png").read_bytes()
    for place in range(20):
        (image_folder / "pneumonia" / f"copy{place}.png").write_bytes(raw)
    added = inspect("xrays", image_folder, DataOptions(), 1.0)
    digest = next(e.digest for e in added.index.examples if e.id == "normal/person0_0.png")
    assert len({example.split for example in added.index.examples if example.digest == digest}) == 1
    assert "20 examples are copies of others" in added.report.warnings
    assert "1 contents are in more than one class" in added.report.warnings


def test_copies_across_given_splits_are_told(tmp_path, png):
    for place, part in enumerate(("train", "val", "test")):
        (tmp_path / part / "normal").mkdir(parents=True)
        (tmp_path / part / "normal" / f"person1_{place}.png").write_bytes(png(place // 2))
    added = inspect("xrays", tmp_path, DataOptions(patient=r"(person\d)"), 1.0)
    assert "1 contents are in more than one split: what is tested was trained on" in added.report.warnings
    assert "1 patients are in more than one of the given splits" in added.report.warnings
    assert "all examples are of one class" in added.report.warnings


def test_check_finds_missing_changed_and_new_files(image_folder, png):
    (image_folder / "normal" / "bad.png").write_bytes(b"x")
    added = inspect("xrays", image_folder, DataOptions(), 1.0)
    assert check(added.record, added.index).is_unchanged
    (image_folder / "normal" / "person0_0.png").unlink()
    (image_folder / "normal" / "person1_1.png").write_bytes(png(777))
    (image_folder / "pneumonia" / "late.png").write_bytes(png(778))
    report = check(added.record, added.index)
    assert report.missing == ("normal/person0_0.png",)
    assert report.changed == ("normal/person1_1.png",)
    assert report.new == ("pneumonia/late.png",)
    assert not report.is_unchanged
    with pytest.raises(
        DatasetError, match=r"2 of 20 examples are missing or changed .* run `envoy data check xrays`"
    ) as error:
        load(added.record, added.index, images(1, 10, 12))
    assert str(image_folder) not in str(error.value)


def test_a_folder_that_is_gone_is_told_without_its_path(image_folder):
    added = inspect("xrays", image_folder, DataOptions(), 1.0)
    image_folder.rename(image_folder.with_name("moved"))
    with pytest.raises(DatasetError, match="cannot be read as it was recorded") as error:
        load(added.record, added.index, images(1, 10, 12))
    assert str(image_folder) not in str(error.value)


def test_the_chest_x_rays_as_published_are_read(real_set):
    added = inspect("xrays", real_set("chest-xray-pneumonia/originals"), DataOptions(), 1.0)
    assert added.record.num_examples == 23
    assert added.record.num_quarantined == 0
    assert load(added.record, added.index, images(1, 64, 64)).features.std() > 30


def test_the_chest_x_rays_in_the_zip_are_split_by_patient(real_set):
    options = DataOptions(patient=r"(person\d+|(?:NORMAL2-)?IM-\d+)", rule=SplitRule(given=GivenSplits.KEEP_TEST))
    added = inspect("xrays", real_set("chest-xray-pneumonia/chest_xray_224_jpeg.zip"), options, 1.0)
    assert added.record.num_examples == 5856
    assert added.record.num_test == 624
    loaded = load(added.record, added.index, images(1, 28, 28))
    assert [len(loaded.part(split)[1]) for split in Split] == [added.record.num_train, added.record.num_validation, 624]
