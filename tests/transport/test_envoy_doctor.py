"""``envoy doctor``: every check is made to fail for real, and says what is wrong and what to do in plain words."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from fedveil.director.__main__ import app as director
from fedveil.envoy.__main__ import app
from fedveil.envoy.doctor import Surroundings, examine
from fedveil.envoy.sandbox.box import bubblewrap
from fedveil.utils import messages as m
from fedveil.utils import transport, wire
from fedveil.utils.addresses import Address
from fedveil.utils.certificates import (
    Authority,
    certificate_pem,
    issue_server,
    key_pem,
    make_issuer,
    make_key,
    make_root,
)
from fedveil.utils.diagnosis import Finding, Status
from fedveil.utils.private_files import write_private_file
from typer.testing import CliRunner

HOUR = 3600.0
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "HTTPS_PROXY", "HTTP_PROXY")


@pytest.fixture(autouse=True)
def _no_proxy_in_the_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def invitation(federation, tmp_path: Path) -> Path:
    words = ["invite", "site-a", "--organization", "Hospital A", "--folder", federation.folder]
    said = CliRunner().invoke(director, [str(word) for word in (*words, "--out", tmp_path / "a.join")])
    assert said.exit_code == 0, said.output
    return tmp_path / "a.join"


@pytest.fixture
def site(invitation: Path, tmp_path: Path) -> Path:
    """A site that joined."""
    assert typed("join", invitation, "--folder", tmp_path / "site", "--yes").exit_code == 0
    return tmp_path / "site"


def typed(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def look(folder: Path, join: Path | None = None, ahead: float = 0.0, **environ: str) -> list[Finding]:
    return list(examine(folder, join, Surroundings(environ, lambda: time.time() + ahead)))


def of(found: list[Finding], check: str) -> Finding:
    """The worst of a check's findings."""
    order = [Status.FAIL, Status.WARN, Status.PASS]
    return min((one for one in found if one.check == check), key=lambda one: order.index(one.status))


def fails(found: list[Finding], check: str) -> str:
    """What and fix of a check that failed, as one text."""
    worst = of(found, check)
    assert worst.status is Status.FAIL, worst
    assert worst.fix
    return f"{worst.what} | {worst.fix}"


def dials(site: Path, address: str, more: str = "") -> Path:
    """The same site, which calls somewhere else."""
    (site / "envoy.toml").write_text(f'addresses = ["{address}"]\n[protection]\nchain = ["check"]\n{more}', "utf-8")
    return site


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where every caller gets this."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return  # the test is over
                with line:
                    line.settimeout(10.0)
                    with suppress(OSError):  # a caller that hangs up, or does not believe
                        answer(line)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=60.0)


