"""Calls of the API from elsewhere: one root is believed, and a refusal is the error that it was."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils import errors
from fedveil.utils.addresses import Address
from fedveil.utils.certificates import certificate_pem, make_root
from fedveil.utils.proxies import Proxy
from fedveil.utils.rest_calls import RestCalls, refused


@pytest.fixture
def served(tmp_path, world):
    """The URL of a door that listens, and the root's certificate."""
    folder = tmp_path / "director"
    init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time(), listen="127.0.0.1:0")
    certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder, time.time), time.time)
    server = RestServer(world.app, Address.parse("127.0.0.1:0"), certificate)
    yield f"https://127.0.0.1:{server.port}", (folder / ROOT_FILE).read_bytes()
    server.close()


@pytest.fixture
def token(world):
    return world.signed_in("north-admin").headers["Authorization"].removeprefix("Bearer ")


def test_it_asks_with_a_token_and_reads_what_is_answered(served, token):
    with RestCalls(served[0], token, served[1]) as calls:
        assert calls.json("GET", "/api/v1/me")["name"] == "north-admin"
        assert calls.json("GET", "/api/v1/organizations", params={"limit": 1})["items"][0]["status"] == "active"


def test_a_refusal_is_the_error_that_it_was_with_its_words(served, token):
    with RestCalls(served[0], token, served[1]) as calls:
        with pytest.raises(errors.UnknownEntityError, match="no such"):
            calls.json("GET", "/api/v1/organizations/nobody")
        with pytest.raises(errors.NotAuthorizedError, match=r"organization-admin|create:organization"):
            calls.json("POST", "/api/v1/organizations", {"name": "Third"})
    with RestCalls(*served[:1], "fs_" + "A" * 43, served[1]) as calls, pytest.raises(errors.IdentityError):
        calls.json("GET", "/api/v1/me")


def test_a_director_of_another_root_is_not_believed_whoever_signed_its_certificate(served):
    other = certificate_pem(make_root("lungs", time.time()).certificate)
    with RestCalls(served[0], "", other) as calls, pytest.raises(errors.UnreachableError, match=r"(?i)certificate"):
        calls.json("GET", "/healthz")


def test_there_is_no_call_in_clear_and_no_root_that_is_none(served):
    with pytest.raises(errors.ConfigError, match="https"):
        RestCalls("http" + "://127.0.0.1:1", "", served[1])
    with pytest.raises(errors.IdentityError, match="root"):
        RestCalls(served[0], "", b"no certificate")


def test_nobody_there_and_a_proxy_that_is_not_there_are_unreachable(served):
    nobody = "https://127.0.0.1:1"
    with RestCalls(nobody, "", served[1]) as calls, pytest.raises(errors.UnreachableError, match="127"):
        calls.json("GET", "/healthz")
    proxy = Proxy(Address.parse("127.0.0.1:1"))
    with RestCalls(served[0], "", served[1], proxy) as calls, pytest.raises(errors.UnreachableError):
        calls.json("GET", "/healthz")


def test_the_way_out_is_what_was_said_and_never_the_environments(served, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http" + "://127.0.0.1:1")
    with RestCalls(served[0], "", served[1]) as calls:
        assert calls.json("GET", "/healthz")


def test_a_proxy_is_asked_for_a_tunnel_with_its_user_and_the_token_stays_inside_of_it(served, token):
    heard = []

    class Refusing(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            heard.append((self.path, dict(self.headers)))
            self.send_error(403)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        proxy = Proxy(Address.parse(f"127.0.0.1:{server.server_port}"), "me", "secret")
        with RestCalls(served[0], token, served[1], proxy) as calls, pytest.raises(errors.UnreachableError):
            calls.json("GET", "/api/v1/me")
    finally:
        server.shutdown()
        server.server_close()
    (path, headers) = heard[0]
    assert path == served[0].removeprefix("https://")
    assert headers["Proxy-Authorization"] == proxy.authorization
    assert token not in str(headers)


@pytest.mark.parametrize(
    ("status", "raw", "kind"),
    [
        (409, b'{"type": "urn:fedveil:problem:WrongRoundError", "detail": "round 3"}', errors.WrongRoundError),
        (409, b'{"type": "urn:fedveil:problem:Refused", "detail": "x"}', errors.ProtocolError),
        (422, b'{"type": "urn:fedveil:problem:MalformedRequest", "detail": "x"}', errors.ConfigError),
        (404, b'{"type": "about:blank", "detail": "x"}', errors.UnknownEntityError),
        (500, b'{"type": "urn:fedveil:problem:Unexpected", "detail": "x"}', errors.UnreachableError),
        (502, b"<html>", errors.UnreachableError),
        (403, b"[]", errors.UnreachableError),
        (403, b'{"type": "urn:fedveil:problem:__init__", "detail": "x"}', errors.NotAuthorizedError),
    ],
)
def test_whatever_is_answered_is_one_of_our_errors(status, raw, kind):
    assert type(refused(status, raw, "https://director")) is kind


def test_an_answer_that_breaks_off_is_told(served, monkeypatch):
    def broken(*_args, **_more):
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    with RestCalls(served[0], "", served[1]) as calls:
        monkeypatch.setattr(httpx.Response, "iter_bytes", broken)
        with pytest.raises(errors.UnreachableError, match="peer closed"):
            calls.json("GET", "/healthz")
