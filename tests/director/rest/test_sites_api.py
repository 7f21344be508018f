"""Sites come in over HTTPS by their organization's word alone, and every stranger is refused."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.hub.organizations import Status
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.envoy.enrolment import new_request
from fedveil.utils import messages as m
from fedveil.utils import wire, wire_sums
from fedveil.utils.certificates import certificate_pem, public_bytes
from fedveil.utils.identity import check_chain, peer_of, read_certificate, read_chain
from fedveil.utils.messages import MAX_PART_BYTES
from fedveil.utils.part_frames import framed
from fedveil.utils.renewal import join_text

SITES = "/api/v1/federated/sites"
REF = m.TaskRef(m.RunId("toy-1"), 1, 1, "ab" * 32)
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def keys_of(name: str = "north-1", **changes: Any) -> dict[str, str]:
    """What a site sends that made its keys."""
    (_, signing_request), (_, renewal_request) = new_request(), new_request()
    identity = Ed25519PrivateKey.generate()
    proof = identity.sign(join_text(signing_request, renewal_request))
    return {
        "name": name,
        "signing_request": text(signing_request),
        "identity_key": text(public_bytes(identity.public_key())),
        "identity_proof": text(proof),
        "renewal_request": text(renewal_request),
    } | changes


def known(world, name):
    """Somebody whose session is open already: passwords are other tests' matter, and slow on purpose."""
    user = world.hub.users.first(world.hub.users.table.c.name == name)
    client = world.anonymous()
    client.headers["Authorization"] = f"Bearer {world.hub.sign_in.open(user, world.clock()).token}"
    return client


@pytest.fixture
def north(world):
    """An administrator of an organization that agreed to what is asked of it."""
    (one,) = world.hub.organizations.all(world.hub.organizations.table.c.name == "North Hospital")
    world.agreed(one)
    client = known(world, "north-admin")
    client.organization = one
    return client


@pytest.fixture
def south(world):
    (one,) = world.hub.organizations.all(world.hub.organizations.table.c.name == "South Hospital")
    world.agreed(one)
    return known(world, "south-admin")


def test_a_site_is_certified_by_its_organizations_word_and_the_very_same_request_is_answered_again(world, north):
    sent = keys_of()
    first, again = north.post(SITES, json=sent), north.post(SITES, json=sent)
    assert (first.status_code, again.status_code) == (201, 201), first.text
    for answer in (first.json(), again.json()):
        leaf, issuer = read_chain(answer["chain"].encode(), "chain")
        root = read_certificate(answer["root"].encode(), "root")
        assert str(check_chain(leaf, issuer, root, world.clock())) == "spiffe://lungs/envoy/north-1"
        assert str(peer_of(read_certificate(answer["identity_certificate"].encode(), "identity"))) == str(peer_of(leaf))
        renewal = read_certificate(answer["renewal_certificate"].encode(), "renewal")
        assert str(peer_of(renewal)) == "spiffe://lungs/renew/north-1"
        assert answer["organization"] == "North Hospital"
        assert answer["root"] == certificate_pem(world.works.root).decode()
        assert answer["addresses"] == ["127.0.0.1:9443"]
    assert [one.name for one in world.works.members.identities()] == ["north-1"]
    assert world.hub.stations.whose("north-1") == north.organization.id


def test_a_name_is_given_once(world, north, south, problem_of):
    assert north.post(SITES, json=keys_of()).status_code == 201
    assert "here already" in problem_of(north.post(SITES, json=keys_of()), 409)["detail"]
    assert "another organization's" in problem_of(south.post(SITES, json=keys_of()), 409)["detail"]
    problem_of(north.post(SITES, json=keys_of("operator")), 409)
    Revocations(world.hub.engine).revoke("north-1", "left", world.clock())
    assert "was revoked" in problem_of(north.post(SITES, json=keys_of()), 409)["detail"]
    assert len(world.works.members.all_identities()) == 1


