"""The page: all within itself, honest about how many images it rests on, and made from the store alone."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fedveil.gradient_leakage.pictures import Pair, draw_curves, draw_emerging, draw_pairs, drawn
from fedveil.gradient_leakage.report import PAGE, cells_of, write_report
from fedveil.gradient_leakage.rows import Outcome, Row, RunStore
from fedveil.utils.errors import StorageError
from PIL import Image

NONE = dict.fromkeys(
    (
        *("psnr", "ssim", "null_ssim", "reid_rank1", "mse", "null_psnr", "reid_rank5", "network_rank1"),
        *("network_rank5", "psnr_best", "pictured"),
    )
)


def image(seed, channels=1, count=1):
    return np.random.default_rng(seed).random((count, channels, 8, 8), np.float32)


def row(target=0, attack="dlg", **changes):
    figures = {"psnr": 40.0, "ssim": 0.9, "null_ssim": 0.5, "reid_rank1": 1.0, "mse": 1e-4, "null_psnr": 15.0}
    figures |= {"psnr_best": 40.0, "pictured": 1.0}
    figures |= {"baseline_psnr": 18.0, "baseline_ssim": 0.55, "reid_rank5": 1.0, "label_recovery": None}
    figures |= {"network_rank1": None, "network_rank5": None}
    cell = {"case": "pneumonia28", "model": "lenet", "state": "fresh", "batch": 1, "local_steps": 0, "defense": "none"}
    cell |= {"adaptive": False, "knowledge": "labels", "options": "{}", "learning_rate": 0.01, "dtype": "float32"}
    cell |= {"targets": 2, "skip": 0, "seed": 0, "gallery": 100, "patients": f"p{target}", "loss": None, "error": ""}
    spent = {"cpu_seconds": 0.5, "wall_seconds": 0.5, "peak_mb": 100.0}
    key = f"{attack}{target}{changes.get('case', '')}"
    return Row(**{"key": key, "run": key, "attack": attack, "target": target} | cell | figures | spent | changes)


def outcome(key, channels=1, **more):
    truth = image(1, channels)
    arrays = {"truth": truth, "labels": np.array([1]), "patients": np.array(["p"])} | more.pop("arrays", {})
    arrays = {"found": truth, "is_found": np.array([True])} | arrays
    kept = {name: array for name, array in arrays.items() if array is not None}
    return Outcome(key, {}, kept, 0.1, 0.5, 0.5, 100.0, versions={"torch": "2.13.0"}, **more)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path, writing=True) as opened:
        yield opened


def written(store, folder, rows, outcomes, *, gif=True):
    for one in outcomes:
        store.add(one)
    store.put_rows(rows)
    path = write_report(store, folder, gif=gif)
    return path.read_text("utf-8")


class Sources(HTMLParser):
    """Every address and script of a page, and whether its elements nest."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]


def test_the_page_needs_nothing_from_outside_and_runs_nothing(store, tmp_path):
    frames = {"frames": np.zeros((3, 1, 8, 8), np.uint8), "frame_iterations": np.arange(3)}
    page = written(
        store,
        tmp_path,
        [row(0), row(1)],
        [outcome("dlg0", arrays=frames, trace=((0, 1.0), (1, 0.1))), outcome("dlg1")],
    )
    sources = Sources(page)
    assert sources.addresses
    assert all(re.match(r"data:image/(png|gif);base64,[A-Za-z0-9+/=]+$", address) for address in sources.addresses)
    assert not {"script", "link", "iframe", "object"} & set(sources.tags)
    assert "url(" not in page
    assert "@import" not in page


def test_each_picture_is_also_a_file_of_its_own_and_opens(store, tmp_path):
    frames = {"frames": np.zeros((3, 1, 8, 8), np.uint8), "frame_iterations": np.arange(3)}
    page = written(store, tmp_path, [row()], [outcome("dlg0", arrays=frames, trace=((0, 1.0), (1, 0.1)))])
    within = {base64.b64decode(address.partition(",")[2]) for address in Sources(page).addresses}
    files = list((tmp_path / "pictures").iterdir())
    assert {path.read_bytes() for path in files} == within
    assert sorted(path.suffix for path in files) == [".gif", ".png", ".png", ".png"]
    for path in files:
        with Image.open(path) as opened:
            opened.load()


def test_without_gif_no_animation_is_drawn(store, tmp_path):
    frames = {"frames": np.zeros((3, 1, 8, 8), np.uint8), "frame_iterations": np.arange(3)}
    written(store, tmp_path, [row()], [outcome("dlg0", arrays=frames)], gif=False)
    assert not list((tmp_path / "pictures").glob("*.gif"))


def test_the_page_says_on_how_many_images_a_figure_rests_and_that_few_are_no_evidence(store, tmp_path):
    page = written(store, tmp_path, [row(0), row(1)], [outcome("dlg0"), outcome("dlg1")])
    assert "n = 2 images. 2 images a cell: feasibility, not evidence." in page
    assert "Absolute PSNR and SSIM mean nothing here; the excess over\nthe null and re-identification do." in page
    assert "2 of 2" in page
    assert "chance 0.01" in page


def test_thirty_images_are_not_called_mere_feasibility(store, tmp_path):
    rows = [row(target, targets=30) for target in range(30)]
    page = written(store, tmp_path, rows, [outcome(one.run) for one in rows])
    assert "n = 30 images.</p>" in page


