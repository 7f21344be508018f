"""Over a real socket: TLS 1.3 with the federation's own certificate, also after that was renewed."""

import socket
import ssl
import time
from pathlib import Path

import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import ROOT_FILE, init_federation
from fedveil.director.issuer import IssuerFile
from fedveil.director.rest.serving import RestServer
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.addresses import Address
from fedveil.utils.errors import ConfigError


class Served:
    """A door that listens, and a clock that its certificate goes by."""

    def __init__(self, folder: Path, app) -> None:
        self.behind = 5.5 * 86400.0  # its certificate has 1.5 of its 7 days left by our clock, and all by its own
        init_federation(folder, "lungs", ["127.0.0.1"], b"passphrase", time.time() - self.behind, listen="127.0.0.1:0")
        self.root = folder / ROOT_FILE
        clock = lambda: time.time() - self.behind  # noqa: E731
        certificate = ServerCertificate(folder, load_config(folder), IssuerFile(folder, clock), clock)
        self.server = RestServer(app, Address.parse("127.0.0.1:0"), certificate)

    def connected(self, most=ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=str(self.root))
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, most
        raw = socket.create_connection(("127.0.0.1", self.server.port), 10)
        return context.wrap_socket(raw, server_hostname="127.0.0.1")

    def get(self, path: str) -> bytes:
        with self.connected() as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: director\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.fixture
def until():
    """Waits for what another thread does."""

    def wait(is_so):
        deadline = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < deadline

    return wait


@pytest.fixture
def served(tmp_path, world, monkeypatch):
    monkeypatch.setattr("fedveil.director.rest.serving._LOOK_SECONDS", 0.02)
    made = Served(tmp_path / "director", world.app)
    yield made
    made.server.close()


def test_it_answers_over_tls_1_3_and_to_nobody_who_offers_less(served):
    with served.connected() as line:
        assert line.version() == "TLSv1.3"
    answer = served.get("/healthz")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"uvicorn" not in answer
    with pytest.raises(ssl.SSLError):
        served.connected(ssl.TLSVersion.TLSv1_2)


def test_a_renewed_certificate_is_shown_without_a_restart(served, until):
    def shown() -> bytes:
        with served.connected() as line:
            return line.getpeercert(binary_form=True)

    first = shown()
    assert shown() == first
    served.behind = 0.0
    until(lambda: shown() != first)
    second = shown()
    assert shown() == second


def test_a_port_that_is_taken_is_said_to_be(served, world):
    with pytest.raises(ConfigError, match="cannot listen on"):
        RestServer(world.app, Address.parse(f"127.0.0.1:{served.server.port}"), None)


def test_after_its_end_nobody_answers(served):
    served.server.close()
    with pytest.raises(OSError):
        served.connected()
