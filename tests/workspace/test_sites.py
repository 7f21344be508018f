"""The division of one set over sites: nothing is lost, nothing is shared."""

from collections import Counter

import numpy as np
import pytest
from fedveil.workspace.chest_xrays import Images3, Part
from fedveil.workspace.sites import DEMO_SITES, SiteShare, divide, set_aside
from hypothesis import given, settings
from hypothesis import strategies as st


def part_of(patients: list[tuple[str, int]], first: int) -> Part:
    """One image for each (patient, label); its pixels are its number, so that it is known again."""
    numbers = np.arange(first, first + len(patients), dtype=np.uint32)
    images = numbers.view(np.uint8).reshape(-1, 2, 2)
    return Part(images, np.array([label for _, label in patients], np.int64), tuple(name for name, _ in patients))


def numbers_of(images) -> list[int]:
    return np.ascontiguousarray(images).reshape(-1, 4).view(np.uint32)[:, 0].tolist()


@st.composite
def shares(draw):
    count = draw(st.integers(1, 5))
    weights = [draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)) for _ in range(2)]
    whole = [sum(row) or 1 for row in weights]
    rows = [[value / whole[i] for value in row] if sum(row) else [1 / count] * count for i, row in enumerate(weights)]
    return tuple(
        SiteShare(f"s{i}", "o", of_normal, of_ill) for i, (of_normal, of_ill) in enumerate(zip(*rows, strict=True))
    )


parts = st.lists(st.tuples(st.sampled_from([f"p{i}" for i in range(12)]), st.integers(0, 1)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(parts, parts, shares(), st.integers(0, 5))
def test_every_image_goes_to_exactly_one_site_and_every_patient_too(tmp_path_factory, train, validation, given, seed):
    images = Images3("", True, part_of(train, 0), part_of(validation, 1000), part_of([("t", 0)], 2000))
    paths = divide(images, given, tmp_path_factory.mktemp("sites"), seed)
    assert list(paths) == [share.name for share in given]
    owners = {}
    for word, part in (("train", images.train), ("val", images.validation)):
        label_of = dict(zip(numbers_of(part.images), part.labels.tolist(), strict=True))
        patient_of = dict(zip(numbers_of(part.images), part.groups, strict=True))
        seen = Counter()
        for name, path in paths.items():
            with np.load(path, allow_pickle=False) as arrays:
                numbers, labels = numbers_of(arrays[f"{word}_images"]), arrays[f"{word}_labels"][:, 0].tolist()
                assert not any(key.startswith("test") for key in arrays.files)
            seen.update(numbers)
            assert labels == [label_of[number] for number in numbers]
            for number in numbers:
                owners.setdefault(patient_of[number], set()).add(name)
        assert seen == Counter(label_of.keys())
    assert all(len(held) == 1 for held in owners.values())


@pytest.mark.parametrize("label", [0, 1])
def test_each_site_gets_its_share_of_each_class(tmp_path, label):
    each = part_of([(f"p{i}", label) for i in range(1000)], 0)
    paths = divide(Images3("", True, each, each, each), DEMO_SITES, tmp_path)
    counts = [len(np.load(path)["train_labels"]) for path in paths.values()]
    assert counts == ([450, 250, 100, 200] if label else [300, 200, 350, 150])


def test_a_patient_who_is_ill_once_counts_as_ill(tmp_path):
    healthy_here = (SiteShare("healthy", "o", 1, 0), SiteShare("ill", "o", 0, 1))
    part = part_of([("p0", 0), ("p0", 1), ("p1", 0)], 0)
    paths = divide(Images3("", True, part, part, part), healthy_here, tmp_path)
    assert [numbers_of(np.load(path)["train_images"]) for path in paths.values()] == [[2], [0, 1]]


def test_the_demos_shares_are_whole_and_the_same_seed_divides_alike(tmp_path):
    assert sum(share.of_normal for share in DEMO_SITES) == pytest.approx(1)
    assert sum(share.of_pneumonia for share in DEMO_SITES) == pytest.approx(1)
    part = part_of([(f"p{i}", i % 2) for i in range(50)], 0)
    images = Images3("", True, part, part, part)
    once, again, other = (divide(images, DEMO_SITES, tmp_path / str(i), seed) for i, seed in enumerate((3, 3, 4)))
    for name in once:
        assert np.array_equal(np.load(once[name])["train_images"], np.load(again[name])["train_images"])
    assert any(not np.array_equal(np.load(once[n])["train_images"], np.load(other[n])["train_images"]) for n in once)


@settings(deadline=None, max_examples=60)
@given(parts, parts, st.floats(0, 1), st.integers(0, 5))
def test_what_is_set_aside_shares_no_patient_with_what_the_sites_get(train, validation, share, seed):
    images = Images3("", True, part_of(train, 0), part_of(validation, 1000), part_of([("t", 0)], 2000))
    kept, public = set_aside(images, share, seed)
    assert not set(public.groups) & {*kept.train.groups, *kept.validation.groups}
    everything = numbers_of(kept.train.images) + numbers_of(public.images)
    assert sorted(everything) == numbers_of(images.train.images)
    assert Counter(zip(numbers_of(public.images), public.labels.tolist(), public.groups, strict=True)) <= Counter(
        zip(numbers_of(images.train.images), images.train.labels.tolist(), images.train.groups, strict=True)
    )
    assert kept.test is images.test


def test_a_tenth_that_is_set_aside_is_a_tenth_of_either_class():
    train = [(f"p{number}", number % 4 == 0) for number in range(400)]
    images = Images3("", True, part_of(train, 0), part_of([("v", 0)], 1000), part_of([("t", 0)], 2000))
    _, public = set_aside(images, 0.1)
    assert (len(public.labels), public.labels.sum()) == (40, 10)
