"""The ledger's epsilon is held against what canaries give away, in the code that an envoy runs."""

from dataclasses import replace

import numpy as np
import pytest
from fedveil.gradient_leakage.defenses.gaussian import GaussianMechanism
from fedveil.gradient_leakage.one_run_audit import OneRunAudit
from fedveil.gradient_leakage.private_steps import noised_mean
from fedveil.utils.differential_privacy import DifferentialPrivacy
from fedveil.utils.privacy.noise import SystemNoise
from fedveil.utils.privacy.values import Unit
from fedveil.workspace.benchmarks.dp_audit import CASES, as_lines, audit, ledgers_epsilon

pytest.importorskip("dp_accounting")

SIZE, DELTA = 200, 1e-6
DECLARED = DifferentialPrivacy(Unit.PATIENT, 1.0, 2.0, 1.0, units=500, steps=1, delta=DELTA)


def by_name(name):
    return next(case for case in CASES if case.name == name)


def step(mechanism):
    """One noised step, as training calls it."""
    noise = SystemNoise()
    return lambda contributions: noised_mean([contributions], SIZE, None, mechanism, noise, 1.0)


@pytest.mark.parametrize(
    ("mechanism", "is_caught"),
    [
        (GaussianMechanism(1.0, 2.0), False),
        (GaussianMechanism(1.0, 1.0), True),
        (GaussianMechanism(100.0, 0.02), True),
    ],
    ids=["as declared", "half the noise", "no clip"],
)
def test_the_noised_step_keeps_the_ledgers_epsilon_and_a_planted_bug_does_not(mechanism, is_caught):
    found = OneRunAudit(1.0, DELTA)(step(mechanism), SIZE, np.random.default_rng(0))
    ledger = ledgers_epsilon(DECLARED)
    assert found.contradicts(ledger.epsilon) == is_caught
    assert found.epsilon > 0.2 * ledger.epsilon  # and it is no empty bound


@pytest.mark.parametrize("name", ["as declared", "as declared, sampled"])
def test_the_envoys_training_keeps_the_ledgers_epsilon(name):
    finding = audit(replace(by_name(name), canaries=3000))
    assert finding.audited.epsilon > 0
    assert finding.is_as_expected


@pytest.mark.parametrize("name", ["no clip, the same noise"])
def test_a_bug_planted_in_the_envoys_training_contradicts_the_ledger(name):
    finding = audit(replace(by_name(name), canaries=1500))
    assert finding.is_contradicted
    assert "the ledger is contradicted" in [*as_lines([finding], lambda _: None)][1]
    assert finding.to_json()["ledger"] == {"epsilon": finding.ledger.epsilon, "delta": DELTA, "unit": "patient"}
