"""Differential privacy measured: what the accountants say, that gradients are each image's own, rows made once."""

import json

import numpy as np
import pytest
import torch
from fedveil.envoy.records import LoadedDataset
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.vae.fitting import fit
from fedveil.gradient_leakage.vae.recovery import reconstruction_bound
from fedveil.utils.errors import ConfigError, StorageError
from fedveil.utils.tensors import Layout, Role
from fedveil.workspace.benchmarks import private_codec
from fedveil.workspace.benchmarks.private_accounting import Steps
from fedveil.workspace.benchmarks.private_bench import as_markdown
from fedveil.workspace.benchmarks.private_codec import Comparison, PrivateRow, Scale
from fedveil.workspace.benchmarks.private_rows import rows_in
from fedveil.workspace.benchmarks.private_training import Gradients, Schedule, train
from torch import nn
from torch.nn import functional

STEPS = Steps(0.04, 48, 1e-5)


def test_the_noise_that_is_found_spends_what_was_asked_and_hardly_less():
    noise = STEPS.noise_multiplier(2.0)
    assert 1.9 < STEPS.epsilon(noise) <= 2.0
    assert STEPS.epsilon(noise) <= STEPS.renyi_epsilon(noise) < 2.6


def test_one_step_without_sampling_is_the_analytic_gaussian_mechanism():
    from scipy.optimize import brentq
    from scipy.special import ndtr

    def delta(epsilon, noise):  # Balle and Wang 2018 (arXiv:1805.06530), theorem 8
        half, whole = 1 / (2 * noise), epsilon * noise
        return ndtr(half - whole) - np.exp(epsilon) * ndtr(-half - whole)

    exact = brentq(lambda epsilon: delta(epsilon, 2.0) - 1e-5, 0, 20)
    found = Steps(1.0, 1, 1e-5).epsilon(2.0)
    assert exact <= found <= exact + 0.01


def test_more_steps_or_less_noise_spend_more():
    assert Steps(0.04, 24, 1e-5).epsilon(1.0) < STEPS.epsilon(1.0) < STEPS.epsilon(0.8)


@pytest.mark.parametrize("noise", [0.1, 0.7, 2.0, 40.0])
def test_in_a_single_release_of_everybody_the_bound_is_the_gaussian_mechanisms(noise):
    found, exact = Steps(1.0, 1, 1e-5).reconstruction_bound(noise, 0.01), reconstruction_bound(noise, 1, 0.01)
    assert exact - 1e-6 <= found <= exact + 0.003


def test_sampling_lowers_the_bound():
    assert 0.01 < STEPS.reconstruction_bound(1.0, 0.01) < reconstruction_bound(1.0, 48, 0.01)


def test_an_epsilon_that_no_noise_gives_is_refused():
    with pytest.raises(ConfigError, match="epsilon 1e-07"):
        STEPS.noise_multiplier(1e-7)


