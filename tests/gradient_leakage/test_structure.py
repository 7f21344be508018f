"""The structure check finds the known constructions, lets honest models pass, and misses what was built to evade it."""

import copy
import math

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.fishing import Fishing
from fedveil.gradient_leakage.attacks.imprint import Imprint, ImprintBlock
from fedveil.gradient_leakage.attacks.loki import Loki
from fedveil.gradient_leakage.attacks.seer import Seer
from fedveil.gradient_leakage.models import MODELS, build
from fedveil.gradient_leakage.structure import Reason, check_structure
from fedveil.gradient_leakage.threat_model import ImageDomain, PublicImages
from fedveil.gradient_leakage.victim import layout_of
from fedveil.utils.errors import LayoutMismatchError
from fedveil.utils.tensors import Layout, Role
from fedveil.workspace.pneumonia.plan import PneumoniaPlan
from fedveil.workspace.pneumonia.resnet18 import ResNet18Plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

XRAYS = ImageDomain((1, 28, 28), 2)
BINS, BATCH = 256, 16


def vector_of(model):
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    layout = layout_of(model)
    return layout, torch.cat([named[e.name].detach().reshape(-1) for e in layout.entries]).numpy().astype(np.float32)


def flags_of(model):
    return check_structure(*vector_of(model))


def reasons_of(model):
    return {flag.reason for flag in flags_of(model)}


@pytest.fixture(scope="module")
def parts(xrays28):
    """400 public X-rays, and 224 that sites hold."""
    images, labels = xrays28
    order = torch.randperm(624, generator=torch.Generator().manual_seed(1))
    return PublicImages(images[order[:400]], labels[order[:400]]), images[order[400:]]


# ------------------------------------------------------------ what it finds


@pytest.mark.parametrize("attack", [Imprint(), Imprint(sparse=False), Imprint(bins=64)])
@pytest.mark.parametrize("has_public", [True, False])
def test_an_imprint_is_flagged(attack, has_public, parts, rng):
    published = attack.prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, parts[0] if has_public else None)
    assert {Reason.PARALLEL, Reason.COMMON, Reason.ALIKE, Reason.RAMP} <= reasons_of(published)


def test_each_sites_own_imprint_is_flagged(parts, rng):
    for published in Loki().prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, parts[0], sites=3):
        assert {Reason.PARALLEL, Reason.ALIKE} <= reasons_of(published)


@pytest.mark.parametrize("attack", [Fishing(), Fishing(expected=8)])
def test_fishing_is_flagged(attack, parts, rng):
    published = attack.prepare(build("relu-cnn", XRAYS, 0), XRAYS, rng, parts[0])
    assert {Reason.LONE_ROW, Reason.LARGE_BIAS} <= reasons_of(published)


def with_trap_weights(model, generator, scale=lambda rows, _: torch.full((rows,), 0.96)):
    """Boenisch et al. 2023, section 5.1: half of a row's weights negative, the same ones a little smaller positive."""
    published = copy.deepcopy(model)
    rows, inputs = published[1].weight.shape
    drawn = torch.randn((rows, inputs // 2), generator=generator).abs() / math.sqrt(inputs)
    both = torch.cat([-drawn, scale(rows, generator)[:, None] * drawn], 1)
    placed = torch.stack([row[torch.randperm(inputs, generator=generator)] for row in both])
    with torch.no_grad():
        published[1].weight.copy_(placed)
    return published


def test_trap_weights_are_flagged(rng):
    assert reasons_of(with_trap_weights(build("mlp", XRAYS, 0), rng)) == {Reason.ALIKE}


def test_kernels_that_hand_an_image_on_are_flagged():
    # LOKI's own convolution: for each site a kernel a channel, the identity, scaled; zeros for the others' channels.
    kernel = torch.zeros(6, 3, 3, 3)
    for channel in range(3):
        kernel[channel, channel, 1, 1] = 1e4
    layout = Layout.of([("loki.weight", tuple(kernel.shape), Role.PARAMETER)])
    flags = check_structure(layout, kernel.numpy().reshape(-1))
    assert [(flag.layer, flag.reason, flag.figure) for flag in flags] == [("loki.weight", Reason.IDENTITY, 1.0)]


def test_a_first_layer_with_a_row_for_each_pixel_is_flagged():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 2))
    assert reasons_of(wide) == {Reason.LARGE_FIRST}


def test_a_flag_names_the_layer_the_figure_and_the_limit():
    kernel = np.eye(32, dtype=np.float32)
    (flag, *_) = check_structure(Layout.of([("gate", (32, 32), Role.PARAMETER)]), kernel.reshape(-1))
    assert str(flag) == (
        "gate: rows that pass one number on, as LOKI's kernels do: their share 1, expected less than 0.25"
    )


# ------------------------------------------------------------ what passes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("domain", [XRAYS, ImageDomain((3, 32, 32), 10)])
def test_fresh_models_of_the_benchmark_pass(name, domain):
    for seed in range(1 if name == "resnet18" else 5):
        assert flags_of(build(name, domain, seed)) == ()


@pytest.mark.parametrize("plan", [PneumoniaPlan(), ResNet18Plan()])
def test_the_plans_of_the_workspace_pass(plan):
    torch.manual_seed(0)
    assert flags_of(plan.model()) == ()


@pytest.mark.parametrize(
    ("name", "epochs", "decay"),
    [
        ("mlp", 15, 0.0),
        ("mlp", 15, 5e-3),
        ("lenet", 5, 0.0),
        ("tanh-cnn", 15, 0.0),
        ("relu-cnn", 8, 5e-3),
        ("plan", 3, 0),
    ],
)
def test_trained_models_pass(name, epochs, decay, xrays28):
    images, labels = xrays28
    torch.manual_seed(0)
    model = PneumoniaPlan().model() if name == "plan" else build(name, XRAYS, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=decay)
    for _ in range(3 if name == "plan" else 15):
        for chosen in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    assert flags_of(model) == ()


