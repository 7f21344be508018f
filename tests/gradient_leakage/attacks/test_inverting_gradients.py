"""Inverting Gradients: its paper's figures at CPU-small settings, its pair of tests, and what it refuses."""

import copy

import pytest
import torch
from fedveil.gradient_leakage.attacks.inverting_gradients import GEIPING_2020, InvertingGradients
from fedveil.gradient_leakage.gradients import gradient_at, gradients_of_restarts
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError
from torch import nn
from torch.nn import functional

LUNGS = ImageDomain((1, 28, 28), 2)
LABELS = Knowledge(labels=True)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def seen(model, images, labels, num_classes=2):
    return observe(model, images, labels, SiteTraining(), seeded(0), num_classes)


def psnr(found, truth):
    return float(-10 * torch.log10((found - truth).double().square().mean() + 1e-20))


def mean_psnr(attack, model_of, images, labels, num_classes=2):
    scores = []
    for index in range(len(images)):
        truth = images[index : index + 1]
        observation = seen(model_of(index), truth, labels[index : index + 1], num_classes)
        scores.append(psnr(attack(observation, LABELS, seeded(index)).images, truth))
    return sum(scores) / len(scores)


def tiny(channels=1, classes=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(36, classes),
        )


@pytest.mark.slow
def test_geiping_2020_table_1_untrained_lenet_on_cifar10_18_db_within_4_db_in_500_iterations(cifar10):
    images, labels = (part[:4] for part in cifar10)
    attack = InvertingGradients(**{**GEIPING_2020, "iterations": 500})
    reached = mean_psnr(attack, lambda seed: build("lenet", ImageDomain((3, 32, 32), 10), seed), images, labels, 10)
    assert reached == pytest.approx(18.0, abs=4.0)


def test_geiping_2020_table_1_a_trained_network_gives_away_far_less_by_10_db(xrays28):
    images, labels = xrays28
    fresh = build("relu-cnn", LUNGS, 0)
    trained = copy.deepcopy(fresh)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    for at in [*range(100, 600, 25)] * 4:
        optimizer.zero_grad()
        functional.cross_entropy(trained(images[at : at + 25]), labels[at : at + 25]).backward()
        optimizer.step()
    attack = InvertingGradients(iterations=150)
    untrained = mean_psnr(attack, lambda _: fresh, images[:3], labels[:3])
    assert mean_psnr(attack, lambda _: trained, images[:3], labels[:3]) < untrained - 10


def test_a_fresh_relu_network_gives_its_xrays_away_and_no_other_patients(xrays28):
    images, labels = xrays28
    for index in (0, 1):
        truth, label = images[index : index + 1], labels[index : index + 1]
        found = InvertingGradients(iterations=200)(
            seen(build("relu-cnn", LUNGS, index), truth, label), LABELS, seeded(0)
        )
        others = images[labels == label][20:120]
        assert psnr(found.images, truth) > 30
        for other in others:  # the prior: what the true image itself says about another patient
            assert psnr(found.images[0], other) < psnr(truth[0], other) + 1


def test_labels_that_are_not_granted_are_read_off_the_last_layer(xrays28):
    images, labels = (part[:1] for part in xrays28)
    observation = seen(build("relu-cnn", LUNGS, 0), images, labels)
    found = InvertingGradients(iterations=100)(observation.limited_to(Knowledge()), Knowledge(), seeded(0))
    assert torch.equal(found.labels, labels)
    assert psnr(found.images, images) > 25


