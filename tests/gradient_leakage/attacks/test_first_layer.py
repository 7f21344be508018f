"""Division by the bias's gradient: exact at batch 1, honest about mixtures, clear where it does not apply."""

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.attacks.first_layer import FirstLayer
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError
from torch import nn

XRAYS = ImageDomain((1, 28, 28), 2)


class Scaled(nn.Module):
    def forward(self, images):
        return (images - 0.45) / 0.25


def attacked(images, labels, model, site=None):
    rng = torch.Generator().manual_seed(0)
    sent = observe(model, images, labels, site or SiteTraining(), rng, 10 if images.shape[1] == 3 else 2)
    return FirstLayer()(sent, Knowledge(), rng)


def psnr(found, truth):
    """In dB, of each true image against the nearest found one."""
    errors = (found.double().flatten(1)[None] - truth.double().flatten(1)[:, None]).square().mean(-1)
    return -10 * errors.amin(1).clamp_min(1e-40).log10()


@pytest.mark.parametrize(("dtype", "decibels"), [(torch.float64, 158), (torch.float32, 130)])
def test_a_single_xray_and_its_label_come_back_exactly_for_thirty_of_thirty(xrays28, dtype, decibels):
    images, labels = xrays28
    for seed in range(30):
        found = attacked(images[seed : seed + 1], labels[seed : seed + 1], build("mlp", XRAYS, seed).to(dtype))
        assert psnr(found.images, images[seed : seed + 1]).item() > decibels
        assert found.exact.all()
        assert found.labels.equal(labels[seed : seed + 1])


def test_proposition_3_1_of_geiping_et_al_holds_for_colour_and_behind_a_normalisation(cifar10):
    images, labels = cifar10
    model = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(3072, 20), nn.Tanh(), nn.Linear(20, 10)).double()
    found = attacked(images[:1], labels[:1], model)
    assert psnr(found.images, images[:1]).item() > 158
    assert found.labels.equal(labels[:1])


def test_what_comes_back_is_no_picture_of_another_patient_of_the_same_class(xrays28):
    images, labels = xrays28
    same = (labels == labels[0]).nonzero()[1:101, 0]
    found = attacked(images[:1], labels[:1], build("mlp", XRAYS, 0).double())
    prior = (images[same] - images[0]).square().mean((1, 2, 3))
    other = (images[same] - found.images.float()).square().mean((1, 2, 3))
    assert other.allclose(prior, rtol=1e-4)


def test_an_image_that_one_neuron_alone_saw_comes_back_out_of_a_batch(xrays28):
    images, labels = xrays28
    found = attacked(images[:4], labels[:4], build("mlp", XRAYS, 0).double())
    assert found.images.shape == (4, 1, 28, 28)
    exact = found.images[found.exact]
    assert len(exact) > 0
    assert psnr(images[:4].double(), exact).min() > 150


def test_one_local_step_and_its_unknown_rate_hide_nothing(xrays28):
    images, labels = xrays28
    site = SiteTraining(LocalTraining(epochs=1, batch_size=1), 0.01)
    found = attacked(images[:1], labels[:1], build("mlp", XRAYS, 0).double(), site)
    assert psnr(found.images, images[:1]).item() > 100


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (build("lenet", XRAYS, 0), r"0 \(Conv2d\)"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 4, bias=False), nn.Linear(4, 2)),
            "gradient of both weight and bias",
        ),
        (nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 2)), r"2 sees \(196,\) numbers"),
    ],
)
def test_a_model_without_a_linear_layer_on_the_image_is_refused_with_the_layer_named(xrays28, model, message):
    images, labels = xrays28
    with pytest.raises(AttackError, match=message):
        attacked(images[:1], labels[:1], model)


def test_a_gradient_that_a_dead_layer_left_empty_is_refused(xrays28):
    images, labels = xrays28
    model = build("mlp", XRAYS, 0)
    nn.init.constant_(model[1].bias, -1e3)
    with pytest.raises(AttackError, match="no example switched a neuron on"):
        attacked(images[:1], labels[:1], model)


def test_the_catalogue_makes_it():
    assert listed("first-layer").make(agreement=0.1) == FirstLayer(agreement=0.1)
