"""Patches: what they make of a run, which are refused, and from which rounds the present model came."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fedveil.director.experiments import ExperimentSettings
from fedveil.director.records import RoundRecord, RunRecord, RunState
from fedveil.director.rounds import Round, RoundState
from fedveil.director.steering import MAX_PATCH_BYTES, Standing, Steering, check_patch, lineage, opened_with
from fedveil.utils.config import parse_toml
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.differential_privacy import DifferentialPrivacy
from fedveil.utils.errors import ConfigError, ProtocolError
from fedveil.utils.identity import PeerId, Role
from fedveil.utils.messages import AskedProtection, TaskKind, TaskRef
from fedveil.utils.plan_bundle import Manifest, PlanFile, PlanKind
from fedveil.utils.proposal import MAX_PATCHES, Output, Patch, Proposal, Step
from fedveil.utils.signed_document import SignedDocument
from hypothesis import given
from hypothesis import strategies as st

ALICE = PeerId("lungs", Role.OPERATOR, "alice")
TEXT = """
name = "toy"
[rounds]
max_rounds = 10
min_participants = 3
[stop]
metric = "auc"
patience = 3
"""
SETTINGS = parse_toml(TEXT, ExperimentSettings, "experiment.toml")
FILES = tuple(PlanFile(path, 1, "ab" * 32) for path in ("plan.py", "layout.json", "initial.safetensors"))
MANIFEST = Manifest(
    "plan",
    PlanKind.TORCH,
    "plan.py:Plan",
    FILES,
    {"learning_rate": 0.1, "local_epochs": 1},
    "cd" * 32,
    DataSpec("none", DataKind.NONE),
    "fedveil 0",
)
SITES = ("site-a", "site-b", "site-c", "site-d")
PROPOSAL = Proposal(
    "lungs",
    "toy",
    MANIFEST.digest,
    "00" * 32,
    "a test",
    "",
    10,
    True,
    "director",
    None,
    AskedProtection(),
    SITES,
    (Output.MODEL,),
    ALICE,
    0.0,
    1e9,
)
RECORD = RunRecord(
    "toy-1", "toy", RunState.RUNNING, TEXT, MANIFEST.digest, "cd" * 32, bytes(32), 0.0, 0.0, None, "", "ab" * 32
)
NOTHING = SignedDocument(b"{}", bytes(64), b"")


def patch(step: Step = Step.SET, number: int = 1, **values: object) -> Patch:
    fields = {"settings": {}, "sites": None, "stop": {}, "to_round": None, "reason": ""} | values
    return Patch("toy-1", PROPOSAL.digest, number, step, **fields, signed_by=ALICE, signed_at=0.0)


def steering(*patches: Patch) -> Steering:
    return Steering(tuple(patches), (NOTHING,) * len(patches))


def standing(**values: object) -> Standing:
    fields = {
        "record": RECORD,
        "settings": SETTINGS,
        "manifest": MANIFEST,
        "proposal": PROPOSAL,
        "steering": Steering(),
        "has_controls": False,
        "members": frozenset(SITES),
        "round": Round(TaskRef("toy-1", 4, 1, MANIFEST.digest), TaskKind.TRAIN, 0.0),
        "kept": (0, 2, 3),
    }
    return Standing(**(fields | values))


PAUSED = standing(steering=steering(patch(Step.PAUSE)))
EVALUATES = standing(round=Round(TaskRef("toy-1", 4, 1, MANIFEST.digest), TaskKind.EVALUATE, 0.0))


@pytest.mark.parametrize(
    ("one", "at"),
    [
        (patch(Step.PAUSE), standing()),
        (patch(Step.PAUSE), EVALUATES),
        (patch(Step.PAUSE), standing(round=None, kept=())),
        (patch(Step.RESUME, 2), PAUSED),
        (patch(Step.STOP), standing()),
        (patch(Step.STOP, 2), PAUSED),
        (patch(Step.ROLL_BACK, to_round=2), standing()),
        (patch(Step.ROLL_BACK, to_round=0), standing()),
        (patch(settings={"learning_rate": 0.5, "local_epochs": 3}), standing()),
        (patch(sites=("site-a", "site-b", "site-d")), standing()),
        (patch(stop={"max_rounds": 10, "patience": 5, "min_delta": 0.1, "wall_clock_seconds": 60}), standing()),
        (patch(stop={"max_rounds": 4}), standing()),
    ],
)
def test_what_loosens_nothing_is_taken(one: Patch, at: Standing) -> None:
    check_patch(one, NOTHING, at)


@pytest.mark.parametrize(
    ("one", "at", "words"),
    [
        (patch(Step.STOP), standing(record=replace(RECORD, state=RunState.FINISHED)), "toy-1 is finished; only"),
        (replace(patch(Step.STOP), proposal="11" * 32), standing(), "another proposal"),
        (patch(Step.STOP, 2), standing(), "patch 2 of toy-1 came, expected 1: one is missing"),
        (patch(Step.STOP), PAUSED, "patch 1 of toy-1 is taken: alice gave it, to pause; look at the run again"),
        (patch(Step.PAUSE, 2), PAUSED, "paused already"),
        (patch(Step.RESUME), standing(), "not paused"),
        (patch(Step.ROLL_BACK, to_round=1), standing(), "cannot go back to round 1: models are kept of rounds 0, 2, 3"),
        (patch(Step.ROLL_BACK, to_round=0), standing(round=None, kept=()), "kept of rounds none"),
        (patch(Step.ROLL_BACK, to_round=2), standing(has_controls=True), "SCAFFOLD"),
        (patch(Step.ROLL_BACK, to_round=2), EVALUATES, "has ended its training"),
        (patch(settings={"learning_rate": 0.5}), EVALUATES, "has ended its training"),
        (
            patch(settings={"proximal_mu": 0.5}),
            standing(),
            "no setting proximal_mu; it has learning_rate, local_epochs",
        ),
        (
            patch(settings={"local_epochs": 2}),
            standing(manifest=replace(MANIFEST, privacy=DifferentialPrivacy("patient", 1.0, 1.1, 0.05, units=800))),
            "differential privacy",
        ),
        (patch(sites=("site-a", "site-b", "site-x")), standing(), "site-x: not among the sites that the proposal asks"),
        (
            patch(sites=("site-a", "site-b", "site-x")),
            standing(proposal=replace(PROPOSAL, sites=())),
            "site-x: not among the sites that have joined",
        ),
        (patch(sites=("site-a", "site-b")), standing(), "2 sites cannot give the 3 answers"),
        (patch(stop={"max_rounds": 11}), standing(), "max_rounds is 11, and the sites are asked for 10"),
        (patch(stop={"max_rounds": 3, "patience": 2}), standing(), "max_rounds is 3, and round 4 is under way"),
        (patch(stop={"patience": 10}), standing(), "can never end a run of 10 rounds"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(one: Patch, at: Standing, words: str) -> None:
    one = replace(one, proposal=at.proposal.digest) if one.proposal == PROPOSAL.digest else one
    with pytest.raises((ProtocolError, ConfigError), match=words):
        check_patch(one, NOTHING, at)


def test_patience_without_a_metric_is_refused() -> None:
    settings = replace(SETTINGS, stop=replace(SETTINGS.stop, metric=None, patience=None))
    with pytest.raises(ConfigError, match="patience is given without metric"):
        check_patch(patch(stop={"patience": 3}), NOTHING, standing(settings=settings))


def test_groups_are_drawn_for_all_rounds_and_keep_their_sites() -> None:
    rounds = "[rounds]\nmax_rounds = 10\nmin_participants = 9\n"
    groups = '[aggregation]\nmethod = "coordinate_median"\n[secure_sum]\ngroups = 3\n'
    settings = parse_toml(f'name = "toy"\n{rounds}{groups}', ExperimentSettings, "experiment.toml")
    with pytest.raises(ConfigError, match="groups of sites were drawn"):
        check_patch(patch(sites=SITES), NOTHING, standing(settings=settings))


def test_the_last_patch_that_a_run_takes_is_to_stop_it() -> None:
    many = steering(*(patch(settings={"learning_rate": 0.1}, number=n) for n in range(1, MAX_PATCHES)))
    with pytest.raises(ProtocolError, match="the last patch that it takes is to stop it"):
        check_patch(patch(settings={"learning_rate": 0.2}, number=MAX_PATCHES), NOTHING, standing(steering=many))
    check_patch(patch(Step.STOP, number=MAX_PATCHES), NOTHING, standing(steering=many))


def test_patches_fit_into_a_task() -> None:
    large = SignedDocument(bytes(MAX_PATCH_BYTES), bytes(64), b"x")
    with pytest.raises(ProtocolError, match="all patches together"):
        check_patch(patch(Step.PAUSE), large, standing())


def test_later_patches_win_and_an_open_round_goes_by_those_of_its_beginning() -> None:
    whole = steering(
        patch(stop={"max_rounds": 8, "patience": 5}, sites=SITES[:3]),
        patch(Step.PAUSE, 2),
        patch(stop={"max_rounds": 9}, number=3),
        patch(Step.RESUME, 4),
        patch(Step.ROLL_BACK, 5, to_round=2),
    )
    rule = whole.settings(SETTINGS).stop_rule
    assert (rule.max_rounds, rule.patience, rule.metric) == (9, 5, "auc")
    assert isinstance(rule.max_rounds, int)
    assert whole.first(1).settings(SETTINGS).stop_rule.max_rounds == 8
    assert Steering().settings(SETTINGS) is SETTINGS
    assert (whole.sites(SITES), whole.first(0).sites(SITES)) == (SITES[:3], SITES)
    assert [bool(whole.first(n).pause) for n in range(6)] == [False, False, True, True, False, False]
    assert whole.roll_back(4) == whole.patches[4]
    assert whole.roll_back(5) is None
    assert whole.roll_back(0, 4) is None


def closed(number: int, patches: int = 0, *, state: RoundState = RoundState.CLOSED, attempt: int = 1) -> RoundRecord:
    ref = TaskRef("toy-1", number, attempt, MANIFEST.digest)
    this = Round(ref, TaskKind.TRAIN, 0.0, state, frozenset(SITES), frozenset(SITES), patches=patches)
    return RoundRecord(this, "in", f"out-{number}", (), None, 0.0, 1.0, 1)


def numbers(line: list[RoundRecord]) -> list[int]:
    return [one.round.ref.round for one in line]


def test_what_was_rolled_back_is_no_part_of_the_model() -> None:
    back = steering(patch(Step.ROLL_BACK, 1, to_round=2), patch(Step.PAUSE, 2), patch(Step.ROLL_BACK, 3, to_round=4))
    told = [closed(1), closed(2), closed(3), closed(4), closed(5, 1), closed(6, 2)]
    assert numbers(lineage(told, back)) == [1, 2, 5, 6]
    assert numbers(lineage(told, back, 4)) == [1, 2, 3, 4]  # back to what was left before
    assert numbers(lineage([*told, closed(7, 3)], back)) == [1, 2, 3, 4, 7]
    assert lineage(told, back, 0) == []
    assert opened_with(told) == 2


def test_an_attempt_that_failed_after_a_rollback_was_begun_from_it_and_so_is_the_next() -> None:
    back = steering(patch(Step.ROLL_BACK, 1, to_round=1))
    failed = closed(3, 1, state=RoundState.FAILED)
    assert numbers(lineage([closed(1), closed(2), failed], back)) == [1]
    assert numbers(lineage([closed(1), closed(2), failed, closed(3, 1, attempt=2)], back)) == [1, 3]


@given(st.data())
def test_a_line_leads_from_the_start_to_the_present_model(data) -> None:
    """Rolled back at random: each round of the line began with the model of the one before it."""
    told, patches, entered, head = [], [], {}, 0
    for number in range(1, data.draw(st.integers(1, 12)) + 1):
        if data.draw(st.booleans()):
            head = data.draw(st.integers(0, number - 1))
            patches.append(patch(Step.ROLL_BACK, len(patches) + 1, to_round=head))
        entered[number] = head
        told.append(closed(number, len(patches)))
        head = number
    line = [0, *numbers(lineage(told, steering(*patches)))]
    assert line[-1] == head
    assert [entered[number] for number in line[1:]] == line[:-1]
