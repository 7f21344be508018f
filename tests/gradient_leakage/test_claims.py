"""The claim that nothing measurable leaks: hard to make, and never made for a chain by its weakest attack."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from fedveil.gradient_leakage.claims import equivalence_of, worst_of
from fedveil.gradient_leakage.confidence import MIN_TARGETS


def rows(count, gain=0.0, hits=0, gallery=500, batch_share=1.0):
    noise = np.random.default_rng(0).normal(0, 0.05, count)
    return [
        SimpleNamespace(
            key=str(place),
            patients=f"p{place}",
            ssim=0.4 + gain + noise[place],
            null_ssim=0.4,
            reid_rank1=batch_share if place < hits else 0.0,
            network_rank1=None,
            gallery=gallery,
        )
        for place in range(count)
    ]


def test_five_hundred_targets_without_a_gain_carry_the_claim():
    test = equivalence_of(rows(MIN_TARGETS))
    assert test.holds
    assert test.targets == MIN_TARGETS


@pytest.mark.parametrize(
    ("made", "objection"),
    [
        (rows(30), "30 targets"),
        (rows(MIN_TARGETS, gain=0.03), "SSIM gain"),
        (rows(MIN_TARGETS, hits=12), "rank@1"),
        (rows(MIN_TARGETS, hits=12, batch_share=0.125), "rank@1"),
        ([SimpleNamespace(**vars(row) | {"ssim": None}) for row in rows(MIN_TARGETS)], "0 targets"),
    ],
)
def test_the_claim_is_not_made_where(made, objection):
    test = equivalence_of(made)
    assert not test.holds
    assert any(objection in words for words in test.objections)


def test_an_image_that_the_network_alone_recognises_counts():
    seen = [SimpleNamespace(**vars(row) | {"network_rank1": 1.0}) for row in rows(MIN_TARGETS)]
    assert equivalence_of(seen).rank1 == 1


def test_one_patient_attacked_twice_is_no_two_targets():
    twice = [SimpleNamespace(**vars(row) | {"patients": f"p{i // 2}"}) for i, row in enumerate(rows(MIN_TARGETS))]
    assert not equivalence_of(twice).holds


def test_a_chain_is_judged_by_the_attack_that_gets_most_out_of_it():
    harmless, strong = rows(MIN_TARGETS), rows(MIN_TARGETS, gain=0.3, hits=400)
    assert worst_of([harmless, strong, harmless]) == dataclasses.replace(equivalence_of(strong))
    assert worst_of([harmless]).holds


def test_no_row_and_no_cell_are_mistakes_of_the_caller():
    with pytest.raises(ValueError, match="no row"):
        equivalence_of([])
    with pytest.raises(ValueError, match="empty"):
        worst_of([])
