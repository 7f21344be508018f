"""Updates out of sums with changing cohorts: So et al. 2021 and Lam et al. 2021 at a few sites and small models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fedveil.gradient_leakage.attacks.cross_round import CrossRound, identifiable_sites, update_of_site
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import ImageDomain, Knowledge, RoundSums, SentKind, SumObservation
from fedveil.gradient_leakage.victim import SiteTraining, layout_of, observe
from fedveil.utils.errors import (
    AttackError,
    ConfigError,
    LayoutMismatchError,
    LengthMismatchError,
    NonFiniteUpdateError,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

LUNGS = ImageDomain((1, 28, 28), 2)


def random_cohorts(rounds, sites, size, seed):
    rng = torch.Generator().manual_seed(seed)
    cohorts = torch.zeros(rounds, sites, dtype=torch.bool)
    for row in cohorts:
        row[torch.randperm(sites, generator=rng)[:size]] = True
    return cohorts


def summed(updates, cohorts, counts, model, domain=LUNGS, like=None):
    """What a director sees: sums of num_examples x update; ``updates`` is (rounds, sites, size) or (sites, size)."""
    updates = updates if updates.ndim == 3 else updates.expand(len(cohorts), *updates.shape)
    observations = []
    for number, cohort in enumerate(cohorts):
        members = cohort.nonzero().flatten().tolist()
        total = sum(counts[s] * updates[number, s] for s in members)
        observations.append(
            SumObservation(
                sent=total.to(torch.float64 if like is None else like).numpy().tobytes(),
                layout=layout_of(model),
                kind=SentKind.GRADIENT,
                models=tuple(model for _ in members),
                domain=domain,
                num_examples=tuple(counts[s] for s in members),
                dtype=torch.float64 if like is None else like,
            )
        )
    return RoundSums(tuple(observations), cohorts)


@pytest.fixture(scope="module")
def small():
    """A model of ten numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()


def attack(observation):
    return CrossRound()(observation, Knowledge(), torch.Generator())


@pytest.mark.parametrize(("sites", "size"), [(20, 5), (40, 8), (120, 12)])
def test_so_et_al_random_cohorts_give_all_updates_away_after_as_many_rounds_as_sites(sites, size):
    # "Within a number of rounds that is linear in the number of users"; the constant found here is 1.
    early = [identifiable_sites(random_cohorts(sites * 3 // 4, sites, size, seed).double()) for seed in range(10)]
    late = [identifiable_sites(random_cohorts(sites + 3, sites, size, seed).double()) for seed in range(10)]
    assert not any(bool(found.any()) for found in early)
    assert sum(bool(found.all()) for found in late) >= 9


def test_so_et_al_sites_that_always_come_in_groups_stay_hidden_over_any_number_of_rounds(small, rng):
    # Their defense: batches of sites that only take part together.
    groups = random_cohorts(300, 10, 3, seed=1)
    assert bool(identifiable_sites(groups.double()).all())
    cohorts = groups.repeat_interleave(2, dim=1)
    with pytest.raises(AttackError, match="300 sums of rank 10 over 20 sites single out no site"):
        attack(summed(torch.randn(20, 10, generator=rng).double(), cohorts, [3] * 20, small))


def test_lam_et_al_constant_updates_are_disaggregated_exactly(small, rng):
    updates = torch.randn(30, 10, generator=rng).double()
    counts = torch.randint(1, 50, (30,), generator=rng).tolist()
    found = attack(summed(updates, random_cohorts(40, 30, 7, seed=0), counts, small))
    assert bool(found.exact.all())
    assert found.loss < 1e-12
    assert torch.allclose(found.updates, updates, atol=1e-9)


def test_lam_et_al_updates_that_change_over_rounds_are_averaged_and_more_rounds_help(small, rng):
    # Their FedAvg setting: the error falls about as one over the square root of the rounds.
    updates = torch.randn(20, 10, generator=rng).double()
    errors = []
    for rounds in (40, 160, 640):
        moving = updates + 0.3 * torch.randn(rounds, 20, 10, generator=rng).double()
        found = attack(summed(moving, random_cohorts(rounds, 20, 5, seed=2), [1] * 20, small))
        assert not bool(found.exact.any())
        errors.append(float((found.updates - updates).square().mean().sqrt()))
    assert errors[0] > 1.6 * errors[1] > 1.6 * 1.6 * errors[2]
    assert errors[2] < 0.3


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7).flatmap(
        lambda sites: st.lists(st.lists(st.integers(0, 3), min_size=sites, max_size=sites), min_size=1, max_size=7)
    )
)
def test_a_site_is_identifiable_just_if_its_unit_vector_lies_in_the_row_space(rows):
    weights = torch.tensor(rows, dtype=torch.float64)
    rank = int(torch.linalg.matrix_rank(weights))
    for site, found in enumerate(identifiable_sites(weights).tolist()):
        unit = torch.eye(weights.shape[1], dtype=torch.float64)[site : site + 1]
        assert found == (int(torch.linalg.matrix_rank(torch.cat([weights, unit]))) == rank)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rounds=st.integers(1, 8), sites=st.integers(1, 6))
