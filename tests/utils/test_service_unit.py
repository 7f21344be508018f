"""Units for systemd: what systemd itself says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fedveil.director.__main__ import app as director
from fedveil.envoy.__main__ import app as envoy
from fedveil.utils.errors import ConfigError
from fedveil.utils.service_unit import Service, Side, quoted
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here (package systemd)")
PYTHON = Path("/usr/bin/env")  # any program that is there


def service(side: Side, folder: str = "/srv/site", user: str = "fedveil") -> Service:
    return Service(side, PYTHON, Path(folder), user)


def settings(unit: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)


def analyzed(tmp_path: Path, unit: Service, *command: str) -> str:
    path = tmp_path / unit.name
    path.write_text(unit.text())
    environment = {"PATH": "/usr/bin", "XDG_RUNTIME_DIR": str(tmp_path)}
    words = [ANALYZE, *command, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("folder", ["/srv/site", "/srv/Ward 7/100%/it's $HOME"])
@pytest.mark.parametrize("user", ["fedveil", ""])
def test_systemd_takes_every_line(side, folder, user, tmp_path):
    said = analyzed(tmp_path, service(side, folder, user), "verify", "--man=no", *(["--user"] if not user else []))
    assert "fedveil" not in said, said  # it complains about units of the machine too


@needs_systemd
@pytest.mark.parametrize("side", Side)
def test_a_line_that_systemd_does_not_know_would_be_seen(side, tmp_path, monkeypatch):
    """The test above can fail."""
    text = service(side).text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes")
    monkeypatch.setattr(Service, "text", lambda _: text)
    assert "NoNewPrivilege" in analyzed(tmp_path, service(side), "verify", "--man=no")


@needs_systemd
@pytest.mark.parametrize(("side", "most"), [(Side.DIRECTOR, 3.0), (Side.ENVOY, 5.0)])
def test_systemd_itself_calls_it_well_walled_in(side, most, tmp_path):
    """Of 10, for a service with no walls at all; the envoy's sandbox needs some doors."""
    said = analyzed(tmp_path, service(side), "security", "--offline=yes", "--no-pager")
    found = re.search(r"exposure level for .*?: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= most, said


@pytest.mark.parametrize("side", Side)
def test_it_runs_as_somebody_of_its_own_and_writes_to_its_folder_alone(side):
    said = settings(service(side).text())
    assert (said["User"], said["ProtectSystem"], said["ReadWritePaths"]) == ("fedveil", "strict", "/srv/site")
    assert (said["NoNewPrivileges"], said["PrivateTmp"], said["Restart"]) == ("yes", "yes", "on-failure")
    assert not said["CapabilityBoundingSet"]


def test_an_envoy_may_bind_no_port_and_its_sandbox_finds_what_it_needs():
    said = settings(service(Side.ENVOY).text())
    assert said["SocketBindDeny"] == "any"
    in_the_way = {"RestrictNamespaces", "ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset"}
    assert not said.keys() & (in_the_way | {"ProtectHostname", "SystemCallFilter", "PrivateDevices", "PrivateUsers"})
    assert "SocketBindDeny" not in settings(service(Side.DIRECTOR).text())


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), min_size=1))
def test_a_word_is_read_back_as_it_was(word):
    said = quoted(word)
    if said.startswith('"') and said.endswith('"') and said != word:
        said = re.sub(r"\\(.)", r"\1", said[1:-1])
    assert said.replace("%%", "%") == word.replace("%%", "%")


@pytest.mark.parametrize("folder", ["relative", "/tmp/site", "/var/tmp/site", "/srv/a\nExecStart=/bin/sh"])
def test_a_folder_that_a_service_cannot_have_is_refused(folder):
    with pytest.raises(ConfigError):
        service(Side.ENVOY, folder)


@pytest.mark.parametrize("user", ["root\nUser=x", "a b", "%u"])
def test_an_account_that_is_none_is_refused(user):
    with pytest.raises(ConfigError):
        service(Side.ENVOY, user=user)


@pytest.mark.parametrize(("app", "side"), [(director, "director"), (envoy, "envoy")])
def test_the_commands_print_it_or_put_it_into_ones_own_systemd(app, side, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    printed = CliRunner().invoke(app, ["service", "--folder", "/srv/x"])
    assert not printed.exit_code
    assert f"ExecStart=/usr/bin/python3 -m fedveil.{side} start --folder /srv/x" in printed.output
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for _ in range(2):  # the same again changes nothing
        written = CliRunner().invoke(app, ["service", "--folder", "/srv/x", "--user"])
        assert not written.exit_code, written.output
    path = tmp_path / "systemd" / "user" / f"fedveil-{side}.service"
    assert "User=" not in path.read_text()
    refused = CliRunner().invoke(app, ["service", "--folder", "/srv/y", "--user"])
    assert refused.exit_code == 1
    assert "/srv/x" in path.read_text()
