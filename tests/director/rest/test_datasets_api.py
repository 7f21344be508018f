"""Datasets over HTTP: described by their site, seen by who may read them, withdrawn for good."""

import pytest
from fedveil.director.hub.agreements import Collaboration, Permit
from fedveil.director.hub.store import new_id

PATH = "/api/v1/datasets"
X_RAYS = {"name": "x-rays", "envoy": "north-1", "modality": "CR", "columns": ["view"], "examples": "100-499"}


@pytest.fixture
def hospitals(world):
    """North, with an envoy and a data manager; South, in one collaboration with it about x-rays; East, in none."""
    found = {
        name: world.hub.organizations.first(world.hub.organizations.table.c.name == f"{name} Hospital")
        for name in ("North", "South")
    }
    found["East"] = world.organization("East Hospital")
    for name, one in found.items():
        world.user(f"{name.lower()}-data", one, "data-manager")
        world.hub.stations.take(f"{name.lower()}-1", one.id, world.clock())
    permit = Permit("7", "the board", "pneumonia", 0.0, 1e10, frozenset({"x-rays"}))
    parties = frozenset({found["North"].id, found["South"].id})
    world.hub.collaborations.add(Collaboration(new_id(), "lungs", parties, permit))
    return found


def described(who, **more):
    answer = who.post(PATH, json=X_RAYS | more)
    assert answer.status_code == 201, answer.text
    return answer


def names(who, **params):
    return sorted(one["name"] for one in who.get(PATH, params=params).json()["items"])


def test_a_dataset_is_described_shown_and_changed_by_who_saw_it(world, hospitals, problem_of):
    north = world.signed_in("north-data")
    made = described(north)
    assert (made.json()["organization_id"], made.json()["examples"]) == (hospitals["North"].id, "100-499")
    path, seen = made.headers["location"], made.headers["etag"]
    assert north.get(path).json() == made.json()
    changed = north.patch(path, json={"examples": ">=500"}, headers={"If-Match": seen})
    assert (changed.json()["examples"], changed.headers["etag"]) == (">=500", '"2"')
    problem_of(north.patch(path, json={"examples": ""}, headers={"If-Match": seen}), 412)
    problem_of(north.patch(path, json={"examples": ""}), 422)
    problem_of(north.post(PATH, json=X_RAYS), 409)


def test_the_others_of_a_collaboration_see_what_its_permit_names_and_nothing_else(world, hospitals, problem_of):
    north = world.signed_in("north-data")
    x_rays, bones = described(north).headers["location"], described(north, name="bones").headers["location"]
    south, east, root = (world.signed_in(name) for name in ("south-data", "east-data", "root"))
    assert (names(north), names(south), names(east), names(root)) == (
        ["bones", "x-rays"],
        ["x-rays"],
        [],
        ["bones", "x-rays"],
    )
    assert names(root, name="bones") == ["bones"]
    assert south.get(x_rays).status_code == 200
    problem_of(south.patch(x_rays, json={"modality": "CT"}, headers={"If-Match": '"1"'}), 403)
    problem_of(south.post(f"{x_rays}/withdrawal", json={"reason": "ours"}), 403)
    for path in (bones, f"{PATH}/{'f' * 24}"):
        assert problem_of(south.get(path), 404)["detail"] == "there is no such dataset"
    problem_of(east.get(x_rays), 404)


def test_nobody_describes_what_another_has_or_what_nobody_has(world, hospitals, problem_of):
    south = world.signed_in("south-data")
    known = problem_of(south.post(PATH, json=X_RAYS), 403)
    unknown = problem_of(south.post(PATH, json=X_RAYS | {"envoy": "nobody"}), 403)
    assert known["detail"] == unknown["detail"]
    problem_of(world.signed_in("root").post(PATH, json=X_RAYS | {"envoy": "nobody"}), 404)


def test_a_withdrawal_is_for_good_and_says_how_to_go_on(world, hospitals, problem_of):
    north = world.signed_in("north-data")
    path = described(north).headers["location"]
    done = north.post(f"{path}/withdrawal", json={"reason": "consent was taken back"})
    assert done.status_code == 200, done.text
    assert (done.json()["withdrawn_at"], done.json()["models"]) == (world.clock(), [])
    assert "not asked" in done.json()["rerun"]
    assert world.signed_in("south-data").get(path).json()["withdrawn_why"] == "consent was taken back"
    problem_of(north.post(f"{path}/withdrawal", json={"reason": "again"}), 409)
    problem_of(north.patch(path, json={"modality": "CT"}, headers={"If-Match": '"2"'}), 409)
    problem_of(north.post(PATH, json=X_RAYS), 409)


WRONG = (
    {"name": "X rays"},
    {"envoy": ""},
    {"examples": "417"},
    {"examples": 417},
    {"columns": ["a", "a"]},
    {"columns": ["x" * 201]},
    {"digest": "sha256:ab"},
    {"description": "a\nb"},
    {"organization": "elsewhere"},
    {"withdrawn_at": 1.0},
)


def test_what_is_no_dataset_is_refused_and_nothing_is_kept(world, hospitals, problem_of):
    north = world.signed_in("north-data")
    for wrong in WRONG:
        problem_of(north.post(PATH, json=X_RAYS | wrong), 422)
    assert names(north) == []
    path = described(north).headers["location"]
    for reason in (None, {}, {"reason": ""}, {"reason": "  "}, {"reason": "a\nb"}, {"reason": "x" * 501}):
        problem_of(north.post(f"{path}/withdrawal", json=reason), 422)
    assert not world.hub.datasets.get(path.rsplit("/", 1)[1]).is_withdrawn