def test_the_same_seed_gives_the_same_images_and_nothing_else_is_touched(xrays28):
    images, labels = (part[:2] for part in xrays28)
    model = nn.Sequential(tiny()[:3], nn.AdaptiveAvgPool2d(3), *tiny()[3:]).train()
    observation, before = seen(model, images, labels), copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    attack = InvertingGradients(iterations=5, restarts=3, trace_every=2)
    first, second = (attack(observation, LABELS, seeded(7)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in observation.model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [point.iteration for point in first.trace] == [0, 2, 4]


def test_the_restart_is_the_one_of_the_attackers_own_lowest_loss(xrays28):
    images, labels = (part[:1] for part in xrays28)
    observation = seen(build("relu-cnn", LUNGS, 0), images, labels)
    plain = {"iterations": 10, "total_variation": 0.0, "total_variation_end": 0.0}
    few, many = (InvertingGradients(restarts=n, **plain)(observation, LABELS, seeded(0)).loss for n in (1, 6))
    assert many <= few * 1.001  # up to the rounding of vmap


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_in_both_precisions(channels, dtype):
    images = torch.rand(2, channels, 28, 28, generator=seeded(0), dtype=dtype)
    model = build("tanh-cnn", ImageDomain((channels, 28, 28), 2), 0).to(dtype)
    observation = seen(model, images, torch.tensor([0, 1]))
    early, found = (InvertingGradients(iterations=n)(observation, LABELS, seeded(1)) for n in (1, 20))
    assert found.images.shape == images.shape
    assert found.images.dtype == dtype
    assert found.loss < early.loss


@pytest.mark.parametrize("paying_below", [0, 1_000_000])
def test_gradients_of_restarts_are_those_of_each_restart(paying_below, monkeypatch):
    monkeypatch.setattr("fedveil.gradient_leakage.gradients._VMAP_PAYS_BELOW", paying_below)
    model, images = tiny().eval(), torch.rand(3, 2, 1, 8, 8, generator=seeded(0))
    labels = torch.tensor([[0, 1], [1, 1], [0, 0]])
    together = gradients_of_restarts(model, images, labels)
    for restart in range(3):
        for name, value in gradient_at(model, images[restart], labels[restart]).items():
            torch.testing.assert_close(together[name][restart], value)


def test_a_batch_of_eight_gives_away_less_than_a_single_image(xrays28):
    images, labels = xrays28
    model, attack = build("relu-cnn", LUNGS, 0), InvertingGradients(iterations=150)
    single = psnr(attack(seen(model, images[:1], labels[:1]), LABELS, seeded(0)).images, images[:1])
    together = attack(seen(model, images[:8], labels[:8]), LABELS, seeded(0)).images
    assert psnr(together, images[:8]) < single - 5


class _Unbounded(nn.Module):
    def forward(self, images):
        return images + (images.detach().sum() > 0).to(images.dtype) * torch.nan


def test_nan_in_every_restart_is_an_error_and_not_a_picture(monkeypatch):
    images, labels = torch.rand(1, 1, 8, 8, generator=seeded(0)), torch.tensor([0])
    observation = seen(tiny().eval(), images, labels)
    monkeypatch.setattr(
        "fedveil.gradient_leakage.attacks.inverting_gradients.working_copy", lambda m: nn.Sequential(_Unbounded(), *m)
    )
    monkeypatch.setattr(
        "fedveil.gradient_leakage.attacks.inverting_gradients.sent_gradient",
        lambda *_: {f"{int(n[0]) + 1}{n[1:]}": v for n, v in observation.gradient().items()},
    )
    with pytest.raises(AttackError, match="every restart met NaN"):
        InvertingGradients(iterations=2)(observation, LABELS, seeded(0))


def test_an_update_of_zeros_is_refused():
    model = tiny().eval()
    observation = seen(model, torch.rand(1, 1, 8, 8, generator=seeded(0)), torch.tensor([0]))
    object.__setattr__(observation, "sent", bytes(len(observation.sent)))
    with pytest.raises(AttackError, match="zero in every trained parameter"):
        InvertingGradients(iterations=2)(observation, LABELS, seeded(0))


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"restarts": 0},
        {"step_size": 0.0},
        {"decay": "sometimes"},
        {"distance": "l1"},
        {"total_variation": -1.0},
    ],
)
def test_options_out_of_range_are_refused_before_any_work(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        InvertingGradients(**options)