def in_tls(
    issuer: Authority, tmp_path: Path, *, host: str = "127.0.0.1", begins: float = 0.0, seconds: float = HOUR, **options
) -> Callable[[socket.socket], None]:
    """Speaks TLS with a certificate of this issuer, and waits for the other to hang up."""
    key = make_key()
    leaf = issue_server(issuer, key.public_key(), "lungs", [Address(host)], seconds, time.time() + begins)
    write_private_file(tmp_path / "served.pem", certificate_pem(leaf, issuer.certificate) + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "served.pem")
    context.set_alpn_protocols(options.get("alpn", ["h2"]))
    context.maximum_version = options.get("version", ssl.TLSVersion.TLSv1_3)

    def answer(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as spoken:
            spoken.recv(1)

    return answer


# all is well


def test_a_site_in_good_order_passes_every_check_of_network_and_papers(federation, site: Path):
    found = look(site)
    for check in (
        "settings",
        "papers",
        "permissions",
        "certificates",
        "dns",
        "port",
        "tls",
        "director",
        "clock",
        "disk",
    ):
        assert of(found, check).status is Status.PASS, of(found, check)
        assert not of(found, check).fix


def test_a_site_is_looked_at_before_it_joins_and_its_join_file_is_not_used_up(federation, invitation, tmp_path):
    found = look(tmp_path / "site", invitation)
    for check in ("papers", "certificates", "dns", "port", "tls", "director", "clock", "disk"):
        assert of(found, check).status is Status.PASS, of(found, check)
    assert not (tmp_path / "site").exists()
    assert typed("join", invitation, "--folder", tmp_path / "site", "--yes").exit_code == 0


def test_the_command_ends_with_1_if_anything_fails_and_says_the_fix(federation, site: Path):
    said = typed("doctor", "--folder", site)
    assert said.exit_code == 1  # no roster was accepted yet
    assert "FAIL" in said.stdout
    assert "fix:" in said.stdout
    rows = json.loads(typed("doctor", "--folder", site, "--json").stdout)
    assert {"check": "port", "status": "pass", "what": f"{federation.address} answers", "fix": ""} in rows


def test_no_finding_holds_a_key_or_a_password(federation, site: Path, start_tinyproxy):
    write_private_file(site / "secret", b"sesame-of-the-proxy")
    proxy = start_tinyproxy("BasicAuth site sesame-of-the-proxy")
    dials(
        site,
        federation.address,
        f'[proxy]\nurl = "{proxy.url}"\nuser = "site"\npassword_file = "secret"\nno_proxy = []',
    )
    said = typed("doctor", "--folder", site).stdout + typed("doctor", "--folder", site, "--network").stdout
    assert f"{proxy.url} opens a tunnel" in said
    assert "sesame" not in said
    assert "PRIVATE" not in said


# the folder


def test_a_folder_that_never_joined_is_told_what_to_do(tmp_path: Path):
    assert "envoy join FILE" in fails(look(tmp_path / "nowhere"), "papers")
    assert typed("doctor", "--folder", tmp_path / "nowhere").exit_code == 1


def test_damaged_credentials_are_named(site: Path):
    (site / "credentials.json").write_text("{", "utf-8")
    assert "is damaged" in fails(look(site), "papers")


def test_a_key_that_others_may_read_is_found(site: Path):
    (site / "credentials.json").chmod(0o640)
    assert f"chmod 600 {site / 'credentials.json'}" in fails(look(site), "permissions")
    assert stat.S_IMODE((site / "credentials.json").stat().st_mode) == 0o640  # it repairs nothing by itself


def test_a_wrong_setting_is_found(site: Path):
    (site / "envoy.toml").write_text("adresses = []", "utf-8")
    assert "did you mean addresses" in fails(look(site), "settings")


def test_a_site_without_protection_is_told_that_nothing_leaves(federation, site: Path):
    (site / "envoy.toml").write_text("", "utf-8")
    assert "every task is declined" in fails(look(site), "protection")


def test_a_chain_without_noise_is_worth_a_warning(federation, site: Path):
    assert of(look(site), "protection").status is Status.WARN


def test_a_site_without_a_roster_is_told_that_it_sums_with_nobody(federation, site: Path):
    assert "envoy roster fetch" in fails(look(site), "roster")


def test_a_machine_without_the_box_that_the_site_asks_for_is_found(federation, site: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no bwrap there
    bubblewrap.cache_clear()
    dials(site, federation.address, '[sandbox]\nminimum = "bubblewrap"\n')
    said = fails(look(site), "sandbox")
    assert "bubblewrap is not installed" in said
    assert "apt install bubblewrap" in said
    dials(site, federation.address, '[sandbox]\nminimum = "none"\n')
    assert of(look(site), "sandbox").status is Status.WARN
    bubblewrap.cache_clear()


def test_a_dataset_that_is_gone_or_was_written_since_is_found(federation, site: Path, tmp_path: Path):
    pictures = tmp_path / "pictures"
    for name in ("ill", "well"):
        (pictures / name).mkdir(parents=True)
        _picture(pictures / name / "1.png", 1)
        _picture(pictures / name / "2.png", 2)
    np.savez(tmp_path / "all.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, 0, 1]))
    assert typed("data", "add", "pictures", pictures, "--folder", site).exit_code == 0
    assert typed("data", "add", "arrays", tmp_path / "all.npz", "--folder", site).exit_code == 0
    assert of(look(site), "datasets").status is Status.PASS
    (pictures / "ill" / "1.png").write_bytes(b"no picture")
    assert "pictures: 1 of 4 files" in fails(look(site), "datasets")
    _picture(pictures / "ill" / "1.png", 1)
    (tmp_path / "all.npz").unlink()
    assert "arrays: " in fails(look(site), "datasets")
    assert "is not there" in fails(look(site), "datasets")


def test_a_disk_that_is_full_is_found(site: Path, monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))  # Python leaves SIGXFSZ ignored: EFBIG
    try:
        found = look(site)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "nothing can be written" in fails(found, "disk")
    assert not list(site.glob(".doctor*"))


def test_a_disk_without_room_for_the_largest_model_is_found(site: Path):
    (site / "work").mkdir(exist_ok=True)
    with (site / "work" / "model").open("wb") as file:
        file.truncate(1 << 43)  # holds nothing
    assert "make room" in fails(look(site), "disk")


# the network


def test_a_name_that_is_not_known_is_found(site: Path):
    said = fails(look(dials(site, "director.invalid:9443")), "dns")
    assert "director.invalid" in said or "name server" in said


def test_a_closed_port_is_found(site: Path):
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        said = fails(look(dials(site, f"127.0.0.1:{bound.getsockname()[1]}")), "port")
    assert "nothing listens on the port" in said
    assert "ask the operator" in said


def test_a_firewall_that_drops_is_found(site: Path, monkeypatch):
    def silent(*_: object) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    said = fails(look(site), "port")
    assert "a firewall that drops" in said
    assert "envoy doctor --network" in said


def test_a_proxy_that_opens_tls_is_recognised_and_its_authority_named(federation, site: Path, tmp_path: Path):
    inspecting = make_issuer(make_root("Inspecting", time.time()), "Corp Inspection", time.time())
    with serving(in_tls(inspecting, tmp_path)) as port:
        said = fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    assert "issued by 'Corp Inspection issuer'" in said
    assert "exempt 127.0.0.1 from TLS inspection" in said


def test_a_federation_of_the_same_name_but_another_root_is_told_apart(federation, site: Path, tmp_path: Path):
    now = time.time()
    with serving(in_tls(make_issuer(make_root("lungs", now), "lungs", now), tmp_path)) as port:
        said = fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    assert "another root" in said
    assert "compare the root's fingerprint" in said


def test_a_certificate_for_another_name_is_found(federation, site: Path, tmp_path: Path):
    with serving(in_tls(federation.issuer, tmp_path, host="elsewhere.example")) as port:
        said = fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    assert "it names elsewhere.example" in said


def test_an_expired_certificate_of_the_director_is_found(federation, site: Path, tmp_path: Path):
    with serving(in_tls(federation.issuer, tmp_path, seconds=-60.0)) as port:
        said = fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    assert "the director's certificate ended on" in said
    assert "is this machine's clock right?" in said


def test_a_director_of_an_hour_later_shows_that_this_clock_is_behind(federation, site: Path, tmp_path: Path):
    with serving(in_tls(federation.issuer, tmp_path, begins=HOUR)) as port:
        said = fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    assert "at least 55 min behind" in said  # certificates begin five minutes before they are made
    assert "time server" in said


@pytest.mark.parametrize(
    ("ahead", "begins", "seconds", "words"),
    [(HOUR, HOUR, HOUR, "1.0 h behind"), (-2 * HOUR, 0.0, -60.0, "2.0 h ahead of")],
)
def test_a_clock_by_which_the_directors_certificate_is_not_good_is_found_exactly(
    federation, site: Path, ahead: float, begins: float, seconds: float, words: str
):
    """Of a director that has another time, and whose certificate is not good by this machine's."""
    key = make_key()
    leaf = issue_server(
        federation.issuer, key.public_key(), "lungs", [Address("127.0.0.1")], seconds, time.time() + begins
    )
    hello = grpc.unary_unary_rpc_method_handler(
        lambda _, __: wire.hello_reply_to_wire(m.HelloReply("lungs", "fedveil", time.time() + ahead))
    )
    server = grpc.server(ThreadPoolExecutor(2), options=transport.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(transport.FEDERATION, {"Hello": hello}),))
    chain, root = certificate_pem(leaf, federation.issuer.certificate), certificate_pem(federation.root)
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key_pem(key), chain)], root, require_client_auth=True)
    )
    server.start()
    try:
        found = look(dials(site, f"127.0.0.1:{port}"))
    finally:
        server.stop(None).wait()
    assert of(found, "tls").status is Status.FAIL
    assert f"this machine's clock is {words} the director's" in fails(found, "clock")


