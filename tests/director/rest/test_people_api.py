"""People over HTTP: nobody gives more than they have, a secret is told once, and a key acts within its rules."""

import json
from threading import BoundedSemaphore

import pytest
from fedveil.director.hub.lockout import FREE_FAILURES
from fedveil.director.hub.one_time_codes import code_at
from fedveil.director.hub.passwords import turn
from fedveil.director.hub.roles import PRESETS
from fedveil.director.hub.users import Roles
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.errors import StorageError
from sqlalchemy import event

PASSWORD = "correct horse battery staple"
NEW = "four other random words"


def me(client):
    return client.get("/api/v1/me").json()


def added(client, name, organization, *roles, **more):
    body = {"name": name, "organization_id": organization, "roles": list(roles), "password": PASSWORD} | more
    return client.post("/api/v1/users", json=body)


def test_an_organizations_admin_appoints_its_own_people(world):
    north = world.signed_in("north-admin")
    mine = me(north)["organization_id"]
    answer = added(north, "rita", mine, "researcher", "reviewer", full_name="Rita R.")
    assert answer.status_code == 201, answer.text
    assert answer.json()["roles"] == ["researcher", "reviewer"]
    assert PASSWORD not in answer.text
    assert me(world.signed_in("rita"))["full_name"] == "Rita R."
    assert {one["name"] for one in north.get("/api/v1/users").json()["items"]} == {"north-admin", "rita"}


@pytest.mark.parametrize("role", ["admin", "auditor"])
def test_nobody_of_an_organization_appoints_for_the_federation(world, problem_of, role):
    north = world.signed_in("north-admin")
    problem_of(added(north, "eve", me(north)["organization_id"], role), 403)
    problem_of(added(north, "eve", me(world.signed_in("south-admin"))["organization_id"]), 403)
    root = world.signed_in("root")
    assert added(root, "olga", me(root)["organization_id"], role).status_code == 201


def test_what_is_anothers_is_not_even_there(world, problem_of):
    south = me(world.signed_in("south-admin"))
    north = world.signed_in("north-admin")
    for answer in (
        north.get(f"/api/v1/users/{south['user_id']}"),
        north.patch(f"/api/v1/users/{south['user_id']}", json={"roles": []}, headers={"If-Match": '"1"'}),
        north.delete(f"/api/v1/users/{south['user_id']}/codes"),
        north.get("/api/v1/users/ffffffffffffffffffffffff"),
    ):
        assert problem_of(answer, 404)["detail"] == "there is no such user"


def test_a_disabled_user_is_out_at_once_and_nobody_disables_themselves(world, problem_of):
    north = world.signed_in("north-admin")
    rita = added(north, "rita", me(north)["organization_id"], "researcher").json()
    hers = world.signed_in("rita")
    changed = north.patch(f"/api/v1/users/{rita['user_id']}", json={"is_disabled": True}, headers={"If-Match": '"1"'})
    assert changed.json()["disabled_at"] == world.clock()
    problem_of(hers.get("/api/v1/me"), 401)
    own = me(north)["user_id"]
    problem_of(north.patch(f"/api/v1/users/{own}", json={"is_disabled": True}, headers={"If-Match": '"1"'}), 422)


def test_a_password_is_changed_by_its_owner_who_knows_the_old_one(world, problem_of):
    north = world.signed_in("north-admin")
    path = f"/api/v1/users/{me(north)['user_id']}/password"
    problem_of(north.put(path, json={"old": "wrong", "new": NEW}), 403)
    problem_of(north.put(path, json={"old": PASSWORD, "new": "short"}), 422)
    problem_of(world.signed_in("root").put(path, json={"old": PASSWORD, "new": NEW}), 403)
    assert north.put(path, json={"old": PASSWORD, "new": NEW}).status_code == 204
    problem_of(north.get("/api/v1/me"), 401)
    again = world.anonymous().post("/api/v1/sessions", json={"name": "north-admin", "password": NEW})
    assert again.status_code == 201


