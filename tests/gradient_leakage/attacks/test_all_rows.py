from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.all_rows import AllRows
from fedveil.gradient_leakage.attacks.first_layer import FirstLayer
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining, Reconstruction
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError

XRAYS = ImageDomain((1, 28, 28), 2)


def seen(xrays, place, noise=0.0, clip=1.0, site=None, model="mlp", count=1):
    """What a site sent: scaled by a clip, and with Gaussian noise of so many times its own length."""
    images, labels = xrays[0][place : place + count], xrays[1][place : place + count]
    rng = torch.Generator().manual_seed(place)
    sent = observe(build(model, XRAYS, place), images, labels, site or SiteTraining(), rng, 2)
    vector = clip * sent.vector()
    drawn = np.random.default_rng(place).normal(size=vector.size)
    vector = vector + noise * np.linalg.norm(vector) / np.linalg.norm(drawn) * drawn
    return replace(sent, sent=vector.astype("<f4").tobytes()), Truth(images, labels)


def psnr(attack, observation, truth):
    return float(score(attack(observation, Knowledge(), torch.Generator().manual_seed(0)), truth).psnr[0])


def test_without_noise_the_image_is_exact_whatever_the_clip(xrays28):
    for place in range(3):
        assert psnr(AllRows(), *seen(xrays28, place)) > 100
        assert psnr(AllRows(), *seen(xrays28, place, clip=1e-3)) > 100
        assert psnr(AllRows(), *seen(xrays28, place, site=SiteTraining(LocalTraining(1, 1), 0.1))) > 80


def test_noise_twice_as_long_as_the_gradient_leaves_what_division_row_by_row_loses(xrays28):
    for place in range(3):
        observation, truth = seen(xrays28, place, noise=2.0)
        assert psnr(FirstLayer(), observation, truth) < 12
        assert psnr(AllRows(), observation, truth) > 20


def test_noise_fifty_times_as_long_as_the_gradient_leaves_no_more_than_a_blank_image(xrays28):
    for place in range(3):
        observation, truth = seen(xrays28, place, noise=50.0)
        blank = score(Reconstruction(torch.full((1, 1, 28, 28), 0.5)), truth).psnr[0]
        assert psnr(AllRows(), observation, truth) < blank + 2


def test_the_filter_gains_over_the_bare_singular_vector_and_is_none_without_noise(xrays28):
    observation, truth = seen(xrays28, 1, noise=2.0)
    assert psnr(AllRows(), observation, truth) > psnr(AllRows(contrast=0), observation, truth) + 2
    clean, truth = seen(xrays28, 1)
    assert psnr(AllRows(), clean, truth) == pytest.approx(psnr(AllRows(contrast=0), clean, truth), abs=1)


def test_the_loss_says_how_much_noise_is_left(xrays28):
    losses = [
        AllRows()(seen(xrays28, 1, noise=noise)[0], Knowledge(), torch.Generator()).loss for noise in (0.5, 2.0, 10.0)
    ]
    assert losses[0] < 0.05 < losses[1] < 0.2 < losses[2]


def test_batches_models_and_options_that_do_not_fit_are_refused(xrays28):
    with pytest.raises(AttackError, match="2 examples is no outer product"):
        AllRows()(seen(xrays28, 0, count=2)[0], Knowledge(), torch.Generator())
    with pytest.raises(AttackError, match="Conv2d"):
        AllRows()(seen(xrays28, 0, model="lenet")[0], Knowledge(), torch.Generator())
    with pytest.raises(ConfigError, match="contrast -1"):
        AllRows(contrast=-1)
