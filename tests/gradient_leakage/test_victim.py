import copy

import numpy as np
import pytest
import torch
from fedveil import DataKind, DataSpec, TrainingPlan
from fedveil.envoy.initial_weights import initial_of
from fedveil.envoy.layouts import tensors_of
from fedveil.envoy.records import LoadedDataset
from fedveil.envoy.training import LocalRound, run_round
from fedveil.gradient_leakage.models import MODELS, build
from fedveil.gradient_leakage.threat_model import ImageDomain, LocalTraining, SentKind
from fedveil.gradient_leakage.victim import SiteTraining, granting, layout_of, observe
from fedveil.utils.errors import ConfigError, NonFiniteUpdateError
from fedveil.utils.messages import TaskKind
from fedveil.utils.tensors import named_views
from torch import nn
from torch.nn import functional

DOMAIN = ImageDomain((1, 12, 12), 2)


def normed():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))


class Plan(TrainingPlan):
    data = DataSpec("x", DataKind.IMAGES, DOMAIN.shape, ("a", "b"))

    def model(self):
        return build("relu-cnn", DOMAIN, 5)

    def train_step(self, model, batch):
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, _model, _loader):
        return []


class NormedPlan(Plan):
    def model(self):
        return normed()


def examples(count, seed=0):
    images = torch.rand((count, *DOMAIN.shape), generator=torch.Generator().manual_seed(seed))
    return images, torch.arange(count) % DOMAIN.num_classes


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def envoys_own(plan, images, labels):
    """The bytes that an envoy would send, its model before, and the order in which it took the examples."""
    layout, vector, exact = initial_of(plan)
    data = LoadedDataset(images.numpy(), labels.numpy(), np.zeros(len(images), np.uint8))
    out = np.empty(layout.size, np.float32)
    given = LocalRound(TaskKind.TRAIN, 1, 2, layout, vector, exact, data, device="cpu")
    run_round(plan, given, out)
    model = plan.model()
    for entry, view in named_views(layout, vector):
        (dict(model.named_parameters()) | dict(model.named_buffers()))[entry.name].data.copy_(torch.from_numpy(view))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    return out.tobytes(), layout, model.train(), order


def as_the_victim_draws_them(order, seed):
    """Places such that the victim's own shuffling brings the examples into this order."""
    own = rng(seed)
    torch.randint(1 << 62, (), generator=own)
    drawn = torch.randperm(len(order), generator=own)
    return order[drawn.argsort()]


@pytest.mark.parametrize("plan_class", [Plan, NormedPlan])
@pytest.mark.parametrize(("count", "batch_size"), [(4, 4), (6, 2), (8, 3)])
def test_what_the_victim_sends_are_the_very_bytes_of_an_envoy(plan_class, count, batch_size):
    images, labels = examples(count)
    expected, layout, model, order = envoys_own(plan_class(learning_rate=0.1, batch_size=batch_size), images, labels)
    chosen = as_the_victim_draws_them(order, 7)
    site = SiteTraining(LocalTraining(epochs=1, batch_size=batch_size), learning_rate=0.1)
    sent = observe(model, images[chosen], labels[chosen], site, rng(7), 2)
    assert sent.layout.entries == layout.entries
    assert sent.sent == expected


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_is_the_envoys(name):
    model = build(name, DOMAIN, 0)
    assert layout_of(model).entries == tensors_of(model, Plan()).layout.entries


def test_one_gradient_is_that_of_the_mean_loss():
    model, (images, labels) = build("tanh-cnn", DOMAIN, 0), examples(3)
    sent = observe(model, images, labels, SiteTraining(), rng(), 2)
    functional.cross_entropy(model(images), labels).backward()
    assert sent.kind is SentKind.GRADIENT
    for name, parameter in model.named_parameters():
        assert torch.equal(sent.tensors()[name], parameter.grad)


@pytest.mark.parametrize("site", [SiteTraining(), SiteTraining(LocalTraining(2, 2), 0.1)])
def test_the_published_model_and_the_process_stay_as_they_were(site):
    model, (images, labels) = normed(), examples(4)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    observe(model, images, labels, site, rng(), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_same_seed_sends_the_same_bytes_and_another_another_order():
    model, (images, labels) = build("relu-cnn", DOMAIN, 0), examples(8)
    site = SiteTraining(LocalTraining(1, 2), 0.1)
    first, again, other = (observe(model, images, labels, site, rng(seed), 2).sent for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_the_model_itself_draws_comes_from_the_seed():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 2))
    images, labels = examples(4)
    first, again, other = (observe(model, images, labels, SiteTraining(), rng(seed), 2).sent for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_statistics_are_those_of_the_first_batch_that_every_batch_norm_saw():
    model, (images, labels) = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(144, 2)), examples(4)
    seen = observe(model, images, labels, SiteTraining(), rng(), 2).granted.batch_norm_statistics["0"]
    torch.testing.assert_close(seen.mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(seen.variance, images.var((0, 2, 3), unbiased=False))


def test_everything_that_a_threat_model_may_grant_is_handed_over():
    images, labels = examples(4)
    site = SiteTraining(LocalTraining(2, 2), 0.3)
    granted = observe(normed(), images, labels, site, rng(), 2).granted
    assert torch.equal(granted.labels, labels)
    assert (granted.local_steps, granted.learning_rate) == (LocalTraining(2, 2), 0.3)
    assert len(granted.batch_norm_statistics) == 1
    assert observe(build("mlp", DOMAIN, 0), images, labels, SiteTraining(), rng(), 2).granted.learning_rate is None
    defense = {"basis": torch.zeros(2)}
    assert granting(observe(build("mlp", DOMAIN, 0), images, labels, site, rng(), 2), defense=defense).granted.defense


def test_training_that_diverges_is_not_sent():
    images, labels = examples(4)
    with pytest.raises(NonFiniteUpdateError):
        observe(build("relu-cnn", DOMAIN, 0), images, labels, SiteTraining(LocalTraining(9, 1), 1e30), rng(), 2)


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (torch.rand(1, 12, 12), torch.tensor([0]), "images of shape"),
        (torch.rand(0, 1, 12, 12), torch.zeros(0, dtype=torch.int64), "images of shape"),
        (torch.rand(2, 1, 12, 12), torch.tensor([0]), "labels of shape"),
        (torch.rand(1, 1, 12, 12) * 255, torch.tensor([0]), r"not in \[0, 1\]"),
        (torch.full((1, 1, 12, 12), float("nan")), torch.tensor([0]), r"not in \[0, 1\]"),
        (torch.ones((1, 1, 12, 12), dtype=torch.uint8), torch.tensor([0]), "divided by 255"),
        (torch.rand(1, 1, 12, 12), torch.tensor([2]), "classes, 0 to 1"),
        (torch.rand(1, 1, 12, 12), torch.tensor([-1]), "classes, 0 to 1"),
        (torch.rand(1, 1, 12, 12), torch.tensor([0.5]), "classes, 0 to 1"),
    ],
)
def test_images_and_labels_that_no_plan_trains_on_are_refused(images, labels, reason):
    with pytest.raises(ConfigError, match=reason):
        observe(build("mlp", DOMAIN, 0), images, labels, SiteTraining(), rng(), 2)