def test_with_an_authenticator_app_its_code_is_asked_for_until_an_administrator_forgets_it(world, problem_of):
    north = world.signed_in("north-admin")
    rita = added(north, "rita", me(north)["organization_id"]).json()["user_id"]
    hers = world.signed_in("rita")
    problem_of(hers.post(f"/api/v1/users/{rita}/codes", json={"password": "wrong wrong wrong"}), 403)
    told = hers.post(f"/api/v1/users/{rita}/codes", json={"password": PASSWORD})
    assert told.headers["cache-control"] == "no-store"
    secret = world.hub.users.get(rita).totp_secret
    assert secret is not None
    body = {"name": "rita", "password": PASSWORD}
    problem_of(world.anonymous().post("/api/v1/sessions", json=body), 401)
    body["code"] = code_at(secret, world.clock())
    assert world.anonymous().post("/api/v1/sessions", json=body).status_code == 201
    problem_of(world.anonymous().post("/api/v1/sessions", json=body), 401)
    problem_of(
        hers.delete(f"/api/v1/users/{rita}/codes"), 404
    )  # who lost the app cannot do it, nor who found the session
    assert north.delete(f"/api/v1/users/{rita}/codes").status_code == 204
    problem_of(hers.get("/api/v1/me"), 401)
    assert world.signed_in("rita")


def test_guessing_is_slowed_down_and_told_when_to_come_back(world, problem_of):
    body = {"name": "north-admin", "password": "wrong wrong wrong"}
    for _ in range(FREE_FAILURES + 1):
        problem_of(world.anonymous().post("/api/v1/sessions", json=body), 401)
    assert "wait 2 s" in problem_of(world.anonymous().post("/api/v1/sessions", json=body), 429)["detail"]


@pytest.mark.parametrize("way", ["password", "codes"])
def test_who_is_signed_in_and_guesses_the_password_waits_as_at_the_sign_in(world, problem_of, way):
    north = world.signed_in("north-admin")
    path = f"/api/v1/users/{me(north)['user_id']}/{way}"

    def ask(password):
        if way == "password":
            return north.put(path, json={"old": password, "new": NEW})
        return north.post(path, json={"password": password})

    for _ in range(FREE_FAILURES + 1):
        problem_of(ask("wrong wrong wrong"), 403)
    assert "wait 2 s" in problem_of(ask(PASSWORD), 429)["detail"], "the right one waits too"
    world.clock.now += 3
    assert ask(PASSWORD).is_success


def test_passwords_are_hashed_in_turn_whoever_brings_them(world, problem_of, monkeypatch):
    north = world.signed_in("north-admin")
    mine = me(north)["organization_id"]
    monkeypatch.setattr("fedveil.director.hub.passwords._AND_WAITING", BoundedSemaphore(1))
    with turn():
        problem_of(added(north, "rita", mine), 429)
    assert added(north, "rita", mine).status_code == 201


def test_a_user_and_the_roles_are_kept_together_or_not_at_all(world, problem_of, monkeypatch):
    north = world.signed_in("north-admin")
    mine = me(north)["organization_id"]
    rita = added(north, "rita", mine, "researcher").json()
    url, tag, give = f"/api/v1/users/{rita['user_id']}", {"If-Match": '"1"'}, Roles.give

    def fails(*_):
        raise StorageError("the disk is full")

    logged = len(entries(world))
    monkeypatch.setattr(Roles, "give", fails)
    problem_of(added(north, "otto", mine, "researcher"), 503)
    problem_of(north.patch(url, json={"full_name": "Rita R.", "roles": ["reviewer"]}, headers=tag), 503)
    monkeypatch.setattr(Roles, "give", give)
    assert north.get(url).json() == rita
    assert {one["name"] for one in north.get("/api/v1/users").json()["items"]} == {"north-admin", "rita"}
    assert len(entries(world)) == logged, "what was not done was not written down"
    assert added(north, "otto", mine, "researcher").status_code == 201


