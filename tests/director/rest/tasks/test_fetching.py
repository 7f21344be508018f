"""What sites may fetch: files of plans that are proposed to them, and the model of a round that asks them."""

from __future__ import annotations

import pytest
from fedveil.director.records import RunState
from fedveil.utils.errors import UnknownArtifactError
from fedveil.utils.messages import EnvoyName
from fedveil.utils.plan_bundle import INITIAL_FILE
from fedveil.utils.tensors import Digest


@pytest.fixture
def fetches(study):
    """May an envoy have that?"""

    def does(envoy, digest):
        try:
            study.coordinator.check_fetch(EnvoyName(envoy), Digest(digest))
        except UnknownArtifactError:
            return False
        return True

    return does


def test_a_plan_is_there_for_the_sites_that_it_is_proposed_to_and_from_then_on(study, fetches):
    study.envoy("east-1", study.world.organization("East Hospital"))
    anna, plan = study.researcher("anna"), study.plan().manifest
    study.bring(anna, study.plan())
    path = f"/api/v1/plans/{plan.digest}/collaborations/{study.collaboration.id}"
    assert anna.put(path).status_code == 204
    files = {plan.digest, *(one.sha256 for one in plan.files)}
    assert not any(fetches(envoy, one) for one in files for envoy in ("north-1", "south-1", "east-1"))
    study.submit(anna, "anna")
    assert all(fetches(envoy, one) for one in files for envoy in ("north-1", "south-1"))
    assert not any(fetches("east-1", one) for one in files)


def test_a_site_that_a_study_does_not_name_does_not_get_its_plan(study, fetches):
    for name in ("south-2", "south-3"):
        study.envoy(name, study.organizations["south"])
    text = study.experiment(sites=("north-1", "south-1"))
    task = study.submit(study.researcher("anna"), "anna", text)
    plan = task["plan_digest"]
    assert [fetches(one, plan) for one in ("north-1", "south-1", "south-2")] == [True, True, False]


def test_a_model_is_there_for_the_sites_of_the_round_that_begins_with_it_and_not_after_the_run(study, fetches):
    study.envoy("south-2", study.organizations["south"])
    text = study.experiment(rounds=2, sites=("north-1", "south-1"))
    task = study.submit(study.researcher("anna"), "anna", text)
    lines = study.there("north-1", "south-1")
    for name, line in lines.items():
        study.answer(name, study.order(line))
    orders = {name: study.order(line) for name, line in lines.items()}
    model = orders["north-1"].model
    assert model != study.plan().manifest.file(INITIAL_FILE).sha256
    assert [fetches(one, model) for one in ("north-1", "south-1", "south-2")] == [True, True, False]
    for name, order in orders.items():
        study.answer(name, order)
    ended = study.until(task, lambda record: record.state.is_over)
    assert ended.state is RunState.FINISHED
    assert not any(fetches(one, digest) for one in lines for digest in (model, ended.model, ended.plan))
