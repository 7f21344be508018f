"""Over real sockets: a member that another process revokes is refused from its next call on, whatever it says."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fedveil.director.database import open_database
from fedveil.director.identity_store import IdentityStore
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.envoy.client import DirectorClient, bootstrap_client
from fedveil.envoy.enrolment import prepare_join, save_credentials
from fedveil.utils import messages as m
from fedveil.utils.errors import IdentityError, JoinFileError, NotAuthorizedError, UnreachableError
from fedveil.utils.identity import Role
from fedveil.utils.join_file import JoinFile

REF = m.TaskRef("toy-1", 1, 1, "ab" * 32)
CALLS = {
    "next_work": lambda c: c.next_work((), 0.0),
    "work": lambda c: next(c.work(())),
    "download": lambda c: next(c.download(m.DownloadRequest("ab" * 32))),
    "request_upload": lambda c: c.request_upload(m.UpdateHeader(REF, "ab" * 32, 4, 1)),
    "upload": lambda c: c.upload([m.Opening(4), m.Data(b"abcd")]),
    "report": lambda c: c.report(m.MetricsReport(REF, ())),
    "decline": lambda c: c.decline(m.Refusal(REF, "PlanError", "no")),
    "tell_sum": lambda c: c.tell_sum(m.SumStatement(REF, b"x")),
    "beat": lambda c: c.beat(m.Heartbeat()),
    "roster": lambda c: c.roster(),
}


class Books:
    """The director's database, as another process sees it."""

    def __init__(self, federation) -> None:
        self.federation = federation
        self.engine = open_database(f"sqlite:///{federation.folder / 'director.sqlite'}", durable=False)
        self.revocations = Revocations(self.engine)

    def invite(self, name: str, *, reinstate: bool = False) -> JoinFile:
        it = self.federation
        registrar = Registrar("lungs", it.issuer, it.root, IdentityStore(self.engine), self.revocations)
        return registrar.invite(
            name, f"Clinic {name}", Role.ENVOY, [it.address], 3600.0, time.time(), reinstate=reinstate
        )


@pytest.fixture
def books(federation):
    made = Books(federation)
    yield made
    made.engine.dispose()


def join(invitation: JoinFile, folder: Path) -> DirectorClient:
    request, keys = prepare_join(folder, invitation)
    client = bootstrap_client(invitation, invitation.addresses[0])
    try:
        reply = client.join(request)
    finally:
        client.close()
    held = save_credentials(folder, invitation, keys, reply, time.time())
    return DirectorClient(held.addresses[0], held.chain, held.leaf_key, held.root)


