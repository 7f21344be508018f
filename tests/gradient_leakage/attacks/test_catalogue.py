"""The catalogue: options are checked before any work, whoever they come from."""

import re

import pytest
import torch
from fedveil.gradient_leakage.attacks.catalogue import ATTACKS, listed
from fedveil.gradient_leakage.defenses.bottlenecks import with_bottleneck
from fedveil.gradient_leakage.defenses.chain import Chain
from fedveil.gradient_leakage.models import build
from fedveil.gradient_leakage.threat_model import BatchStatistics, ImageDomain, Knowledge, LocalTraining, PublicImages
from fedveil.gradient_leakage.victim import SiteTraining, granting, observe
from fedveil.utils.errors import ConfigError
from torch import nn

LUNGS = ImageDomain((1, 28, 28), 2)
RATE = Knowledge(learning_rate=True)
HOW = Knowledge(local_steps=True, learning_rate=True)
STATISTICS = Knowledge(batch_norm_statistics=True, local_steps=True)
PUBLIC = Knowledge(local_steps=True, learning_rate=True, public_data=True)


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


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def a_model(name):
    if name == "bottlenecked":
        return with_bottleneck(build("tanh-cnn", LUNGS, 0), "cvb")
    if name != "normalised":
        return build(name, LUNGS, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2))


def lies(public):
    """Grants of which no attack may believe one that its threat model does not name."""
    return {
        "labels": torch.tensor([0, 0]),  # both are 1
        "batch_norm_statistics": {"1": BatchStatistics(torch.zeros(4), torch.ones(4))},
        "defense": {"weight": torch.zeros(3)},
        "local_steps": LocalTraining(3, 1),
        "learning_rate": 123.0,
        "public_data": public,
    }


@pytest.mark.parametrize(
    ("attack", "model", "knowledge", "options"),
    [
        ("dlg", "tanh-cnn", RATE, {"iterations": 3, "restarts": 1}),
        ("inverting-gradients", "tanh-cnn", Knowledge(), {"iterations": 3, "distance": "l2"}),
        ("fedavg", "tanh-cnn", HOW, {"iterations": 2}),
        ("see-through", "normalised", Knowledge(), {"iterations": 3}),
        ("see-through", "normalised", STATISTICS, {"iterations": 3}),
        ("learned-inversion", "mlp", PUBLIC, {"components": 10, "hidden": 4, "epochs": 1}),
        ("first-layer", "mlp", Knowledge(), {}),
        ("spear", "mlp", Knowledge(), {}),
        ("llg", "lenet", Knowledge(), {}),
        ("bias-labels", "lenet", Knowledge(), {}),
        ("defended-matching", "tanh-cnn", Knowledge(defense=True), {"iterations": 3, "polish": 2}),
        ("noise-variable", "bottlenecked", RATE, {"iterations": 3, "restarts": 1}),
        ("ignore-bottleneck", "bottlenecked", Knowledge(), {"iterations": 3}),
    ],
)
def test_an_attack_believes_no_grant_that_the_threat_model_does_not_name(attack, model, knowledge, options, xrays28):
    images, labels = xrays28
    mine = torch.nonzero(labels == 1).flatten()[:2]
    site = SiteTraining(LocalTraining(1, 2), 0.1)
    sent = observe(a_model(model), images[mine], labels[mine], site, seeded(0), 2)
    honest = granting(sent, public_data=PublicImages(images[200:280], labels[200:280]), defense=Chain())
    untold = {name: value for name, value in lies(None).items() if not getattr(knowledge, name)}
    untold["public_data"] = (
        honest.granted.public_data if knowledge.public_data else PublicImages(images[mine], labels[mine])
    )
    made = listed(attack).make(**options)
    with_lies, without = (
        made(observation, knowledge, seeded(1))
        for observation in (granting(honest, **untold), honest.limited_to(knowledge))
    )
    for name in ("images", "labels"):
        found, expected = getattr(with_lies, name), getattr(without, name)
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(found, expected)
    assert with_lies.loss == pytest.approx(without.loss, rel=0, abs=0, nan_ok=True)
