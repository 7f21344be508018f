"""Secure aggregation against a director who chooses the model: the sum gives the images, and per-site rows whose."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.imprint import Imprint
from fedveil.gradient_leakage.attacks.loki import Loki
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining, PublicImages, SumObservation
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import AttackError, ConfigError

MALICIOUS = Knowledge(malicious=True)
XRAYS = ImageDomain((1, 28, 28), 2)
SITES, EACH = 4, 8


def best_psnr(found, truth):
    errors = (found.double().flatten(1)[None] - truth.double().flatten(1)[:, None]).square().mean(-1)
    return -10 * errors.amin(1).clamp_min(1e-30).log10()


def summed(models, batches, site, rng):
    """What secure aggregation shows: the sum of num_examples x update, in float32."""
    sent = [observe(m, images, labels, site, rng, 2) for m, (images, labels) in zip(models, batches, strict=True)]
    total = sum((np.float32(one.num_examples) * one.vector() for one in sent), np.float32(0))
    return SumObservation(
        sent=total.tobytes(),
        layout=sent[0].layout,
        kind=sent[0].kind,
        models=tuple(models),
        domain=XRAYS,
        num_examples=tuple(one.num_examples for one in sent),
    )


@pytest.fixture
def public(xrays28):
    return PublicImages(xrays28[0][:300], xrays28[1][:300])


@pytest.fixture
def batches(xrays28):
    """Eight X-rays at each of four sites."""
    order = 300 + torch.randperm(324, generator=torch.Generator().manual_seed(1))
    return [(xrays28[0][chosen], xrays28[1][chosen]) for chosen in order[: SITES * EACH].split(EACH)]


SITE = [SiteTraining(), SiteTraining(LocalTraining(1, 4))]


@pytest.mark.parametrize("site", SITE, ids=["gradient", "two local steps"])
def test_one_model_for_all_sites_is_enough_for_the_images_in_the_sum(batches, public, rng, site):
    imprint = Imprint(bins=4096)
    published = imprint.prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, public)
    found = imprint(summed([published] * SITES, batches, site, rng).as_one(), MALICIOUS, rng)
    psnr = best_psnr(found.images, torch.cat([images for images, _ in batches]))
    assert (psnr > 100).float().mean() >= 0.9


@pytest.mark.parametrize("site", SITE, ids=["gradient", "two local steps"])
def test_a_model_for_each_site_gives_every_image_with_its_site(batches, public, rng, site):
    loki = Loki(Imprint(bins=1024))
    models = loki.prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, public, sites=SITES)
    parts = loki.by_site(summed(models, batches, site, rng), MALICIOUS, rng)
    for part, (images, _) in zip(parts, batches, strict=True):
        assert (best_psnr(part.images, images) > 100).float().mean() >= 0.75
        others = torch.cat([other for other, _ in batches if other is not images])
        assert best_psnr(part.images, others).max() < 30  # nothing of another site


def test_all_images_of_the_sum_come_back_above_100_db_where_none_share_a_bin(batches, public, rng):
    loki = Loki()
    models = loki.prepare(build("tanh-cnn", XRAYS, 0), XRAYS, rng, public, sites=SITES)
    found = loki(summed(models, batches, SiteTraining(), rng), MALICIOUS, rng)
    psnr = best_psnr(found.images, torch.cat([images for images, _ in batches]))
    assert int((psnr > 100).sum()) == int(found.exact.sum())
    assert int((psnr > 100).sum()) >= 30


def test_models_for_sites_differ_in_thresholds_alone(public, rng):
    models = Loki(Imprint(bins=64)).prepare(build("mlp", XRAYS, 0), XRAYS, rng, public, sites=2)
    first, second = models[0].state_dict(), models[1].state_dict()
    assert {n for n in first if not torch.equal(first[n], second[n])} == {"0.measure.bias", "0.ceiling"}


def test_one_model_for_all_is_refused_with_what_to_do_instead(batches, public, rng):
    published = Imprint(bins=64).prepare(build("mlp", XRAYS, 0), XRAYS, rng, public)
    with pytest.raises(AttackError, match="as one update"):
        Loki()(summed([published] * SITES, batches, SiteTraining(), rng), MALICIOUS, rng)


def test_models_without_an_imprint_are_refused(batches, rng):
    models = [build("mlp", XRAYS, 0)] * SITES
    with pytest.raises(AttackError, match="no imprint"):
        Loki()(summed(models, batches, SiteTraining(), rng), MALICIOUS, rng)


def test_a_sum_of_another_number_of_sites_than_models_is_refused(batches, public, rng):
    published = Imprint(bins=64).prepare(build("mlp", XRAYS, 0), XRAYS, rng, public)
    one = summed([published], batches[:1], SiteTraining(), rng)
    with pytest.raises(ConfigError, match="expected one each"):
        SumObservation(one.sent, one.layout, one.kind, (published,) * 2, XRAYS, (8,))


def test_no_site_is_refused(rng):
    with pytest.raises(ConfigError, match="at least 1"):
        Loki().prepare(build("mlp", XRAYS, 0), XRAYS, rng, sites=0)
