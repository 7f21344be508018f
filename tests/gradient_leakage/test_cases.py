"""No patient is both public and attacked, and no two targets are of one patient."""

import pytest
import torch
from fedveil.gradient_leakage.cases import ImagePool, draw_targets, split
from fedveil.utils.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st


def pool_of(count=120, patients=60, classes=2):
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1).expand(count, 1, 4, 4)
    names = tuple(f"p{n % patients}" for n in range(count))
    labels = torch.tensor([n % patients % classes for n in range(count)])
    return ImagePool("toy", images, labels, names, tuple(map(str, range(classes))), is_xray=False)


@given(st.integers(2, 200), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_no_patient_is_on_both_sides_and_every_image_on_one(count, patients, seed):
    public, targets = split(pool_of(count, patients), seed)
    assert not set(public.patients) & set(targets.patients)
    both = torch.cat([public.images, targets.images])[:, 0, 0, 0]
    assert torch.equal(both.sort().values, torch.arange(count, dtype=torch.uint8))


def test_the_same_seed_splits_alike_and_another_one_does_not():
    first, again, other = (split(pool_of(), seed)[1].patients for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_targets_share_no_patient_and_have_a_partner_of_the_same_classes():
    batches = draw_targets(split(pool_of(600, 300))[1], batch=4, count=6)
    patients = [patient for one in batches for patient in one.patients]
    assert len(set(patients)) == len(patients) == 24
    for one, other in zip(batches[::2], batches[1::2], strict=True):
        assert sorted(one.labels.tolist()) == sorted(other.labels.tolist()) == [0, 0, 1, 1]
    single = draw_targets(split(pool_of(600, 300))[1], batch=1, count=4)
    assert [one.labels.item() for one in single] == [0, 0, 1, 1]


def test_more_targets_go_on_where_fewer_ended():
    pool = split(pool_of())[1]
    few, many = draw_targets(pool, 2, 3), draw_targets(pool, 2, 6)
    assert [one.patients for one in few] == [one.patients for one in many[:3]]


def test_more_targets_than_patients_are_refused_with_their_number():
    with pytest.raises(ConfigError, match=r"toy: 40 batches of 2 images .* there are 30"):
        draw_targets(pool_of(), 2, 40)


def test_a_pool_gives_floats_in_the_unit_interval():
    pool = pool_of()
    truth = pool.at([51, 102]).truth()
    assert truth.images.dtype is torch.float32
    assert truth.images[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4])
    assert truth.patients == ("p51", "p42")
    assert torch.equal(pool.public().labels, pool.labels)
    assert pool.domain.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("images", "count"), [(torch.zeros(3, 4, 4), 3), (torch.zeros(3, 1, 4, 4), 2), (torch.zeros(3, 1, 4, 4).long(), 3)]
)
def test_a_pool_whose_parts_do_not_fit_is_refused(images, count):
    with pytest.raises(ConfigError, match="pool toy"):
        ImagePool("toy", images, torch.zeros(3, dtype=torch.int64), ("a",) * count, ("x",), is_xray=False)
