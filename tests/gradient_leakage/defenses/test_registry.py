"""No defense without its attackers, and every chain is what its entry says."""

import dataclasses

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import ATTACKS, listed
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.defenses.nonlinear import nonlinear_bytes, read_nonlinear
from fedveil.gradient_leakage.defenses.registry import (
    DEFENSES,
    Adaptive,
    Lesson,
    Registered,
    SiteSide,
    registered,
)
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.gradient_leakage.vae.nonlinear import train_nonlinear
from fedveil.gradient_leakage.victim import SiteTraining, layout_of, observe, sent_through
from fedveil.utils.errors import ConfigError, LayoutMismatchError, MalformedMessageError, NonFiniteUpdateError

DOMAIN = ImageDomain((1, 28, 28), 2)
NAMES = (
    *("none", "clip", "clip-noise-small", "clip-noise", "topk-10", "topk-1", "sketch-5", "quantise-8", "soteria"),
    *("outpost", "precode", "ppp", "cvb", "codec", "codec-noise", "seeded", "nonlinear-vae"),
)


def side_of(defense, seed=0, **changes):
    """A site with one image, its public updates and what it sent before its chain."""
    model = build("tanh-cnn", DOMAIN, seed)
    model = model if defense.on_model is None else defense.on_model(model, seed)
    images, labels = torch.rand((3, *DOMAIN.shape), generator=torch.Generator().manual_seed(seed)), torch.arange(3) % 2
    seen = [
        observe(model, images[at : at + 1], labels[at : at + 1], SiteTraining(), torch.Generator(), 2)
        for at in range(3)
    ]
    layout, codec, nonlinear = layout_of(model), None, None
    if defense.learns is Lesson.CODEC:
        codec = fit(layout, np.stack([one.vector() for one in seen[1:]]), 100)
    if defense.learns is Lesson.NONLINEAR:
        trained = train_nonlinear(layout, np.stack([one.vector() for one in seen[1:]]), latent=4, hidden=4, steps=3)
        nonlinear = read_nonlinear(nonlinear_bytes(trained), layout)
    return SiteSide(layout, model, images[:1], labels[:1], codec, nonlinear=nonlinear, **changes), seen[0]


def test_every_defense_of_the_issue_is_registered():
    assert set(NAMES) <= set(DEFENSES)
    assert all(registered(name).name == name for name in DEFENSES)
    with pytest.raises(ConfigError, match=r"none, clip, .*codec"):
        registered("hope")


def test_a_defense_that_nobody_attacked_cannot_be_registered():
    with pytest.raises(ConfigError, match="no attack that was made for it"):
        Registered("hope", "Hope", "nobody 2026", "everything", ())


def test_an_attack_that_the_catalogue_does_not_have_attacks_nothing():
    with pytest.raises(ConfigError, match="wishful-thinking"):
        Registered("hope", "Hope", "nobody 2026", "everything", (Adaptive("wishful-thinking"),))


@pytest.mark.parametrize("name", DEFENSES)
def test_the_attacks_of_every_defense_can_be_made_and_are_granted_what_they_need(name):
    for adaptive in DEFENSES[name].adaptive:
        attack = listed(adaptive.attack).make(**dict(adaptive.options))
        granted = dataclasses.asdict(Knowledge(**dict.fromkeys((*adaptive.knowledge, "defense"), True)))
        assert [need for need, is_needed in dataclasses.asdict(attack.needs).items() if is_needed > granted[need]] == []
        Cell("mnist", "lenet", adaptive.attack, adaptive.knowledge, adaptive.options, defense=name, adaptive=True)


@pytest.mark.parametrize("name", DEFENSES)
def test_every_entry_says_what_it_is_where_it_comes_from_and_what_breaks_it(name):
    defense = DEFENSES[name]
    assert defense.title
    assert defense.source
    assert defense.weakness
    assert name == "none" or defense.chain or defense.on_model


def test_only_calibrated_noise_is_no_heuristic():
    for name, defense in DEFENSES.items():
        steps = () if defense.chain is None else defense.chain(side_of(defense)[0]).steps
        noises = [step.noise_multiplier for step in steps if isinstance(step, GaussianMechanism)]
        assert defense.is_heuristic is (not noises or noises[0] < 0.1), name


@pytest.mark.parametrize("name", [name for name in NAMES if DEFENSES[name].chain])
def test_every_chain_takes_an_update_and_the_director_reads_one(name):
    side, sent = side_of(DEFENSES[name])
    chain = DEFENSES[name].chain(side)
    read = sent_through(sent, chain, np.random.default_rng(0))
    assert read.layout == sent.layout
    assert read.granted.defense is chain
    assert (read.payload is not None) is (chain.encoder is not None)
    if read.payload is not None:
        assert len(read.payload) * 15 < len(read.sent)
        assert np.array_equal(chain.decoded(read.payload_vector()), read.vector())
    again = sent_through(sent, DEFENSES[name].chain(side), np.random.default_rng(0))
    assert (again.sent, again.payload) == (read.sent, read.payload)
    assert read.limited_to(Knowledge()).granted.defense is None


