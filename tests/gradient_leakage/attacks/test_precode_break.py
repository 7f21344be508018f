import copy
from dataclasses import replace

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.attacks.dlg import Dlg
from fedveil.gradient_leakage.attacks.precode_break import PrecodeBreak, pinned, recovered_noise
from fedveil.gradient_leakage.defenses.bottlenecks import VariationalBottleneck, with_bottleneck
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError
from torch import nn

XRAYS = ImageDomain((1, 28, 28), 2)
BLIND = Knowledge()


@pytest.fixture
def drawn(monkeypatch):
    """What the site draws; no attack sees it."""
    noise, draw = [], torch.randn_like

    def recorded(mean):
        noise.append(draw(mean))
        return noise[-1]

    monkeypatch.setattr(torch, "randn_like", recorded)
    return noise


def seen(xrays, places, name="tanh-cnn", site=None, model=None):
    images, labels = xrays[0][places], xrays[1][places]
    model = with_bottleneck(build(name, XRAYS, places[0]), seed=places[0]) if model is None else model
    rng = torch.Generator().manual_seed(places[0])
    return observe(model, images, labels, site or SiteTraining(), rng, 2), Truth(images, labels)


def attacked(attack, observation, knowledge=BLIND):
    return attack(observation.limited_to(knowledge), knowledge, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["tanh-cnn", "lenet", "relu-cnn", "mlp"])
def test_the_noise_comes_back_to_1e_4_for_thirty_xrays_of_thirty(xrays28, drawn, name):
    for place in range(30):
        observation, _ = seen(xrays28, [place], name)
        noise, truth = recovered_noise(observation.limited_to(BLIND)), drawn[-1].double()
        assert noise.shape == (1, 128)
        assert (noise - truth).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh-cnn", "lenet"])
def test_dlg_after_it_finds_every_xray_above_60_db_and_its_label_without_being_told(xrays28, name):
    for place in range(8):
        observation, truth = seen(xrays28, [place], name)
        found = attacked(PrecodeBreak(), observation)
        assert score(found, truth).psnr.min() > 60
        assert torch.equal(found.labels, truth.labels)


def test_the_naive_attack_that_draws_fresh_noise_is_below_10_db_as_precodes_paper_claims(xrays28):
    # Scheliga et al. 2022: PRECODE stops gradient matching; from the start of its paper, which is no picture.
    for place in range(3):
        observation, truth = seen(xrays28, [place])
        naive = Dlg(falloff=0, spread=1, restarts=1, iterations=300)
        assert score(attacked(naive, observation), truth).psnr.max() < 10


def test_started_from_grey_the_naive_attack_is_no_better_than_grey(xrays28):
    observation, truth = seen(xrays28, [0])
    grey = score(replace(attacked(Dlg(iterations=1), observation), images=torch.full((1, 1, 28, 28), 0.5)), truth)
    assert score(attacked(Dlg(restarts=1), observation), truth).psnr[0] < grey.psnr[0] + 3


def test_plain_dlg_through_the_pinned_bottleneck_is_above_60_db(xrays28):
    observation, truth = seen(xrays28, [0])
    assert score(attacked(Dlg(balance=0.5), pinned(observation)), truth).psnr.min() > 60


def test_the_same_reconstruction_is_no_better_than_the_prior_for_another_patient_of_the_class(xrays28):
    images, labels = xrays28
    found = attacked(PrecodeBreak(), seen(xrays28, [0])[0])
    for other in torch.nonzero(labels == labels[0])[1:30, 0]:
        truth = Truth(images[other : other + 1], labels[:1])
        ours, prior = score(found, truth).psnr[0], score(replace(found, images=images[:1]), truth).psnr[0]
        assert ours == pytest.approx(prior, abs=0.1)


def test_one_local_step_gives_as_much_away_where_the_learning_rate_is_granted(xrays28):
    observation, truth = seen(xrays28, [0], site=SiteTraining(LocalTraining(1, 1), 0.1))
    assert score(attacked(PrecodeBreak(), observation, Knowledge(learning_rate=True)), truth).psnr.min() > 60
    with pytest.raises(ConfigError, match="learning_rate"):
        attacked(PrecodeBreak(), observation)


def test_the_observed_model_and_the_process_stay_as_they_were(xrays28):
    observation, _ = seen(xrays28, [0])
    before, generator = copy.deepcopy(observation.model.state_dict()), torch.get_rng_state()
    first, again = (attacked(PrecodeBreak(iterations=5), observation) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert all(torch.equal(value, before[name]) for name, value in observation.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert pinned(observation).model is not observation.model


def test_a_batch_is_refused_with_the_reason(xrays28):
    with pytest.raises(AttackError, match="2 examples, whose noise adds up"):
        attacked(PrecodeBreak(), seen(xrays28, [0, 1])[0])


def test_a_model_without_a_bottleneck_is_refused_and_dlg_named(xrays28):
    with pytest.raises(AttackError, match="no PRECODE bottleneck: attack it with dlg"):
        attacked(PrecodeBreak(), seen(xrays28, [0], model=build("mlp", XRAYS, 0))[0])


def test_a_bottleneck_that_is_not_trained_gives_nothing_away(xrays28):
    observation, _ = seen(xrays28, [0])
    model = copy.deepcopy(observation.model)
    for parameter in next(m for m in model.modules() if isinstance(m, VariationalBottleneck)).parameters():
        parameter.requires_grad = False
    with pytest.raises(AttackError, match=r"encoder\.weight"):
        attacked(PrecodeBreak(), seen(xrays28, [0], model=model)[0])


def test_images_that_enter_the_bottleneck_themselves_leave_nothing_to_match(xrays28):
    model = with_bottleneck(nn.Sequential(nn.Flatten(), nn.Linear(784, 2)))
    with pytest.raises(AttackError, match="no trained layer lies before the bottleneck"):
        attacked(PrecodeBreak(), seen(xrays28, [0], model=model)[0])


def test_a_bottleneck_goes_before_the_last_linear_layer_of_any_model():
    domain = ImageDomain((1, 12, 12), 3)
    images = torch.rand(2, *domain.shape)
    for name in ("mlp", "lenet", "resnet18"):
        plain = build(name, domain, 0)
        noisy = with_bottleneck(plain, width=8)
        assert noisy(images).shape == (2, 3)
        leaves = [type(module) for module in noisy.modules() if not any(True for _ in module.children())]
        assert leaves[-3:] == [nn.Linear] * 3  # encoder, decoder, and the layer that was last
        assert len(leaves) == sum(not any(True for _ in module.children()) for module in plain.modules()) + 2
        assert not any(isinstance(module, VariationalBottleneck) for module in plain.modules())
    assert isinstance(with_bottleneck(nn.Linear(4, 2), width=3)[0], VariationalBottleneck)


def test_bottlenecks_are_drawn_from_their_seed_and_the_noise_afresh_in_every_pass():
    plain, generator = build("mlp", XRAYS, 0), torch.get_rng_state()
    first, again, other = (with_bottleneck(plain, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())
    noisy, images = with_bottleneck(plain), torch.rand(1, *XRAYS.shape)
    assert not torch.equal(noisy(images), noisy(images))
    assert not torch.equal(noisy.eval()(images), noisy(images))


def test_a_bottleneck_needs_a_linear_layer_and_a_width():
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        with_bottleneck(nn.Conv2d(1, 2, 3))
    with pytest.raises(ConfigError, match="width 0"):
        with_bottleneck(nn.Linear(4, 2), width=0)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="iterations 0"):
        listed("precode-break").make(iterations=0)