def test_of_two_who_give_roles_at_once_the_second_is_told_and_changes_nothing(world, problem_of, monkeypatch):
    north, other = world.signed_in("north-admin"), world.signed_in("root")
    rita = added(north, "rita", me(north)["organization_id"]).json()["user_id"]
    url, tag, give = f"/api/v1/users/{rita}", {"If-Match": '"1"'}, Roles.give
    assert north.patch(url, json={"roles": ["reviewer"]}, headers=tag).json()["roles"] == ["reviewer"]
    given = []
    monkeypatch.setattr(Roles, "give", lambda *about: given.append(about) or give(*about))
    problem_of(other.patch(url, json={"roles": ["researcher"]}, headers=tag), 412)
    assert not given
    assert north.get(url).json()["roles"] == ["reviewer"]


def test_the_log_says_which_roles_were_given_and_who_was_locked_out(world):
    north = world.signed_in("north-admin")
    rita = added(north, "rita", me(north)["organization_id"], "researcher").json()["user_id"]
    changes = ({"roles": ["reviewer", "dpo"]}, {"is_disabled": True, "full_name": "R."}, {"is_disabled": False})
    for version, change in enumerate(changes, 1):
        tag = {"If-Match": f'"{version}"'}
        assert north.patch(f"/api/v1/users/{rita}", json=change, headers=tag).status_code == 200
    about = ("fields", "roles", "is_disabled")
    kept = [{name: one[name] for name in about if name in one} for one in entries(world)[-3:]]
    assert kept == [
        {"fields": ["roles"], "roles": ["dpo", "reviewer"]},
        {"fields": ["full_name", "is_disabled"], "is_disabled": True},
        {"fields": ["is_disabled"], "is_disabled": False},
    ]


def entries(world):
    """Of the audit log."""
    return [one.event for one in read_entries(world.works.folder / "audit.jsonl")]


def test_an_api_key_makes_no_other(world, problem_of):
    north = world.signed_in("north-admin")
    new = {"label": "x", "rules": ["create:key:own", "view:key:own"], "days": 1}
    by_key = world.anonymous()
    by_key.headers["Authorization"] = f"Bearer {north.post('/api/v1/keys', json=new).json()['api_key']}"
    refused = problem_of(by_key.post("/api/v1/keys", json=new | {"days": 365}), 403)
    assert refused["detail"] == "an API key makes no other: sign in"
    assert len(by_key.get("/api/v1/keys").json()["items"]) == 1


def test_a_key_does_no_more_than_its_rules_and_its_user(world, problem_of):
    north = world.signed_in("north-admin")
    new = {"label": "notebook", "rules": ["view:organization:organization"], "days": 1}
    made = north.post("/api/v1/keys", json=new).json()
    by_key = world.anonymous()
    by_key.headers["Authorization"] = f"Bearer {made['api_key']}"
    mine = me(by_key)["organization_id"]
    assert me(by_key)["api_key"] == made["key_id"]
    assert [one["organization_id"] for one in by_key.get("/api/v1/organizations").json()["items"]] == [mine]
    problem_of(by_key.patch(f"/api/v1/organizations/{mine}", json={"contact": "x"}, headers={"If-Match": '"1"'}), 403)
    problem_of(by_key.post("/api/v1/keys", json=new), 403)
    problem_of(by_key.delete("/api/v1/sessions/current"), 422)
    problem_of(by_key.post(f"/api/v1/users/{me(by_key)['user_id']}/codes", json={"password": PASSWORD}), 404)
    problem_of(north.post("/api/v1/keys", json=new | {"rules": ["start:task:federation"]}), 403)
    problem_of(north.post("/api/v1/keys", json=new | {"rules": ["everything"]}), 422)
    assert north.delete(f"/api/v1/keys/{made['key_id']}").status_code == 204
    problem_of(by_key.get("/api/v1/me"), 401)


