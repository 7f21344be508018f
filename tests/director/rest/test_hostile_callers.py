"""Callers that follow no protocol, on plain sockets: slow, many, unclear, too large; others are still answered."""

import socket
import ssl
import time
from pathlib import Path

import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest.idempotency import Answers
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.addresses import Address
from fedveil.utils.errors import StorageError
from sqlalchemy import text

CALLS, LIMITS = "fedveil.director.rest.connections", "fedveil.director.rest.limits"
POST = b"POST /api/v1/sessions HTTP/1.1\r\nHost: director\r\nContent-Type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: director\r\n"
LAST = GET + b"Connection: close\r\n\r\n"
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # none of it is the database's


class Door:
    """One that listens, and plain connections to it."""

    def __init__(self, folder: Path, app) -> None:
        init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
        self._root = folder / ROOT_FILE
        certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder, time.time), time.time)
        self.server = RestServer(app, Address.parse("127.0.0.1:0"), certificate)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), 60)

    def line(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self._root))
        return context.wrap_socket(self.raw(), server_hostname="127.0.0.1")

    def answer(self, *said: bytes) -> bytes:
        """All that comes until the door hangs up."""
        with self.line() as line:
            for one in said:
                line.sendall(one)
            return rest(line)


def rest(line: socket.socket) -> bytes:
    """All that comes until the other side hangs up, which it must."""
    found = b""
    try:
        while piece := line.recv(65536):
            found += piece
    except (ConnectionError, ssl.SSLError):
        pass  # it hung up with less ceremony
    return found


@pytest.fixture
def door(tmp_path, world):
    made = Door(tmp_path / "director", world.app)
    yield made
    made.server.close()


def test_a_request_whose_end_is_unclear_is_refused_and_what_follows_it_is_not_heard(door):
    both = POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = door.answer(both + LAST)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("unclear", [b"Content-Length: 4\r\nContent-Length: 5\r\n", b"Transfer-Encoding: xchunked\r\n"])
def test_lengths_that_contradict_each_other_end_the_connection(door, unclear):
    answer = door.answer(POST + unclear + b"\r\n0\r\n\r\n" + LAST)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_body_in_pieces_that_is_too_large_is_a_problem_413(door, monkeypatch):
    monkeypatch.setattr(f"{LIMITS}.MAX_BODY_BYTES", 1000)
    piece = b"200\r\n" + b" " * 512 + b"\r\n"
    answer = door.answer(POST + b"Transfer-Encoding: chunked\r\n\r\n" + piece * 4 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"urn:fedveil:problem:" in answer


def test_who_is_slow_with_a_handshake_or_with_headers_is_hung_up_on(door, monkeypatch):
    monkeypatch.setattr(f"{CALLS}.HEADER_SECONDS", 0.2)
    with door.line() as silent:
        assert rest(silent) == b""
    with door.line() as half:
        half.sendall(GET)
        assert rest(half) == b""
    with door.line() as second:
        second.sendall(GET + b"\r\n" + GET)
        assert rest(second).count(b"HTTP/1.1 200") == 1


def test_a_handshake_that_does_not_come_ends(tmp_path, world, monkeypatch):
    monkeypatch.setattr(f"{CALLS}.HANDSHAKE_SECONDS", 0.2)
    door = Door(tmp_path / "director", world.app)
    try:
        with door.raw() as silent:
            assert rest(silent) == b""
        assert door.answer(LAST).startswith(b"HTTP/1.1 200")
    finally:
        door.server.close()


def test_a_body_that_does_not_come_is_not_waited_for(door, monkeypatch):
    monkeypatch.setattr(f"{LIMITS}.BODY_SECONDS", 0.2)
    answer = door.answer(POST + b"Content-Length: 10\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"in time" in answer


def test_one_address_holds_so_many_connections_and_others_are_answered_again_once_it_lets_go(door, monkeypatch):
    monkeypatch.setattr(f"{CALLS}.MOST_OF_ONE", 3)
    held = [door.line() for _ in range(3)]
    for one in held:
        one.sendall(GET + b"\r\n")
        assert one.recv(12) == b"HTTP/1.1 200"
    with door.line() as fourth:
        assert rest(fourth) == b""
    for one in held:
        one.close()
    while not (answer := door.answer(LAST)):  # it hears of their end in its own time
        pass
    assert answer.startswith(b"HTTP/1.1 200")


def test_no_path_leads_to_another_host(world):
    answer = world.signed_in("root").get(
        "/api/v1/organizations/", headers={"Host": "elsewhere.example"}, follow_redirects=False
    )
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_methods_that_a_caller_invents_are_counted_as_one(world):
    for number in range(20):
        world.anonymous().request(f"METHOD{number}", "/healthz")
    counted = world.anonymous().get("/metrics").text
    assert "METHOD" not in counted
    assert 'method="other"' in counted


def test_strangers_with_an_idempotency_key_leave_nothing_in_the_database(world):
    for number, authorization in enumerate(("Bearer x", "Bearer fs_" + "A" * 43, "Basic eDp4", "x")):
        headers = {"Authorization": authorization, "Idempotency-Key": f"k{number}"}
        assert (
            world.anonymous().post("/api/v1/organizations", json={"name": "East"}, headers=headers).status_code == 401
        )
    with world.hub.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM hub_idempotency")).scalar_one() == 0


def test_who_signed_out_or_was_disabled_is_shown_no_answer_of_before(world):
    root, again = world.signed_in("root"), {"Idempotency-Key": "k"}
    made = root.post("/api/v1/organizations", json={"name": "East"}, headers=again)
    assert made.status_code == 201
    assert root.post("/api/v1/organizations", json={"name": "East"}, headers=again).json() == made.json()
    other = world.signed_in("root")
    assert root.delete("/api/v1/sessions/current").status_code == 204
    assert root.post("/api/v1/organizations", json={"name": "East"}, headers=again).status_code == 401
    replayed = other.post("/api/v1/organizations", json={"name": "East"}, headers=again)
    assert replayed.json() == made.json(), "the same user, signed in again"


def test_what_was_done_is_not_done_again_where_its_answer_could_not_be_kept(world, problem_of, monkeypatch, caplog):
    """The disk is full between the two: the caller is told what was done, and who sends it again that it is known."""
    root, again, new = world.signed_in("root"), {"Idempotency-Key": "k"}, {"contact": "x"}

    def fails(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Answers, "end", fails)
        first = root.post("/api/v1/organizations", json={"name": "East"} | new, headers=again)
    assert first.status_code == 201, first.text
    assert "answer not kept path=/api/v1/organizations status=201 reason=the disk is full" in caplog.text
    before = len(world.hub.organizations.all())
    second = problem_of(root.post("/api/v1/organizations", json={"name": "East"} | new, headers=again), 409)
    assert second["type"].endswith("UnderWay")
    assert len(world.hub.organizations.all()) == before


def test_the_same_idempotency_key_of_another_user_or_key_is_another_one(world):
    root, north, again = world.signed_in("root"), world.signed_in("north-admin"), {"Idempotency-Key": "k"}
    new = {"label": "notebook", "rules": ["view:organization:federation"], "days": 1}
    by_key = world.anonymous()
    by_key.headers["Authorization"] = f"Bearer {root.post('/api/v1/keys', json=new).json()['api_key']}"
    body = {"name": "East"}
    assert root.post("/api/v1/organizations", json=body, headers=again).status_code == 201
    for client in (north, by_key):
        answer = client.post("/api/v1/organizations", json=body, headers=again)
        assert answer.status_code == 403, "it may not do what another was allowed to, nor see its answer"
