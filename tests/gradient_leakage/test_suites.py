"""The suites are fixed, and hold nothing that cannot be run."""

import dataclasses

import pytest
from fedveil.gradient_leakage.attacks.catalogue import listed
from fedveil.gradient_leakage.confidence import MIN_TARGETS
from fedveil.gradient_leakage.defenses.registry import DEFENSES, registered
from fedveil.gradient_leakage.models import MODELS
from fedveil.gradient_leakage.suites import CLAIM, FULL, SMOKE, SUITES, suite_named
from fedveil.gradient_leakage.threat_model import Adversary
from fedveil.utils.errors import ConfigError

CELLS = [cell for cells in SUITES.values() for cell in cells]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.case} {cell.title}")
def test_every_cell_names_what_is_there_and_grants_what_its_attack_needs(cell):
    attack = listed(cell.attack).make(**dict(cell.options))
    needed = dataclasses.asdict(attack.needs)
    assert [name for name, wanted in needed.items() if wanted and name not in cell.knowledge] == []
    assert cell.model.removesuffix("-train").removesuffix("-eval") in MODELS
    assert cell.model != "resnet18"  # train or eval must be said
    assert cell.defense in DEFENSES
    assert ("malicious" in cell.knowledge) == (listed(cell.attack).adversary is Adversary.MALICIOUS_DIRECTOR)


@pytest.mark.parametrize("cells", SUITES.values(), ids=SUITES)
def test_no_cell_stands_twice_in_a_suite(cells):
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.case} {cell.title}")
def test_every_cell_has_a_null(cell):
    assert cell.targets % 2 == 0  # two updates in a row are of the same classes


def test_every_case_of_the_issue_every_network_state_and_number_of_steps_is_in_the_full_suite():
    assert {cell.case for cell in FULL} == {"pneumonia28", "xrays64", "xrays224", "cifar10", "mnist"}
    assert {cell.model for cell in FULL} == {*MODELS, "resnet18-train", "resnet18-eval"} - {"resnet18"}
    assert {cell.state for cell in FULL} == {"fresh", "one-epoch", "converged"}
    assert {cell.batch for cell in FULL} == {1, 2, 4, 8, 16}
    assert {cell.local_steps for cell in FULL} == {0, 1, 4, 8}
    assert {cell.attack for cell in SMOKE} - {cell.attack for cell in FULL} == set()


def test_a_claim_rests_on_enough_targets_and_on_none_that_chose_an_attack():
    images = max(cell.targets * cell.batch for cell in (*SMOKE, *FULL))
    for cell in CLAIM:
        assert cell.targets >= MIN_TARGETS
        assert cell.gallery >= MIN_TARGETS
        assert cell.batch * cell.skip >= images  # images are taken in the same order, whatever the batch


def test_a_defended_chain_is_also_attacked_by_an_attack_made_for_it():
    for cells in SUITES.values():
        for defense in {cell.defense for cell in cells} - {"none"}:
            assert any(cell.adaptive for cell in cells if cell.defense == defense)


def test_an_unknown_name_is_answered_with_those_that_there_are():
    with pytest.raises(ConfigError, match="smoke, full, claim"):
        suite_named("all")
    with pytest.raises(ConfigError, match=r"none, clip, .*precode"):
        registered("hope")
