"""Training is plain, the same seed gives the same model, and each model is trained once."""

import pytest
import torch
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain
from fedveil.utils.errors import ConfigError, StorageError
from fedveil.workspace.leakage_training import TrainedModels, train
from torch import nn

DOMAIN = ImageDomain((1, 12, 12), 2)


@pytest.fixture
def images():
    """Bright images and dark ones."""
    labels = torch.arange(64) % 2
    noise = 0.2 * torch.rand(64, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return noise + 0.7 * labels[:, None, None, None], labels


def small(seed=0):
    """With batch normalisation, whose counters and statistics must be kept too."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 2))


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_trained_model_tells_the_classes_apart(images):
    model = build("mlp", DOMAIN, 0)
    train(model, *images, 30, rng())
    assert (model(images[0]).argmax(1) == images[1]).float().mean() > 0.95


def test_the_same_seed_gives_the_same_model_and_the_process_keeps_its_own_lot(images):
    found = [small() for _ in range(3)]
    before = torch.random.get_rng_state()
    for model, seed in zip(found, (1, 1, 2), strict=True):
        train(model, *images, 1, rng(seed))
    assert torch.equal(weights(found[0]), weights(found[1]))
    assert not torch.equal(weights(found[0]), weights(found[2]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_epoch_leaves_a_model_as_it_is_and_no_image_is_refused(images):
    model = build("mlp", DOMAIN, 0)
    before = weights(model)
    train(model, *images, 0, rng())
    assert torch.equal(weights(model), before)
    with pytest.raises(ConfigError, match="no image"):
        train(model, images[0][:0], images[1][:0], 1, rng())


def test_a_model_is_trained_once_and_then_loaded(images, tmp_path, monkeypatch):
    models = TrainedModels(tmp_path / "models")
    first, again, other = (small() for _ in range(3))
    models.trained(first, *images, 1, 0, ["toy", "small"])
    models.trained(other, *images, 1, 0, ["another"])
    assert len(list((tmp_path / "models").iterdir())) == 2
    monkeypatch.setattr("fedveil.workspace.leakage_training.train", None)
    models.trained(again, *images, 1, 0, ["toy", "small"])
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_damaged_model_is_named(images, tmp_path):
    models = TrainedModels(tmp_path)
    models.trained(build("mlp", DOMAIN, 0), *images, 1, 0, ["toy"])
    next(tmp_path.iterdir()).write_bytes(b"damaged")
    with pytest.raises(StorageError, match="cannot be used"):
        models.trained(build("mlp", DOMAIN, 0), *images, 1, 0, ["toy"])
