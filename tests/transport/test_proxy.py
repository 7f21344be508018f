"""A site behind a proxy: it is used for a director elsewhere, and not for one on the same machine."""

import os
import socket
import threading

import grpc
import pytest
from fedveil.utils import messages as m
from fedveil.utils.addresses import Address
from fedveil.utils.proxies import EXEMPTING_VARIABLES, proxy_of_environment
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
        thread.join(timeout=60.0)


def test_a_director_on_the_same_machine_is_reached_past_the_proxy(federation, proxy):
    federation.puppet("site-a").client.beat(m.Heartbeat())
    with federation.operator() as operator:
        assert operator.status().federation == "lungs"
    assert not proxy[0]


def test_a_director_elsewhere_is_reached_through_the_proxy(federation, proxy):
    heard, came = proxy
    tls = federation.certificate()
    with open_channel("director.example.org:9443", tls.chain, tls.key, tls.root) as channel:
        call = channel.unary_unary("/fedveil.v1.Federation/Beat").future(b"", timeout=60.0)
        assert came.wait(60.0)
        call.cancel()
    assert heard[0].startswith("CONNECT director.example.org:9443 ")


@pytest.mark.parametrize(
    ("used", "exempting", "is_taken"),
    [
        ("grpc_proxy", {}, True),
        ("https_proxy", {}, True),
        ("http_proxy", {}, True),
        ("HTTPS_PROXY", {}, False),
        ("https_proxy", {"no_proxy": "example.invalid"}, False),
        ("https_proxy", {"no_proxy": " other.invalid , EXAMPLE.invalid"}, False),
        ("https_proxy", {"no_proxy": "other.invalid"}, True),
        ("https_proxy", {"no_proxy": "example.invalid", "no_grpc_proxy": "other.invalid"}, True),
        ("https_proxy", {"no_grpc_proxy": ".example.invalid"}, False),
    ],
)
def test_which_proxy_grpc_takes_is_what_a_doctor_says(federation, proxy, monkeypatch, used, exempting, is_taken):
    heard, _ = proxy
    url = os.environ["https_proxy"]
    for name in (*VARIABLES, *EXEMPTING_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    for name, value in {used: url, **exempting}.items():
        monkeypatch.setenv(name, value)
    tls, address = federation.certificate(), "director.example.invalid:9443"
    with open_channel(address, tls.chain, tls.key, tls.root) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/fedveil.v1.Federation/Beat")(b"", timeout=60.0)  # the proxy hangs up, or no such name
    said = proxy_of_environment(Address.parse(address), os.environ)
    assert (said is not None) is bool(heard) is is_taken
