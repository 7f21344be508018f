"""A proposal says just what its experiment does, or the experiment is not queued."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.proposals import check_proposal, propose
from fedveil.utils.config import parse_toml
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import ConfigError, IdentityError, ProtocolError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import AskedProtection
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind
from fedveil.utils.proposal import Output
from fedveil.utils.tensors import digest_of

NOW = 1_700_000_000.0
ALICE = PeerId("lungs", Role.OPERATOR, "alice")
TEXT = """
name = "pneumonia"
[study]
purpose = "find pneumonia"
legal_basis = "permit 12"
sites = ["site-b", "site-a", "site-c"]
outputs = ["model"]
valid_days = 2
[rounds]
max_rounds = 10
min_participants = 3
[protection]
max_norm = 1.5
[secure_sum]
aggregator = "envoy:site-c"
"""
FILES = tuple(PlanFile(path, 1, "ab" * 32) for path in ("plan.py", "layout.json", "initial.safetensors"))
MANIFEST = Manifest(
    "plan", PlanKind.ARRAY, "plan.py:Plan", FILES, {}, "cd" * 32, DataSpec("none", DataKind.NONE), "fedveil 0"
)


def settings_of(text: str) -> ExperimentSettings:
    return parse_toml(text, ExperimentSettings, "experiment.toml")


def proposed(text: str = TEXT):
    return propose(settings_of(text), text, MANIFEST, "lungs", ALICE, NOW)


def test_a_proposal_says_all_that_the_sites_are_asked_for() -> None:
    one = proposed()
    assert (one.federation, one.study, one.plan) == ("lungs", "pneumonia", MANIFEST.digest)
    assert (one.purpose, one.legal_basis, one.settings) == ("find pneumonia", "permit 12", digest_of(TEXT.encode()))
    assert (one.max_rounds, one.is_secure, one.aggregator) == (10, True, "envoy:site-c")
    assert (one.asked, one.codec, one.outputs) == (AskedProtection(1.5), None, (Output.MODEL,))
    assert one.sites == ("site-a", "site-b", "site-c")
    assert (one.proposed_by, one.proposed_at, one.expires_at) == (ALICE, NOW, NOW + 2 * 86_400)
    check_proposal(one, settings_of(TEXT), TEXT, MANIFEST, ALICE, NOW + 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("federation", "hearts"),
        ("study", "other"),
        ("plan", "00" * 32),
        ("settings", "00" * 32),
        ("purpose", "find names"),
        ("legal_basis", ""),
        ("max_rounds", 11),
        ("is_secure", False),
        ("aggregator", "director"),
        ("codec", "00" * 32),
        ("asked", AskedProtection(2.0)),
        ("sites", ()),
        ("outputs", (Output.MODEL, Output.METRICS)),
        ("expires_at", NOW + 3 * 86_400),
    ],
)
def test_a_proposal_that_says_something_else_than_its_experiment_is_refused_by_the_name_of_the_field(field, value):
    other = replace(proposed(), **{field: value})
    with pytest.raises(ProtocolError, match=f"differs from the experiment that it came with in {field};"):
        check_proposal(other, settings_of(TEXT), TEXT, MANIFEST, ALICE, NOW)


def test_nobody_submits_what_another_signed() -> None:
    with pytest.raises(IdentityError, match="sign your own"):
        check_proposal(proposed(), settings_of(TEXT), TEXT, MANIFEST, replace(ALICE, name="bob"), NOW)


@pytest.mark.parametrize("late", [3600.0, -3600.0])
def test_a_clock_an_hour_off_is_said(late: float) -> None:
    with pytest.raises(ProtocolError, match=r"differs by 3600 s .* set the clock"):
        check_proposal(proposed(), settings_of(TEXT), TEXT, MANIFEST, ALICE, NOW + late)


def test_an_experiment_without_a_purpose_is_refused_with_what_to_add() -> None:
    bare = TEXT[: TEXT.index("[study]")] + TEXT[TEXT.index("[rounds]") :]
    with pytest.raises(ConfigError, match=r"\[study\] is missing, .* add \[study\] with purpose"):
        proposed(bare)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"find pneumonia"', '" "', r"\[study\]: purpose is empty; say in one line"),
        ('"find pneumonia"', '"two\\nlines"', "purpose: expected one printable line"),
        ('"site-b", "site-a"', '"site-a", "site-a"', "each once"),
        ('"site-b"', '"Site B"', "site"),
        ('["model"]', "[]", "outputs: name model, metrics or both"),
        ('["model"]', '["gradients"]', "expected one of model, metrics"),
        ("valid_days = 2", "valid_days = 0", "valid_days is 0"),
    ],
)
def test_a_study_that_is_none_is_refused_when_it_is_read(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(TEXT.replace(old, new))


def test_the_same_settings_submitted_twice_are_two_proposals(researcher) -> None:
    alice = researcher("lungs")
    first, second = (alice.proposal(TEXT, MANIFEST, time.time() + s) for s in (0, 1))
    assert first.digest != second.digest
