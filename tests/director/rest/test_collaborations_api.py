"""Agreements over HTTP: made, signed by each party, and then in force; a permit that ends, ends it all."""

import pytest

CONSORTIUM = {"kind": "consortium", "document_sha256": "ab" * 32, "valid_from": 1.0}


@pytest.fixture
def lungs(world):
    """A collaboration of both hospitals, and who asks."""
    root, north, south = (world.signed_in(name) for name in ("root", "north-admin", "south-admin"))
    mine = {name: who.get("/api/v1/me").json()["organization_id"] for name, who in (("north", north), ("south", south))}
    now = world.clock()
    permit = {
        "number": "MEC-2026-7",
        "authority": "the ethics board",
        "purpose": "pneumonia",
        "starts_at": now - 10,
        "ends_at": now + 1000,
        "datasets": ["x-rays"],
    }
    made = root.post(
        "/api/v1/collaborations", json={"name": "lungs", "organizations": list(mine.values()), "permit": permit}
    )
    assert made.status_code == 201, made.text
    return root, north, south, mine, made.json()["collaboration_id"]


def agreed(lungs, **changes):
    """An agreement that both signed."""
    _, north, south, mine, id_ = lungs
    body = CONSORTIUM | {"parties": list(mine.values()), "collaboration_id": id_} | changes
    made = north.post("/api/v1/agreements", json=body)
    assert made.status_code == 201, made.text
    path = made.headers["location"]
    assert not north.post(f"{path}/signatures").json()["is_in_force"]
    signed = south.post(f"{path}/signatures")
    assert signed.json()["is_in_force"], signed.text
    return signed.json()


def everything(lungs):
    _, north, south, mine, _ = lungs
    for who, name in ((north, "north"), (south, "south")):
        body = CONSORTIUM | {"kind": "infrastructure-user", "parties": [mine[name]]}
        made = who.post("/api/v1/agreements", json=body)
        assert who.post(f"{made.headers['location']}/signatures").json()["is_in_force"]
    agreed(lungs, may_start_tasks=[mine["north"]], may_publish=[mine["south"]])
    agreed(lungs, kind="joint-controller")


def standing(who, id_):
    return who.get(f"/api/v1/collaborations/{id_}/standing").json()


def test_once_all_is_agreed_each_may_do_what_the_consortium_says_until_the_permit_ends(world, lungs):
    _, north, south, _, id_ = lungs
    assert "no infrastructure-user agreement" in " ".join(standing(north, id_)["why_not"])
    everything(lungs)
    ours, theirs = standing(north, id_), standing(south, id_)
    assert (ours["may_start_tasks"], ours["may_publish"], ours["processing"]) == (True, False, "joint-controller")
    assert (theirs["may_start_tasks"], theirs["may_publish"]) == (False, True)
    world.clock.now += 1000
    assert "ended on" in " ".join(standing(north, id_)["why_not"])


def test_a_later_version_takes_over_when_all_have_signed_it(lungs):
    _, north, south, mine, id_ = lungs
    everything(lungs)
    body = CONSORTIUM | {"parties": list(mine.values()), "collaboration_id": id_, "may_start_tasks": [mine["south"]]}
    made = north.post("/api/v1/agreements", json=body)
    assert made.json()["version"] == 2
    north.post(f"{made.headers['location']}/signatures")
    assert standing(north, id_)["may_start_tasks"]
    south.post(f"{made.headers['location']}/signatures")
    assert (standing(north, id_)["may_start_tasks"], standing(south, id_)["may_start_tasks"]) == (False, True)


def test_who_is_not_part_of_it_sees_nothing_of_it(world, lungs, problem_of):
    _, _, _, _, id_ = lungs
    agreement = agreed(lungs)["agreement_id"]
    world.user("eve", world.organization("East Hospital"), "organization-admin")
    eve = world.signed_in("eve")
    problem_of(eve.get(f"/api/v1/collaborations/{id_}"), 404)
    problem_of(eve.get(f"/api/v1/collaborations/{id_}/standing"), 404)
    problem_of(eve.get(f"/api/v1/agreements/{agreement}"), 404)
    problem_of(eve.post(f"/api/v1/agreements/{agreement}/signatures"), 404)
    assert eve.get("/api/v1/collaborations").json()["items"] == []
    assert eve.get("/api/v1/agreements").json()["items"] == []


def test_only_an_admin_makes_collaborations_and_researchers_sign_nothing(world, lungs, problem_of):
    root, north, _, mine, id_ = lungs
    agreement = agreed(lungs)["agreement_id"]
    problem_of(
        north.post(
            "/api/v1/collaborations",
            json={
                "name": "bones",
                "organizations": [mine["north"]],
                "permit": root.get(f"/api/v1/collaborations/{id_}").json()["permit"],
            },
        ),
        403,
    )
    problem_of(north.patch(f"/api/v1/collaborations/{id_}", json={}, headers={"If-Match": '"1"'}), 403)
    world.hub.users.first(world.hub.users.table.c.name == "north-admin")
    world.user("rita", world.hub.organizations.get(mine["north"]), "researcher")
    rita = world.signed_in("rita")
    problem_of(rita.post(f"/api/v1/agreements/{agreement}/signatures"), 403)
    assert rita.get(f"/api/v1/agreements/{agreement}").status_code == 200


def test_a_permit_is_made_longer_by_who_saw_it(world, lungs, problem_of):
    root, _, _, _, id_ = lungs
    path = f"/api/v1/collaborations/{id_}"
    seen = root.get(path)
    permit = seen.json()["permit"] | {"ends_at": world.clock() + 5000}
    changed = root.patch(path, json={"permit": permit}, headers={"If-Match": seen.headers["etag"]})
    assert changed.json()["permit"]["ends_at"] == permit["ends_at"]
    problem_of(root.patch(path, json={"permit": permit}, headers={"If-Match": seen.headers["etag"]}), 412)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gentlemen's"},
        {"document_sha256": "ab"},
        {"parties": []},
        {"collaboration_id": None},
        {"valid_from": "NaN"},
        {"valid_until": 0.5},
        {"may_start_tasks": ["somebody"]},
        {"kind": "data-processing", "may_publish": ["x"]},
        {"intellectual_property": "a\nb"},
        {"signed": {}},
    ],
)
def test_an_agreement_that_contradicts_itself_is_refused(lungs, problem_of, wrong):
    _, north, _, mine, id_ = lungs
    body = CONSORTIUM | {"parties": list(mine.values()), "collaboration_id": id_} | wrong
    problem_of(north.post("/api/v1/agreements", json=body), 422)


def test_an_agreement_over_others_heads_is_refused(world, lungs, problem_of):
    _, north, _, mine, id_ = lungs
    other = world.organization("East Hospital").id
    problem_of(
        north.post(
            "/api/v1/agreements", json=CONSORTIUM | {"parties": [mine["north"], other], "collaboration_id": id_}
        ),
        403,
    )
    problem_of(
        north.post("/api/v1/agreements", json=CONSORTIUM | {"kind": "infrastructure-user", "parties": [mine["south"]]}),
        403,
    )
    problem_of(
        north.post("/api/v1/agreements", json=CONSORTIUM | {"parties": [mine["north"]], "collaboration_id": "nothing"}),
        404,
    )