def test_an_expired_director_whose_clock_agrees_is_not_blamed_on_this_clock(federation, site: Path, tmp_path: Path):
    with serving(in_tls(federation.issuer, tmp_path, seconds=-60.0)) as port:
        found = look(dials(site, f"127.0.0.1:{port}"))
    assert of(found, "tls").status is Status.FAIL
    assert not [one for one in found if one.check == "clock"]  # it said no Hello: nothing is claimed


def test_something_in_between_that_knows_no_tls_1_3_or_no_http_2_is_found(federation, site: Path, tmp_path: Path):
    with serving(in_tls(federation.issuer, tmp_path, version=ssl.TLSVersion.TLSv1_2)) as port:
        assert "TLSv1.2 was agreed upon" in fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    with serving(in_tls(federation.issuer, tmp_path / "..", alpn=["http/1.1"])) as port:
        assert "HTTP/2 was not agreed upon" in fails(look(dials(site, f"127.0.0.1:{port}")), "tls")


def test_what_is_no_director_is_found(site: Path):
    with serving(lambda line: line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "does not speak TLS" in fails(look(dials(site, f"127.0.0.1:{port}")), "tls")
    with serving(lambda line: None) as port:
        assert "is cut when TLS begins" in fails(look(dials(site, f"127.0.0.1:{port}")), "tls")


def with_leaf_over(federation, site: Path, **changes: str) -> Path:
    """A site whose leaf expired while it was off."""
    document = json.loads((site / "credentials.json").read_text("utf-8"))
    tls = federation.certificate(seconds=60.0, now=time.time() - 300.0)
    document |= {"chain": tls.chain.decode(), "leaf_key": tls.key.decode(), **changes}
    write_private_file(site / "credentials.json", json.dumps(document).encode())
    return site


def test_a_leaf_that_is_over_is_a_warning_since_the_start_renews_it(federation, site: Path):
    found = look(with_leaf_over(federation, site))
    assert of(found, "certificates").status is Status.WARN
    assert "this site's certificate expired on" in of(found, "certificates").what
    assert "envoy start" in of(found, "certificates").fix
    assert of(found, "director").status is Status.PASS  # asked with the certificate to renew by


def test_a_leaf_that_is_over_with_nothing_to_renew_by_is_found_and_the_director_does_not_let_it_in(federation, site):
    found = look(with_leaf_over(federation, site, renewal_chain="", renewal_key=""))
    assert "this site's certificate expired on" in fails(found, "certificates")
    assert "join file" in fails(found, "certificates")
    assert "does not let this site in" in fails(found, "director")


def test_a_site_that_was_revoked_is_told_so(federation, site: Path):
    words = ["revoke", "site-a", "--reason", "left the study", "--folder", str(federation.folder)]
    said = CliRunner().invoke(director, words)
    assert said.exit_code == 0, said.output
    assert "revoked" in fails(look(site), "director")


@pytest.mark.parametrize(
    ("ahead", "words"), [(HOUR, "1.0 h ahead of"), (-HOUR, "1.0 h behind"), (600.0, "10 min ahead of")]
)
def test_a_clock_that_is_off_is_found_with_its_direction_and_by_how_much(federation, site: Path, ahead: float, words):
    said = fails(look(site, ahead=ahead), "clock")
    assert f"this machine's clock is {words}" in said
    assert "time server" in said


def test_a_clock_that_is_off_by_a_minute_is_worth_a_warning(federation, site: Path):
    assert of(look(site, ahead=60.0), "clock").status is Status.WARN


def test_a_join_file_that_is_over_says_so_and_the_network_is_looked_at_all_the_same(federation, invitation, tmp_path):
    found = look(tmp_path / "site", invitation, ahead=25 * HOUR)
    assert "this invitation of site-a ended" in fails(found, "papers")
    assert "25.0 h ahead of" in fails(found, "clock")


def test_a_join_file_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "a.join").write_text("[]", "utf-8")
    assert "a.join" in fails(look(tmp_path / "site", tmp_path / "a.join"), "papers")


