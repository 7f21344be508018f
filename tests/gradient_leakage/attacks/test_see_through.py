"""GradInversion: its terms help in the order of its ablation, and an update with buffers holds the statistics."""

from dataclasses import replace

import pytest
import torch
from fedveil.gradient_leakage.attacks.see_through import SeeThrough, statistics_in_update
from fedveil.gradient_leakage.threat_model import Knowledge, LocalTraining
from fedveil.gradient_leakage.victim import SiteTraining, observe
from fedveil.utils.errors import ConfigError
from scipy.optimize import linear_sum_assignment
from torch import nn

LABELS = Knowledge(labels=True)
STATISTICS = Knowledge(labels=True, batch_norm_statistics=True)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normalised(seed, momentum=0.1):
    """Three convolutions with BatchNorm and an average over all positions, as in a small ResNet."""
    layers = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1)]
            layers += [nn.BatchNorm2d(after, momentum=momentum), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


def seen(model, images, labels, local=None):
    return observe(model, images, labels, SiteTraining(local, 0.01), seeded(0), 2)


def matched_psnr(found, truth):
    errors = torch.cdist(found.flatten(1).double(), truth.flatten(1).double()).square() / truth[0].numel()
    pairs = linear_sum_assignment(errors.numpy())
    return float(-10 * torch.log10(errors[pairs]).mean())


@pytest.mark.slow
def test_yin_2021_ablation_batch_statistics_help_a_batch_of_four_by_1_db(xrays28):
    images, labels = xrays28
    gains = []
    for at in (0, 4):
        truth = images[at : at + 4]
        observation = seen(normalised(at).train(), truth, labels[at : at + 4])
        without, having = (
            matched_psnr(SeeThrough(iterations=200)(observation, knowledge, seeded(0)).images, truth)
            for knowledge in (LABELS, STATISTICS)
        )
        gains.append(having - without)
    assert sum(gains) / len(gains) > 1


@pytest.mark.parametrize("local", [None, LocalTraining(epochs=1, batch_size=4)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_update_with_buffers_of_one_step_holds_the_statistics_of_its_batch(local, momentum, xrays28):
    images, labels = (part[:4] for part in xrays28)
    observation = seen(normalised(0, momentum).train(), images, labels, local)
    found, truth = statistics_in_update(observation), observation.granted.batch_norm_statistics
    assert found.keys() == truth.keys()
    for name, statistics in truth.items():
        torch.testing.assert_close(found[name].mean, statistics.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].variance, statistics.variance, rtol=1e-4, atol=1e-5)


def test_eval_mode_and_several_steps_tell_no_statistics(xrays28):
    images, labels = (part[:4] for part in xrays28)
    assert not statistics_in_update(seen(normalised(0).eval(), images, labels))
    two = seen(normalised(0).train(), images, labels, LocalTraining(epochs=1, batch_size=2))
    assert not statistics_in_update(two)
    unknown = replace(two, granted=replace(two.granted, local_steps=None))
    assert not statistics_in_update(unknown)


def test_statistics_that_the_threat_model_does_not_name_are_not_read(xrays28):
    images, labels = (part[:4] for part in xrays28)
    observation = seen(normalised(0).train(), images, labels)
    attack = SeeThrough(iterations=3, restarts=2)
    tempted, limited, used = (
        attack(held, knowledge, seeded(0)).images
        for held, knowledge in (
            (observation, LABELS),
            (observation.limited_to(LABELS), LABELS),
            (observation, STATISTICS),
        )
    )
    assert torch.equal(tempted, limited)
    assert not torch.equal(tempted, used)


def test_a_recorded_update_grants_its_statistics_by_itself(xrays28):
    images, labels = (part[:4] for part in xrays28)
    observation = seen(normalised(0).train(), images, labels)
    recorded = replace(observation, granted=replace(observation.granted, batch_norm_statistics=None))
    attack = SeeThrough(iterations=3)
    granted, read = (attack(o, STATISTICS, seeded(0)) for o in (observation, recorded))
    assert read.loss == pytest.approx(granted.loss, rel=1e-2)


def test_the_group_draws_its_restarts_together(xrays28):
    images, labels = (part[:1] for part in xrays28)
    observation = seen(normalised(0).eval(), images, labels)
    alone, drawn = (
        SeeThrough(iterations=20, restarts=3, group=weight)(observation, LABELS, seeded(0)).loss
        for weight in (0.0, 5.0)
    )
    assert alone != drawn


@pytest.mark.parametrize("weights", [{"batch_norm": -1.0}, {"group": -0.1}])
def test_weights_that_reward_distance_are_refused(weights):
    with pytest.raises(ConfigError, match=next(iter(weights))):
        SeeThrough(**weights)
