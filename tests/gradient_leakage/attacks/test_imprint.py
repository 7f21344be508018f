"""Robbing the Fed: what a malicious director reads out of one update, and how that follows the paper's counting."""

from math import comb

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.attacks.imprint import Imprint, brightness_quantiles, expected_alone
from fedveil.gradient_leakage.models import MODELS, build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining, PublicImages
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError
from torch import nn

MALICIOUS = Knowledge(malicious=True)
XRAYS = ImageDomain((1, 28, 28), 2)


def best_psnr(found, truth):
    """PSNR in dB of the nearest reconstruction of each true image; the tests' own eye on the truth."""
    errors = (found.double().flatten(1)[None] - truth.double().flatten(1)[:, None]).square().mean(-1)
    return -10 * errors.amin(1).clamp_min(1e-30).log10()


def split(images, labels, seed):
    """The attacker's public images and an order of the others."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return PublicImages(images[order[:300]], labels[order[:300]]), order[300:]


def alone_in_bins(images, public, bins):
    """How many images share their bin with no other."""
    edges = brightness_quantiles(bins, public)
    _, counts = torch.bucketize(images.double().flatten(1).mean(1), edges).unique(return_counts=True)
    return int((counts == 1).sum())


def attacked(imprint, images, labels, public, site=None, name="relu-cnn", seed=0):
    """What the attack finds of a batch, and the dB of each true image."""
    rng = torch.Generator().manual_seed(seed)
    domain = ImageDomain(tuple(images.shape[1:]), 10 if images.shape[1] == 3 else 2)
    published = imprint.prepare(build(name, domain, seed), domain, rng, public)
    sent = observe(published, images, labels, site or SiteTraining(), rng, domain.num_classes)
    found = imprint(sent, MALICIOUS, rng)
    return found, best_psnr(found.images, images)


@pytest.mark.parametrize("name", MODELS)
def test_every_xray_of_a_batch_of_sixteen_comes_back_above_100_db_where_none_share_a_bin(xrays28, name):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    batch = rest[:16]
    assert alone_in_bins(images[batch], public, 1024) == 16
    found, psnr = attacked(Imprint(), images[batch], labels[batch], public, name=name)
    assert psnr.min() > 100
    assert found.exact.all()


def test_the_same_reconstruction_is_no_better_than_the_prior_for_other_patients(xrays28):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    batch, others = rest[:16], rest[16:116]
    found, psnr = attacked(Imprint(), images[batch], labels[batch], public)
    assert psnr.min() > 100
    assert best_psnr(found.images, images[others]).max() < 30  # one X-ray beside another
    assert best_psnr(found.images, images[others]).mean() < best_psnr(public.images[:16], images[others]).mean() + 1


@pytest.mark.parametrize("local", [LocalTraining(1, 16), LocalTraining(1, 4), LocalTraining(8, 4)], ids=str)
def test_local_steps_do_not_help_against_the_sparse_imprint(xrays28, local):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    site = SiteTraining(local, learning_rate=0.01)
    _, psnr = attacked(Imprint(), images[rest[:16]], labels[rest[:16]], public, site)
    assert psnr.min() > 100


def test_the_plain_relu_imprint_loses_digits_to_brighter_images_but_keeps_100_db(xrays28):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    _, plain = attacked(Imprint(sparse=False), images[rest[:16]], labels[rest[:16]], public)
    _, sparse = attacked(Imprint(), images[rest[:16]], labels[rest[:16]], public)
    assert plain.min() > 100
    assert sparse.median() > plain.median() + 10


def test_colour_images_in_float64_come_back(cifar10):
    images, labels = cifar10
    rng = torch.Generator().manual_seed(0)
    domain, imprint = ImageDomain((3, 32, 32), 10), Imprint()
    published = imprint.prepare(build("tanh-cnn", domain, 0).double(), domain, rng)
    found = imprint(observe(published, images[:16], labels[:16], SiteTraining(), rng, 10), MALICIOUS, rng)
    alone = alone_in_bins(images[:16], None, 1024)
    assert (best_psnr(found.images, images[:16]) > 100).sum() == alone
    assert alone >= 14


def proposition_1(examples, bins):
    """Expected exact recoveries, Fowl et al. 2022, Proposition 1: every occupancy of the bins counts the same."""
    ways = examples * comb(bins, examples)
    for alone in range(1, examples - 1):
        rest = examples - alone
        shared = sum(comb(bins - alone, j) * comb(rest - j - 1, j - 1) for j in range(1, rest // 2 + 1))
        ways += alone * comb(bins, alone) * shared
    return ways / comb(bins + examples - 1, bins - 1) - 2 * examples / bins


@pytest.mark.parametrize(("count", "bins"), [(16, 64), (16, 256), (16, 1024), (64, 64), (64, 256), (64, 1024)])
def test_the_share_recovered_grows_with_the_bins_as_the_paper_counts_collisions(xrays28, count, bins):
    # The paper's share of a batch recovered, over the number of bins, on X-rays of 28 px instead of ImageNet, with
    # quantiles from 300 public images. Its Proposition 1 is a floor (5 % tolerance for the noise of the quantiles); the
    # ceiling are independent examples in bins that are equally likely.
    images, labels = xrays28
    recovered, alone = [], []
    for seed in range(10):
        public, rest = split(images, labels, seed)
        batch = rest[:count]
        _, psnr = attacked(Imprint(bins=bins), images[batch], labels[batch], public, seed=seed)
        recovered.append(int((psnr > 100).sum()))
        alone.append(alone_in_bins(images[batch], public, bins))
    mean = sum(recovered) / len(recovered)
    assert mean == pytest.approx(sum(alone) / len(alone), abs=0.03 * count)
    assert 0.95 * proposition_1(count, bins) < mean < 1.05 * expected_alone(count, bins)


def test_images_that_share_a_bin_are_not_held_for_exact(xrays28):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    found, _ = attacked(Imprint(bins=16), images[rest[:16]], labels[rest[:16]], public)
    truth = best_psnr(images[rest[:16]], found.images) > 100
    assert 0 < truth.sum() < len(found.images)
    assert torch.equal(found.exact, truth)


def test_more_examples_than_bins_give_at_most_one_picture_a_bin(xrays28):
    images, labels = xrays28
    public, rest = split(images, labels, seed=0)
    found, _ = attacked(Imprint(bins=4), images[rest[:32]], labels[rest[:32]], public)
    assert len(found.images) <= 4
    assert not found.exact.any()


def test_the_published_model_still_classifies_as_the_plan_s_and_that_one_is_unchanged(xrays28, rng):
    images, _ = xrays28
    model = build("relu-cnn", XRAYS, 0)
    before = [p.clone() for p in model.parameters()]
    published = Imprint().prepare(model, XRAYS, rng)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.allclose(published(images[:32]), model(images[:32]), atol=1e-3)


def test_the_same_seed_gives_the_same_images(xrays28):
    images, labels = xrays28
    runs = [attacked(Imprint(), images[:4], labels[:4], None)[0].images for _ in range(2)]
    assert torch.equal(*runs)


def test_a_model_without_an_imprint_is_refused(xrays28, rng):
    images, labels = xrays28
    sent = observe(build("mlp", XRAYS, 0), images[:2], labels[:2], SiteTraining(), rng, 2)
    with pytest.raises(AttackError, match="has no imprint"):
        Imprint()(sent, MALICIOUS, rng)


def test_an_imprint_that_the_site_did_not_train_is_refused(xrays28, rng):
    images, labels = xrays28
    published = Imprint().prepare(build("mlp", XRAYS, 0), XRAYS, rng)
    published[0].requires_grad_(requires_grad=False)
    sent = observe(published, images[:2], labels[:2], SiteTraining(), rng, 2)
    with pytest.raises(AttackError, match="did not train the imprint"):
        Imprint()(sent, MALICIOUS, rng)


def test_a_model_that_does_not_feel_its_input_is_refused(rng):
    deaf = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    nn.init.zeros_(deaf[1].weight)
    with pytest.raises(AttackError, match="do not change"):
        Imprint().prepare(deaf, XRAYS, rng)


def test_an_honest_director_may_not_use_it(xrays28, rng):
    images, labels = xrays28
    sent = observe(
        Imprint().prepare(build("mlp", XRAYS, 0), XRAYS, rng), images[:2], labels[:2], SiteTraining(), rng, 2
    )
    with pytest.raises(ConfigError, match="malicious"):
        Imprint()(sent, Knowledge(), rng)


@pytest.mark.parametrize("options", [{"bins": 1}, {"gain": 0.0}, {"row_scale": -1.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        listed("imprint").make(**options)
