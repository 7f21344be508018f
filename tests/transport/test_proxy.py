"""A site behind a proxy: it is used for a director elsewhere, and not for one on the same machine."""

import socket
import threading

import pytest
from fedveil.utils import messages as m
from fedveil.utils.transport import open_channel

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that hears one request and hangs up; gives the list that takes its first line."""
    heard, came = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            try:
                caller, _ = server.accept()
            except OSError:
                return  # the test is over
            with caller, caller.makefile("rb") as lines:
                heard.append(lines.readline().decode())
                came.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        for name in VARIABLES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield heard, came
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5.0)


def test_a_director_on_the_same_machine_is_reached_past_the_proxy(federation, proxy):
    federation.puppet("site-a").client.beat(m.Heartbeat())
    with federation.operator() as operator:
        assert operator.status().federation == "lungs"
    assert not proxy[0]


def test_a_director_elsewhere_is_reached_through_the_proxy(federation, proxy):
    heard, came = proxy
    tls = federation.certificate()
    with open_channel("director.example.org:9443", tls.chain, tls.key, tls.root) as channel:
        call = channel.unary_unary("/fedveil.v1.Federation/Beat").future(b"", timeout=10.0)
        assert came.wait(10.0)
        call.cancel()
    assert heard[0].startswith("CONNECT director.example.org:9443 ")
