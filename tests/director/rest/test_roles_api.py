"""Roles over HTTP: nobody puts more into one than they have, presets stay, and what changes counts at once."""

import pytest
from fedveil.director.hub.roles import PRESETS
from fedveil.director.hub.rules import Operation, Resource

PATH = "/api/v1/roles"
READER = {"name": "reader", "rules": ["view:user:organization", "view:dataset:collaboration"]}


def made(client, **more):
    answer = client.post(PATH, json=READER | more)
    assert answer.status_code == 201, answer.text
    return answer


def me(client):
    return client.get("/api/v1/me").json()


def test_a_role_of_an_organizations_own_is_made_given_changed_and_taken_from_all(world, problem_of):
    north = world.signed_in("north-admin")
    role, mine = made(north), me(north)["organization_id"]
    assert role.json()["organization_id"] == mine
    body = {"name": "rita", "organization_id": mine, "roles": [role.json()["role_id"]], "password": "four random words"}
    rita = north.post("/api/v1/users", json=body).json()["user_id"]
    world.hub.users.change(rita, 1, lambda _: None, password=world.hub.users.get(me(north)["user_id"]).password)
    hers = world.signed_in("rita")
    assert hers.get("/api/v1/users").status_code == 200
    path = role.headers["location"]
    assert north.get(f"{path}/rules").json()["user_ids"] == [rita]
    change = {"rules": ["view:dataset:organization"]}
    assert north.patch(path, json=change, headers={"If-Match": '"1"'}).headers["etag"] == '"2"'
    problem_of(hers.get("/api/v1/users"), 403)
    problem_of(north.patch(path, json=change, headers={"If-Match": '"1"'}), 412)
    problem_of(north.delete(path, headers={"If-Match": '"1"'}), 412)
    assert north.delete(path, headers={"If-Match": '"2"'}).status_code == 204
    assert me(hers)["roles"] == []
    problem_of(north.get(path), 404)


def test_nobody_puts_more_into_a_role_than_they_have_nor_for_another_organization(world, problem_of):
    north, south = world.signed_in("north-admin"), world.signed_in("south-admin")
    for rule in ("view:user:federation", "start:task:own", "export:audit:organization"):
        assert rule in problem_of(north.post(PATH, json=READER | {"rules": [rule]}), 403)["detail"]
    problem_of(north.post(PATH, json=READER | {"organization_id": me(south)["organization_id"]}), 403)
    path = made(north).headers["location"]
    more = {"rules": [*READER["rules"], "start:task:own"]}
    problem_of(north.patch(path, json=more, headers={"If-Match": '"1"'}), 403)
    problem_of(south.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'}), 403)
    root = world.signed_in("root")
    assert root.patch(path, json=more, headers={"If-Match": '"1"'}).status_code == 200
    kept = {"rules": ["view:user:own", "start:task:own"]}  # what another put in stays, where it is left alone
    assert north.patch(path, json=kept, headers={"If-Match": '"2"'}).status_code == 200


def test_a_key_makes_no_role_that_does_more_than_the_key(world, problem_of):
    north = world.signed_in("north-admin")
    key = north.post(
        "/api/v1/keys", json={"label": "roles", "rules": ["create:role:organization", "view:role:own"], "days": 1}
    ).json()["api_key"]
    by_key = world.anonymous()
    by_key.headers["Authorization"] = f"Bearer {key}"
    problem_of(by_key.post(PATH, json=READER), 403)
    assert by_key.post(PATH, json=READER | {"rules": ["create:role:own"]}).status_code == 201


def test_presets_are_listed_first_and_cannot_be_changed(world, problem_of):
    north = world.signed_in("north-admin")
    made(north)
    listed = north.get(PATH).json()["items"]
    assert [one["name"] for one in listed] == [*PRESETS, "reader"]
    assert [one["is_preset"] for one in listed] == [True] * len(PRESETS) + [False]
    problem_of(north.patch(f"{PATH}/researcher", json={"name": "x"}, headers={"If-Match": '"1"'}), 422)
    problem_of(north.delete(f"{PATH}/researcher", headers={"If-Match": '"1"'}), 422)
    for name in ("admin", "Reader", "a b", "", "x" * 64):
        problem_of(north.post(PATH, json=READER | {"name": name}), 422)
    problem_of(north.post(PATH, json=READER | {"rules": ["everything"]}), 422)
    problem_of(north.post(PATH, json=READER), 409)


@pytest.mark.parametrize("role", sorted(PRESETS))
def test_the_table_of_a_role_has_every_operation_on_every_thing(world, role):
    table = world.signed_in("root").get(f"{PATH}/{role}/rules").json()
    said = {f"{one['operation']}:{one['resource']}:{one['scope']}" for one in table["cells"] if one["scope"]}
    assert said == set(map(str, PRESETS[role].rules))
    assert len(table["cells"]) == len(Operation) * len(Resource)


def test_an_administrator_asks_who_may_do_what_and_why(world, problem_of):
    north, south = world.signed_in("north-admin"), world.signed_in("south-admin")
    mine = me(north)
    rita = world.user("rita", world.hub.organizations.get(mine["organization_id"]), "researcher")
    path, ask = f"/api/v1/users/{rita.id}/may", {"operation": "steer", "resource": "task"}
    hers = north.get(path, params=ask | {"owner_id": rita.id}).json()
    assert (hers["is_allowed"], hers["rule"]) == (True, "steer:task:own")
    others = north.get(path, params=ask | {"owner_id": mine["user_id"]}).json()
    assert not others["is_allowed"]
    assert "own" in others["why"]
    problem_of(south.get(path, params=ask), 404)
    problem_of(world.signed_in("rita").get(path, params=ask), 404)
    problem_of(north.get(path, params=ask | {"operation": "conquer"}), 422)
    world.hub.users.change(rita.id, 1, lambda _: None, disabled_at=world.clock())
    assert north.get(path, params=ask | {"owner_id": rita.id}).json()["why"] == "this user is disabled"
