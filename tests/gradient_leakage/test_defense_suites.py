"""Every registered defense is attacked: naively, and by whoever knows it."""

import dataclasses

import pytest
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.confidence import MIN_TARGETS
from fedveil.gradient_leakage.defense_suites import BASE, NAIVE, chosen, defense_cells
from fedveil.gradient_leakage.defenses.registry import DEFENSES
from fedveil.gradient_leakage.report import FEASIBILITY
from fedveil.gradient_leakage.suites import SUITES
from fedveil.utils.errors import ConfigError

EVERY = [(suite, defense_cells(tuple(DEFENSES), suite)) for suite in ("smoke", "full", "claim")]


@pytest.mark.parametrize(("suite", "cells"), EVERY, ids=[suite for suite, _ in EVERY])
def test_every_registered_defense_meets_naive_and_adaptive_attackers(suite, cells):
    for name in DEFENSES:
        own = [cell for cell in cells if cell.defense == name]
        assert {cell.attack for cell in own if not cell.adaptive} == set(NAIVE)
        assert {cell.attack for cell in own if cell.adaptive} <= {one.attack for one in DEFENSES[name].adaptive}
        assert any(cell.adaptive for cell in own)


@pytest.mark.parametrize(("suite", "cells"), EVERY, ids=[suite for suite, _ in EVERY])
def test_a_naive_attacker_knows_nothing_of_the_defense_and_an_adaptive_one_all_it_needs(suite, cells):
    for cell in cells:
        needs = dataclasses.asdict(listed(cell.attack).make(**dict(cell.options)).needs)
        assert {grant for grant, is_needed in needs.items() if is_needed} <= set(cell.knowledge)
        assert ("defense" in cell.knowledge) == cell.adaptive


@pytest.mark.parametrize(("suite", "cells"), EVERY, ids=[suite for suite, _ in EVERY])
def test_no_cell_stands_twice_and_each_has_a_null(suite, cells):
    assert len(set(cells)) == len(cells)
    assert all(cell.targets % 2 == 0 for cell in cells)


def test_the_full_suite_has_enough_targets_for_evidence_where_defenses_are_compared():
    full = dict(EVERY)["full"]
    conditions = [(cell.model, cell.state, cell.batch, cell.local_steps) for cell in full]
    assert all(
        cell.targets >= FEASIBILITY
        for cell, where in zip(full, conditions, strict=True)
        if where == (BASE.model, BASE.state, BASE.batch, BASE.local_steps)
    )
    assert len(set(conditions)) >= 5


def test_a_claim_rests_on_targets_on_which_nothing_was_chosen():
    others = [*SUITES["smoke"], *SUITES["full"], *dict(EVERY)["smoke"], *dict(EVERY)["full"]]
    used = max(cell.targets * cell.batch for cell in others)
    assert all(cell.targets >= MIN_TARGETS and cell.skip >= used for cell in dict(EVERY)["claim"])


def test_defenses_are_chosen_by_name_or_all_at_once():
    assert chosen("all") == tuple(DEFENSES)
    assert chosen(" topk-10, clip ") == ("clip", "topk-10")
    for wrong, said in (("hope", "none, clip"), (" , ", "names none")):
        with pytest.raises(ConfigError, match=said):
            chosen(wrong)
    with pytest.raises(ConfigError, match="smoke, full, claim"):
        defense_cells(("none",), "tiny")