def test_the_same_keys_with_another_request_get_nothing(world, north, problem_of):
    sent = keys_of()
    assert north.post(SITES, json=sent).status_code == 201
    identity, other = Ed25519PrivateKey.generate(), keys_of()
    proof = identity.sign(join_text(base64.b64decode(other["signing_request"]), b""))
    changed = sent | {"signing_request": other["signing_request"], "renewal_request": ""}
    problem_of(north.post(SITES, json=changed | {"identity_proof": text(proof)}), 422)
    (member,) = world.works.members.identities()
    assert len(world.works.members.certificates(member.name, world.clock())) == 2


def test_an_envoy_that_joined_otherwise_is_not_taken_over(world, north, problem_of):
    registrar: Registrar = world.works.registrar
    sent = keys_of("site-x")
    request = m.JoinRequest(*(base64.b64decode(sent[key]) for key in sent if key != "name"))
    registrar.register("site-x", "Somebody", request, world.clock())
    problem_of(north.post(SITES, json=keys_of("site-x")), 409)
    assert world.hub.stations.whose("site-x") is None
    problem_of(north.post(f"{SITES}/site-x/beats", content=b"", headers=PROTOBUF), 404)


def test_an_organization_that_is_renamed_stays_one_in_rosters(world, north):
    """Sums count organizations: one that calls itself otherwise for its next site must not count twice."""
    assert north.post(SITES, json=keys_of()).json()["organization"] == "North Hospital"
    world.hub.organizations.change(north.organization.id, 1, lambda _: None, name="Elsewhere Hospital")
    assert north.post(SITES, json=keys_of("north-2")).json()["organization"] == "North Hospital"


def test_who_may_bring_sites_in(world, problem_of):
    problem_of(world.anonymous().post(SITES, json=keys_of()), 401)
    admin = known(world, "south-admin")
    assert "no infrastructure-user agreement" in problem_of(admin.post(SITES, json=keys_of()), 403)["detail"]
    (one,) = world.hub.organizations.all(world.hub.organizations.table.c.name == "South Hospital")
    world.agreed(one)
    world.user("anna", one, "researcher")
    problem_of(known(world, "anna").post(SITES, json=keys_of()), 403)
    world.hub.organizations.change(one.id, 1, lambda _: None, status=Status.PENDING)
    assert "pending" in problem_of(admin.post(SITES, json=keys_of()), 403)["detail"]
    assert not world.works.members.all_identities()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "North"},
        {"name": "a/b"},
        {"name": "a" * 64},
        {"signing_request": ""},
        {"signing_request": text(b"no request")},
        {"signing_request": "%%%%"},
        {"signing_request": "A" * 30_000},
        {"identity_key": text(b"short")},
        {"identity_key": text(b"\1" + bytes(31))},
        {"identity_proof": text(bytes(64))},
        {"renewal_request": text(b"no request")},
        {"further": "1"},
        {"name": 7},
    ],
)
def test_keys_that_are_none_or_not_proven_are_refused_and_leave_nothing(world, north, problem_of, changes):
    problem_of(north.post(SITES, json=keys_of() | changes), 422)
    assert not world.works.members.all_identities()
    assert not world.hub.stations.all()


# calls


@pytest.fixture
def site(north):
    """One that is in."""
    assert north.post(SITES, json=keys_of()).status_code == 201
    return north


CALLS = {
    "work": wire.work_request_to_wire(m.WorkRequest("test")),
    "parts": wire.download_to_wire(m.DownloadRequest("cd" * 32)),
    "turns": wire.header_to_wire(m.UpdateHeader(REF, "ab" * 32, 4, 1)),
    "updates": framed(wire.part_to_wire(m.Opening(4, 0, "ab" * 16))),
    "reports": wire.report_to_wire(m.MetricsReport(REF, ())),
    "statements": wire_sums.statement_to_wire(m.SumStatement(REF, b"a word")),
    "refusals": wire.refusal_to_wire(m.Refusal(REF, "PlanError", "no")),
    "beats": wire.heartbeat_to_wire(m.Heartbeat()),
    "renewals": wire.renew_request_to_wire(m.RenewRequest(b"", b"", 0.0, bytes(64))),
}


def said(client, call, body=None, name="north-1"):
    return client.post(f"{SITES}/{name}/{call}", content=CALLS[call] if body is None else body, headers=PROTOBUF)


