"""What is said of a defense comes from its worst attacker, under one set of conditions."""

from dataclasses import fields, replace

import pytest
from fedveil.gradient_leakage.cells import Cell
from fedveil.gradient_leakage.headlines import gain_of, headlines
from fedveil.gradient_leakage.rows import Row

BASE = Cell("pneumonia28", "tanh-cnn", "dlg", ("labels",))
_PLAIN = {"str": "", "int": 0, "bool": False, "float": 0.0}


def rows(defense, attack, gain, *, adaptive=False, cell=BASE):
    """Four updates of one cell, with a gain of this much each."""
    values = {f.name: _PLAIN.get(str(f.type)) for f in fields(Row)}
    common = {name: getattr(cell, name) for name in ("case", "model", "state", "batch", "local_steps", "dtype", "seed")}
    one = Row(
        **values
        | common
        | {"defense": defense, "attack": attack, "adaptive": adaptive, "targets": 4, "options": "{}"}
        | {"knowledge": "labels", "gallery": 100, "learning_rate": 0.01, "psnr": 20.0}
        | {"ssim": None if gain is None else 0.3 + gain, "null_ssim": 0.3}
    )
    return [replace(one, key=f"{defense}{attack}{adaptive}{cell}{target}", target=target) for target in range(4)]


def test_the_worst_of_naive_and_adaptive_attackers_is_the_headline():
    found = headlines(
        [
            *rows("topk-10", "dlg", 0.1),
            *rows("topk-10", "inverting-gradients", 0.2),
            *rows("topk-10", "defended-matching", 0.6, adaptive=True),
            *rows("topk-10", "learned-inversion", 0.4, adaptive=True),
        ],
        ["topk-10"],
        BASE,
    )
    assert [headline.naive.cell.attack for headline in found] == ["inverting-gradients"]
    assert [headline.adaptive.cell.attack for headline in found] == ["defended-matching"]
    assert found[0].worst is found[0].adaptive
    assert gain_of(found[0].worst) == pytest.approx(0.6)


def test_an_adaptive_attack_that_finds_less_than_a_naive_one_is_not_the_worst():
    both = [*rows("clip", "dlg", 0.9), *rows("clip", "learned-inversion", 0.2, adaptive=True)]
    (found,) = headlines(both, ["clip"], BASE)
    assert found.worst is found.naive


def test_other_conditions_and_other_defenses_are_not_compared():
    harder = replace(BASE, state="converged")
    mixed = [*rows("clip", "dlg", 0.1), *rows("clip", "dlg", 0.9, cell=harder), *rows("none", "dlg", 0.8)]
    (found,) = headlines(mixed, ["clip"], BASE)
    assert gain_of(found.worst) == pytest.approx(0.1)


def test_a_defense_whose_attacks_could_not_be_run_has_no_headline():
    (found,) = headlines(rows("soteria", "dlg", None), ["soteria"], BASE)
    assert (found.naive, found.adaptive, found.worst) == (None, None, None)
