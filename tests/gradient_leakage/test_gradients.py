import copy

import pytest
import torch
from fedveil.gradient_leakage.gradients import (
    gradient_at,
    gradients_of_restarts,
    require_differentiable,
    trained_parameters,
    update_after,
)
from fedveil.gradient_leakage.models import MODELS, build
from fedveil.gradient_leakage.threat_model import ImageDomain, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError
from torch import nn
from torch.nn import functional

DOMAIN = ImageDomain((1, 12, 12), 3)


def batch(count=4, dtype=torch.float64):
    drawn = torch.rand((count, *DOMAIN.shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.to(dtype), torch.arange(count) % DOMAIN.num_classes


class Rounded(nn.Module):
    def forward(self, features):
        return features.mul(8).round().div(8)


class Detached(nn.Module):
    def forward(self, features):
        return features.detach()


class OnceDifferentiable(nn.Module):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, features):
            ctx.save_for_backward(features)
            return features.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return 2 * ctx.saved_tensors[0] * slope

    def forward(self, features):
        return self.Square.apply(features)


@pytest.mark.parametrize("name", ["mlp", "lenet", "tanh-cnn", "relu-cnn"])
def test_the_gradient_is_that_of_backward(name):
    model = build(name, DOMAIN, 0).double().eval()
    images, labels = batch()
    found = gradient_at(model, images, labels)
    functional.cross_entropy(model(images), labels).backward()
    for parameter, weight in model.named_parameters():
        torch.testing.assert_close(found[parameter], weight.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_differentiable_by_images_and_by_soft_labels():
    model = build("tanh-cnn", DOMAIN, 0).double()
    images = batch(1)[0].requires_grad_()
    labels = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64, requires_grad=True)

    def squared_length(images, labels):
        return torch.stack([g.square().sum() for g in gradient_at(model, images, labels).values()]).sum()

    assert torch.autograd.gradcheck(squared_length, (images, labels), fast_mode=True)


def test_the_gradient_can_be_taken_at_other_weights():
    model, other = build("mlp", DOMAIN, 0).double(), build("mlp", DOMAIN, 1).double()
    images, labels = batch()
    found = gradient_at(model, images, labels, at={n: w.requires_grad_() for n, w in trained_parameters(other).items()})
    expected = gradient_at(other, images, labels)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_frozen_parameters_have_no_gradient():
    model = build("mlp", DOMAIN, 0).double()
    model.get_submodule("1").requires_grad_(requires_grad=False)
    assert "1.weight" not in gradient_at(model, *batch())


@pytest.mark.parametrize("name", ["mlp", "lenet", "tanh-cnn", "relu-cnn"])
def test_all_restarts_at_once_are_one_after_the_other(name):
    model = build(name, DOMAIN, 0).double()
    images = torch.rand((3, 2, *DOMAIN.shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([[0, 1], [1, 2], [2, 2]])
    together = gradients_of_restarts(model, images, labels)
    for number in range(3):
        for parameter, value in gradient_at(model, images[number], labels[number]).items():
            torch.testing.assert_close(together[parameter][number], value, rtol=1e-9, atol=1e-12)


def test_an_update_is_what_the_site_sends_after_its_local_steps():
    model = build("tanh-cnn", DOMAIN, 0).double()
    images, labels = batch()
    site = SiteTraining(LocalTraining(epochs=2, batch_size=2), learning_rate=0.1)
    sent = observe(model, images, labels, site, torch.Generator().manual_seed(3), 3).tensors()
    rng, batches = torch.Generator().manual_seed(3), []
    torch.randint(1 << 62, (), generator=rng)  # the seed of what the model draws
    for _ in range(2):
        batches += [(images[chosen], labels[chosen]) for chosen in torch.randperm(4, generator=rng).split(2)]
    for name, value in update_after(model, batches, 0.1).items():
        torch.testing.assert_close(value, sent[name], rtol=1e-9, atol=1e-12)


def test_an_update_is_differentiable_by_the_images_of_every_step():
    model = build("tanh-cnn", DOMAIN, 0).double()
    images, labels = batch(2)
    images.requires_grad_()
    moved = update_after(model, [(images[:1], labels[:1]), (images[1:], labels[1:])], 0.1)
    (slope,) = torch.autograd.grad(sum(value.square().sum() for value in moved.values()), images)
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_nothing_changes_in_the_model():
    model = build("tanh-cnn", DOMAIN, 0)
    before = copy.deepcopy(model.state_dict())
    images, labels = batch(2, torch.float32)
    gradient_at(model, images, labels)
    gradients_of_restarts(model, images[None].expand(2, -1, -1, -1, -1), labels.expand(2, -1))
    update_after(model, [(images, labels)], 0.1)
    require_differentiable(model, DOMAIN)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_benchmark_can_be_matched_through_in_both_modes(name):
    for mode in (True, False):
        model = build(name, DOMAIN, 0).train(mode)
        before = copy.deepcopy(model.state_dict())
        require_differentiable(model, DOMAIN)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Rounded(), "lets no slope through"),
        (Detached(), "lets no slope"),
        (OnceDifferentiable(), "differentiated twice"),
    ],
)
def test_a_layer_that_is_not_differentiable_is_named(layer, reason):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Sequential(nn.Flatten(), layer), nn.Linear(400, 3))
    with pytest.raises(AttackError, match=rf"layer 2\.1 \({type(layer).__name__}\).*{reason}"):
        require_differentiable(model, DOMAIN)


def test_a_model_that_rounds_outside_of_any_layer_is_named_itself():
    class Whole(nn.Sequential):
        def forward(self, images):
            return super().forward(images.round())

    with pytest.raises(AttackError, match=r"layer at the root \(Whole\)"):
        require_differentiable(Whole(nn.Flatten(), nn.Linear(144, 3)), DOMAIN)


def test_images_that_the_model_does_not_take_are_named():
    with pytest.raises(AttackError, match=r"images of shape \(1, 12, 12\)"):
        require_differentiable(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), DOMAIN)
