"""Over real sockets: who may connect at all, and who may say what."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.database import open_database
from fedveil.director.founding import load_tls
from fedveil.director.identity_store import IdentityStore
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.envoy.client import DirectorClient, bootstrap_client
from fedveil.envoy.enrolment import load_credentials, make_keys, prepare_join, save_credentials
from fedveil.utils import messages as m
from fedveil.utils import transport
from fedveil.utils.certificates import DAY_SECONDS, certificate_pem, issue_identity, key_pem, make_issuer, make_root
from fedveil.utils.errors import (
    FederationError,
    IdentityError,
    JoinFileError,
    NotAuthorizedError,
    UnreachableError,
)
from fedveil.utils.identity import Role
from fedveil.utils.join_file import JoinFile, read_join_file, write_join_file

REF = m.TaskRef("toy-1", 1, 1, "ab" * 32)
FEDERATION_CALLS = {
    "next_work": lambda c: c.next_work((), 0.0),
    "work": lambda c: next(c.work(())),
    "download": lambda c: next(c.download(m.DownloadRequest("ab" * 32))),
    "request_upload": lambda c: c.request_upload(m.UpdateHeader(REF, "ab" * 32, 4, 1)),
    "upload": lambda c: c.upload([m.Opening(4), m.Data(b"abcd")]),
    "report": lambda c: c.report(m.MetricsReport(REF, ())),
    "decline": lambda c: c.decline(m.Refusal(REF, "PlanError", "no")),
    "beat": lambda c: c.beat(m.Heartbeat()),
}
CONTROL_CALLS = {
    "Status": "unary_unary",
    "Submit": "unary_unary",
    "PutBlob": "stream_unary",
    "List": "unary_unary",
    "Show": "unary_unary",
    "Steer": "unary_unary",
    "Fetch": "unary_stream",
}


def beats(client: DirectorClient) -> None:
    """One call, not to wait for the channel's own patience."""
    try:
        client._beat(m.Heartbeat(), timeout=60.0)
    except transport.grpc.RpcError as failure:
        raise transport.error_of(failure) from failure


def refused_at_the_door(federation, tls) -> str:
    client = federation.puppet("caller", tls).client
    with pytest.raises(FederationError) as caught:
        beats(client)
    assert isinstance(caught.value, UnreachableError | IdentityError)
    return str(caught.value)


def still_serves(federation) -> None:
    """Whatever came before, the next good envoy's round closes."""
    (envoy,) = federation.attending("site-good")
    run = federation.submit()
    envoy.send(envoy.task(), 1.0)
    assert np.array_equal(federation.model(federation.finished(run)), np.ones(10_000, np.float32))


def with_files(tmp_path: Path, tls) -> tuple[Path, Path]:
    (tmp_path / "chain.pem").write_bytes(tls.chain)
    (tmp_path / "key.pem").write_bytes(tls.key)
    return tmp_path / "chain.pem", tmp_path / "key.pem"