# proxies


def behind(site: Path, address: str, proxy, password: str = "sesame", user: str = "site") -> Path:
    table = f'[proxy]\nurl = "{proxy.url}"\nno_proxy = []\n'
    if user:
        (site / "secret").unlink(missing_ok=True)
        write_private_file(site / "secret", password.encode())
        table += f'user = "{user}"\npassword_file = "secret"\n'
    return dials(site, address, table)


def test_the_way_through_a_proxy_is_walked_to_its_end(federation, site: Path, start_tinyproxy):
    proxy = start_tinyproxy()
    found = look(behind(site, federation.address, proxy))
    for check in ("dns", "proxy", "port", "tls", "director", "clock"):
        assert of(found, check).status is Status.PASS, of(found, check)
    assert f"CONNECT {federation.address} " in proxy.said


def test_a_wrong_and_a_missing_password_are_told_apart(federation, site: Path, start_tinyproxy):
    proxy = start_tinyproxy()
    said = fails(look(behind(site, federation.address, proxy, "wrong")), "proxy")
    assert "does not take the password of site" in said
    said = fails(look(behind(site, federation.address, proxy, user="")), "proxy")
    assert "wants a user and a password" in said
    assert "none is set" in said


def test_a_proxy_that_denies_the_port_is_found(federation, site: Path, start_tinyproxy):
    proxy = start_tinyproxy("BasicAuth site sesame\nConnectPort 443")
    said = fails(look(behind(site, federation.address, proxy)), "proxy")
    assert f"does not allow a tunnel to {federation.address}" in said
    assert "ask IT to allow CONNECT" in said


