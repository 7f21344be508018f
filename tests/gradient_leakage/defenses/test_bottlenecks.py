import copy

import numpy as np
import pytest
import torch
from fedveil import DataKind, DataSpec, TrainingPlan, bottleneck_kl, with_bottleneck
from fedveil.envoy.initial_weights import initial_of
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.gradient_leakage.defenses.bottlenecks import ConvolutionalBottleneck, VariationalBottleneck
from fedveil.gradient_leakage.models import MODELS, build
from fedveil.gradient_leakage.threat_model import ImageDomain
from fedveil.utils.errors import ConfigError
from fedveil.utils.messages import TaskKind
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

DOMAIN = ImageDomain((1, 12, 12), 2)
KINDS = {"precode": VariationalBottleneck, "cvb": ConvolutionalBottleneck}


def images(count=3):
    return torch.rand((count, *DOMAIN.shape), generator=torch.Generator().manual_seed(0))


def defended(kind, name="relu-cnn", **options):
    return with_bottleneck(build(name, DOMAIN, 0), kind, **options)


def bottleneck_of(model):
    return next(module for module in model.modules() if isinstance(module, tuple(KINDS.values())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lenet", "relu-cnn", "resnet18"])
def test_a_network_with_a_bottleneck_takes_and_gives_what_it_did_and_stays_itself(kind, name):
    plain = build(name, DOMAIN, 0).eval()
    before = copy.deepcopy(plain.state_dict())
    noisy = with_bottleneck(plain, kind)
    assert noisy(images()).shape == plain(images()).shape == (3, 2)
    assert isinstance(bottleneck_of(noisy), KINDS[kind])
    assert all(torch.equal(before[key], tensor) for key, tensor in plain.state_dict().items())
    assert not any(isinstance(module, tuple(KINDS.values())) for module in plain.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_fresh_in_every_pass_unless_it_is_pinned(kind):
    model = defended(kind).eval()
    assert not torch.equal(model(images()), model(images()))
    bottleneck_of(model).pinned = torch.zeros(())
    assert torch.equal(model(images()), model(images()))


def test_precode_stands_before_the_last_linear_layer_and_cvb_behind_the_first_convolution():
    leaves = [type(m) for m in defended("precode").modules() if not list(m.children())]
    assert leaves[-3:] == [nn.Linear] * 3  # encoder, decoder, and the layer that was last
    leaves = [type(m) for m in defended("cvb").modules() if not list(m.children())]
    assert leaves[:4] == [nn.Conv2d] * 3 + [nn.ReLU]  # the layer that was first, encoder, decoder


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_that_of_the_last_pass_from_a_standard_gaussian(kind):
    model, entered = defended(kind), []
    hook = bottleneck_of(model).register_forward_pre_hook(lambda _m, inputs: entered.append(inputs[0]))
    model(images())
    hook.remove()
    mean, deviation = bottleneck_of(model).gaussian(entered[0])
    expected = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum() / len(mean)
    assert torch.allclose(bottleneck_kl(model), expected, rtol=1e-4)
    assert bottleneck_kl(model) > 0
    bottleneck_kl(model).backward()
    assert bottleneck_of(model).encoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_can_be_copied_after_a_pass(kind):
    model = defended(kind)
    model(images())
    copied = copy.deepcopy(model)
    assert copied.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ConfigError, match="after a forward pass"):
        bottleneck_kl(copied)
    assert bottleneck_kl(model) > 0


def test_weights_follow_from_the_seed_and_the_processes_generator_stays_as_it_was():
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = (defended("cvb", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), first)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_what_has_no_place_for_a_bottleneck_is_refused():
    with pytest.raises(ConfigError, match="precode, cvb"):
        defended("vae")
    with pytest.raises(ConfigError, match=r"no nn\.Conv2d"):
        defended("cvb", "mlp")
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        with_bottleneck(nn.Conv2d(1, 2, 3))
    with pytest.raises(ConfigError, match="width 0"):
        defended("cvb", width=0)
    with pytest.raises(ConfigError, match="no bottleneck"):
        bottleneck_kl(nn.Linear(2, 2))
    assert set(MODELS) >= {"mlp"}


class Plan(TrainingPlan):
    """One line more than without a bottleneck; one more for the divergence."""

    data = DataSpec("x", DataKind.IMAGES, DOMAIN.shape, ("a", "b"))
    bottleneck = "precode"

    def model(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2))
        return with_bottleneck(model, self.bottleneck, width=8)

    def train_step(self, model, batch):
        features, labels = batch
        return functional.cross_entropy(model(features), labels) + 1e-3 * bottleneck_kl(model)

    def evaluate(self, _model, _loader):
        return []


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_with_a_bottleneck_trains_a_round(kind):
    plan = Plan()
    plan.bottleneck = kind
    layout, vector, exact = initial_of(plan)
    data = LoadedDataset(images(8).numpy(), np.arange(8) % 2, np.zeros(8, np.uint8))
    given = LocalRound(TaskKind.TRAIN, 1, 2, layout, vector, exact, data, device="cpu")
    updates = [np.empty(layout.size, np.float32) for _ in range(2)]
    for update in updates:
        run_round(plan, given, update)
    assert np.isfinite(updates[0]).all()
    moved = {entry.name: updates[0][entry.offset : entry.offset + entry.size].any() for entry in layout.entries}
    assert all(moved.values())
    assert any(".encoder." in name for name in moved)
    assert np.array_equal(*updates)  # the noise comes from the round's seed