def test_every_update_that_is_called_exact_is_right_and_every_other_is_nan(seed, rounds, sites):
    rng = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    cohorts = torch.rand(rounds, sites, generator=rng) < 0.5
    cohorts[torch.arange(rounds), torch.randint(sites, (rounds,), generator=rng)] = True
    updates = torch.randn(sites, 10, generator=rng).double()
    counts = torch.randint(1, 9, (sites,), generator=rng).tolist()
    observation = summed(updates, cohorts, counts, model)
    known = identifiable_sites(observation.weights())
    if not bool(known.any()):
        with pytest.raises(AttackError, match="single out no site"):
            attack(observation)
        return
    found = attack(observation)
    assert torch.equal(found.exact, known)
    assert torch.allclose(found.updates[known], updates[known], atol=1e-8)
    assert bool(found.updates[~known].isnan().all())


def test_two_rounds_that_differ_by_one_site_give_that_site_away_and_no_other(small, rng):
    updates = torch.randn(4, 10, generator=rng).double()
    cohorts = torch.tensor([[True, True, True, False], [True, True, True, True]])
    observation = summed(updates, cohorts, [2, 3, 4, 5], small)
    found = attack(observation)
    assert found.exact.tolist() == [False, False, False, True]
    assert torch.allclose(found.updates[3], updates[3])
    with pytest.raises(AttackError, match="do not single out site 0"):
        update_of_site(observation, found, 0)


@pytest.fixture(scope="module")
def x_ray_rounds(xrays28):
    """Six sites with one X-ray each, ten rounds of secure sums of three; what an honest director of fedveil sees."""
    images, labels = xrays28
    model, site = build("mlp", LUNGS, seed=0), SiteTraining()
    alone = [observe(model, images[i : i + 1], labels[i : i + 1], site, torch.Generator(), 2) for i in range(6)]
    updates = torch.stack([torch.from_numpy(seen.vector().copy()) for seen in alone])
    return summed(updates, random_cohorts(10, 6, 3, seed=0), [1] * 6, model, like=torch.float32)


def first_layer(observation):
    """The picture from the gradients of the first layer: Zhu and Blaschko 2021 (arXiv:2010.07733)."""
    sent = observation.tensors()
    row = sent["1.bias"].abs().argmax()
    return (sent["1.weight"][row] / sent["1.bias"][row]).reshape(28, 28)


def psnr(image, truth):
    return float(-10 * torch.log10((image.clamp(0, 1) - truth).square().mean()))


def test_pictures_come_back_from_separated_updates_and_the_sum_alone_does_not_give_them(x_ray_rounds, xrays28):
    images = xrays28[0][:6, 0]
    found = attack(x_ray_rounds)
    assert bool(found.exact.all())
    for site in range(6):
        assert psnr(first_layer(update_of_site(x_ray_rounds, found, site)), images[site]) > 60
    mixed = first_layer(x_ray_rounds.rounds[0].as_one())
    assert max(psnr(mixed, image) for image in images) < 40


def test_a_separated_update_is_no_picture_of_another_patient(x_ray_rounds, xrays28):
    # The null: another patient's X-ray of the same label is as far away as it was before.
    images, labels = xrays28
    found = attack(x_ray_rounds)
    for site in range(6):
        picture = first_layer(update_of_site(x_ray_rounds, found, site))
        others = [i for i in range(6, 60) if labels[i] == labels[site]]
        excess = [psnr(picture, images[i, 0]) - psnr(images[site, 0], images[i, 0]) for i in others]
        assert abs(np.mean(excess)) < 0.01


def test_a_cohort_matrix_that_does_not_fit_is_refused(small, rng):
    seen = summed(torch.randn(3, 10, generator=rng).double(), torch.ones(2, 3, dtype=torch.bool), [1] * 3, small)
    for cohorts in (torch.ones(3, 3).bool(), torch.ones(2, 3), torch.ones(2).bool()):
        with pytest.raises(ConfigError, match=r"expected \(rounds, sites\) of bool"):
            RoundSums(seen.rounds, cohorts)
    with pytest.raises(ConfigError, match="round 0 has 4 sites in its cohort and sums 3 updates"):
        RoundSums(seen.rounds, torch.ones(2, 4).bool())
    with pytest.raises(ConfigError, match="sums of no round"):
        RoundSums((), torch.ones(0, 3).bool())


def test_sums_of_another_layout_length_or_with_nan_are_refused(small, rng):
    cohorts = torch.ones(1, 2, dtype=torch.bool)
    updates = torch.randn(2, 10, generator=rng).double()
    other = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.Linear(1, 1)).double()
    foreign = replace(summed(updates, cohorts, [1, 1], small).rounds[0], models=(other, other))
    with pytest.raises(LayoutMismatchError, match=r"holds 1\.weight"):
        RoundSums((foreign,), cohorts)
    with pytest.raises(LengthMismatchError):
        summed(updates[:, :9], cohorts, [1, 1], small)
    with pytest.raises(NonFiniteUpdateError):
        summed(updates * float("nan"), cohorts, [1, 1], small)
    first = summed(updates, cohorts, [1, 1], small).rounds[0]
    second = summed(torch.randn(2, 8).double(), cohorts, [1, 1], nn.Sequential(nn.Linear(3, 2)).double()).rounds[0]
    with pytest.raises(LayoutMismatchError, match="round 1 has another layout than round 0"):
        RoundSums((first, second), cohorts.repeat(2, 1))
