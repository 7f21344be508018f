"""Attacks on noise inside the network: what lies before it alone, and the noise as one more unknown."""

import copy

import pytest
import torch
from fedveil.gradient_leakage.attacks.dlg import Dlg
from fedveil.gradient_leakage.attacks.ignore_bottleneck import IgnoreBottleneck, trained_before
from fedveil.gradient_leakage.attacks.noise_variable import NoiseVariable
from fedveil.gradient_leakage.defenses.bottlenecks import Bottleneck, with_bottleneck
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError
from torch import nn

XRAYS = ImageDomain((1, 28, 28), 2)
LABELS = Knowledge(labels=True)


def seen(xrays, place, kind="precode", count=1, site=None, model=None):
    images, labels = xrays[0][place : place + count], xrays[1][place : place + count]
    rng = torch.Generator().manual_seed(place)
    model = with_bottleneck(build("tanh-cnn", XRAYS, place), kind, seed=place) if model is None else model
    return observe(model, images, labels, site or SiteTraining(), rng, 2), Truth(images, labels)


def psnr(attack, observation, truth, knowledge=LABELS):
    found = attack(observation.limited_to(knowledge), knowledge, torch.Generator().manual_seed(0))
    return float(score(found, truth).psnr.min())


@pytest.mark.parametrize("kind", ["precode", "cvb"])
def test_noise_that_is_sought_along_with_the_image_hides_nothing(xrays28, kind):
    observation, truth = seen(xrays28, 0, kind)
    assert psnr(Dlg(restarts=1, iterations=200), observation, truth) < 15  # with noise of its own: grey
    assert psnr(NoiseVariable(), observation, truth) > 60


def test_noise_of_several_steps_is_not_one_unknown(xrays28):
    # each local step draws anew: one noise explains no update of three
    site = SiteTraining(LocalTraining(3, 1), 1.0)
    known = Knowledge(labels=True, learning_rate=True, local_steps=True)
    assert psnr(NoiseVariable(restarts=1, iterations=100), *seen(xrays28, 0, site=site), known) < 20


def test_of_one_example_what_lies_before_precode_gives_the_image_away(xrays28):
    assert psnr(IgnoreBottleneck(iterations=300), *seen(xrays28, 1)) > 35


def test_the_features_alone_do_too_which_is_how_ppp_falls(xrays28):
    observation, truth = seen(xrays28, 0)
    assert psnr(IgnoreBottleneck(gradients=False), observation, truth) > 35


def test_where_nothing_can_be_divided_ignoring_the_bottleneck_finds_little(xrays28):
    batch, truth = seen(xrays28, 0, count=2)
    assert psnr(IgnoreBottleneck(iterations=60), batch, truth) < 16
    early, truth = seen(xrays28, 0, "cvb")
    assert psnr(IgnoreBottleneck(iterations=60, draws=2), early, truth) < 16


def test_the_layers_before_a_bottleneck_are_those_that_its_input_depends_on(xrays28):
    observation, _ = seen(xrays28, 0)
    name = next(name for name, module in observation.model.named_modules() if isinstance(module, Bottleneck))
    assert trained_before(observation.model, name, XRAYS.shape) == {
        f"{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")
    }
    with pytest.raises(AttackError, match="no trained layer lies before"):
        trained_before(with_bottleneck(nn.Sequential(nn.Flatten(), nn.Linear(784, 2))), "1.0", XRAYS.shape)


@pytest.mark.parametrize("attack", [IgnoreBottleneck(iterations=3), NoiseVariable(iterations=3, restarts=1)])
def test_the_observed_model_and_the_process_stay_as_they_were_and_the_seed_decides(xrays28, attack):
    observation, _ = seen(xrays28, 0)
    before, generator = copy.deepcopy(observation.model.state_dict()), torch.get_rng_state()
    found = [attack(observation, LABELS, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(found[0].images, found[1].images)
    assert all(torch.equal(value, before[name]) for name, value in observation.model.state_dict().items())
    assert all(module.pinned is None for module in observation.model.modules() if isinstance(module, Bottleneck))
    assert torch.equal(torch.get_rng_state(), generator)


def test_models_updates_and_options_that_do_not_fit_are_refused(xrays28):
    plain, _ = seen(xrays28, 0, model=build("tanh-cnn", XRAYS, 0))
    for attack in (IgnoreBottleneck(), NoiseVariable()):
        with pytest.raises(AttackError, match="no bottleneck that draws noise"):
            attack(plain, LABELS, torch.Generator())
    with pytest.raises(ConfigError, match="learning_rate"):
        NoiseVariable()(seen(xrays28, 0, site=SiteTraining(LocalTraining(1, 1), 0.1))[0], LABELS, torch.Generator())
    with pytest.raises(ConfigError, match="neither features nor gradients"):
        IgnoreBottleneck(features=False, gradients=False)
    with pytest.raises(ConfigError, match="draws -1"):
        IgnoreBottleneck(draws=-1)
    with pytest.raises(ConfigError, match="prior -1"):
        NoiseVariable(prior=-1)
