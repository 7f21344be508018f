"""One number as a mask: broken by whoever takes the mean away, and by nobody who does not know of it."""

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.defended_matching import DefendedMatching
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.scalar_mask import ScalarMask, scalar_masks
from fedveil.gradient_leakage.defenses.views import view_of
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge
from fedveil.gradient_leakage.victim import SiteTraining, observe, sent_through
from fedveil.utils.errors import ConfigError, UnsendableUpdateError

CHAIN = Chain((ScalarMask(),))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_number_moves_by_the_same_and_another_site_moves_by_another():
    vector = np.linspace(-1, 1, 1000, dtype=np.float32)
    one = ScalarMask(0)(vector, np.random.default_rng(0)) - vector
    other = ScalarMask(3)(vector, np.random.default_rng(0)) - vector
    assert np.ptp(one) < 1e-6
    assert one.dtype == np.float32
    assert abs(one.mean() - other.mean()) > 0.01
    with pytest.raises(UnsendableUpdateError):
        ScalarMask()(np.array([np.nan], np.float32), np.random.default_rng(0))
    with pytest.raises(ConfigError):
        ScalarMask(4, 4)


def test_the_numbers_of_pairs_cancel_in_the_sum():
    private = np.random.default_rng(5).random(16 + 4)[16:]
    np.testing.assert_allclose(scalar_masks(4, np.random.default_rng(5)).sum(), private.sum())


def test_a_known_image_comes_back_through_one_scalar_and_not_for_who_takes_it_for_the_update():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.random((3, 3)), np.ones((4, 4)))[None, None]
    images = torch.from_numpy(smooth).float()
    domain = ImageDomain((1, 12, 12), 2)
    model = build("tanh-cnn", domain, 0)
    sent = sent_through(observe(model, images, torch.tensor([1]), SiteTraining(), seeded(), 2), CHAIN, rng)
    truth = Truth(images, torch.tensor([1]))
    knows = Knowledge(labels=True, defense=True)

    def psnr(seen):
        found = DefendedMatching(iterations=150, polish=300)(seen, knows, seeded())
        return float(score(found, truth).psnr[0])

    assert psnr(sent) > 40
    ignoring = sent_through(observe(model, images, torch.tensor([1]), SiteTraining(), seeded(), 2), Chain(), rng)
    assert psnr(ignoring) > 40  # without a mask
    assert psnr(sent_as_update(sent)) < 20


def sent_as_update(seen):
    """The attacker who was not told that there is a mask."""
    from dataclasses import replace

    return replace(seen, granted=replace(seen.granted, defense=Chain()))


def test_what_is_matched_is_what_was_sent_but_for_its_mean():
    model = build("tanh-cnn", ImageDomain((1, 12, 12), 2), 0)
    images = torch.rand((1, 1, 12, 12), generator=seeded())
    seen = observe(model, images, torch.tensor([0]), SiteTraining(), seeded(), 2)
    view = view_of(CHAIN, sent_through(seen, CHAIN, np.random.default_rng(0)))
    projected = view.project(torch.from_numpy(seen.vector().copy()).double())
    torch.testing.assert_close(projected, view.observed, atol=1e-6, rtol=0)
    assert (view.noise_std, view.is_scaled, view.weights) == (0.0, False, None)
