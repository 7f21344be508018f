"""The adaptive attack on what is sent: each defense beside the attack that does not know it, and what does hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.defended_matching import DefendedMatching
from fedveil.gradient_leakage.attacks.inverting_gradients import InvertingGradients
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.clip import Clip
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.defenses.sketch import Sketch
from fedveil.gradient_leakage.defenses.top_k import TopK
from fedveil.gradient_leakage.metrics import Truth, score
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, LocalTraining, Reconstruction
from fedveil.gradient_leakage.vae.fitting import seeded
from fedveil.gradient_leakage.victim import SiteTraining, granting, observe
from fedveil.utils.errors import AttackError, ConfigError

XRAYS = ImageDomain((1, 28, 28), 2)
KNOWN = Knowledge(labels=True, defense=True)


def defended(xrays, make, place=0, site=None):
    """What a site sent through ``make(observation)``'s chain, the truth, and the chain."""
    images, labels = xrays[0][place : place + 1], xrays[1][place : place + 1]
    rng = torch.Generator().manual_seed(place)
    seen = observe(build("tanh-cnn", XRAYS, place), images, labels, site or SiteTraining(), rng, 2)
    chain = make(seen)
    payload = chain(seen.vector(), np.random.default_rng(place))
    sent = chain.decoded(payload).astype("<f4").tobytes()
    seen = granting(replace(seen, sent=sent, payload=payload.astype("<f4").tobytes()), defense=chain)
    return seen, Truth(images, labels)


def psnr(attack, observation, truth, knowledge=KNOWN):
    found = attack(observation.limited_to(knowledge), knowledge, torch.Generator().manual_seed(0))
    return float(score(found, truth).psnr[0])


def blank(truth):
    return float(score(Reconstruction(torch.full((1, *XRAYS.shape), 0.5)), truth).psnr[0])


def length(seen):
    return float(np.linalg.norm(seen.vector()))


NOISE_FREE = {
    "nothing": lambda _: Chain(),
    "top-k 10 %": lambda _: Chain((TopK(0.1),)),
    "sketch 5 %": lambda seen: Chain((Sketch(0, 0.05, seen.layout.size),)),
    "clip": lambda seen: Chain((Clip(length(seen) / 3),)),
}


@pytest.mark.parametrize("name", NOISE_FREE)
def test_a_defense_without_noise_and_with_more_numbers_than_pixels_gives_the_image_away(xrays28, name):
    assert psnr(DefendedMatching(iterations=150), *defended(xrays28, NOISE_FREE[name])) > 60


@pytest.mark.slow
def test_one_local_step_through_a_sketch_does_too_with_its_scale_known_or_not(xrays28):
    seen, truth = defended(xrays28, NOISE_FREE["sketch 5 %"], site=SiteTraining(LocalTraining(1, 1), 0.1))
    assert psnr(DefendedMatching(iterations=150), seen, truth) > 60
    knowing = Knowledge(labels=True, defense=True, learning_rate=True, local_steps=True)
    assert psnr(DefendedMatching(iterations=150), seen, truth, knowing) > 60


def test_a_code_with_fewer_numbers_than_pixels_limits_the_attack_and_does_not_stop_it(xrays28):
    seen, truth = defended(xrays28, lambda seen: Chain((Coded(seeded(seen.layout, 100).for_round(bytes(32))),)))
    found = psnr(DefendedMatching(iterations=150), seen, truth)
    assert blank(truth) + 3 < found < 40


def test_knowing_the_sketch_finds_what_not_knowing_it_misses(xrays28):
    seen, truth = defended(xrays28, NOISE_FREE["sketch 5 %"])
    naive = psnr(InvertingGradients(iterations=200), seen, truth, Knowledge(labels=True))
    assert psnr(DefendedMatching(iterations=200, polish=0), seen, truth) > naive + 3


def test_a_little_calibrated_noise_is_matched_by_its_likelihood_and_a_lot_holds(xrays28):
    def noisy(times):
        return lambda seen: Chain((GaussianMechanism(length(seen), times / seen.layout.size**0.5),))

    seen, truth = defended(xrays28, noisy(2.0), place=1)
    found = psnr(DefendedMatching(iterations=200, polish=200), seen, truth)
    assert found > blank(truth) + 4
    assert found > psnr(DefendedMatching(iterations=200, polish=0, prior=1e6), seen, truth) + 4  # without a prior
    seen, truth = defended(xrays28, noisy(100.0), place=1)
    assert psnr(DefendedMatching(iterations=100, polish=100), seen, truth) < blank(truth) + 3


def test_the_attack_reads_the_payload_and_not_what_the_director_decodes(xrays28):
    seen, _ = defended(xrays28, NOISE_FREE["sketch 5 %"])
    other = replace(seen, sent=np.ones(seen.layout.size, "<f4").tobytes())
    attack = DefendedMatching(iterations=5, polish=0)
    first, second = (attack(one, KNOWN, torch.Generator().manual_seed(0)).images for one in (seen, other))
    assert torch.equal(first, second)


def test_it_needs_to_know_the_defense_and_says_so(xrays28):
    seen, _ = defended(xrays28, NOISE_FREE["nothing"])
    with pytest.raises(ConfigError, match="defense"):
        DefendedMatching()(seen, Knowledge(labels=True), torch.Generator())
    with pytest.raises(AttackError, match="no chain"):
        DefendedMatching()(granting(seen, defense=None), KNOWN, torch.Generator())


def test_a_payload_of_zeros_is_refused(xrays28):
    seen, _ = defended(xrays28, NOISE_FREE["nothing"])
    nothing = bytes(len(seen.sent))
    with pytest.raises(AttackError, match="zero"):
        DefendedMatching(iterations=1)(replace(seen, sent=nothing, payload=nothing), KNOWN, torch.Generator())


def test_options_that_make_no_sense_are_refused():
    for options, reason in (({"distance": "l1"}, "l1"), ({"prior": 0.0}, "prior 0"), ({"polish": -1}, "polish -1")):
        with pytest.raises(ConfigError, match=reason):
            DefendedMatching(**options)
