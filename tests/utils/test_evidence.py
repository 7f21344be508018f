"""A bundle is what was signed or it is refused, and nothing is read of a zip before it is known to be harmless."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.utils import evidence
from fedveil.utils.certificates import public_bytes
from fedveil.utils.errors import FederationError, MalformedMessageError, StorageError, SuspectLogError
from fedveil.utils.evidence import read_evidence, write_evidence
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
ABOUT = {"party": "director", "federation": "lungs", "made_at": 1.0}
MEMBERS = {
    "audit.jsonl": b"{}\n" * 50,
    "runs.json": b"[]",
    "settings/lungs-1.toml": b'name = "lungs"\n',
    "about.txt": b"",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.zip"
    write_evidence(path, MEMBERS, ABOUT, KEY)
    return path


def test_what_was_put_in_comes_out_and_the_same_always_has_the_same_bytes(bundle, tmp_path):
    found = read_evidence(bundle)
    assert (dict(found.members), dict(found.about), found.key) == (MEMBERS, ABOUT, public_bytes(KEY.public_key()))
    again = tmp_path / "again.zip"
    write_evidence(again, dict(reversed(MEMBERS.items())), ABOUT, KEY)
    assert again.read_bytes() == bundle.read_bytes()
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        assert {one.date_time for one in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@given(place=st.integers(0, 1 << 30), change=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_byte_of_a_member_of_the_manifest_or_the_signature_can_be_changed(tmp_path_factory, place, change):
    path = tmp_path_factory.mktemp("bundle") / "evidence.zip"
    write_evidence(path, MEMBERS, ABOUT, KEY)
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= change
    path.write_bytes(raw)
    try:
        found = read_evidence(path)
    except FederationError:
        return
    assert dict(found.members) == MEMBERS  # only what a zip says beside its members was changed: dates, versions
    assert (dict(found.about), found.key) == (ABOUT, public_bytes(KEY.public_key()))


def rewritten(bundle: Path, change: Callable[[zipfile.ZipFile, dict[str, bytes]], None]) -> Path:
    """The same members in a zip that somebody else wrote."""
    with zipfile.ZipFile(bundle) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    hostile = bundle.with_name("hostile.zip")
    with zipfile.ZipFile(hostile, "w") as archive:
        change(archive, whole)
        for name, content in whole.items():
            archive.writestr(name, content)
    return hostile


def adding(name: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o600, kind: int = zipfile.ZIP_STORED):
    def change(archive: zipfile.ZipFile, _: dict[str, bytes]) -> None:
        member = zipfile.ZipInfo(name)
        member.external_attr, member.compress_type = mode << 16, kind
        archive.writestr(member, content)

    return change


@pytest.mark.parametrize(
    "change",
    [
        adding("../../etc/cron.d/x"),
        adding("/etc/passwd"),
        adding("settings/../../x.toml"),
        adding("settings\\x.toml"),
        adding("x.exe"),
        adding("plans/short.json"),
        adding("leakage.json", mode=stat.S_IFLNK | 0o777),
        adding("leakage.json", mode=stat.S_IFDIR | 0o700),
        adding("leakage.json", bytes(1 << 20), kind=zipfile.ZIP_DEFLATED),
        adding("leakage.json"),
        lambda _, whole: whole.pop("runs.json"),
        lambda _, whole: whole.pop("manifest.json"),
        lambda _, whole: whole.pop("manifest.sig"),
        lambda _, whole: whole.update({"runs.json": b"[1]"}),
        lambda _, whole: whole.update({"manifest.json": whole["manifest.json"].replace(b"lungs", b"lunge")}),
        lambda _, whole: whole.update({"manifest.sig": bytes(64)}),
        lambda _, whole: whole.update({"manifest.json": b"[]"}),
    ],
)
def test_a_zip_that_no_fedveil_wrote_is_refused(bundle, change):
    with pytest.raises((MalformedMessageError, SuspectLogError), match=r"hostile\.zip"):
        read_evidence(rewritten(bundle, change))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_in_it_twice_is_refused(bundle):
    with pytest.raises(MalformedMessageError, match="twice"):
        read_evidence(rewritten(bundle, adding("runs.json", b"[]")))


def test_a_bundle_of_another_key_is_not_passed_off_as_this_ones(bundle, tmp_path):
    other = tmp_path / "other.zip"
    write_evidence(other, MEMBERS, ABOUT, Ed25519PrivateKey.generate())
    with zipfile.ZipFile(other) as archive:
        signature = archive.read("manifest.sig")
    with pytest.raises(SuspectLogError, match="not signed by the key it names"):
        read_evidence(rewritten(bundle, lambda _, whole: whole.update({"manifest.sig": signature})))
    assert read_evidence(other).key != read_evidence(bundle).key


def test_members_that_say_that_they_are_longer_than_the_file_are_not_read(bundle):
    raw = bundle.read_bytes()
    size = len(MEMBERS["audit.jsonl"]).to_bytes(4, "little")
    central = raw.index(b"PK\x01\x02")
    at = raw.index(size + size, central)  # compressed and whole size, in the list of members
    bundle.write_bytes(raw[:at] + b"\xff\xff\xff\x7f" * 2 + raw[at + 8 :])
    with pytest.raises(MalformedMessageError, match="longer than the file"):
        read_evidence(bundle)


def test_too_many_members_are_not_looked_at(bundle, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_MEMBERS", 3)
    with pytest.raises(MalformedMessageError, match="6 members"):
        read_evidence(bundle)
    with pytest.raises(StorageError, match="more than 3 members"):
        write_evidence(bundle, MEMBERS, ABOUT, KEY)


def test_what_is_no_zip_or_not_there_is_named(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 hello")
    with pytest.raises(MalformedMessageError, match=r"x\.zip: is no bundle"):
        read_evidence(tmp_path / "x.zip")
    with pytest.raises(StorageError, match=r"y\.zip"):
        read_evidence(tmp_path / "y.zip")


def test_only_known_names_are_written(tmp_path):
    with pytest.raises(ValueError, match="no member"):
        write_evidence(tmp_path / "x.zip", {"../x": b""}, ABOUT, KEY)