def toy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(32, 2))
    layout = Layout.of([(name, tuple(one.shape), Role.PARAMETER) for name, one in model.named_parameters()])
    vector = torch.cat([one.detach().reshape(-1) for one in model.parameters()]).numpy()
    rng = np.random.default_rng(0)
    labels = np.arange(70) % 2
    images = (rng.integers(0, 100, (70, 1, 6, 6)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    return model, layout, vector, LoadedDataset(images, labels, np.zeros(70, np.uint8))


def test_each_images_gradient_is_its_own_and_they_sum_to_the_batchs():
    model, layout, vector, shown = toy()
    gradients = Gradients(model, layout)
    each = gradients.of_each(vector, shown.features, shown.labels)
    assert gradients.of_each(vector, shown.features[:0], shown.labels[:0]).shape == (0, layout.size)
    np.testing.assert_allclose(
        each.sum(0), gradients.of_sum(vector, shown.features, shown.labels), rtol=1e-3, atol=1e-4
    )
    pixels = torch.from_numpy(shown.features[66:67].astype(np.float32) / 255)
    functional.cross_entropy(model(pixels), torch.from_numpy(shown.labels[66:67])).backward()
    own = torch.cat([one.grad.reshape(-1) for one in model.parameters()]).numpy()
    np.testing.assert_allclose(each[66], own, rtol=1e-4, atol=1e-5)


def test_a_run_repeats_and_its_first_update_stays_in_the_span_of_the_code():
    model, layout, vector, shown = toy()
    gradients, schedule = Gradients(model, layout), Schedule(3, 0.5)
    codec = fit(layout, gradients.of_each(vector, shown.features, shown.labels), layout.size / 4)
    seen = []

    def run(mechanism, *, coded=True):
        choice = (lambda number, _: seen.append(number) or codec) if coded else (lambda _number, _: None)
        return list(train(gradients, vector, [shown, shown], schedule, 0.01, mechanism, choice, 1))

    noised = run(GaussianMechanism(1.0, 1.0))
    np.testing.assert_array_equal(noised, run(GaussianMechanism(1.0, 1.0)))
    assert seen == [0, 1, 2, 0, 1, 2]
    loose, exact = run(GaussianMechanism(1e6, 0.0), coded=False), run(None, coded=False)
    np.testing.assert_allclose(loose, exact, atol=1e-4)


LABELS = np.arange(60) % 2


def row(arm, epsilon, seed, shift, noise=1.0):
    scores = np.random.default_rng(seed).standard_normal(60) + shift * LABELS
    return PrivateRow(arm, epsilon, None, 1.0, 0.1, seed, noise, 0.9, 0.8, 1.0, "setup", tuple(scores.tolist()))


def test_the_table_tells_losses_and_gains_alike():
    rows = [row("non-private", None, 1, 3.0, 0.0), row("DP-SGD", 2.0, 1, 1.0), row("learned", 2.0, 1, 2.0)]
    lines = list(as_markdown([*rows, row("seeded", 2.0, 1, 0.0)], LABELS, STEPS))
    assert len({line.count("|") for line in lines}) == 1
    gains = [line.split("|")[9].split() for line in lines[2:]]
    assert gains[:2] == [[], []]
    assert float(gains[2][0]) > 0 > float(gains[3][0])


def small_set(folder):
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 120), ("val", 12), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = rng.integers(0, 100, (count, 28, 28)) + 100 * labels[:, None, None]
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = pixels.astype(np.uint8), labels.astype(np.uint8)[:, None]
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def test_every_arm_gets_what_validation_chose_and_nothing_is_run_twice(tmp_path, monkeypatch):
    scale = Scale(0.2, 2, 2, Schedule(2, 0.3))
    data, home = small_set(tmp_path), tmp_path / "home"
    found = list(Comparison(home, data, scale).rows(seeds=(1,), epsilons=(8.0,)))
    arms = ["public images alone", "non-private", "DP-SGD", "learned", "seeded"]
    assert [one.arm for one in found] == arms
    assert [one.noise_multiplier > 0 for one in found] == [False, False, True, True, True]
    assert all(len(one.scores) == 20 and np.isfinite(one.scores).all() for one in found)
    tried = rows_in(home / "rows.jsonl", PrivateRow)
    for one in found:
        choices = [other for other in tried if other.arm == one.arm and other.seed == 0]
        assert len(choices) == len(private_codec.CANDIDATES[one.arm])
        assert max(choices, key=lambda other: other.auc_validation).learning_rate == one.learning_rate
    monkeypatch.setattr(private_codec, "train", None)
    assert list(Comparison(home, data, scale).rows(seeds=(1,), epsilons=(8.0,))) == found


def test_damaged_rows_are_said(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"arm": "DP-SGD"}) + "\n", "utf-8")
    with pytest.raises(StorageError, match="is damaged"):
        rows_in(tmp_path / "rows.jsonl", PrivateRow)