def test_a_call_is_for_the_sites_own_organization_alone(world, site, south, problem_of):
    nobody, root = world.anonymous(), known(world, "root")
    for call in CALLS:
        problem_of(said(nobody, call), 401)
        problem_of(said(south, call), 404)
        problem_of(said(site, call, name="nobody"), 404)
        assert "its own organization alone" in problem_of(said(root, call), 403)["detail"]


def test_a_revoked_site_may_do_nothing(world, site, problem_of):
    Revocations(world.hub.engine).revoke("north-1", "left", time.time())
    for call in CALLS:
        assert "was revoked" in problem_of(said(site, call), 403)["detail"]


def test_what_does_not_fit_the_present_round_is_refused_by_the_name_of_the_error(site, problem_of):
    for call, status, kind in (
        ("parts", 404, "UnknownArtifactError"),
        ("turns", 409, "WrongRoundError"),
        ("updates", 409, "ProtocolError"),
        ("reports", 409, "WrongRoundError"),
        ("statements", 409, "WrongRoundError"),
        ("refusals", 409, "WrongRoundError"),
        ("renewals", 422, "MalformedMessageError"),
    ):
        assert problem_of(said(site, call), status)["type"] == f"urn:fedveil:problem:{kind}"


def test_bytes_that_are_no_message_are_malformed(site, problem_of):
    for call in CALLS:
        for body in (b"\xff" * 40, b"{}", framed(b"\xff" * 40)):
            problem_of(said(site, call, body), 422)


def test_a_message_that_is_too_long_is_refused_before_it_is_read(site, problem_of):
    problem_of(said(site, "updates", (MAX_PART_BYTES + 4096).to_bytes(4, "big")), 422)
    long = bytes(MAX_PART_BYTES + 4096)
    for call in CALLS.keys() - {"updates"}:
        problem_of(said(site, call, long), 413)
    problem_of(said(site, "work", iter([long])), 413)


def test_a_key_does_what_it_is_for(world, site, problem_of):
    def call(*rules: str):
        made = site.post("/api/v1/keys", json={"label": "site", "rules": list(rules), "days": 1}).json()
        program = world.anonymous()
        program.headers["Authorization"] = f"Bearer {made['api_key']}"
        return program.post(f"{SITES}/north-1/work", content=CALLS["work"], headers=PROTOBUF)

    answer = call("edit:envoy:organization")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-protobuf")
    assert wire.work_item_from_wire(answer.content) == m.Idle()
    problem_of(call("view:envoy:organization"), 403)
    problem_of(call("create:envoy:organization"), 404)


def test_the_role_of_a_site_is_enough_for_one(world, north):
    world.user("machine", north.organization, "site")
    machine = known(world, "machine")
    assert machine.post(SITES, json=keys_of("north-9")).status_code == 201
    beat = machine.post(f"{SITES}/north-9/beats", content=CALLS["beats"], headers=PROTOBUF)
    assert wire.acknowledgement_from_wire(beat.content).now == pytest.approx(time.time(), abs=3600)
    roster = wire_sums.roster_reply_from_wire(machine.get(f"{SITES}/north-9/roster").content)
    assert [(one.name, one.organization) for one in roster.members] == [("north-9", "North Hospital")]
    assert machine.get("/api/v1/users").status_code in {403, 404}


def test_of_an_organization_that_is_suspended_no_site_calls(world, site, problem_of):
    world.hub.organizations.change(site.organization.id, 1, lambda _: None, status=Status.SUSPENDED)
    told = problem_of(site.post(f"{SITES}/north-1/work", content=CALLS["work"], headers=PROTOBUF), 403)
    assert "suspended" in told["detail"]


def test_what_a_site_is_not_asked_to_work_with_is_not_there_for_it(world, site, problem_of):
    digest = world.works.artifacts.put([b"a model of others"])
    path = f"{SITES}/north-1/parts"
    for one in (digest, "ab" * 32):
        answer = site.post(path, content=wire.download_to_wire(m.DownloadRequest(one)), headers=PROTOBUF)
        assert problem_of(answer, 404)["detail"] == f"there is no artifact {one} for north-1"