@pytest.mark.parametrize("name", ["seeded", "sketch-5"])
def test_a_random_projection_is_another_in_another_round_and_the_same_for_all_sites_of_one(name):
    defense = DEFENSES[name]
    first, again, other = (
        defense.chain(side_of(defense, round_seed=bytes([at]) * 32)[0])(side_of(defense)[1].vector(), None)
        for at in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)


def test_an_empty_chain_leaves_float64_as_it_is():
    defense = DEFENSES["none"]
    _, sent = side_of(defense)
    read = sent_through(sent, Chain(), np.random.default_rng(0))
    assert read.sent == sent.sent
    assert isinstance(read.granted.defense, Chain)


def test_the_noise_of_ppp_stays_before_the_bottleneck():
    defense = DEFENSES["ppp"]
    side, sent = side_of(defense, max_norm=5.0)
    moved = sent_through(sent, defense.chain(side), np.random.default_rng(0)).vector() != sent.vector()
    for entry in side.layout.entries:
        is_before = entry.name.split(".")[0] in {"0", "2", "4"}
        assert moved[entry.offset : entry.offset + entry.size].any() == is_before, entry.name
    noise = sent_through(sent, defense.chain(side), np.random.default_rng(0)).vector() - sent.vector()
    assert np.linalg.norm(noise) == pytest.approx(0.5, rel=0.05)


def test_a_code_without_a_codec_and_ppp_without_a_bottleneck_are_refused():
    side, _ = side_of(DEFENSES["none"])
    with pytest.raises(ConfigError, match="needs a codec"):
        DEFENSES["codec"].chain(side)
    with pytest.raises(ConfigError, match="has none"):
        DEFENSES["ppp"].chain(side)
    with pytest.raises(ConfigError, match="needs a nonlinear VAE"):
        DEFENSES["nonlinear-vae"].chain(side)


def test_a_nonlinear_vae_sends_an_update_of_the_same_shape_and_refuses_what_is_none():
    side, sent = side_of(DEFENSES["nonlinear-vae"])
    chain, update = DEFENSES["nonlinear-vae"].chain(side), sent.vector()
    first, again = (chain(update, np.random.default_rng(3)) for _ in range(2))
    assert (first.shape, first.dtype) == (update.shape, np.float32)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, chain(update, np.random.default_rng(4)))
    assert side.nonlinear.digest in chain.describe()
    with pytest.raises(NonFiniteUpdateError):
        chain(np.full_like(update, np.nan), np.random.default_rng(0))
    with pytest.raises(LayoutMismatchError):
        chain(update[1:], np.random.default_rng(0))


def test_the_file_of_a_nonlinear_vae_is_read_for_its_own_layout_alone():
    side, _ = side_of(DEFENSES["nonlinear-vae"])
    raw = nonlinear_bytes(side.nonlinear.coder)
    assert read_nonlinear(raw, side.layout).digest == side.nonlinear.digest
    for other, layout in ((b"no file", side.layout), (raw, layout_of(build("lenet", DOMAIN, 0)))):
        with pytest.raises(MalformedMessageError, match="not a nonlinear VAE"):
            read_nonlinear(other, layout)


def test_the_noisy_code_is_clipped_in_the_code():
    side, _ = side_of(DEFENSES["codec-noise"], max_norm=0.5)
    coded, noise = DEFENSES["codec-noise"].chain(side).steps
    assert isinstance(coded, Coded)
    assert (noise.max_norm, noise.noise_multiplier) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("attack", "names"),
    [
        (
            "defended-matching",
            ("clip-noise", "topk-1", "sketch-5", "quantise-8", "soteria", "outpost", "codec", "seeded"),
        ),
        ("all-rows", ("clip-noise-small", "clip-noise")),
        ("learned-inversion", ("topk-10", "topk-1", "codec", "codec-noise", "nonlinear-vae")),
        ("inverting-gradients", ("clip", "codec", "seeded", "nonlinear-vae")),
        ("precode-break", ("precode",)),
        ("ignore-bottleneck", ("precode", "ppp", "cvb")),
        ("noise-variable", ("precode", "cvb")),
    ],
)
def test_a_defense_meets_the_attack_that_was_made_for_its_kind(attack, names):
    for name in names:
        assert attack in {adaptive.attack for adaptive in DEFENSES[name].adaptive}, name


def test_every_attack_made_for_a_defense_is_of_the_catalogue():
    known = {attack.name for attack in ATTACKS}
    assert {adaptive.attack for defense in DEFENSES.values() for adaptive in defense.adaptive} <= known
