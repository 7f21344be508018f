"""The table [proxy]: what it refuses, and that its password is nowhere to be read but in its file."""

import os
from pathlib import Path

import pytest
from fedveil.envoy.config import EnvoyConfig, load_config, proxy_table
from fedveil.envoy.proxy import ProxySettings, way_to
from fedveil.utils.addresses import Address
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError
from fedveil.utils.private_files import write_private_file
from fedveil.utils.proxies import Direct, Proxy, is_exempt, proxy_of_environment, read_proxy

URL = "http://proxy.hospital.example:3128"
DIRECTOR = "director.example.org:9443"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "https://proxy:3128"}, "not supported"),
        ({"url": "proxy:3128"}, "expected http://HOST:PORT"),
        ({"url": "http://proxy"}, "has no port"),
        ({"url": "http://proxy:3128/path"}, "expected http://HOST:PORT"),
        ({"url": "http://site:sesame@proxy:3128"}, "belong into user and password_file"),
        ({"url": URL, "user": "site"}, "belong together"),
        ({"url": URL, "password_file": Path("secret")}, "belong together"),
    ],
)
def test_what_is_no_proxy_is_refused_and_not_repeated(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ProxySettings(**settings)
    assert "sesame" not in str(caught.value)


def test_the_table_that_join_writes_is_the_one_that_is_read_back():
    settings = ProxySettings(URL, "site", Path("/etc/fedveil/secret"))
    assert parse_toml(proxy_table(settings), EnvoyConfig, "envoy.toml").proxy == settings


def test_a_password_is_in_no_repr_and_no_text(tmp_path):
    write_private_file(tmp_path / "secret", b"sesame\nnot this\n")
    way = way_to(DIRECTOR, ProxySettings(URL, "site", Path("secret")), tmp_path)
    assert isinstance(way, Proxy)
    assert way.password == "sesame"
    assert "sesame" not in repr(way) + str(way)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_password_that_others_may_read_is_refused(tmp_path):
    write_private_file(tmp_path / "secret", b"sesame")
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it") as caught:
        way_to(DIRECTOR, ProxySettings(URL, "site", Path("secret")), tmp_path)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "UTF-8"), (None, "no such")]
)
def test_a_file_without_a_password_is_refused(tmp_path, content, words):
    if content is not None:
        write_private_file(tmp_path / "secret", content)
    with pytest.raises(ConfigError, match=words):
        way_to(DIRECTOR, ProxySettings(URL, "site", Path("secret")), tmp_path)


def test_without_the_table_the_environment_is_asked_and_exempt_hosts_are_called_directly(tmp_path):
    assert way_to(DIRECTOR, load_config(tmp_path).proxy, tmp_path) is None
    for exempt in ("127.0.0.1:9443", "[::1]:9443", "localhost:9443"):
        assert way_to(exempt, ProxySettings(URL), tmp_path) == Direct()
    assert way_to("10.1.2.3:9443", ProxySettings(URL, no_proxy=("10.0.0.0/8",)), tmp_path) == Direct()


@pytest.mark.parametrize(
    ("host", "exempt", "is_so"),
    [
        ("director.example.org", "example.org", True),
        ("director.example.org", "EXAMPLE.org", True),
        ("director.example.org", "other.org", False),
        ("director.example.org", "", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("director.example.org", "10.0.0.0/8", False),
    ],
)
def test_exemptions_are_read_as_grpc_reads_them(host, exempt, is_so):
    assert is_exempt(Address(host), [exempt]) is is_so


def test_the_environments_proxy_is_the_first_of_three_variables():
    environ = {"http_proxy": "http://c:3", "https_proxy": "http://b:2"}
    found = proxy_of_environment(Address.parse(DIRECTOR), environ)
    assert found is not None
    assert (found[0], str(found[1])) == ("https_proxy", "http://b:2")
    assert proxy_of_environment(Address.parse(DIRECTOR), environ | {"no_proxy": "a.org, example.org"}) is None
    assert proxy_of_environment(Address.parse("127.0.0.1:9443"), environ) is None
    assert proxy_of_environment(Address.parse(DIRECTOR), {"HTTPS_PROXY": "http://b:2"}) is None


def test_a_proxy_of_the_environment_that_is_none_is_named_by_its_variable():
    with pytest.raises(ConfigError, match="https_proxy in the environment") as caught:
        proxy_of_environment(Address.parse(DIRECTOR), {"https_proxy": "ftp://site:sesame@b:2"})
    assert "sesame" not in str(caught.value)


def test_a_password_in_a_proxys_url_is_percent_encoded():
    proxy = read_proxy("http://site:p%40ss%3Aword@b:2")
    assert (proxy.user, proxy.password, str(proxy)) == ("site", "p@ss:word", "http://b:2")
