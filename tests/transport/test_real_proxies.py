"""A site behind a real proxy that wants a password: a round goes through it; what is wrong is said in plain words."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.__main__ import app as director_app
from fedveil.director.config import load_config
from fedveil.director.founding import init_federation
from fedveil.director.server import Director
from fedveil.envoy.__main__ import app
from fedveil.envoy.client import DirectorClient
from fedveil.envoy.proxy import ProxySettings, way_to
from fedveil.utils import messages as m
from fedveil.utils.addresses import Address
from fedveil.utils.errors import FederationError, UnreachableError
from fedveil.utils.plan_bundle import open_bundle
from fedveil.utils.private_files import write_private_file
from fedveil.utils.proxies import Proxy
from fedveil.utils.tensors import bytes_of, digest_of
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

ODD = "p@ss:w%rd/#x é"
MANY = 1_000_000  # elements, 4 MB
LARGE = f"""
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec

class Large(ArrayPlan):
    data = DataSpec("none", DataKind.NONE)

    def initial(self):
        return {{"w": np.zeros({MANY}, np.float32)}}

    def train(self, weights, data, rng):
        return weights, 1

    def evaluate(self, weights, data):
        return ()
"""


@pytest.fixture(autouse=True)
def _no_proxy_in_the_environment(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bundle(tmp_path: Path):
    """The toy plan with four megabytes of weights."""
    (tmp_path / "large.py").write_text(LARGE)
    build_plan(tmp_path / "large.py", tmp_path / "large")
    return open_bundle(tmp_path / "large")


def proxy_of(started, user: str = "site", password: str = "sesame") -> Proxy:
    return Proxy(Address("127.0.0.1", started.port), user, password)


def client_through(federation, way, name: str = "site-a") -> DirectorClient:
    tls = federation.certificate(name=name)
    return DirectorClient(federation.address, tls.chain, tls.key, tls.root, way)


def download(client: DirectorClient, digest) -> bytes:
    return b"".join(
        bytes(part.content) for part in client.download(m.DownloadRequest(digest)) if isinstance(part, m.Data)
    )


def parts(turn: m.Turn, raw: bytes, size: int = 1 << 20) -> list[m.Part]:
    data = [m.Data(raw[start : start + size]) for start in range(turn.offset, len(raw), size)]
    return [m.Opening(len(raw), turn.offset, turn.grant), *data, m.Closing(digest_of(raw))]


def answer(client: DirectorClient, task: m.Task) -> None:
    """What an envoy does in a round: fetch the model, train, send the update."""
    assert len(download(client, task.model)) > 4 * MANY
    raw = bytes(bytes_of(np.ones(MANY, np.float32)))
    turn = client.request_upload(m.UpdateHeader(task.ref, task.layout, len(raw), 1))
    assert isinstance(turn, m.Turn)
    client.upload(parts(turn, raw))


def polled_task(client: DirectorClient, seconds: float = 60.0) -> m.Task:
    """The next task by long poll, asked again whenever a line breaks; what is offered is approved."""
    deadline, pause, approved = time.monotonic() + seconds, threading.Event(), ()
    while time.monotonic() < deadline:
        try:
            item = client.next_work((), 5.0, approved)
        except UnreachableError:
            pause.wait(0.1)
            continue
        if isinstance(item, m.Offer):
            approved = (digest_of(item.proposal.content),)
        if isinstance(item, m.Task):
            return item
    raise AssertionError("no task came")


def test_a_round_of_four_megabytes_goes_through_a_proxy_that_wants_a_password(federation, start_tinyproxy):
    proxy = start_tinyproxy()
    client = client_through(federation, proxy_of(proxy))
    assert client.beat(m.Heartbeat()).now > 0
    run = federation.submit()
    task = polled_task(client)
    answer(client, task)
    assert federation.finished(run).state == "finished"
    client.close()
    assert f"CONNECT {federation.address} HTTP/1.1" in proxy.said  # it was no way around


@pytest.mark.parametrize("password", [ODD, "a", "with space"])
def test_a_password_may_be_any_text(federation, start_squid, password: str):
    proxy = start_squid(password)
    with_it = client_through(federation, proxy_of(proxy, password=password))
    assert with_it.hello().federation == "lungs"
    with_it.close()


@pytest.mark.parametrize(("user", "password"), [("site", "wrong"), ("", ""), ("else", "sesame")])
def test_a_wrong_or_missing_password_is_said_in_plain_words(federation, start_tinyproxy, user: str, password: str):
    client = client_through(federation, proxy_of(start_tinyproxy(), user, password))
    with pytest.raises(UnreachableError, match="the proxy wants a user and a password") as caught:
        client.hello()
    client.close()
    assert not password or password not in str(caught.value)


def test_a_proxy_that_denies_the_port_is_said_in_plain_words(federation, start_tinyproxy):
    client = client_through(federation, proxy_of(start_tinyproxy("BasicAuth site sesame\nConnectPort 443")))
    with pytest.raises(UnreachableError, match="does not allow a tunnel to the director's host and port"):
        client.hello()
    client.close()


def test_a_proxy_that_is_not_there_is_not_gone_around(federation, start_tinyproxy):
    proxy = start_tinyproxy()
    client = client_through(federation, proxy_of(proxy))
    proxy.kill()
    with pytest.raises(UnreachableError, match="refused"):
        client.hello()
    proxy.start()
    federation.until(lambda: _answers(client))
    client.close()


def test_a_round_goes_on_over_a_proxy_that_goes_away_in_mid_stream_and_comes_back(federation, start_tinyproxy):
    proxy = start_tinyproxy()
    client = client_through(federation, proxy_of(proxy))
    line = client.work(())
    assert next(line) == m.Idle()
    proxy.kill()
    with pytest.raises(UnreachableError):
        next(line)
    run = federation.submit()  # nobody is told: the way is broken
    proxy.start()
    answer(client, polled_task(client))
    assert federation.finished(run).state == "finished"
    client.close()


def test_polling_goes_on_over_a_proxy_that_cuts_every_long_connection(federation, start_squid):
    proxy = start_squid("sesame", "read_timeout 1 seconds\nclient_lifetime 1 seconds")
    client = client_through(federation, proxy_of(proxy))
    cut = 0
    deadline = time.monotonic() + 60.0
    while cut < 2:  # it does cut
        assert time.monotonic() < deadline
        try:
            client.next_work((), 10.0)
        except UnreachableError:
            cut += 1
    run = federation.submit()
    answer(client, polled_task(client))
    assert federation.finished(run).state == "finished"
    client.close()


def _answers(client: DirectorClient) -> bool:
    try:
        return client.hello(2.0).federation == "lungs"
    except FederationError:
        return False


# a site that cannot even resolve the director's name: only the proxy can


@pytest.fixture
def named_director(tmp_path: Path):
    """A director whose certificate is for ``director.example.org`` alone, and a join file for one site."""
    folder = tmp_path / "named"
    init_federation(folder, "lungs", ["director.example.org"], b"passphrase", time.time(), listen="127.0.0.1:0")
    director = Director(folder, load_config(folder))
    words = ["invite", "site-a", "--organization", "Hospital A", "--folder", folder, "--out", tmp_path / "a.join"]
    said = CliRunner().invoke(director_app, [str(word) for word in words])
    assert said.exit_code == 0, said.output
    yield tmp_path / "a.join"
    director.close()


def envoy(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def test_a_site_joins_through_its_proxy_and_keeps_it(named_director: Path, start_squid, tmp_path: Path):
    proxy, site = start_squid(ODD), tmp_path / "site"
    write_private_file(tmp_path / "password", ODD.encode() + b"\n")
    words = ["--proxy", proxy.url, "--proxy-user", "site", "--proxy-password-file", tmp_path / "password"]
    code, said = envoy("join", named_director, "--folder", site, "--yes", *words)
    assert code == 0, said
    kept = (site / "envoy.toml").read_text("utf-8")
    assert f'url = "{proxy.url}"' in kept
    assert ODD not in kept + said
    code, said = envoy("roster", "fetch", "--folder", site)  # goes the same way, from envoy.toml
    assert code == 0, said


def test_a_site_joins_by_the_proxy_of_an_envoy_toml_that_it_wrote_before(named_director, start_squid, tmp_path):
    proxy, site = start_squid("sesame"), tmp_path / "site"
    site.mkdir()
    write_private_file(site / "secret", b"sesame")
    table = f'[proxy]\nurl = "{proxy.url}"\nuser = "site"\npassword_file = "secret"\n'
    (site / "envoy.toml").write_text(table, "utf-8")
    code, said = envoy("join", named_director, "--folder", site, "--yes")
    assert code == 0, said


def test_a_join_through_a_proxy_that_wants_a_password_says_so(named_director, start_squid, tmp_path):
    code, said = envoy("join", named_director, "--folder", tmp_path / "site", "--yes", "--proxy", start_squid("x").url)
    assert code == 1
    assert "the proxy wants a user and a password" in said


def test_a_password_has_no_place_on_the_command_line(named_director, tmp_path):
    words = ["--proxy", "http://site:sesame@127.0.0.1:3128"]
    code, said = envoy("join", named_director, "--folder", tmp_path / "site", "--yes", *words)
    assert code == 1
    assert "--proxy-password-file" in said
    assert "sesame" not in said


def test_the_proxy_of_envoy_toml_is_not_for_this_machine_unless_it_says_so(federation, start_tinyproxy, tmp_path):
    proxy = start_tinyproxy()
    write_private_file(tmp_path / "secret", b"sesame")
    for exempt, heard in (({}, False), ({"no_proxy": ()}, True)):
        settings = ProxySettings(proxy.url, "site", Path("secret"), **exempt)
        client = client_through(federation, way_to(federation.address, settings, tmp_path))
        assert client.hello().federation == "lungs"
        client.close()
        assert (f"CONNECT {federation.address} " in proxy.said) is heard


def test_an_envoy_works_behind_its_proxy_and_its_password_is_nowhere_to_be_seen(named_director, start_squid, tmp_path):
    proxy, site = start_squid(ODD), tmp_path / "site"
    site.mkdir()
    write_private_file(site / "secret", ODD.encode())
    table = f'[proxy]\nurl = "{proxy.url}"\nuser = "site"\npassword_file = "secret"\n'
    settings = f'log_level = "debug"\n[training]\npreload_torch = false\n[protection]\nchain = ["check"]\n{table}'
    (site / "envoy.toml").write_text(settings, "utf-8")
    assert envoy("join", named_director, "--folder", site, "--yes")[0] == 0
    command = [sys.executable, "-m", "fedveil.envoy", "start", "--folder", str(site)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline, pause = time.monotonic() + 60.0, threading.Event()
        while "connected" not in (tmp_path / "log").read_text("utf-8"):
            assert process.poll() is None, (tmp_path / "log").read_text("utf-8")
            assert time.monotonic() < deadline
            pause.wait(0.05)
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes() + Path(f"/proc/{process.pid}/environ").read_bytes()
        said = envoy("status", "--folder", site)[1] + envoy("doctor", "--folder", site)[1]
    finally:
        process.terminate()
        process.wait(timeout=30.0)
    assert "opens a tunnel" in said
    kept = [path.read_bytes() for path in site.rglob("*") if path.is_file() and path.name != "secret"]
    everything = b"".join([shown, said.encode(), (tmp_path / "log").read_bytes(), *kept])
    assert ODD.encode() not in everything
    assert Proxy(Address("127.0.0.1", 1), "site", ODD).authorization.split()[1].encode() not in everything