def test_a_director_that_the_proxy_cannot_reach_is_found(federation, site: Path, start_tinyproxy):
    said = fails(look(behind(site, "director.invalid:9443", start_tinyproxy())), "proxy")
    assert "could not reach director.invalid:9443" in said


def test_a_proxy_that_is_not_there_is_found(federation, site: Path, start_tinyproxy):
    proxy = start_tinyproxy()
    proxy.kill()
    assert "no proxy listens on the port" in fails(look(behind(site, federation.address, proxy)), "proxy")


def test_what_is_no_proxy_is_found(federation, site: Path, start_tinyproxy):
    proxy = start_tinyproxy()
    with serving(lambda line: line.sendall(b"220 mail.example ESMTP\r\n")) as port:
        proxy.kill()
        proxy.port = port
        assert "not as an HTTP proxy" in fails(look(behind(site, federation.address, proxy)), "proxy")


def test_a_password_file_that_is_missing_is_named(federation, site: Path, start_tinyproxy):
    behind(site, federation.address, start_tinyproxy())
    (site / "secret").unlink()
    assert "password_file" in fails(look(site), "proxy")


def test_no_proxy_of_the_environment_that_undoes_the_sites_proxy_is_found(federation, site: Path, start_tinyproxy):
    behind(site, "director.example.org:9443", start_tinyproxy())
    said = fails(look(site, no_proxy="example.org"), "proxy")
    assert "no_proxy in the environment names director.example.org" in said


def test_a_variable_in_capitals_which_nobody_reads_is_found(federation, site: Path):
    found = look(dials(site, "director.invalid:9443"), HTTPS_PROXY="http://127.0.0.1:3128")
    assert of(found, "proxy").status is Status.WARN
    assert "lower case" in of(found, "proxy").what


# the request for IT


def test_the_firewall_request_says_all_that_it_needs_to(federation, site: Path):
    said = typed("doctor", "--folder", site, "--network")
    assert said.exit_code == 0
    port = federation.director.port
    for words in (
        f"127.0.0.1:{port}  TCP  answers",
        f"127.0.0.1, TCP port {port}",
        "outbound only",
        "TLS 1.3 with client certificates on both sides (mutual TLS)",
        "No TLS inspection",
        "connections stay open for hours",
        "no inbound rule",
        socket.gethostname(),
    ):
        assert words in said.stdout


def test_the_firewall_request_is_there_before_joining_and_names_the_proxy(federation, invitation, tmp_path):
    said = typed("doctor", "--folder", tmp_path / "site", "--network", "--join", invitation).stdout
    assert 'federation "lungs"' in said
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "envoy.toml").write_text('[proxy]\nurl = "http://127.0.0.1:1"\nno_proxy = []\n', "utf-8")
    said = typed("doctor", "--folder", tmp_path / "site", "--network", "--join", invitation).stdout
    assert "127.0.0.1:1  TCP  is NOT reached" in said
    assert "through the HTTP proxy 127.0.0.1:1, by CONNECT" in said
    assert "please allow CONNECT" in said


def test_without_papers_there_is_no_request(tmp_path: Path):
    said = typed("doctor", "--folder", tmp_path / "site", "--network")
    assert said.exit_code == 1
    assert "has not joined" in said.stderr


def _picture(path: Path, grey: int) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(path)