def test_one_target_has_no_interval_and_two_have(store, tmp_path):
    one = written(store, tmp_path, [row()], [outcome("dlg0")])
    assert ">0.900</td>" in one
    two = written(store, tmp_path, [row(), row(1, ssim=0.8)], [outcome("dlg1")])
    assert ">0.850<br><span class=faint>0.800 to 0.900</span></td>" in two


def test_what_was_not_measured_is_not_a_number(store, tmp_path):
    page = written(
        store, tmp_path, [row(attack="llg", label_recovery=1.0, **NONE)], [outcome("llg0", arrays={"found": None})]
    )
    line = page[page.index("<b>llg</b>") :].partition("</tr>")[0]
    assert "not<br>sought" in line
    assert "not<br>measurable" in line
    assert "nan" not in line.lower()
    assert "None" not in line


def test_images_without_a_picture_are_counted_and_come_last(store, tmp_path):
    arrays = {"truth": image(1, count=2), "found": image(2, count=2), "is_found": np.array([False, True])}
    page = written(
        store,
        tmp_path,
        [row(batch=2, pictured=0.5, psnr_best=77.7)],
        [outcome("dlg0", arrays=arrays | {"labels": np.array([0, 1]), "patients": np.array(["p", "q"])})],
    )
    assert "1 x 2<br><span class=faint>pictures: 1</span>" in page
    assert "best 77.7" in page


def test_an_attack_that_could_not_be_run_says_why(store, tmp_path):
    page = written(
        store, tmp_path, [row(error="AttackError: layer 0", **NONE)], [outcome("dlg0", arrays={"found": None})]
    )
    assert "cannot be run: AttackError: layer 0" in page


def test_nothing_that_a_name_or_an_error_holds_becomes_markup(store, tmp_path):
    wicked = "<script>alert(1)</script>&\"'"
    described = {"case": wicked, "model": wicked, "defense": wicked, "options": json.dumps({"a": wicked})}
    page = written(store, tmp_path, [row(**described)], [outcome(row(**described).run)])
    page += written(store, tmp_path, [row(attack=wicked, error=wicked)], [outcome(row(attack=wicked).run)])
    assert "script" not in Sources(page).tags
    assert "&lt;script&gt;" in page
    assert all(path.parent == tmp_path / "pictures" for path in (tmp_path / "pictures").rglob("*"))


def test_the_same_store_gives_the_same_page(store, tmp_path):
    first = written(store, tmp_path, [row(), row(1)], [outcome("dlg0", trace=((0, 1.0), (5, 0.5))), outcome("dlg1")])
    write_report(store, tmp_path / "other")
    assert (tmp_path / "other" / PAGE).read_text("utf-8") == first


def test_a_store_without_rows_is_refused(store, tmp_path):
    with pytest.raises(StorageError, match="no cell is complete yet"):
        write_report(store, tmp_path)


def test_rows_of_two_cells_are_told_apart_and_those_of_one_stay_together_in_order():
    rows = [row(1), row(0), row(0, attack="fedavg"), row(0, state="converged", key="x"), row(0, gallery=500, key="y")]
    assert [[one.target for one in cell.rows] for cell in cells_of(rows)] == [[0, 1], [0], [0], [0]]


def test_one_channel_is_drawn_grey_and_three_in_colour_without_smoothing():
    grey = drawn(np.array([[[0.0, 1.0], [0.5, 0.25]]]))
    assert grey.mode == "L"
    assert sorted(set(np.asarray(grey).ravel().tolist())) == [0, 64, 128, 255]
    colour = drawn(np.stack([np.ones((4, 4)), np.zeros((4, 4)), np.zeros((4, 4))]))
    assert colour.mode == "RGB"
    assert np.unique(np.asarray(colour).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        drawn(np.zeros((2, 4, 4)))


def test_values_outside_the_range_and_nan_are_drawn_all_the_same():
    assert set(np.asarray(drawn(np.array([[[-3.0, 7.0], [np.nan, 1.0]]]))).ravel().tolist()) == {0, 255}


def test_a_large_image_is_shrunk():
    assert max(drawn(np.zeros((1, 600, 300))).size) == 128


def test_the_original_stands_above_what_was_found():
    truth, found = np.ones((1, 8, 8)), np.zeros((1, 8, 8))
    sheet = np.asarray(Image.open(io.BytesIO(draw_pairs([Pair(truth, found, ("words",))]))).convert("L"))
    column = sheet[:, 84 + 64]
    assert (column[10:138] == 255).all()
    assert (column[148:276] == 0).all()


def test_the_animation_repeats_and_has_every_frame():
    frames = [np.full((1, 8, 8), level) for level in (0.0, 0.5, 1.0)]
    with Image.open(io.BytesIO(draw_emerging(np.ones((1, 8, 8)), frames, ["a", "b", "c"]))) as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        assert animation.format == "GIF"


@pytest.mark.parametrize("trace", [((0, 1.0), (9, 1e-9)), ((0, -1.0), (9, -2.0)), ((0, float("nan")), (1, 1.0)), ()])
def test_any_losses_can_be_drawn(trace):
    with Image.open(io.BytesIO(draw_curves([trace]))) as picture:
        assert picture.format == "PNG"


def test_rows_tell_their_gain_over_the_null_target_by_target():
    (cell,) = cells_of([row(0, ssim=0.9, null_ssim=0.5), row(1, ssim=0.7, null_ssim=0.1), row(2, null_ssim=None)])
    assert cell.ssim_gain().value == pytest.approx(0.5)
    assert dataclasses.replace(cell, rows=(row(null_ssim=None),)).ssim_gain() is None
