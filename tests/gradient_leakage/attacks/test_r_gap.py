"""R-GAP: closed form through convolutions, the paper's claim about rank, and clear refusals."""

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.attacks.r_gap import RGap
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError
from torch import nn

XRAYS = ImageDomain((1, 28, 28), 2)
GIVEN_AWAY = 0.01  # mean squared error of a picture that anybody recognises, 20 dB


def cnn6(second):
    """The paper's CNN6, and with 20 channels in its second layer CNN6-d; two logits with a bias for their one."""
    layers = []
    for before, after, kernel, stride, padding in (
        (3, 12, 4, 2, 2),
        (12, second, 3, 2, 1),
        (second, 36, 3, 1, 1),
        (36, 36, 3, 1, 1),
        (36, 64, 3, 2, 1),
        (64, 128, 3, 1, 1),
    ):
        layers += [nn.Conv2d(before, after, kernel, stride, padding, bias=False), nn.LeakyReLU(0.2)]
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(3200, 2))


def attacked(images, labels, model, site=None):
    rng = torch.Generator().manual_seed(0)
    found = RGap()(observe(model, images, labels, site or SiteTraining(), rng, 2), Knowledge(), rng)
    return found, (found.images.double() - images[:1]).square().mean()


@pytest.mark.parametrize(
    ("name", "dtype", "decibels"),
    [("tanh-cnn", torch.float64, 200), ("lenet", torch.float64, 200), ("lenet", torch.float32, 80)],
)
def test_a_single_xray_and_its_label_come_back_through_three_convolutions(xrays28, name, dtype, decibels):
    images, labels = xrays28
    found, error = attacked(images[:1], labels[:1], build(name, XRAYS, 0).to(dtype))
    assert -10 * error.log10() > decibels
    assert found.exact.all()
    assert found.labels.equal(labels[:1])


def test_what_comes_back_is_no_picture_of_another_patient_of_the_same_class(xrays28):
    images, labels = xrays28
    same = (labels == labels[0]).nonzero()[1:101, 0]
    found, _ = attacked(images[:1], labels[:1], build("lenet", XRAYS, 0).double())
    prior = (images[same] - images[0]).square().mean((1, 2, 3))
    other = (images[same] - found.images.float()).square().mean((1, 2, 3))
    assert other.allclose(prior, rtol=1e-4)


@pytest.mark.slow
def test_the_rank_analysis_holds_cnn6_whose_layers_have_full_rank_gives_an_image_of_cifar_10_away_in_float32(cifar10):
    images, _ = cifar10
    found, error = attacked(images[:1], torch.tensor([0]), cnn6(36))
    assert error < GIVEN_AWAY / 1000
    assert found.exact.all()


@pytest.mark.slow
def test_the_rank_analysis_holds_cnn6_d_with_a_layer_short_of_rank_keeps_the_image(cifar10):
    images, _ = cifar10
    found, error = attacked(images[:1], torch.tensor([0]), cnn6(20).double())
    assert error > 10 * GIVEN_AWAY
    assert not found.exact.any()


def test_one_local_step_and_its_unknown_rate_hide_nothing(xrays28):
    images, labels = xrays28
    site = SiteTraining(LocalTraining(epochs=1, batch_size=1), 0.01)
    _, error = attacked(images[:1], labels[:1], build("lenet", XRAYS, 0).double(), site)
    assert -10 * error.log10() > 100


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build("relu-cnn", XRAYS, 0), r"1 \(ReLU\) cannot be undone"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 2, bias=False)), "last layer must be linear with a bias"),
        (nn.Sequential(nn.Conv2d(1, 4, 3, groups=1, dilation=2), nn.Flatten(), nn.Linear(2304, 2)), "0 is a grouped"),
    ],
)
def test_a_model_that_cannot_be_undone_is_refused_with_the_layer_named(xrays28, model, message):
    images, labels = xrays28
    with pytest.raises(AttackError, match=message):
        attacked(images[:1], labels[:1], model)


def test_a_batch_is_refused(xrays28):
    images, labels = xrays28
    with pytest.raises(AttackError, match="an update of 2 examples"):
        attacked(images[:2], labels[:2], build("lenet", XRAYS, 0))


def test_the_catalogue_makes_it():
    assert listed("r-gap").make() == RGap()