def handshake(federation, tls, tmp_path: Path, version: ssl.TLSVersion, *, shows_certificate: bool = True) -> str:
    """The TLS version agreed upon, after the first answer of the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=tls.root.decode())
    context.set_alpn_protocols(["h2"])
    if shows_certificate:
        context.load_cert_chain(*with_files(tmp_path, tls))
    address = ("127.0.0.1", federation.director.port)
    with (
        socket.create_connection(address, 5.0) as plain,
        context.wrap_socket(plain, server_hostname=address[0]) as line,
    ):
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        if not line.recv(9):  # with TLS 1.3 a client hears of its refusal with the first answer
            raise ConnectionResetError
        return line.version() or ""


def test_tls_1_3_is_spoken_and_1_2_is_refused(federation, tmp_path: Path):
    tls = federation.certificate()
    assert handshake(federation, tls, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(federation, tls, tmp_path, ssl.TLSVersion.TLSv1_2)
    still_serves(federation)


def test_a_caller_without_a_certificate_is_refused(federation, tmp_path: Path):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(federation, federation.certificate(), tmp_path, ssl.TLSVersion.TLSv1_3, shows_certificate=False)
    still_serves(federation)


def test_a_plaintext_caller_is_refused(federation):
    with socket.create_connection(("127.0.0.1", federation.director.port), 5.0) as line:
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        try:
            answer = line.recv(100)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(bytes.fromhex("0000"))  # no HTTP/2 frame came back
    still_serves(federation)


def test_a_certificate_of_another_authority_is_refused(federation):
    now = time.time()
    root = make_root("lungs", now)  # the very same name
    issuer = make_issuer(root, "lungs", now)
    tls = federation.certificate(issuer=issuer)
    assert "refused" not in refused_at_the_door(federation, tls)
    still_serves(federation)


def test_a_director_of_another_authority_is_refused_by_the_envoy(federation):
    tls = federation.certificate()
    tls.root = certificate_pem(make_root("lungs", time.time()).certificate)
    with pytest.raises(UnreachableError, match=r"(?i)handshake|certificate"):
        beats(federation.puppet("caller", tls).client)


@pytest.mark.parametrize("federation_name", ["hearts", "lungs.example"])
def test_a_certificate_of_another_federation_by_the_same_authority_is_refused(federation, federation_name: str):
    tls = federation.certificate(federation=federation_name)
    assert "belongs to another federation" in refused_at_the_door(federation, tls)


def test_an_expired_certificate_is_refused(federation):
    now = time.time()
    refused_at_the_door(federation, federation.certificate(seconds=60.0, now=now - 200.0))
    beats(federation.puppet("site-a", federation.certificate(seconds=600.0, now=now - 200.0)).client)


def test_a_certificate_of_tomorrow_is_refused(federation):
    refused_at_the_door(federation, federation.certificate(now=time.time() + DAY_SECONDS))
    still_serves(federation)


def test_the_servers_certificate_is_no_clients(federation):
    own = load_tls(federation.folder, Role.DIRECTOR, time.time())
    refused_at_the_door(federation, own)
    still_serves(federation)


def test_an_identity_certificate_opens_no_connection(federation):
    key = Ed25519PrivateKey.generate()
    identity = issue_identity(
        federation.issuer, key.public_key(), load_tls(federation.folder, Role.OPERATOR, time.time()).peer, time.time()
    )
    tls = federation.certificate()
    tls.chain, tls.key = certificate_pem(identity, federation.issuer.certificate), key_pem(key)
    refused_at_the_door(federation, tls)
    still_serves(federation)


@pytest.mark.parametrize("call", FEDERATION_CALLS)
@pytest.mark.parametrize("role", [Role.OPERATOR, Role.JOIN])
def test_nobody_but_an_envoy_says_what_envoys_say(federation, call: str, role: Role):
    client = federation.puppet("caller", federation.certificate(role, "0" * 32)).client
    with pytest.raises(NotAuthorizedError, match="may not do this; it is for envoy"):
        FEDERATION_CALLS[call](client)


@pytest.mark.parametrize("call", CONTROL_CALLS)
@pytest.mark.parametrize("role", [Role.ENVOY, Role.JOIN])
def test_nobody_but_an_operator_controls(federation, call: str, role: Role):
    client = federation.puppet("caller", federation.certificate(role, "0" * 32)).client
    kind = CONTROL_CALLS[call]
    method = getattr(client._channel, kind)(f"/{transport.CONTROL}/{call}")
    with pytest.raises(transport.grpc.RpcError) as caught:
        list(method(iter([b""]) if kind == "stream_unary" else b"", timeout=60.0))
    error = transport.error_of(caught.value)
    assert type(error) is NotAuthorizedError
    assert "it is for operator" in str(error)


@pytest.mark.parametrize("role", [Role.ENVOY, Role.OPERATOR])
def test_a_member_does_not_join_again(federation, role: Role, tmp_path: Path):
    invitation = invite(federation)
    request = make_keys(invitation).request()
    with pytest.raises(NotAuthorizedError, match="it is for join"):
        federation.puppet("caller", federation.certificate(role)).client.join(request)


# joining


def invite(federation, name: str = "site-a", ttl_seconds: float = 3600.0, now: float | None = None) -> JoinFile:
    engine = open_database(f"sqlite:///{federation.folder / 'director.sqlite'}", durable=False)
    try:
        registrar = Registrar("lungs", federation.issuer, federation.root, IdentityStore(engine), Revocations(engine))
        when = time.time() if now is None else now
        return registrar.invite(name, "Hospital A", Role.ENVOY, [federation.address], ttl_seconds, when)
    finally:
        engine.dispose()


def join(invitation: JoinFile, folder: Path) -> DirectorClient:
    """Join, and come back as the member."""
    request, keys = prepare_join(folder, invitation)
    client = bootstrap_client(invitation, invitation.addresses[0])
    try:
        reply = client.join(request)
    finally:
        client.close()
    save_credentials(folder, invitation, keys, reply, time.time())
    credentials = load_credentials(folder, time.time())
    return DirectorClient(credentials.addresses[0], credentials.chain, credentials.leaf_key, credentials.root)


def test_whoever_joins_is_an_envoy_from_then_on(federation, tmp_path: Path):
    client = join(invite(federation), tmp_path / "site")
    assert client.next_work((), 0.0) == m.Idle()
    client.close()
    with federation.operator() as operator:
        (view,) = operator.status().envoys
    assert (view.name, view.organization) == ("site-a", "Hospital A")


def test_a_join_file_is_good_once(federation, tmp_path: Path):
    invitation = invite(federation)
    join(invitation, tmp_path / "first").close()
    with pytest.raises(JoinFileError, match="used"):
        join(invitation, tmp_path / "second")
    join(invite(federation, "site-b"), tmp_path / "third").close()


def test_a_join_whose_answer_was_lost_may_be_repeated(federation, tmp_path: Path):
    invitation = invite(federation)
    request, _ = prepare_join(tmp_path / "site", invitation)
    client = bootstrap_client(invitation, invitation.addresses[0])
    client.join(request)
    client.close()
    join(invitation, tmp_path / "site").close()


def test_a_join_file_is_refused_when_it_is_too_late(federation, tmp_path: Path):
    invitation = invite(federation, ttl_seconds=60.0, now=time.time() - 120.0)
    write_join_file(tmp_path / "late.join", invitation)
    with pytest.raises(JoinFileError, match="this invitation of site-a ended"):
        read_join_file(tmp_path / "late.join", time.time())
    with pytest.raises(FederationError) as caught:  # one that does not look at the clock is not let in either
        bootstrap_client(invitation, federation.address).join(make_keys(invitation).request())
    assert isinstance(caught.value, UnreachableError | JoinFileError)
    still_serves(federation)


@pytest.mark.parametrize(
    ("old", "new"), [("site-a", "site-b"), ("Hospital A", "Hospital B"), ("127.0.0.1", "127.0.0.2"), ("MII", "MIJ")]
)
def test_a_join_file_that_was_tampered_with_is_refused(federation, tmp_path: Path, old: str, new: str):
    path = tmp_path / "site.join"
    write_join_file(path, invite(federation))
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(JoinFileError):
        read_join_file(path, time.time())


def test_one_who_knows_the_authority_but_was_not_invited_does_not_join(federation):
    tls = federation.certificate(Role.JOIN, "0" * 32)
    with pytest.raises(JoinFileError, match="this director did not make that join file"):
        federation.puppet("caller", tls).client.join(make_keys(invite(federation)).request())
