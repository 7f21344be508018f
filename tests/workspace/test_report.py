"""The picture is drawn, whatever the rounds brought."""

import numpy as np
import pytest
from fedveil.utils.messages import RoundView, TaskKind
from fedveil.workspace.report import draw_curves
from PIL import Image

ALONE = {"site-a": (0.91, 2521), "site-b": (0.9, 1352), "site-c": (0.87, 835)}


def rounds(count, metrics=lambda number: {"auc": 1 - 0.4 / number, "loss": 1 / number}):
    return [RoundView(n, 1, TaskKind.TRAIN, "closed", 3, 3, 1.0, metrics(n)) for n in range(1, count + 1)]


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_a_png_of_two_panels_is_drawn(tmp_path):
    draw_curves(tmp_path / "curves.png", rounds(5), 0.95, ALONE, "X-rays")
    drawn = pixels(tmp_path / "curves.png")
    assert drawn.shape[0] > 300
    assert drawn.shape[1] > 2 * drawn.shape[0]
    federated = (drawn == (0x1B, 0x6C, 0xA8)).all(2)
    half = drawn.shape[1] // 2
    assert federated[:, :half].sum() > 100  # the curve
    assert federated[:, half:].sum() > 1000  # the bar


def test_the_figures_are_in_the_picture(tmp_path):
    draw_curves(tmp_path / "one.png", rounds(5), 0.95, ALONE, "X-rays")
    draw_curves(tmp_path / "two.png", rounds(5), 0.75, ALONE, "X-rays")
    draw_curves(tmp_path / "three.png", rounds(5), 0.95, ALONE, "handwritten digits - NOT X-rays")
    one, two, three = (pixels(tmp_path / f"{name}.png") for name in ("one", "two", "three"))
    assert (one != two).any()
    assert (one[:40] != three[:40]).any()  # the line that says what the images are


@pytest.mark.parametrize("metrics", [lambda _: {}, lambda n: {"auc": 0.5} if n == 2 else {}])
def test_rounds_without_an_auc_are_left_out(tmp_path, metrics):
    draw_curves(tmp_path / "curves.png", rounds(3, metrics), 0.5, {"site-a": (0.0, 1)}, "")
    assert pixels(tmp_path / "curves.png").size


def test_no_figure_is_left_open(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    draw_curves(tmp_path / "curves.png", rounds(2), 0.9, ALONE, "")
    assert plt.get_fignums() == before
