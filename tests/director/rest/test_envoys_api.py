"""Envoys over HTTP: invited by whom they belong to, seen by who may, and shut out at once."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.hub.organizations import Status
from fedveil.utils.certificates import make_key, public_bytes
from fedveil.utils.errors import JoinFileError, NotAuthorizedError
from fedveil.utils.identity import PeerId, Role, peer_of, read_certificate, read_chain
from fedveil.utils.join_file import join_file_text, read_join_file
from fedveil.utils.messages import EnvoyName, JoinRequest
from fedveil.utils.renewal import join_text

PATH = "/api/v1/envoys"


def hospital(world, name="North"):
    return world.hub.organizations.first(world.hub.organizations.table.c.name == f"{name} Hospital")


@pytest.fixture
def admin(world):
    """Of a hospital that has agreed to what is asked for."""
    world.agreed(hospital(world))
    return world.signed_in("north-admin")


def invited(admin, name="north-1", **more):
    answer = admin.post(PATH, json={"name": name} | more)
    assert answer.status_code == 201, answer.text
    return answer


def shut_out(client, name, reason="the machine was sold"):
    return client.request("DELETE", f"{PATH}/{name}", json={"reason": reason})


def joined(world, tmp_path, text):
    """Does what ``envoy join`` does; gives the SHA-256 of its certificate."""
    file = tmp_path / "envoy.join"
    file.write_text(text)
    join = read_join_file(file, world.clock())
    assert (join.federation, join.role, join.organization) == ("lungs", Role.ENVOY, "North Hospital")
    key = make_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    identity = Ed25519PrivateKey.generate()
    proof = identity.sign(join_text(request, b""))
    bootstrap = peer_of(read_certificate(join.bootstrap, "the bootstrap certificate"))
    asked = JoinRequest(request, public_bytes(identity.public_key()), proof, b"")
    reply = world.works.registrar.join(bootstrap, asked, world.clock())
    return read_chain(reply.chain, "the chain")[0].fingerprint(hashes.SHA256()).hex()


def test_an_envoy_is_invited_joins_is_seen_and_is_shut_out_from_its_next_call_on(world, admin, tmp_path, problem_of):
    answer = invited(admin)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == f"{PATH}/north-1"
    waiting = admin.get(f"{PATH}/north-1").json()
    assert (waiting["state"], waiting["organization"], waiting["is_connected"]) == ("invited", "North Hospital", False)
    sha256 = joined(world, tmp_path, answer.json()["join_file"])
    world.works.coordinator.hear(EnvoyName("north-1"))
    world.clock.now += 3
    there = admin.get(f"{PATH}/north-1").json()
    assert (there["state"], there["is_connected"], there["silent_seconds"]) == ("member", True, 3.0)
    assert there["good_until"] > world.clock()
    peer = PeerId("lungs", Role.ENVOY, "north-1")
    world.works.standing.check(peer, sha256)

    assert shut_out(admin, "north-1").status_code == 204
    with pytest.raises(NotAuthorizedError, match="revoked"):
        world.works.standing.check(peer, sha256)
    gone = admin.get(f"{PATH}/north-1").json()
    assert (gone["state"], gone["revoked_at"], gone["good_until"]) == ("revoked", world.clock(), None)
    problem_of(shut_out(admin, "north-1"), 409)
    assert "was revoked" in problem_of(admin.post(PATH, json={"name": "north-1"}), 409)["detail"]
    joined(world, tmp_path, invited(admin, reinstate=True).json()["join_file"])
    assert admin.get(f"{PATH}/north-1").json()["state"] == "member"


def test_a_join_file_that_was_taken_back_lets_nobody_in(world, admin, tmp_path):
    answer = invited(admin)
    assert shut_out(admin, "north-1").status_code == 204
    with pytest.raises(JoinFileError, match="revoked"):
        joined(world, tmp_path, answer.json()["join_file"])


def test_a_join_file_is_told_once_also_to_who_sends_the_request_again(world, admin, problem_of):
    again = {"Idempotency-Key": "k"}
    told = admin.post(PATH, json={"name": "north-1"}, headers=again).json()["join_file"]
    assert told not in problem_of(admin.post(PATH, json={"name": "north-1"}, headers=again), 409)["detail"]
    assert "bootstrap_key" not in admin.get(f"{PATH}/north-1").text


def test_an_envoy_is_invited_only_by_an_organization_that_takes_part_and_has_agreed(world, problem_of):
    south = world.signed_in("south-admin")
    assert "infrastructure-user" in problem_of(south.post(PATH, json={"name": "south-1"}), 403)["detail"]
    assert south.get(PATH).json()["items"] == []
    theirs = hospital(world, "South")
    world.agreed(theirs)
    world.hub.organizations.change(theirs.id, 1, lambda _: None, status=Status.SUSPENDED)
    assert "suspended" in problem_of(south.post(PATH, json={"name": "south-1"}), 403)["detail"]
    assert world.hub.stations.whose("south-1") is None


def test_anothers_envoy_is_not_even_there_and_its_name_is_not_taken(world, admin, problem_of):
    invited(admin)
    world.agreed(hospital(world, "South"))
    south = world.signed_in("south-admin")
    for answer in (south.get(f"{PATH}/north-1"), shut_out(south, "north-1"), south.get(f"{PATH}/nobody")):
        assert problem_of(answer, 404)["detail"] == "there is no such envoy"
    assert south.get(PATH).json()["items"] == []
    problem_of(south.post(PATH, json={"name": "north-1"}), 409)
    problem_of(south.post(PATH, json={"name": "x", "organization_id": hospital(world).id}), 403)
    assert world.hub.stations.whose("north-1") == hospital(world).id


def test_one_that_joined_by_the_directors_own_invitation_is_nobodys_until_the_director_says_whose(
    world, admin, tmp_path, problem_of
):
    join = world.works.registrar.invite("site-a", "North Hospital", Role.ENVOY, ["127.0.0.1:1"], 3600.0, world.clock())
    joined(world, tmp_path, join_file_text(join))
    root = world.signed_in("root")
    assert [(one["name"], one["organization_id"]) for one in root.get(PATH).json()["items"]] == [("site-a", None)]
    assert admin.get(PATH).json()["items"] == []
    problem_of(admin.post(PATH, json={"name": "site-a"}), 409)
    of = {"organization_id": hospital(world).id}
    problem_of(admin.put(f"{PATH}/site-a/organization", json=of), 404)
    assert root.put(f"{PATH}/site-a/organization", json=of).json()["organization_id"] == of["organization_id"]
    assert [one["name"] for one in admin.get(PATH).json()["items"]] == ["site-a"]
    problem_of(root.put(f"{PATH}/site-a/organization", json={"organization_id": hospital(world, "South").id}), 409)


def test_envoys_come_in_pages_to_the_end(world, admin):
    for number in range(5):
        invited(admin, f"north-{number}")
    seen, after = [], ""
    while True:
        page = admin.get(PATH, params={"limit": 2, "after": after}).json()
        seen += [one["name"] for one in page["items"]]
        after = page.get("next")
        if not after:
            break
    assert seen == [f"north-{number}" for number in range(5)]


NO_ENVOYS = (
    {},
    {"name": "North 1"},
    {"name": "a\0"},
    {"name": "x" * 64},
    {"name": "-x"},
    {"name": "x-"},
    {"name": "x", "ttl_seconds": 1},
    {"name": "x", "ttl_seconds": 1e9},
    {"name": "x", "reinstate": "perhaps"},
    {"name": "x", "role": "operator"},
)
NO_REASONS = (None, {}, {"reason": ""}, {"reason": " "}, {"reason": "a\nb"}, {"reason": "x" * 501})


def test_what_is_no_envoy_is_refused_and_so_is_a_name_of_those_who_are_here_from_the_beginning(
    world, admin, problem_of
):
    for body in NO_ENVOYS:
        problem_of(admin.post(PATH, json=body), 422)
    for name in ("operator", "director"):
        problem_of(admin.post(PATH, json={"name": name}), 409)
    assert world.hub.stations.all() == ()


def test_nobody_is_shut_out_without_a_reason(world, admin, problem_of):
    invited(admin)
    for body in NO_REASONS:
        problem_of(admin.request("DELETE", f"{PATH}/north-1", json=body), 422)
    assert admin.get(f"{PATH}/north-1").json()["state"] == "invited"


def test_the_next_envoy_of_an_organization_that_was_renamed_is_still_of_the_one_that_rosters_know(
    world, admin, tmp_path
):
    joined(world, tmp_path, invited(admin).json()["join_file"])
    one = hospital(world)
    world.hub.organizations.change(one.id, one.version, lambda _: None, name="Elsewhere Hospital")
    (tmp_path / "second.join").write_text(invited(admin, "north-2").json()["join_file"])
    assert read_join_file(tmp_path / "second.join", world.clock()).organization == "North Hospital"
