"""The catalogue: options are checked before any work, whoever they come from."""

import re

import pytest
from fedveil.gradient_leakage.attacks.catalogue import ATTACKS, listed
from fedveil.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("attack", "option", "value", "words"),
    [
        ("dlg", "iterations", 1.5, "expected int, got 1.5 (float)"),
        ("dlg", "labels", 1, "expected str, got 1 (int)"),
        ("inverting-gradients", "restarts", True, "expected int, got True (bool)"),
        ("inverting-gradients", "signed", "yes", "expected bool, got 'yes' (str)"),
        ("inverting-gradients", "signed", 1, "expected bool, got 1 (int)"),
        ("see-through", "batch_norm", "heavy", "expected float, got 'heavy' (str)"),
        ("see-through", "step_size", True, "expected float, got True (bool)"),
        ("fedavg", "step_size", None, "expected float, got None (NoneType)"),
        ("rmia", "offline_a", "a third", "expected float | None, got 'a third' (str)"),
        ("learned-inversion", "defend", "precode", "got 'precode' (str)"),
        ("loki", "imprint", 3, "expected Imprint, got 3 (int)"),
    ],
)
def test_an_option_of_another_type_is_refused_with_its_name(attack, option, value, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        listed(attack).make(**{option: value})
    assert str(refused.value).startswith(f"attack {attack}: option {option}: ")


@pytest.mark.parametrize(
    ("attack", "options"),
    [("dlg", {"tolerance": 0}), ("rmia", {"offline_a": None}), ("rmia", {"offline_a": 0.3}), ("spear", {"samples": 9})],
)
def test_an_option_of_its_own_type_is_taken(attack, options):
    made = listed(attack).make(**options)
    assert all(getattr(made, name) == value for name, value in options.items())


def test_an_unknown_option_is_answered_with_those_that_there_are():
    with pytest.raises(ConfigError) as refused:
        listed("first-layer").make(luck=1)
    assert str(refused.value) == "attack first-layer: no option luck; it has agreement (float)"
    with pytest.raises(ConfigError, match="it has none"):
        listed("bias-labels").make(luck=1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_can_be_made_without_options(attack):
    assert attack.make() == attack.make()