def director(federation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own, beside the director that runs."""
    command = [sys.executable, "-m", "fedveil.director", *arguments, "--folder", str(federation.folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_call_after_the_revocation_is_refused(federation, books, tmp_path: Path):
    client = join(books.invite("site-a"), tmp_path / "a")
    client.beat(m.Heartbeat())
    books.revocations.revoke("site-a", "stolen laptop", time.time())
    for ask in CALLS.values():
        with pytest.raises(NotAuthorizedError, match=r"site-a was revoked on .* ask the director's operator") as caught:
            ask(client)
        assert "laptop" not in str(caught.value)
    client.close()


def test_the_command_revokes_beside_a_director_that_runs_and_says_so_in_its_log(federation, books, tmp_path: Path):
    client, other = join(books.invite("site-a"), tmp_path / "a"), join(books.invite("site-b"), tmp_path / "b")
    assert "site-a" in director(federation, "members").stdout
    done = director(federation, "revoke", "site-a", "--reason", "left the study")
    assert done.returncode == 0, done.stderr
    with pytest.raises(NotAuthorizedError):
        client.beat(m.Heartbeat())
    assert [one.name for one in other.roster().members] == ["site-b"]
    shown = director(federation, "members").stdout
    assert "left the study" in shown
    assert "revoked" in shown
    log = (federation.folder / "audit.jsonl").read_text()
    assert '"what":"enrolled"' in log
    assert '"what":"revoked"' in log
    assert director(federation, "audit", "verify").returncode == 0
    again = director(federation, "revoke", "site-a", "--reason", "x")
    assert again.returncode == 1
    assert "is revoked already" in again.stderr
    client.close()
    other.close()


def test_open_calls_end(federation, books, tmp_path: Path):
    client = join(books.invite("site-a"), tmp_path / "a")
    refused: list[NotAuthorizedError] = []
    stands = threading.Event()

    def line() -> None:
        try:
            for _ in client.work(()):
                stands.set()
        except NotAuthorizedError as error:
            refused.append(error)

    def poll() -> None:
        try:
            other.next_work((), 2.0)
        except NotAuthorizedError as error:
            refused.append(error)

    other = join(books.invite("site-b"), tmp_path / "b")
    threads = [threading.Thread(target=one, daemon=True) for one in (line, poll)]
    for thread in threads:
        thread.start()
    assert stands.wait(60.0)
    for name in ("site-a", "site-b"):
        books.revocations.revoke(name, "left", time.time())
    for thread in threads:
        thread.join(60.0)
    assert len(refused) == 2
    client.close()
    other.close()


def test_an_upload_that_goes_on_is_not_taken(federation, books, tmp_path: Path):
    client = join(books.invite("site-a"), tmp_path / "a")
    (puppet,) = federation.attending("site-a")
    federation.submit()
    task = puppet.task()
    turn = client.request_upload(puppet.header(task))
    assert isinstance(turn, m.Turn)
    sent, revoked = threading.Event(), threading.Event()

    def parts():
        yield m.Opening(40_000, turn.offset, turn.grant)
        yield m.Data(bytes(4_000))
        sent.set()
        assert revoked.wait(60.0)
        for _ in range(9):
            yield m.Data(bytes(4_000))

    failed: list[Exception] = []

    def upload() -> None:
        try:
            client.upload(parts())
        except NotAuthorizedError as error:
            failed.append(error)

    thread = threading.Thread(target=upload, daemon=True)
    thread.start()
    assert sent.wait(60.0)
    books.revocations.revoke("site-a", "left", time.time())
    threading.Event().wait(0.6)  # what is known of open calls is half a second old at most
    revoked.set()
    thread.join(60.0)
    assert len(failed) == 1
    client.close()


def test_a_revoked_site_is_not_waited_for(federation, books, tmp_path: Path):
    clients = [join(books.invite(name), tmp_path / name) for name in ("site-a", "site-b")]
    (puppet,) = federation.attending("site-b")
    books.revocations.revoke("site-a", "left", time.time())
    run = federation.submit()
    puppet.send(puppet.task(), 1.0)  # it would not be asked while a member is missing that was never seen
    assert federation.finished(run).state == "finished"
    for client in clients:
        client.close()


def test_a_revoked_name_comes_back_by_a_new_join_file_alone(federation, books, tmp_path: Path):
    first = books.invite("site-a")
    old = join(first, tmp_path / "old")
    books.revocations.revoke("site-a", "left", time.time())
    with pytest.raises(IdentityError, match=r"was revoked on .*--reinstate"):
        books.invite("site-a")
    with pytest.raises((JoinFileError, NotAuthorizedError), match="revoked"):
        join(first, tmp_path / "again")
    new = join(books.invite("site-a", reinstate=True), tmp_path / "new")
    new.beat(m.Heartbeat())
    with pytest.raises(NotAuthorizedError):
        old.beat(m.Heartbeat())
    with pytest.raises(IdentityError, match="is not revoked"):
        books.invite("site-b", reinstate=True)
    old.close()
    new.close()


def test_a_join_file_that_was_revoked_opens_nothing(federation, books, tmp_path: Path):
    invitation = books.invite("site-a")
    done = director(federation, "revoke", "site-a", "--reason", "sent to the wrong address")
    assert "1 unused join files" in done.stdout
    with pytest.raises((JoinFileError, NotAuthorizedError, UnreachableError), match="revoked"):
        join(invitation, tmp_path / "a")
    join(books.invite("site-a"), tmp_path / "b").close()


def test_what_is_asked_at_each_call_costs_little(federation, books, tmp_path: Path):
    join(books.invite("site-a"), tmp_path / "a").close()
    started = time.thread_time()
    for _ in range(1_000):
        assert books.revocations.bad_since("site-a", "1" * 64) is None
    cost = (time.thread_time() - started) / 1_000
    assert cost < 5e-3  # seen: 0.1 ms
