"""FedAvg updates: walking the local steps against treating them as one gradient."""

import pytest
import torch
from fedveil.gradient_leakage.attacks.fedavg import FedAvgInversion, epochs_apart, one_set
from fedveil.gradient_leakage.attacks.inverting_gradients import InvertingGradients
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError

LUNGS = ImageDomain((1, 28, 28), 2)
ALL = Knowledge(labels=True, local_steps=True, learning_rate=True)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def seen(images, labels, local, rate=0.01, seed=0):
    return observe(build("relu-cnn", LUNGS, seed), images, labels, SiteTraining(local, rate), seeded(0), 2)


def psnr(found, truth):
    return float(-10 * torch.log10((found - truth).double().square().mean() + 1e-20))


def test_dimitrov_2022_eight_walked_local_steps_beat_one_gradient_by_10_db_and_give_no_other_patient(xrays28):
    images, labels = xrays28
    truth, label = images[:1], labels[:1]
    observation = seen(truth, label, LocalTraining(epochs=8, batch_size=1), 0.05)
    naive = InvertingGradients(iterations=120)(observation, ALL, seeded(0))
    walked = FedAvgInversion(iterations=120)(observation, ALL, seeded(0))
    assert psnr(walked.images, truth) > psnr(naive.images, truth) + 10
    for other in images[labels == label][20:120]:
        assert psnr(walked.images[0], other) < psnr(truth[0], other) + 1


def test_one_full_step_is_matched_as_well_as_its_gradient(xrays28):
    images, labels = (part[:1] for part in xrays28)
    observation = seen(images, labels, LocalTraining(epochs=1, batch_size=1))
    assert psnr(FedAvgInversion(iterations=200)(observation, ALL, seeded(0)).images, images) > 28


def test_epochs_in_an_unknown_order_become_one_set_of_images(xrays28):
    images, labels = (part[:4] for part in xrays28)
    observation = seen(images, labels, LocalTraining(epochs=2, batch_size=2))
    found = FedAvgInversion(iterations=4, trace_every=1)(observation, ALL, seeded(0))
    assert found.images.shape == images.shape
    assert found.trace[0].images.shape == images.shape


def test_images_of_epochs_are_assigned_within_their_label():
    first = torch.tensor([0.0, 0.4, 1.0]).reshape(3, 1, 1, 1)
    second = torch.tensor([0.4, 0.1, 0.9]).reshape(3, 1, 1, 1)
    alike = one_set(torch.stack([first, second]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(alike.flatten(), torch.tensor([0.05, 0.4, 0.95]))
    apart = one_set(torch.stack([first, second]), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(apart.flatten(), torch.tensor([0.2, 0.25, 0.95]))


def test_the_prior_does_not_see_the_order_within_an_epoch():
    images = torch.rand(1, 1, 5, 1, 4, 4, generator=seeded(0))
    shuffled = torch.cat([images, images[:, :, [3, 1, 0, 4, 2]]], dim=1)
    torch.testing.assert_close(epochs_apart(shuffled), torch.zeros(1))
    assert epochs_apart(torch.cat([images, images / 2], dim=1)) > 0


def test_a_gradient_has_no_steps_to_walk(xrays28):
    images, labels = (part[:1] for part in xrays28)
    with pytest.raises(AttackError, match="inverting-gradients"):
        FedAvgInversion(iterations=1)(seen(images, labels, None), ALL, seeded(0))


def test_without_knowing_how_the_site_trained_it_refuses(xrays28):
    images, labels = (part[:1] for part in xrays28)
    observation = seen(images, labels, LocalTraining(1, 1))
    with pytest.raises(ConfigError, match="local_steps and learning_rate"):
        FedAvgInversion()(observation, Knowledge(), seeded(0))
    with pytest.raises(ConfigError, match="holds no local steps"):
        FedAvgInversion()(observation.limited_to(Knowledge()), ALL, seeded(0))
