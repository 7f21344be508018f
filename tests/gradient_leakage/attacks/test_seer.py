"""SEER-like: one image of a large batch comes back through a secret direction, and nothing stands out in the update."""

import pytest
import torch
from fedveil.gradient_leakage.attacks.fishing import Fishing
from fedveil.gradient_leakage.attacks.seer import Seer
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining, PublicImages
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError

KNOWN = Knowledge(malicious=True, public_data=True, learning_rate=True, local_steps=True)
XRAYS = ImageDomain((1, 28, 28), 2)
SEER = Seer()


@pytest.fixture(scope="module")
def parts(xrays28):
    """The attacker's 424 public X-rays, and 200 others that sites hold."""
    images, labels = xrays28
    order = torch.randperm(624, generator=torch.Generator().manual_seed(1))
    return (images[order[:424]], labels[order[:424]]), (images[order[424:]], labels[order[424:]])


@pytest.fixture(scope="module")
def published(parts):
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(1)
    return SEER.prepare(build("mlp", XRAYS, 1), XRAYS, rng, PublicImages(*parts[0]))


def best_of(batch_size, published, images, labels, site, *, attack=SEER, batches=30):
    """The best PSNR of what came back, in dB: over the batch, and over all other X-rays that sites hold."""
    rng = torch.Generator().manual_seed(2)
    own, others = [], []
    for _ in range(batches):
        batch = torch.randperm(len(images), generator=rng)[:batch_size]
        sent = observe(published, images[batch], labels[batch], site, rng, 2)
        found = attack(sent, KNOWN, rng).images
        psnr = -10 * (found - images).square().mean((1, 2, 3)).log10()
        own.append(float(psnr[batch].max()))
        psnr[batch] = 0
        others.append(float(psnr.max()))
    return torch.tensor(own), torch.tensor(others)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [32, 64])
def test_one_image_of_a_large_batch_comes_back_far_above_the_best_of_other_patients(parts, published, batch_size):
    # The paper: one image above 19 dB out of most batches of CIFAR-10, of up to 512 images, through a ResNet18. X-rays
    # are alike, so 19 dB says nothing here: the bound is 25 dB, which the best of 140 other images does not reach. The
    # share of batches is lower than the paper's: a quarter or more, after 14 CPU-s of training.
    own, others = best_of(batch_size, published, *parts[1], SiteTraining())
    assert (own > 25).float().mean() >= 0.25
    assert (others > 25).float().mean() <= 0.05
    assert own.mean() > others.mean() + 3


def test_a_local_step_is_as_good_as_a_gradient(parts, published):
    site = SiteTraining(LocalTraining(1, 32), 0.01)
    own, _ = best_of(32, published, *parts[1], site)
    assert (own > 25).float().mean() >= 0.2


def test_without_the_secret_hardly_anything_comes_back(parts, published):
    own, others = best_of(32, published, *parts[1], SiteTraining(), attack=Seer(secret=6))
    assert (own > 25).float().mean() <= 0.1
    assert own.mean() < others.mean() + 1  # a mean image, as near to anybody


def domination(model, images, labels):
    """The paper's disaggregation signal-to-noise: the most that one example outweighs the rest, over all layers."""
    single = [
        observe(model, image[None], label[None], SiteTraining(), torch.Generator(), 2).gradient()
        for image, label in zip(images, labels, strict=True)
    ]
    ratios = []
    for name in (n for n in single[0] if n.endswith("weight")):
        each = torch.stack([one[name].flatten() for one in single])
        ratios.append((each.norm(dim=1) / (each.sum(0) - each).norm(dim=1)).max())
    return float(max(ratios))


def test_no_example_dominates_a_layer_as_one_does_after_fishing(parts, published, rng):
    images, labels = parts[1]
    sick = torch.nonzero(labels == 1).flatten()[:31]
    batch = torch.cat([torch.nonzero(labels == 0).flatten()[:1], sick])
    fished = Fishing().prepare(build("mlp", XRAYS, 1), XRAYS, rng)
    assert domination(fished, images[batch], labels[batch]) > 100
    assert domination(published, images[:32], labels[:32]) < 1


def test_the_published_model_keeps_the_plan_s_layout(published):
    plan = build("mlp", XRAYS, 1).state_dict()
    assert {n: t.shape for n, t in published.state_dict().items()} == {n: t.shape for n, t in plan.items()}


def test_the_same_seed_trains_the_same_model(parts):
    quick = Seer(iterations=3)
    models = [
        quick.prepare(build("mlp", XRAYS, 0), XRAYS, torch.Generator().manual_seed(0), PublicImages(*parts[0]))
        for _ in range(2)
    ]
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_model_that_starts_with_a_convolution_is_refused(parts, rng):
    with pytest.raises(AttackError, match="0 is Conv2d"):
        Seer().prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, PublicImages(*parts[0]))


def test_too_few_public_images_are_refused(parts, rng):
    few = PublicImages(parts[0][0][:63], parts[0][1][:63])
    with pytest.raises(ConfigError, match="64 or more, there are 63"):
        Seer().prepare(build("mlp", XRAYS, 0), XRAYS, rng, few)


def test_without_public_data_it_is_refused(parts, published, rng):
    sent = observe(published, parts[1][0][:2], parts[1][1][:2], SiteTraining(), rng, 2)
    with pytest.raises(ConfigError, match="public_data"):
        Seer()(sent, Knowledge(malicious=True), rng)


@pytest.mark.parametrize("options", [{"batch": 1}, {"iterations": 0}, {"step_size": 0.0}, {"faintest": 0.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        Seer(**options)
