"""What an attacker compares is what the chain would have sent, but for its noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.defenses.clip import Clip
from fedveil.gradient_leakage.defenses.coded import Coded
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.defenses.outpost import Outpost, Span
from fedveil.gradient_leakage.defenses.partial import PartialNoise
from fedveil.gradient_leakage.defenses.quantise import Quantise
from fedveil.gradient_leakage.defenses.sketch import Sketch
from fedveil.gradient_leakage.defenses.soteria import Soteria
from fedveil.gradient_leakage.defenses.top_k import TopK
from fedveil.gradient_leakage.defenses.views import view_of
from fedveil.gradient_leakage.threat_model import ImageDomain
from fedveil.gradient_leakage.vae.fitting import fit, seeded
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import ConfigError
from torch import nn

DOMAIN = ImageDomain((1, 8, 8), 2)


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2)).eval()


OBSERVED = observe(
    model(),
    torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)),
    torch.tensor([0, 1]),
    SiteTraining(),
    torch.Generator().manual_seed(0),
    2,
)
LAYOUT, UPDATE = OBSERVED.layout, OBSERVED.vector()
PUBLIC = np.random.default_rng(1).normal(size=(40, LAYOUT.size)).astype(np.float32)
LEARNED = fit(LAYOUT, PUBLIC, 20.0)
SEEDED = seeded(LAYOUT, 20.0).for_round(bytes(32))
SKETCH = Sketch(3, 0.1, LAYOUT.size)
LINEAR = next(entry for entry in LAYOUT.entries if entry.name == "4.weight")
SOTERIA = Soteria(LINEAR.offset, (2, 144), (0, 7, 100))


def sent(*steps):
    """The update as it left through the steps, and the chain's view of it."""
    chain = Chain(steps)
    payload = chain(UPDATE, np.random.default_rng(0))
    seen = replace(OBSERVED, sent=chain.decoded(payload).tobytes(), payload=payload.tobytes())
    return payload, view_of(chain, seen)


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Coded(LEARNED),),
        (Coded(SEEDED),),
        (SKETCH,),
        (SOTERIA,),
        (SOTERIA, SKETCH),
        (TopK(0.1),),
        (Clip(1e6),),
        (Coded(LEARNED), Clip(1e6)),
    ],
    ids=lambda steps: Chain(steps).label,
)
def test_without_noise_what_is_projected_is_the_payload_itself(steps):
    payload, view = sent(*steps)
    projected = view.project(torch.from_numpy(UPDATE.copy()).double()).numpy()
    weights = np.ones_like(payload) if view.weights is None else view.weights.numpy()
    np.testing.assert_allclose(weights * projected, weights * payload, atol=2e-6)
    assert (view.noise_std, view.is_scaled) == (0.0, False)


@pytest.mark.parametrize("step", [Coded(LEARNED), Coded(SEEDED), SKETCH, SOTERIA], ids=lambda step: step.label)
def test_slopes_come_back_through_the_transpose(step):
    _, view = sent(step)
    drawn = np.random.default_rng(5)
    candidate = torch.from_numpy(drawn.normal(size=LAYOUT.size)).requires_grad_()
    direction = torch.from_numpy(drawn.normal(size=len(view.observed)))
    (slope,) = torch.autograd.grad((view.project(candidate) * direction).sum(), candidate)
    other = torch.from_numpy(drawn.normal(size=LAYOUT.size))
    assert float(slope @ other) == pytest.approx(float(direction @ view.project(other)), rel=1e-4, abs=1e-5)


def test_a_clip_leaves_the_scale_open_only_where_it_may_have_clipped():
    norm = float(np.linalg.norm(UPDATE))
    assert sent(Clip(norm / 2))[1].is_scaled
    assert not sent(Clip(2 * norm))[1].is_scaled
    assert sent(GaussianMechanism(2 * norm, 0.1))[1].is_scaled  # noise hides how long it was
    assert sent(Clip(2 * norm), Quantise(8))[1].is_scaled


def test_a_clipped_payload_is_the_projection_times_a_factor():
    payload, view = sent(SKETCH, Clip(1e-3))
    projected = view.project(torch.from_numpy(UPDATE.copy()).double()).numpy()
    cosine = projected @ payload / np.linalg.norm(projected) / np.linalg.norm(payload)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_the_noise_of_a_view_is_the_chains():
    payload, view = sent(Coded(LEARNED), GaussianMechanism(0.5, 2.0))
    assert view.noise_std == pytest.approx(1.0)
    clipped = Clip(0.5)(LEARNED.encode(UPDATE), np.random.default_rng(0))
    assert np.std(payload - clipped) == pytest.approx(1.0, rel=0.5)


def test_the_noise_of_quantisation_is_what_stochastic_rounding_leaves():
    even = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    rounded = Quantise(5)(even, np.random.default_rng(1))
    expected = Quantise(5).step_of(float(np.abs(rounded).max())) / 6**0.5
    assert np.std(rounded - even) == pytest.approx(expected, rel=0.02)
    payload, view = sent(Quantise(5))
    assert view.noise_std == pytest.approx(Quantise(5).step_of(float(np.abs(payload).max())) / 6**0.5, rel=1e-5)


def test_only_what_top_k_kept_counts_but_for_what_no_gradient_tells():
    payload, view = sent(TopK(0.1))
    parameters = np.arange(LAYOUT.size) < sum(e.size for e in LAYOUT.entries if e.role.value == "parameter")
    np.testing.assert_array_equal(view.weights.numpy() > 0, (payload != 0) & parameters)


def test_buffers_do_not_count():
    weights = sent()[1].weights.numpy()
    assert weights.sum() == sum(e.size for e in LAYOUT.entries if e.role.value == "parameter") < LAYOUT.size
    assert sent(Coded(LEARNED))[1].weights is not None


def test_numbers_that_outposts_noise_may_have_made_do_not_count():
    spans = (Span(LINEAR.offset, LINEAR.offset + LINEAR.size, 1e-3),)
    payload, view = sent(Outpost(spans))
    held = slice(LINEAR.offset, LINEAR.offset + LINEAR.size)
    weights = view.weights.numpy()[held]
    assert set(weights) == {0.0, 1.0}
    np.testing.assert_array_equal(weights == 1, np.abs(payload[held]) > 4 * 0.8e-3)
    assert 0 < view.noise_std < 1e-3


def test_numbers_under_partial_noise_count_by_their_share_of_signal():
    held = slice(LINEAR.offset, LINEAR.offset + LINEAR.size)
    for factor, low, high in ((1e-3, 0.99, 1.0), (1.0, 0.3, 0.7), (100.0, 0.0, 0.2)):
        std = factor * float(np.sqrt(np.mean(np.square(UPDATE[held]))))
        weights = sent(PartialNoise(((held.start, held.stop),), std))[1].weights.numpy()
        assert low <= weights[held].mean() <= high


def test_a_step_that_no_view_knows_is_refused_and_named():
    class Strange:
        label = "strange"

        def __call__(self, vector, rng):
            return vector

    with pytest.raises(ConfigError, match="Strange"):
        view_of(Chain((Strange(),)), OBSERVED)
