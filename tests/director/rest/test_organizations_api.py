"""Organizations over HTTP: registered once, changed by who saw them, seen by who may."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

PATH = "/api/v1/organizations"
KEY = X25519PrivateKey.generate().public_key().public_bytes_raw().hex()


def test_an_organization_is_registered_shown_changed_and_approved(world):
    root = world.signed_in("root")
    made = root.post(PATH, json={"name": "West Hospital", "contact": "it@west.example", "encryption_key": KEY})
    assert made.status_code == 201
    body = made.json()
    assert (body["status"], body["endpoint"], body["version"]) == ("pending", None, 1)
    assert body["encryption_key"].startswith("age1")
    shown = root.get(made.headers["location"])
    assert shown.json() == body
    assert shown.headers["etag"] == '"1"'
    changed = root.patch(
        made.headers["location"], json={"status": "active"}, headers={"If-Match": shown.headers["etag"]}
    )
    assert (changed.json()["status"], changed.headers["etag"]) == ("active", '"2"')


def test_nobody_asks_without_saying_who(world, problem_of):
    problem = problem_of(world.anonymous().get(PATH), 401)
    assert "Authorization: Bearer" in problem["detail"]


def test_an_organizations_admin_changes_its_own_and_no_others_and_approves_none(world, problem_of):
    north = world.signed_in("north-admin")
    mine = north.get("/api/v1/me").json()["organization_id"]
    others = next(one["organization_id"] for one in north.get(PATH).json()["items"] if one["organization_id"] != mine)
    assert north.patch(f"{PATH}/{mine}", json={"contact": "new"}, headers={"If-Match": '"1"'}).status_code == 200
    problem_of(north.patch(f"{PATH}/{others}", json={"contact": "new"}, headers={"If-Match": '"1"'}), 403)
    problem_of(north.patch(f"{PATH}/{mine}", json={"status": "suspended"}, headers={"If-Match": '"2"'}), 403)
    problem_of(north.post(PATH, json={"name": "East"}), 403)


def test_of_two_administrators_the_second_is_told_that_it_changed(world, problem_of):
    root = world.signed_in("root")
    one = root.get(PATH).json()["items"][0]["organization_id"]
    for _ in range(2):
        seen = root.get(f"{PATH}/{one}").headers["etag"]
    assert root.patch(f"{PATH}/{one}", json={"contact": "a"}, headers={"If-Match": seen}).status_code == 200
    assert (
        "read it again"
        in problem_of(root.patch(f"{PATH}/{one}", json={"contact": "b"}, headers={"If-Match": seen}), 412)["detail"]
    )
    problem_of(root.patch(f"{PATH}/{one}", json={"contact": "b"}), 422)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": 7},
        {"name": "x" * 201},
        {"name": "a\nb"},
        {"name": "East", "status": "active"},
        {"name": "East", "encryption_key": "sk_live_51H8abcdefghijklmnop"},
        {"name": "East", "encryption_key": "hunter2"},
        [],
        "East",
    ],
)
def test_what_is_no_organization_is_refused_and_nothing_of_a_key_comes_back(world, problem_of, body):
    problem = problem_of(world.signed_in("root").post(PATH, json=body), 422)
    assert "51H8" not in str(problem)
    assert "hunter2" not in str(problem)


def test_lists_come_in_pages_to_the_end(world):
    root = world.signed_in("root")
    for number in range(5):
        root.post(PATH, json={"name": f"hospital {number}"})
    seen, after = [], ""
    while True:
        page = root.get(PATH, params={"limit": 3, "after": after}).json()
        seen += [one["organization_id"] for one in page["items"]]
        after = page.get("next")
        if not after:
            break
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"after": "\u00e9"}, {"after": "x" * 65}]
)
def test_a_page_that_is_none_is_refused(world, problem_of, params):
    problem_of(world.signed_in("root").get(PATH, params=params), 422)


def test_a_post_that_is_sent_again_is_done_once(world, problem_of):
    root, again = world.signed_in("root"), {"Idempotency-Key": "a1"}
    first = root.post(PATH, json={"name": "East"}, headers=again)
    second = root.post(PATH, json={"name": "East"}, headers=again)
    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["etag"] == first.headers["etag"]
    assert "another request" in problem_of(root.post(PATH, json={"name": "Else"}, headers=again), 422)["detail"]
    problem_of(root.post(PATH, json={"name": "East"}), 409)
    world.clock.now += 86401
    fresh = world.signed_in("root")
    problem_of(fresh.post(PATH, json={"name": "East"}, headers=again), 409)


def test_what_is_told_once_is_not_kept_for_a_second_asking(world, problem_of):
    root, again = world.signed_in("root"), {"Idempotency-Key": "k"}
    new = {"label": "notebook", "rules": ["view:model:organization"], "days": 1}
    told = root.post("/api/v1/keys", json=new, headers=again).json()["api_key"]
    problem = problem_of(root.post("/api/v1/keys", json=new, headers=again), 409)
    assert told not in str(problem)
    assert len(root.get("/api/v1/keys").json()["items"]) == 1


def test_what_is_not_there_is_said_so_and_nothing_else(world, problem_of):
    root = world.signed_in("root")
    problem_of(root.get(f"{PATH}/nothing"), 404)
    problem_of(root.get("/api/v1/nothing"), 404)
    refused = root.put(PATH, json={})
    problem_of(refused, 405)
    assert refused.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(("content", "status"), [(b"", 422), (b"{", 422), (b"\xff\xfe", 422), (b"[" * 100_000, 400)])
def test_a_body_that_cannot_be_read_is_refused(world, problem_of, content, status):
    answer = world.signed_in("root").post(PATH, content=content, headers={"Content-Type": "application/json"})
    problem_of(answer, status)


def test_a_body_that_is_too_large_is_refused(world, problem_of):
    root = world.signed_in("root")
    problem_of(root.post(PATH, content=b" " * (5 << 20), headers={"Content-Type": "application/json"}), 413)


def test_health_needs_nobody_and_metrics_count_routes_and_no_ids(world):
    somebody = world.anonymous()
    assert somebody.get("/healthz").json() == {"status": "ok"}
    assert somebody.get("/readyz").status_code == 200
    world.signed_in("root").get(f"{PATH}/abcdef0123")
    text = somebody.get("/metrics").text
    assert 'route="/api/v1/organizations/{organization_id}",status="404"' in text
    assert "abcdef0123" not in text


def test_every_answer_says_that_it_is_no_page(world):
    answer = world.anonymous().get("/healthz")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
