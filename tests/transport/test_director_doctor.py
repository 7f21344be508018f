"""``director doctor``: every check is made to fail for real, and says what is wrong and what to do in plain words."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import time
from pathlib import Path

import pytest
from fedveil.director.__main__ import app
from fedveil.director.doctor import examine
from fedveil.director.founding import init_federation
from fedveil.utils.diagnosis import Finding, Status
from typer.testing import CliRunner

HOUR = 3600.0


def typed(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def look(folder: Path, ahead: float = 0.0) -> list[Finding]:
    return list(examine(folder, lambda: time.time() + ahead))


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


def founded(folder: Path, address: str = "127.0.0.1", listen: str = "127.0.0.1:0", now: float | None = None) -> Path:
    """A federation whose director was not started yet."""
    init_federation(folder, "lungs", [address], b"passphrase", now or time.time(), listen=listen)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return founded(tmp_path / "fresh")


def test_a_running_director_in_good_order_passes(federation):
    found = look(federation.folder)
    for check in ("settings", "certificates", "addresses", "port", "director", "database", "disk", "audit"):
        assert of(found, check).status is Status.PASS, of(found, check)
    assert typed("doctor", "--folder", federation.folder).exit_code == 0


def test_a_director_that_was_not_started_yet_passes_and_nothing_is_made(folder: Path):
    before = sorted(path.name for path in folder.rglob("*"))
    assert not [one for one in look(folder) if one.status is Status.FAIL]
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_the_root_key_on_this_machine_is_worth_a_warning(folder: Path):
    assert "offline" in of(look(folder), "permissions").fix
    (folder / "ca" / "root.key.pem").unlink()
    assert of(look(folder), "permissions").status is Status.PASS


def test_the_command_ends_with_1_if_anything_fails(tmp_path: Path):
    said = typed("doctor", "--folder", tmp_path / "nowhere", "--json")
    assert said.exit_code == 1
    (row,) = json.loads(said.stdout)
    assert (row["check"], row["status"]) == ("settings", "fail")
    assert "director init" in row["what"]


def test_a_wrong_setting_is_found(folder: Path):
    settings = folder / "director.toml"
    settings.write_text(settings.read_text("utf-8").replace("slots = ", "slotz = "), "utf-8")
    assert "did you mean slots" in fails(look(folder), "settings")


@pytest.mark.parametrize("name", ["director.key.pem", "ca/issuer.key.pem"])
def test_a_key_that_others_may_read_is_found(folder: Path, name: str):
    (folder / name).chmod(0o644)
    assert f"chmod 600 {folder / name}" in fails(look(folder), "permissions")


def test_certificates_that_end_are_named_before_and_after(folder: Path):
    assert of(look(folder), "certificates").status is Status.PASS
    before = (folder / "director.pem").read_bytes()
    said = [one.what for one in look(folder, ahead=300 * 24 * HOUR) if one.status is Status.WARN]
    assert any(one.startswith("director.pem expired on") for one in said)  # the next start renews it
    assert any("the issuer ends on" in one for one in said)
    late = fails(look(folder, ahead=366 * 24 * HOUR), "certificates")
    assert "ca/issuer.pem expired on" in late
    assert "director ca renew" in late
    assert (folder / "director.pem").read_bytes() == before  # a doctor renews nothing


def test_certificates_of_an_hour_later_show_that_this_clock_is_behind(folder: Path):
    assert "at least 55 min behind" in fails(look(folder, ahead=-HOUR), "certificates")


def test_a_certificate_that_is_missing_or_of_another_root_is_found(folder: Path, tmp_path: Path):
    shutil.copy(founded(tmp_path / "other") / "ca" / "root.pem", folder / "ca" / "root.pem")
    assert "was not issued by this federation" in fails(look(folder), "certificates")
    (folder / "ca" / "issuer.pem").unlink()
    assert "issuer.pem is not there" in fails(look(folder), "certificates")


def test_a_leaf_that_is_missing_is_worth_a_warning_since_the_next_start_makes_it(folder: Path):
    (folder / "director.pem").unlink()
    worst = of(look(folder), "certificates")
    assert (worst.status, "the next start" in worst.fix) == (Status.WARN, True)


def test_an_address_that_is_not_in_the_certificate_is_found(folder: Path):
    settings = (folder / "director.toml").read_text("utf-8")
    (folder / "director.toml").write_text(settings.replace('["127.0.0.1"]', '["127.0.0.1", "127.0.0.9"]'), "utf-8")
    assert "127.0.0.9 is announced to sites, and the director's certificate is not for it" in fails(
        look(folder), "addresses"
    )


def test_a_name_that_this_machine_does_not_know_is_worth_a_warning(tmp_path: Path):
    found = look(founded(tmp_path / "named", "director.invalid"))
    assert of(found, "addresses").status is Status.WARN
    assert "director.invalid" in of(found, "addresses").what


def test_a_port_that_another_program_took_is_found(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        port = server.getsockname()[1]
        folder = founded(tmp_path / "taken", listen=f"127.0.0.1:{port}")
        said = fails(look(folder), "port")
    assert f"127.0.0.1:{port} is taken by another program" in said
    assert f"ss -ltnp | grep :{port}" in said


def test_a_port_that_is_free_is_said_to_be(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = look(founded(tmp_path / "free", listen=f"127.0.0.1:{port}"))
    assert of(found, "port").what == f"127.0.0.1:{port} is free; no director runs"


def test_an_address_that_is_not_this_machines_cannot_be_listened_on(tmp_path: Path):
    found = look(founded(tmp_path / "elsewhere", listen="192.0.2.1:9443"))  # TEST-NET-1: nobody's
    said = fails(found, "port")
    assert "nobody could listen on 192.0.2.1:9443" in said


def test_another_federations_director_on_the_port_is_found(federation, tmp_path: Path):
    folder = founded(tmp_path / "second", listen=federation.address)  # the same name, other keys
    assert "taken by another program" in fails(look(folder), "port")


def test_a_database_that_is_none_is_found(folder: Path):
    (folder / "director.sqlite").write_bytes(b"no database at all, and long enough to be read as one" * 100)
    assert "this is not a database of fedveil" in fails(look(folder), "database")


def test_a_database_that_is_out_of_reach_is_found_and_its_password_not_shown(folder: Path):
    settings = (folder / "director.toml").read_text("utf-8")
    url = "postgresql://fedveil:sesame@127.0.0.1:1/lungs?connect_timeout=2"
    (folder / "director.toml").write_text(settings.replace('url = ""', f'url = "{url}"'), "utf-8")
    pytest.importorskip("psycopg")
    assert "does not answer as it should" in fails(look(folder), "database")
    assert "sesame" not in typed("doctor", "--folder", folder).stdout


def test_a_database_of_an_older_version_is_left_as_it_is(federation):
    import sqlite3

    federation.director.close()
    with sqlite3.connect(federation.folder / "director.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.close()
    assert "brings it from 0001" in of(look(federation.folder), "database").what
    with sqlite3.connect(federation.folder / "director.sqlite") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    database.close()


def test_a_disk_that_is_full_is_found(folder: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, before[1]))
    try:
        found = look(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "nothing can be written" in fails(found, "disk")
    assert not list(folder.glob(".doctor*"))


def test_a_disk_without_room_for_the_models_of_a_round_is_found(folder: Path):
    (folder / "artifacts").mkdir()
    with (folder / "artifacts" / "model").open("wb") as file:
        file.truncate(1 << 43)  # holds nothing
    assert "make room" in fails(look(folder), "disk")


def test_a_changed_audit_log_is_found(federation):
    federation.director.close()
    log = federation.folder / "audit.jsonl"
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 1
    log.write_bytes(raw)
    assert "tell the sites" in fails(look(federation.folder), "audit")


def test_a_clock_that_went_back_behind_the_audit_log_is_found(federation):
    said = fails(look(federation.folder, ahead=-HOUR), "clock")
    assert "behind its own audit log" in said
    assert "time server" in said


def test_nothing_of_a_key_is_shown(federation):
    said = typed("doctor", "--folder", federation.folder).stdout
    assert "PRIVATE" not in said
    assert os.fspath(federation.folder) in said