def test_a_user_is_told_why(world):
    north = world.signed_in("north-admin")
    ask = {"operation": "create", "resource": "user"}
    mine = north.get("/api/v1/me/may", params=ask | {"organization_id": me(north)["organization_id"]}).json()
    assert mine["is_allowed"]
    assert "role organization-admin has create:user:organization" in mine["why"]
    other = north.get("/api/v1/me/may", params=ask | {"organization_id": "elsewhere"}).json()
    assert (other["is_allowed"], other["rule"]) == (False, None)


def test_signing_out_ends_the_session(world, problem_of):
    north = world.signed_in("north-admin")
    assert north.delete("/api/v1/sessions/current").status_code == 204
    problem_of(north.get("/api/v1/me"), 401)


def test_nothing_that_is_shown_is_a_secret(world):
    root = world.signed_in("root")
    shown = json.dumps(root.get("/api/v1/users").json())
    for secret in ("argon2", "totp_secret", 'password": "'):
        assert secret not in shown


@pytest.mark.parametrize("role", sorted(PRESETS))
def test_every_preset_signs_in_and_sees_itself(world, role):
    world.user("somebody", world.organization("East Hospital"), role)
    somebody = world.signed_in("somebody")
    assert me(somebody)["roles"] == [role]


def test_a_key_to_make_users_makes_none_who_may_do_more_than_the_key(world, problem_of):
    admin = world.signed_in("north-admin")
    me = admin.get("/api/v1/me").json()
    rules = ["create:user:organization", "approve:role:organization", "view:role:organization"]
    made = admin.post("/api/v1/keys", json={"label": "onboarding", "rules": rules, "days": 1})
    program = world.anonymous()
    program.headers["Authorization"] = f"Bearer {made.json()['api_key']}"
    new = {"name": "mallory", "organization_id": me["organization_id"], "roles": ["organization-admin"]}
    assert "which you do not have" in problem_of(program.post("/api/v1/users", json=new), 403)["detail"]
    assert program.post("/api/v1/users", json=new | {"roles": []}).status_code == 201
    assert admin.post("/api/v1/users", json=new | {"name": "otto"}).status_code == 201


def test_a_change_writes_what_changed_alone_so_that_a_failed_attempt_meanwhile_stays_counted(world):
    north = world.hub.organizations.first(world.hub.organizations.table.c.name == "North Hospital")
    anna = world.user("anna", north)
    written = []

    def look(_connection, _cursor, statement, *_rest):
        if statement.startswith("UPDATE hub_users"):
            written.append(statement)

    event.listen(world.hub.engine, "before_cursor_execute", look)
    world.hub.users.change(anna.id, anna.version, lambda _: None, full_name="Anna B.")
    event.remove(world.hub.engine, "before_cursor_execute", look)
    (statement,) = written
    assert "full_name=" in statement
    assert "failures" not in statement
    assert "totp_step" not in statement


def test_an_organizations_administrator_neither_disables_nor_weakens_who_acts_for_the_federation(world, problem_of):
    own = world.hub.organizations.first(world.hub.organizations.table.c.name == "The director's")
    world.user("own-admin", own, "organization-admin")
    root = world.hub.users.first(world.hub.users.table.c.name == "root")
    admin, tag = world.signed_in("own-admin"), {"If-Match": f'"{root.version}"'}
    for change in ({"is_disabled": True}, {"roles": []}):
        problem_of(admin.patch(f"/api/v1/users/{root.id}", json=change, headers=tag), 403)
    problem_of(admin.delete(f"/api/v1/users/{root.id}/codes"), 403)
    assert world.hub.users.get(root.id) == root
    assert world.signed_in("root").get("/api/v1/me").json()["roles"] == ["admin"]
