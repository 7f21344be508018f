from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.dlg import Dlg
from fedveil.gradient_leakage.colluders import without_colluders
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import Granted, ImageDomain, Knowledge, SumObservation
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import ConfigError, LengthMismatchError

XRAYS, LABELS = ImageDomain((1, 28, 28), 2), Knowledge(labels=True)
COUNTS = (1, 2, 3)


@pytest.fixture
def sites(xrays28):
    """What three sites of 1, 2 and 3 examples sent, and the sum that the director sees."""
    images, labels = xrays28
    model, rng = build("tanh-cnn", XRAYS, 0), torch.Generator().manual_seed(0)
    places = np.split(np.arange(6), np.cumsum(COUNTS)[:-1])
    sent = [observe(model, images[at], labels[at], SiteTraining(), rng, 2) for at in places]
    total = sum(n * one.vector().astype(np.float64) for n, one in zip(COUNTS, sent, strict=True))
    summed = SumObservation(
        total.astype("<f4").tobytes(), sent[0].layout, sent[0].kind, (model,) * 3, XRAYS, COUNTS, sent[0].granted
    )
    return sent, summed


def test_all_but_one_leave_the_last_sites_update(sites):
    sent, summed = sites
    for last in range(3):
        left = without_colluders(summed, {site: sent[site].vector() for site in range(3) if site != last})
        assert left.num_examples == COUNTS[last]
        np.testing.assert_allclose(left.vector(), sent[last].vector(), atol=1e-6)


def test_fewer_colluders_leave_the_mean_of_the_honest(sites):
    sent, summed = sites
    left = without_colluders(summed, {2: sent[2].vector()})
    assert left.num_examples == 3
    np.testing.assert_allclose(left.vector(), (sent[0].vector() + 2 * sent[1].vector()) / 3, atol=1e-6)
    np.testing.assert_array_equal(without_colluders(summed, {}).vector(), summed.as_one().vector())


def test_the_last_sites_image_comes_back_through_the_sum_but_not_through_noise_of_its_own(sites, xrays28):
    sent, summed = sites
    others = {site: sent[site].vector() for site in (1, 2)}
    noise = np.random.default_rng(0).normal(0, 20 / np.sqrt(summed.layout.size), summed.layout.size)
    noise *= np.linalg.norm(sent[0].vector())
    noisy = replace(summed, sent=(np.frombuffer(summed.sent, "<f4") + noise).astype("<f4").tobytes())
    assert psnr_of_the_first(without_colluders(summed, others), xrays28) > 60
    assert psnr_of_the_first(without_colluders(noisy, others), xrays28) < 15


def psnr_of_the_first(seen, xrays):
    truth = Truth(xrays[0][:1], xrays[1][:1])
    seen = replace(seen, granted=Granted(labels=truth.labels))
    return score(Dlg(restarts=1, iterations=400)(seen, LABELS, torch.Generator().manual_seed(0)), truth).psnr[0]


def test_colluders_that_do_not_belong_to_the_sum_are_refused(sites):
    sent, summed = sites
    with pytest.raises(ConfigError, match=r"\[3\] are not among the 3 sites"):
        without_colluders(summed, {3: sent[0].vector()})
    with pytest.raises(ConfigError, match="all 3 sites"):
        without_colluders(summed, {site: sent[site].vector() for site in range(3)})
    with pytest.raises(LengthMismatchError, match="colluder 1"):
        without_colluders(summed, {1: sent[1].vector()[:-1]})
