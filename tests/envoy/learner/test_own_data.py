"""A learner's own data: registered as `envoy data add` does, kept private, and looked at without a word to anybody."""

import stat

import numpy as np
import pytest
from fedveil.envoy.learner.own_data import ARRAYS_FOLDER, OwnData
from fedveil.envoy.records import DataOptions
from fedveil.utils.errors import DatasetError


def arrays(seed=0, count=40):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (count, 8, 8), np.uint8), np.arange(count) % 3


@pytest.fixture
def data(tmp_path):
    return OwnData(tmp_path / "site")


def test_arrays_are_kept_for_their_owner_alone_and_the_same_again_is_the_same(data, tmp_path):
    first = data.register("xrays", arrays())
    again = data.register("xrays", arrays())
    assert first == again
    (kept,) = (tmp_path / "site" / ARRAYS_FOLDER).iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert data.fits("xrays", arrays())
    assert not data.fits("xrays", arrays(1))


def test_the_label_distribution_is_that_of_the_data_and_stands_in_no_repr(data):
    data.register("xrays", arrays(count=41), DataOptions(classes=("a=0", "b=1", "c=2", "d=3")))
    found = data.analysis(None)
    assert found.label_distribution == {"a": 14, "b": 14, "c": 13, "d": 0}
    assert (found.num_examples, found.num_train + found.num_validation + found.num_test) == (41, 41)
    assert sum(found.label_shares.values()) == pytest.approx(1)
    assert "14" not in repr(found)


def test_another_data_set_under_the_same_name_takes_a_word_and_leaves_nothing_behind(data, tmp_path):
    data.register("xrays", arrays())
    with pytest.raises(DatasetError, match="replace=True"):
        data.register("xrays", arrays(1))
    assert len(list((tmp_path / "site" / ARRAYS_FOLDER).iterdir())) == 1
    assert data.fits("xrays", arrays())
    data.register("xrays", arrays(1), replace=True)
    assert data.fits("xrays", arrays(1))
    assert len(list((tmp_path / "site" / ARRAYS_FOLDER).iterdir())) == 1


def test_a_path_is_recorded_and_not_copied(data, tmp_path):
    path = tmp_path / "own.npz"
    images, labels = arrays()
    np.savez(path, images=images, labels=labels)
    assert data.register("xrays", str(path)).path == str(path)
    assert data.fits("xrays", path)
    assert data.fits("xrays", "xrays")
    assert not (tmp_path / "site" / ARRAYS_FOLDER).exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "expected the name of a registered data set"),
        (np.zeros((3, 8, 8)), "expected the name"),
        ((np.zeros((3, 8, 8), np.uint8), [0, 1, 0]), "a pair of arrays"),
        ((np.zeros((3, 8, 8), np.uint8), np.zeros(2, int)), "3 images and 2 labels"),
        ((np.zeros((0, 8, 8), np.uint8), np.zeros(0, int)), "and some"),
        ((np.array([object()] * 2), np.zeros(2, int)), "arrays of objects"),
        ((np.zeros((2, 8), np.uint8), np.zeros(2, int)), "expected"),
        ((np.full((2, 8, 8), 7.0), np.zeros(2, int)), "none|quarantine|empty"),
        ("/nowhere/at/all", "nowhere"),
    ],
)
def test_what_is_no_data_set_is_refused_and_nothing_is_registered(data, given, message):
    with pytest.raises(DatasetError, match=message):
        data.register("xrays", given)
    assert data.names == ()


@pytest.mark.parametrize("name", ["../other", "", "A", "x/y", "-", "n" * 65, None, "con\nfig"])
def test_a_name_that_could_be_another_place_is_refused_before_anything_is_written(data, tmp_path, name):
    with pytest.raises(DatasetError, match="cannot be called"):
        data.register(name, arrays())
    assert not list(tmp_path.rglob("*.npz"))


def test_which_data_set_is_asked_where_there_is_not_just_one(data):
    with pytest.raises(DatasetError, match="Registered here: none"):
        data.analysis(None)
    data.register("a", arrays())
    data.register("b", arrays(1))
    with pytest.raises(DatasetError, match="a, b"):
        data.analysis(None)
    with pytest.raises(DatasetError, match="no dataset c"):
        data.analysis("c")
