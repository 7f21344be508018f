"""A site over HTTPS against a real director: uploads that break, polls that end, callers that are shut out."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fedveil.director.admission import MAX_CALLS
from fedveil.director.revocations import Revocations
from fedveil.envoy.enrolment import load_credentials
from fedveil.envoy.registration import RestAccess, load_access, register
from fedveil.envoy.renewal import prepare_renewal, renewed
from fedveil.envoy.rest_link import RestLink
from fedveil.utils import messages as m
from fedveil.utils.certificates import certificate_pem
from fedveil.utils.errors import (
    ConfigError,
    IdentityError,
    LayoutMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    NonFiniteUpdateError,
    NotAuthorizedError,
    ProtocolError,
    TooManyCallsError,
    UnknownArtifactError,
    UnknownEntityError,
    UnreachableError,
    WrongRoundError,
)
from fedveil.utils.tensors import bytes_of, digest_of

ELEMENTS = 10_000
UPDATE = np.full(ELEMENTS, 3.0, np.float32)
REF = m.TaskRef(m.RunId("toy-1"), 1, 1, "ab" * 32)


def parts_of(turn, update=UPDATE, size=4_000):
    raw = bytes_of(update)
    data = [m.Data(bytes(raw[start : start + size])) for start in range(turn.offset, len(raw), size)]
    return [m.Opening(len(raw), turn.offset, turn.grant), *data, m.Closing(digest_of(raw))]


@pytest.fixture
def site(rest_federation):
    made = rest_federation.over_https("site-r")
    made.attend()
    return made


@pytest.fixture
def task(rest_federation, site):
    """Of a round that waits for the site."""
    rest_federation.run = rest_federation.submit()
    return site.task()


def closes(federation, site, task, value=3.0):
    site.send(task, value)
    view = federation.finished(federation.run)
    assert view.state == "finished", view.reason
    assert np.array_equal(federation.model(view), np.full(ELEMENTS, value, np.float32))


def test_what_does_not_fit_is_refused_with_the_very_errors_of_grpc_and_the_round_loses_nothing(
    rest_federation, site, task
):
    ask = site.client.request_upload
    with pytest.raises(WrongRoundError, match="is open; site-r answers round 2"):
        ask(site.header(task, ref=replace(task.ref, round=2)))
    with pytest.raises(LayoutMismatchError):
        ask(site.header(task, layout="ef" * 32))
    with pytest.raises(LengthMismatchError):
        ask(site.header(task, length=4))
    with pytest.raises(ProtocolError, match="asks for an update"):
        site.client.report(m.MetricsReport(task.ref, ()))
    with pytest.raises(ProtocolError, match="has no secure sum"):
        site.client.tell_sum(m.SumStatement(task.ref, b"a word"))
    with pytest.raises(ProtocolError, match="has no turn"):
        site.client.upload(parts_of(m.Turn(task.ref, "ab" * 16, 0, 4000)))
    with pytest.raises(NonFiniteUpdateError):
        site.client.upload(parts_of(site.turn(task), np.full(ELEMENTS, np.nan, np.float32)))
    with pytest.raises(MalformedMessageError, match="starts with an opening"):
        site.client.upload(parts_of(site.turn(task))[1:])
    with pytest.raises(MalformedMessageError, match="without a closing"):
        site.client.upload(parts_of(site.turn(task))[:-1])
    with pytest.raises(UnknownArtifactError):
        list(site.client.download(m.DownloadRequest("ef" * 32, 0, task.ref)))
    closes(rest_federation, site, task)


def test_an_upload_that_is_cut_goes_on_where_it_was(rest_federation, site, task):
    """The connection goes amid it, as when a line breaks."""
    spool = rest_federation.folder / "uploads" / "site-r.spool"

    def some(parts):
        for number, part in enumerate(parts):
            if number == 6:
                rest_federation.until(lambda: spool.stat().st_size > 4_000)
                raise OSError("the line is cut")
            yield part

    with pytest.raises(OSError, match="the line is cut"):
        site.client.upload(some(parts_of(site.turn(task))))
    turn = site.turn(task)
    assert turn.offset > 0
    assert turn.offset % 4_000 == 0
    site.client.upload(parts_of(turn))
    view = rest_federation.finished(rest_federation.run)
    assert np.array_equal(rest_federation.model(view), UPDATE)
    assert isinstance(site.client.request_upload(site.header(task)), m.Receipt)


def test_a_download_comes_whole_and_from_any_offset_on(rest_federation, site, task):
    opening, *parts = site.client.download(m.DownloadRequest(task.model, 0, task.ref))
    whole = b"".join(bytes(part.content) for part in parts)
    assert (opening.length, opening.offset, digest_of(whole)) == (task.model_bytes, 0, task.model)
    opening, *parts = site.client.download(m.DownloadRequest(task.model, 1_001, task.ref))
    assert (opening.length, opening.offset) == (task.model_bytes, 1_001)
    assert b"".join(bytes(part.content) for part in parts) == whole[1_001:]
    closes(rest_federation, site, task)


def test_a_revoked_site_is_refused_at_the_next_call_and_its_open_poll_ends(rest_federation):
    site = rest_federation.over_https("site-r")
    waiting = ThreadPoolExecutor(1).submit(site.client.next_work, (), 50.0)
    rest_federation.until(lambda: _is_there(rest_federation, site))
    Revocations(rest_federation.hub.engine).revoke("site-r", "a test", time.time())
    for call in (
        lambda: site.client.beat(m.Heartbeat()),
        lambda: site.client.request_upload(m.UpdateHeader(REF, "ab" * 32, 4, 1)),
        lambda: list(site.client.download(m.DownloadRequest("ab" * 32))),
        site.client.roster,
    ):
        with pytest.raises(NotAuthorizedError, match="was revoked"):
            call()
    with pytest.raises(NotAuthorizedError, match="was revoked"):
        waiting.result(30.0)


def test_a_key_that_is_taken_back_ends_the_poll_that_it_opened(rest_federation, monkeypatch):
    monkeypatch.setattr("fedveil.director.rest.sites._AGAIN_SECONDS", 0.0)
    site = rest_federation.over_https("site-r")
    waiting = ThreadPoolExecutor(1).submit(site.client.next_work, (), 50.0)
    rest_federation.until(lambda: _is_there(rest_federation, site))
    user = rest_federation.hub.users.first(rest_federation.hub.users.table.c.name == "north-hospital")
    for key in rest_federation.hub.sign_in.keys(user.id):
        rest_federation.hub.sign_in.revoke_key(key.id, time.time())
    with pytest.raises(IdentityError, match="no such API key"):
        waiting.result(30.0)
    with pytest.raises(IdentityError):
        site.client.beat(m.Heartbeat())


def test_another_organizations_key_is_told_of_no_such_site_and_a_stranger_nothing(rest_federation, site):
    root = certificate_pem(rest_federation.root)
    for key, error in (
        (rest_federation.api_key("South Hospital"), UnknownEntityError),
        ("fv_" + "0" * 16 + "_" + "A" * 43, IdentityError),
        ("", IdentityError),
        (rest_federation.api_key("North Hospital", "view:envoy:organization"), NotAuthorizedError),
    ):
        stranger = RestLink(rest_federation.url, key, root, "site-r")
        with pytest.raises(error):
            stranger.next_work((), 0.0)
        with pytest.raises(error):
            stranger.upload(parts_of(m.Turn(REF, "ab" * 16, 0, 4000)))
        stranger.close()
    site.client.beat(m.Heartbeat())


def test_one_site_has_so_many_calls_open_and_no_more_and_others_are_answered_meanwhile(rest_federation):
    """Each poll ends the one before it; uploads that never go on hold their calls."""
    key = rest_federation.api_key()
    first, second = rest_federation.over_https("site-r", key), rest_federation.over_https("site-s", key)
    ends = threading.Event()

    def never_goes_on():
        yield m.Opening(4, 0, "ab" * 16) if ends.wait(60.0) else m.Closing("ab" * 32)

    def upload():
        with pytest.raises((ProtocolError, MalformedMessageError, UnreachableError, TooManyCallsError)):
            first.client.upload(never_goes_on())

    threads = [threading.Thread(target=upload, daemon=True) for _ in range(MAX_CALLS)]
    for thread in threads:
        thread.start()

    def is_full() -> bool:
        try:
            first.client.beat(m.Heartbeat())
        except TooManyCallsError:
            return True
        return False

    rest_federation.until(is_full)
    second.client.beat(m.Heartbeat())
    assert isinstance(second.client.next_work((), 0.0), m.Idle)
    ends.set()
    for thread in threads:
        thread.join(60.0)
    rest_federation.until(lambda: not is_full())


def test_more_polls_wait_than_the_framework_has_threads(rest_federation):
    """Starlette answers plain calls in forty threads; polls have their own."""
    key = rest_federation.api_key()
    sites = [rest_federation.over_https(f"site-{number}", key) for number in range(45)]
    with ThreadPoolExecutor(len(sites)) as pool:
        polls = [pool.submit(site.client.next_work, (), 40.0) for site in sites]
        rest_federation.until(lambda: sum(_is_there(rest_federation, site) for site in sites) == len(sites), 60.0)
        sites[0].client.beat(m.Heartbeat())
        assert not any(poll.done() for poll in polls)
        rest_federation.submit()
        for poll in polls:
            assert isinstance(poll.result(30.0), m.Offer)


def _is_there(federation, site) -> bool:
    return federation.director._coordinator.presence(m.EnvoyName(site.name))[0]


def test_a_poll_that_waits_ends_when_the_director_closes(rest_federation):
    site = rest_federation.over_https("site-r")
    waiting = ThreadPoolExecutor(1).submit(site.client.next_work, (), 50.0)
    rest_federation.until(lambda: _is_there(rest_federation, site))
    rest_federation.director.close()
    with contextlib.suppress(UnreachableError):
        assert isinstance(waiting.result(30.0), m.Idle)
    with pytest.raises(UnreachableError):
        site.client.beat(m.Heartbeat())


def test_a_poll_that_waits_ends_when_the_site_closes(rest_federation):
    site = rest_federation.over_https("site-r")
    waiting = ThreadPoolExecutor(1).submit(site.client.next_work, (), 50.0)
    rest_federation.until(lambda: _is_there(rest_federation, site))
    site.client.close()
    with pytest.raises(UnreachableError, match="was closed"):
        waiting.result(20.0)
    with pytest.raises(UnreachableError, match="was closed"):
        site.client.beat(m.Heartbeat())


def test_a_site_renews_over_https_and_its_folder_is_an_envoys(rest_federation, site):
    folder, key = rest_federation.folder.parent / "site-r", load_access(rest_federation.folder.parent / "site-r")
    held = load_credentials(folder, time.time())
    assert key is not None
    assert (folder / "rest.json").stat().st_mode & 0o777 == 0o600
    request, keys = prepare_renewal(held, time.time())
    new = renewed(held, keys, site.client.renew(request))
    assert new.chain != held.chain
    assert new.peer == held.peer
    theirs, _ = prepare_renewal(
        replace(held, identity_key=rest_federation.registered("other", key.api_key).identity_key), time.time()
    )
    with pytest.raises(IdentityError, match="did not sign"):
        site.client.renew(theirs)
    # Over gRPC the same certificates open a connection.
    grpc = rest_federation.puppet("site-r", _Tls(new.chain, new.leaf_key, new.root))
    assert grpc.client.hello().federation == "lungs"


class _Tls:
    def __init__(self, chain: bytes, key: bytes, root: bytes) -> None:
        self.chain, self.key, self.root = chain, key, root


def test_a_registration_whose_answer_was_lost_is_repeated(rest_federation, tmp_path, monkeypatch):
    access = RestAccess(rest_federation.url, rest_federation.api_key())
    root, folder = certificate_pem(rest_federation.root), tmp_path / "lost"
    with monkeypatch.context() as patched:

        def lost(*_):
            raise UnreachableError("the answer was lost")

        patched.setattr("fedveil.envoy.registration._answer", lost)
        with pytest.raises(UnreachableError):
            register(folder, access, root, "site-l", time.time())
    assert str(register(folder, access, root, "site-l", time.time()).peer) == "spiffe://lungs/envoy/site-l"
    with pytest.raises(IdentityError, match="a member already"):
        register(folder, access, root, "site-l", time.time())


def test_only_the_federations_own_director_is_called(rest_federation, tmp_path, bundle):
    theirs = type(rest_federation)(tmp_path / "their-director", bundle, serves_rest=True)
    try:
        access = RestAccess(theirs.url, "fv_a-key-that-they-shall-not-see")
        with pytest.raises(UnreachableError, match="no certificate of this federation's root"):
            register(tmp_path / "fooled", access, certificate_pem(rest_federation.root), "site-f", time.time())
    finally:
        theirs.close()
    for url in ("http://127.0.0.1:1", "ftp://x", "https://", "127.0.0.1:1"):
        with pytest.raises(ConfigError):
            RestAccess(url, "fv_key")
