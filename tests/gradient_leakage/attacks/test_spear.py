"""SPEAR: whole batches exactly, the paper's claim at its own width, and honest flags where a batch is too much."""

import time

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.attacks.spear import Spear
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError
from torch import nn

XRAYS = ImageDomain((1, 28, 28), 2)


class Standardised(nn.Module):
    def forward(self, images):
        return (images - 0.45) / 0.2


def paper_net(pixels):
    """Layers of 200 neurons on standardised images, as in the paper's experiments."""
    layers = [Standardised(), nn.Flatten(), nn.Linear(pixels, 200), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(200, 200), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Linear(200, 10)).double()


def batch_of(images, labels, size, seed):
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size]
    return images[chosen], labels[chosen]


def attacked(images, labels, model, attack=None, site=None):
    """The reconstruction, the dB of each true image, and the CPU seconds of the attack."""
    classes = model[-1].out_features
    sent = observe(model, images, labels, site or SiteTraining(), torch.Generator().manual_seed(0), classes)
    start = time.process_time()
    found = (attack or Spear())(sent, Knowledge(), torch.Generator().manual_seed(0))
    seconds = time.process_time() - start
    errors = squares(found.images, images)
    return found, -10 * errors.amin(1).clamp_min(1e-40).log10(), seconds


def squares(found, truth):
    return (found.double().flatten(1)[None] - truth.double().flatten(1)[:, None]).square().mean(-1)


def assert_flags_and_labels_are_true(found, images, labels):
    errors = squares(found.images, images)
    assert (errors.amin(0)[found.exact] < 1e-8).all()
    if found.labels is not None:
        assert found.labels.equal(labels[errors.argmin(0)])


@pytest.mark.parametrize("seed", range(5))
def test_every_xray_of_a_batch_of_8_comes_back_above_100_db_with_its_label_within_a_cpu_second(xrays28, seed):
    images, labels = batch_of(*xrays28, 8, seed)
    found, decibels, seconds = attacked(images, labels, build("mlp", XRAYS, seed).double())
    assert decibels.min() > 100
    assert found.exact.all()
    assert found.labels is not None
    assert_flags_and_labels_are_true(found, images, labels)
    assert seconds < 1


@pytest.mark.slow
def test_nine_in_ten_xrays_of_batches_of_16_come_back_above_100_db_and_the_others_are_not_called_exact(xrays28):
    shares = []
    for seed in range(6):
        images, labels = batch_of(*xrays28, 16, seed)
        found, decibels, seconds = attacked(images, labels, build("mlp", XRAYS, seed).double())
        assert_flags_and_labels_are_true(found, images, labels)
        assert seconds < 60
        shares.append((decibels > 100).double().mean().item())
    assert sum(shares) / len(shares) > 0.9


def test_float32_as_an_envoy_sends_it_gives_8_xrays_above_100_db(xrays28):
    for seed in range(3):
        images, labels = batch_of(*xrays28, 8, seed)
        found, decibels, _ = attacked(images, labels, build("mlp", XRAYS, seed))
        assert decibels.min() > 100
        assert_flags_and_labels_are_true(found, images, labels)


def test_what_comes_back_is_no_picture_of_other_patients_of_the_same_class(xrays28):
    images, labels = xrays28
    found, _, _ = attacked(images[:4], labels[:4], build("mlp", XRAYS, 0).double())
    for image, label in zip(found.images.float(), found.labels, strict=True):
        others = images[4:][labels[4:] == label][:100]
        own = images[:4][squares(image[None], images[:4]).argmin()]
        assert squares(image[None], others).allclose(squares(own[None], others), rtol=1e-4)


def test_the_abstracts_claim_of_exact_batches_up_to_about_25_holds_for_24_colour_images_of_32_pixels(cifar10):
    for seed in range(3):
        images, labels = batch_of(*cifar10, 24, seed)
        found, decibels, _ = attacked(images, labels, paper_net(3072))
        assert decibels.min() > 120
        assert found.exact.all()
        assert_flags_and_labels_are_true(found, images, labels)


def test_the_papers_own_sampling_alone_is_exact_at_batch_10(mnist):
    for seed in range(3):
        images, labels = batch_of(*mnist, 10, seed)
        found, decibels, _ = attacked(images, labels, paper_net(784), Spear(next_layer=False))
        assert decibels.min() > 120
        assert found.exact.all()
        assert_flags_and_labels_are_true(found, images, labels)


def test_one_full_batch_step_hides_nothing(xrays28):
    images, labels = batch_of(*xrays28, 4, 0)
    site = SiteTraining(LocalTraining(epochs=1, batch_size=4), 0.01)
    found, decibels, _ = attacked(images, labels, build("mlp", XRAYS, 0).double(), site=site)
    assert decibels.min() > 100
    assert_flags_and_labels_are_true(found, images, labels)


def test_an_image_that_is_twice_in_the_batch_comes_back_once(xrays28):
    images, labels = batch_of(*xrays28, 4, 0)
    twice, both = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
    found, decibels, _ = attacked(twice, both, build("mlp", XRAYS, 0).double())
    assert len(found.images) == 4
    assert decibels.min() > 100


def test_a_batch_of_one_needs_no_search(xrays28):
    images, labels = batch_of(*xrays28, 1, 0)
    found, decibels, _ = attacked(images, labels, build("mlp", XRAYS, 0).double())
    assert decibels.min() > 150
    assert found.labels.equal(labels)


def test_the_same_seed_gives_the_same_images_and_leaves_the_global_generator_and_the_model_alone(xrays28):
    images, labels = batch_of(*xrays28, 8, 3)
    model = build("mlp", XRAYS, 3).double()
    before, state = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    first, _, _ = attacked(images, labels, model, Spear(samples=4096))
    again, _, _ = attacked(images, labels, model, Spear(samples=4096))
    ours, theirs = (found.images[found.images.mean((1, 2, 3)).argsort()] for found in (first, again))
    assert ours.allclose(theirs, atol=1e-9)  # the order of sums in LAPACK may differ, and with it that of the images
    assert torch.get_rng_state().equal(before)
    assert all(a.equal(b) for a, b in zip(state, model.parameters(), strict=True))


def test_a_batch_as_large_as_the_layer_is_refused_with_the_limit(xrays28):
    images, labels = batch_of(*xrays28, 12, 0)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 2)).double()
    with pytest.raises(AttackError, match=r"12 examples through 1 of 12 neurons .* at most 11"):
        attacked(images, labels, narrow)


def test_a_layer_whose_neurons_are_all_off_is_refused(xrays28):
    images, labels = batch_of(*xrays28, 2, 0)
    model = build("mlp", XRAYS, 0)
    nn.init.constant_(model[1].bias, -1e3)
    with pytest.raises(AttackError, match="no example switched a neuron on"):
        attacked(images, labels, model)


def test_without_a_relu_nothing_is_called_exact(xrays28):
    images, labels = batch_of(*xrays28, 4, 0)
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.Tanh(), nn.Linear(50, 20), nn.Linear(20, 2)).double()
    found, _, _ = attacked(images, labels, smooth, Spear(samples=8192))
    assert not found.exact.any()
    assert found.images.shape == (4, 1, 28, 28)


def test_the_catalogue_makes_it():
    assert listed("spear").make(samples=10) == Spear(samples=10)
