"""The scores against scikit-image and scipy, worked numbers, and what must hold for any pictures."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.metrics import (
    MAX_PSNR,
    Truth,
    baseline,
    label_recovery,
    match,
    mse,
    null_scores,
    psnr,
    re_identification,
    score,
    ssim,
)
from fedveil.gradient_leakage.threat_model import Reconstruction
from fedveil.utils.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity


def pictures(count, channels=1, side=8, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth_of(count, classes=1, seed=0, **kwargs):
    return Truth(pictures(count, seed=seed, **kwargs), torch.arange(count) % classes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [3, 6, 7, 28])
def test_the_scores_are_those_of_scikit_image(channels, side):
    ours, truth = pictures(4, channels, side, seed=1), pictures(4, channels, side, seed=2)
    window = {3: 3, 6: 5, 7: 7, 28: 7}[side]
    for place, (a, b) in enumerate(zip(ours.numpy(), truth.numpy(), strict=True)):
        similar = structural_similarity(a, b, data_range=1, channel_axis=0, win_size=window)
        assert mse(ours, truth)[place] == pytest.approx(mean_squared_error(a, b))
        assert psnr(ours, truth)[place] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1))
        assert ssim(ours, truth)[place] == pytest.approx(similar)


def test_a_grey_picture_is_compared_as_scikit_image_compares_one_without_channels():
    a, b = pictures(1, 1, 28, 1), pictures(1, 1, 28, 2)
    assert ssim(a, b)[0] == pytest.approx(structural_similarity(a[0, 0].numpy(), b[0, 0].numpy(), data_range=1))


def test_an_exact_copy_scores_a_finite_number_of_decibels():
    truth = truth_of(2)
    found = score(Reconstruction(truth.images.clone(), truth.labels), truth)
    assert found.psnr.tolist() == [MAX_PSNR, MAX_PSNR]
    assert found.ssim.tolist() == [1.0, 1.0]
    json.dumps(found.psnr.tolist(), allow_nan=False)


def test_images_too_small_for_a_window_have_no_ssim():
    with pytest.raises(ConfigError, match="at least 3 x 3"):
        ssim(pictures(1, side=2), pictures(1, side=2))


def test_an_attack_is_not_punished_for_leaving_the_range_that_it_knows():
    truth = Truth(torch.ones(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert score(Reconstruction(torch.full((1, 1, 8, 8), 7.0)), truth).psnr[0] == MAX_PSNR


def test_a_pixel_that_is_no_number_counts_as_grey():
    truth = Truth(torch.full((1, 1, 8, 8), 0.5), torch.zeros(1, dtype=torch.int64))
    assert score(Reconstruction(torch.full((1, 1, 8, 8), math.nan)), truth).mse[0] == 0


@given(st.permutations(range(5)), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_order_of_a_batch_changes_no_score(order, seed):
    truth = truth_of(5, classes=5)
    found = (truth.images + 0.1 * pictures(5, seed=seed)).clamp(0, 1)
    straight = score(Reconstruction(found, truth.labels), truth)
    shuffled = score(Reconstruction(found[order], truth.labels[list(order)]), truth)
    np.testing.assert_array_equal(straight.psnr, shuffled.psnr)
    assert torch.equal(straight.images, shuffled.images)
    assert straight.labels_beside_images == shuffled.labels_beside_images == 1.0


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_no_other_assignment_has_a_smaller_error(num_found, num_true, seed):
    found, truth = pictures(num_found, side=3, seed=seed), pictures(num_true, side=3, seed=seed + 1)
    in_found, in_truth = match(found, truth)
    cost = ((found[:, None] - truth[None]) ** 2).sum((2, 3, 4)).numpy()
    size = min(num_found, num_true)
    assert len(set(in_found.tolist())) == len(set(in_truth.tolist())) == size
    others = (
        sum(cost[a, b] for a, b in zip(rows, columns, strict=True))
        for rows in itertools.permutations(range(num_found), size)
        for columns in itertools.combinations(range(num_true), size)
    )
    assert cost[in_found, in_truth].sum() == pytest.approx(min(others))


def test_an_image_without_a_picture_is_compared_with_grey_and_named():
    truth = truth_of(3)
    found = score(Reconstruction(truth.images[1:2]), truth)
    assert found.found.tolist() == [False, True, False]
    assert found.psnr[1] == MAX_PSNR
    assert found.mse[0] == pytest.approx(((truth.images[0] - 0.5) ** 2).mean().item())


def test_pictures_left_over_count_for_nothing():
    truth = truth_of(2)
    found = score(Reconstruction(torch.cat([pictures(5, seed=9), truth.images.flip(0)])), truth)
    assert found.psnr.tolist() == [MAX_PSNR, MAX_PSNR]


def test_labels_are_counted_as_a_multiset():
    assert label_recovery(torch.tensor([2, 0, 2]), torch.tensor([2, 2, 1])) == pytest.approx(2 / 3)
    assert label_recovery(torch.tensor([], dtype=torch.int64), torch.tensor([1])) == 0
    only = score(Reconstruction(labels=torch.tensor([0, 1])), truth_of(2, classes=2))
    assert only.label_recovery == 1.0
    assert only.images is None
    assert np.isnan(only.psnr).all()


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match="pictures of shape"):
        score(Reconstruction(pictures(1, side=9)), truth_of(1))


def test_the_baseline_is_what_the_public_mean_scores():
    truth, public = truth_of(2), pictures(10, seed=5)
    mean = public.mean(0)
    expected = [((image - mean) ** 2).mean().item() for image in truth.images]
    np.testing.assert_allclose(baseline(public, truth).mse, expected)


def test_the_null_of_a_perfect_attack_is_another_patient_of_the_same_class():
    truths = [Truth(pictures(1, seed=n), torch.tensor([n % 2]), (f"patient {n // 2 % 3}",)) for n in range(12)]
    scored = [score(Reconstruction(one.images), one) for one in truths]
    nulls = null_scores(scored, truths, np.random.default_rng(0))
    stand_ins = [next(n for n, t in enumerate(truths) if torch.equal(t.images, one.images)) for one in nulls]
    assert sorted(stand_ins) == list(range(12))
    for own, other in enumerate(stand_ins):
        assert truths[own].patients != truths[other].patients
        assert truths[own].labels == truths[other].labels
        assert nulls[own].psnr[0] == pytest.approx(psnr(truths[other].images, truths[own].images)[0])


def test_the_null_of_a_batch_is_assigned_within_its_classes():
    truths = [Truth(pictures(4, seed=n), torch.tensor([0, 0, 1, 1])) for n in range(2)]
    scored = [score(Reconstruction(one.images), one) for one in truths]
    null = null_scores(scored, truths, np.random.default_rng(0))[0]
    for label in (0, 1):
        ours, theirs = (one.images[one.labels == label] for one in truths)
        in_found, in_truth = match(theirs, ours)
        chosen = null.images[truths[0].labels == label]
        assert torch.equal(chosen[in_truth], theirs[in_found])


def test_where_nobody_can_stand_in_there_is_no_null():
    alone = [Truth(pictures(1, seed=n), torch.tensor([n])) for n in range(2)]
    scored = [score(Reconstruction(one.images), one) for one in alone]
    same_patient = [Truth(one.images, torch.tensor([0]), ("a",)) for one in alone]
    for truths in (alone, same_patient, alone[:1]):
        nulls = null_scores(scored[: len(truths)], truths, np.random.default_rng(0))
        assert all(np.isnan(one.ssim).all() for one in nulls)


@pytest.mark.parametrize("patients", [(), ("a",)])
def test_a_copy_of_an_image_is_nobodys_null(patients):
    first, second, *others = (Truth(pictures(1, seed=max(n, 1)), torch.tensor([0])) for n in range(5))
    truths = [Truth(first.images, first.labels, patients), second, *others]
    scored = [score(Reconstruction(one.images), one) for one in truths]
    for seed in range(5):
        nulls = null_scores(scored, truths, np.random.default_rng(seed))
        assert max(one.psnr[0] for one in nulls) < 20  # random pictures; nan would fail too
    for one in null_scores(scored[:2], truths[:2], np.random.default_rng(0)):
        assert np.isnan(one.psnr).all()


def test_a_batch_that_holds_one_image_of_another_is_not_its_null():
    truths = [Truth(pictures(4, seed=n), torch.tensor([0, 0, 1, 1])) for n in range(2)]
    truths[1].images[3] = truths[0].images[2]
    scored = [score(Reconstruction(one.images), one) for one in truths]
    assert all(np.isnan(one.psnr).all() for one in null_scores(scored, truths, np.random.default_rng(0)))


def test_a_gallery_knows_an_exact_picture_and_not_one_of_somebody_else():
    targets, gallery = truth_of(30, seed=1), truth_of(200, seed=2)
    known = re_identification(targets.images, targets, gallery)
    assert known.within(1).value == 1.0
    strange = re_identification(pictures(30, seed=3), targets, gallery)
    assert strange.within(1).successes <= 2
    assert strange.gallery == 100
    assert 20 < np.mean(strange.ranks) < 80


def test_a_picture_that_faded_into_the_mean_image_is_still_known(xrays28):
    """Squared error would not know it: under the mean image many others are nearer."""
    images = xrays28[0][xrays28[1] == 1][:300]
    labels = torch.ones(len(images), dtype=torch.int64)
    faint = 0.3 * images[:20] + 0.7 * images[150:].mean(0)
    ranks = re_identification(faint, Truth(images[:20], labels[:20]), Truth(images[20:150], labels[20:150]))
    assert ranks.within(1).value == 1.0
    by_error = [mse(image.expand(130, -1, -1, -1), images[20:150]).min() for image in faint[:, None]]
    assert np.mean(np.array(by_error) < mse(faint, images[:20])) > 0.5


def test_a_small_gallery_gives_no_number():
    targets = truth_of(2, seed=1)
    few = re_identification(targets.images, targets, truth_of(98, seed=2))
    assert not few.is_measurable
    assert math.isnan(few.within(1).value)
    assert "not measurable" in few.words
    of_few_patients = Truth(pictures(300, seed=2), torch.zeros(300, dtype=torch.int64), ("a", "b", "c") * 100)
    assert not re_identification(targets.images, targets, of_few_patients).is_measurable
    with pytest.raises(ConfigError, match="means nothing below 100"):
        re_identification(targets.images, targets, truth_of(98), size=50)


def test_a_gallery_holds_the_targets_own_patient_once():
    targets = Truth(pictures(1, seed=1), torch.tensor([0]), ("a",))
    near = targets.images + 0.01 * pictures(1, seed=2)
    others = torch.cat([near, targets.images, pictures(99, seed=3)])
    labels = torch.zeros(len(others), dtype=torch.int64)
    gallery = Truth(others, labels, ("a", "copy", *(str(n) for n in range(99))))
    assert re_identification(near, targets, gallery).ranks.tolist() == [1.0]


def test_a_picture_without_content_ranks_in_the_middle():
    targets = truth_of(1, seed=1)
    ranks = re_identification(torch.zeros(1, 1, 8, 8), targets, truth_of(150, seed=2), embed=lambda x: x.flatten(1))
    assert ranks.ranks.tolist() == [1 + 99 / 2]


def test_an_embedding_decides_what_is_alike():
    targets, gallery = truth_of(5, seed=1), truth_of(150, seed=2)
    inverted = 1 - targets.images
    by_edges = re_identification(inverted, targets, gallery, embed=lambda x: x.diff(dim=-1).abs().flatten(1))
    assert by_edges.within(1).value == 1.0
    assert re_identification(inverted, targets, gallery).within(1).value == 0.0