def test_a_last_layer_of_zeros_passes():
    model = build("relu-cnn", XRAYS, 0)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    assert flags_of(model) == ()


def test_a_vector_of_another_layout_is_refused():
    with pytest.raises(LayoutMismatchError, match="a model of 3 numbers, its layout has 4"):
        check_structure(Layout.of([("w", (2, 2), Role.PARAMETER)]), np.zeros(3, np.float32))


@given(
    shapes=st.lists(st.lists(st.integers(0, 20), min_size=0, max_size=4), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e18]),
)
@settings(max_examples=60, deadline=None)
def test_any_model_is_checked_the_same_way_twice_and_stays_as_it_was(shapes, seed, scale):
    layout = Layout.of([(f"{n}.weight", tuple(shape), Role.PARAMETER) for n, shape in enumerate(shapes)])
    vector = (scale * np.random.default_rng(seed).standard_normal(layout.size)).astype(np.float32)
    before = vector.copy()
    assert check_structure(layout, vector) == check_structure(layout, vector)
    assert np.array_equal(vector, before)


# ------------------------------------------------------------ what was built to evade it


def noisy_imprint(model, public, generator, *, noise, has_mean=True):
    """An imprint whose rows lie around one direction, each with its own noise, with the thresholds that fit each row.

    ``noise`` is its length beside the direction's; infinite is rows that have nothing in common (QBI's).
    """
    common = torch.ones(784) if has_mean else torch.randn(784, generator=generator)
    common = common if has_mean else common - common.mean()
    own = torch.randn((BINS, 784), generator=generator)
    rows = own if math.isinf(noise) else common / common.norm() + noise * own / math.sqrt(784)
    rows = 1e-5 * rows * (0.5 + torch.rand((BINS, 1), generator=generator))
    seen = public.images.flatten(1) @ rows.T
    places = torch.randperm(BINS, generator=generator) / BINS
    edges, ends = (
        torch.stack([seen[:, row].quantile(min(1.0, float(place + gap))) for row, place in enumerate(places)])
        for gap in (0, 1 / BINS)
    )
    block = ImprintBlock(784, ends - edges)
    with torch.no_grad():
        block.measure.weight.copy_(rows)
        block.measure.bias.copy_(-edges)
        block.spread.weight.copy_(torch.randn((784, BINS), generator=generator) / 28)
    return nn.Sequential(block, copy.deepcopy(model))


def recovered(published, images):
    """Share of a batch whose image stands in some row's gradient, above 30 dB."""
    block = published[0]
    logits = published(images)
    loss = functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.int64))
    weights, biases = torch.autograd.grad(loss, [block.measure.weight, block.measure.bias])
    used = biases.abs() > 1e-6 * biases.abs().max()
    found = weights[used].double() / biases[used, None].double()
    error = (found[:, None] - images.flatten(1)[None].double()).square().mean(2)
    return float((error.amin(0) < 1e-3).float().mean())


IMPRINTS = {
    f"{what}, noise {noise:g} x": {"noise": noise, "has_mean": has_mean}
    for what, has_mean in (("brightness", True), ("a secret direction", False))
    for noise in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
} | {"rows with nothing in common": {"noise": math.inf}}


def missed_imprints(parts, seeds=3):
    """By variant: share that is not flagged, and share of 16 X-rays that each still gives away."""
    public, held = parts
    table = {}
    for name, options in IMPRINTS.items():
        rows = []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            published = noisy_imprint(build("mlp", XRAYS, seed), public, generator, **options)
            batch = held[torch.randperm(len(held), generator=generator)[:BATCH]]
            rows.append((not flags_of(published), recovered(published, batch)))
        table[name] = tuple(float(np.mean(column)) for column in zip(*rows, strict=True))
    return table


def other_evasions(parts):
    """By variant: is it missed?"""
    public, _ = parts
    generator = torch.Generator().manual_seed(0)
    uneven = with_trap_weights(
        build("mlp", XRAYS, 0), generator, lambda rows, rng: 0.85 + 0.2 * torch.rand(rows, generator=rng)
    )
    mild = build("relu-cnn", XRAYS, 0)
    with torch.no_grad():
        mild[-1].weight[1:] *= 0.02
        mild[-1].bias[1:] += 15
    return {
        "trap weights, each row with a scale of its own from 0.85 to 1.05": not flags_of(uneven),
        "fishing with rows 50 times smaller and a bias of 15": not flags_of(mild),
        "SEER-like, 300 iterations": not flags_of(
            Seer(iterations=300).prepare(build("mlp", XRAYS, 0), XRAYS, generator, public)
        ),
    }


def test_the_check_is_evaded_by_noisy_rows_that_still_give_images_away(parts):
    # The figures of the README's table. A change for the better is no failure of the check: change the table.
    table = missed_imprints(parts)
    assert table["brightness, noise 0 x"][0] == table["a secret direction, noise 0 x"][0] == 0
    evading = {name: given_away for name, (missed, given_away) in table.items() if missed == 1}
    assert set(evading) >= {"a secret direction, noise 3 x", "rows with nothing in common"}
    assert min(evading[name] for name in ("a secret direction, noise 3 x", "rows with nothing in common")) > 0.5
    assert sum(missed for missed, _ in table.values()) / len(table) < 0.5


def test_the_check_is_evaded_by_mild_forms_of_the_others(parts):
    found = other_evasions(parts)
    assert found["trap weights, each row with a scale of its own from 0.85 to 1.05"]
    assert found["fishing with rows 50 times smaller and a bias of 15"]
