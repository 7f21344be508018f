"""A federation is made once, whole, and with keys that nobody else can read."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from fedveil.director import founding
from fedveil.director.config import load_config
from fedveil.director.founding import (
    PASSPHRASE_VARIABLE,
    init_federation,
    load_issuer,
    load_root,
    load_tls,
    read_passphrase,
)
from fedveil.utils.certificates import DAY_SECONDS
from fedveil.utils.errors import ConfigError, IdentityError, PassphraseError, StorageError
from fedveil.utils.identity import PeerId, Role, check_chain, fingerprint, is_for_clients, read_chain
from fedveil.utils.private_files import write_private_file

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = float(DAY_SECONDS)
SECRET = b"correct horse"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "director"
    init_federation(folder, "lungs", ["director.example.org:9443", "10.0.0.7"], SECRET, NOW, listen="127.0.0.1:0")
    return folder


def test_a_federation_is_whole(folder: Path) -> None:
    issuer, root = load_issuer(folder, NOW)
    director, operator = load_tls(folder, Role.DIRECTOR, NOW), load_tls(folder, Role.OPERATOR, NOW)
    assert director.peer == PeerId("lungs", Role.DIRECTOR, "director")
    assert operator.peer == PeerId("lungs", Role.OPERATOR, "operator")
    for held in (director, operator):
        leaf, above = read_chain(held.chain, "chain")
        assert above == issuer.certificate
        assert check_chain(leaf, above, root, NOW) == held.peer
        assert held.expires_at == NOW + 7 * DAY
        assert "PRIVATE" not in repr(held)
    assert is_for_clients(read_chain(operator.chain, "chain")[0])
    assert not is_for_clients(read_chain(director.chain, "chain")[0])


def test_the_director_s_certificate_holds_every_address(folder: Path) -> None:
    leaf = read_chain(load_tls(folder, Role.DIRECTOR, NOW).chain, "chain")[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["director.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.7")]


def test_the_settings_that_were_written_can_be_read(folder: Path) -> None:
    config = load_config(folder)
    assert config.federation == "lungs"
    assert config.listen == "127.0.0.1:0"
    assert config.announced(4711) == ("director.example.org:9443", "10.0.0.7:4711")


def test_init_gives_the_root_s_fingerprint(tmp_path: Path) -> None:
    shown = init_federation(tmp_path, "lungs", ["localhost"], SECRET, NOW)
    assert shown == fingerprint((tmp_path / "ca/root.pem").read_bytes())


def test_no_key_can_be_read_by_others(folder: Path) -> None:
    keys = [*folder.rglob("*.key.pem")]
    assert len(keys) == 5  # root, issuer, director, operator's connection and operator's signature
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(folder.rglob(".*"))


def test_a_key_that_others_may_read_is_not_used(folder: Path) -> None:
    (folder / "ca/issuer.key.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_issuer(folder, NOW)


def test_a_federation_is_not_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match="nothing was overwritten"):
        init_federation(folder, "lungs", ["localhost"], SECRET, NOW)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "director.toml").unlink()
    with pytest.raises(StorageError, match="nothing was overwritten"):
        init_federation(folder, "lungs", ["localhost"], SECRET, NOW)


def test_a_full_disk_leaves_nothing_behind_and_init_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.name == "director.toml":
            raise StorageError(f"{path}: cannot be written: No space left on device")
        write_private_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(founding, "write_private_file", write)
        with pytest.raises(StorageError, match="No space"):
            init_federation(tmp_path, "lungs", ["localhost"], SECRET, NOW)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    init_federation(tmp_path, "lungs", ["localhost"], SECRET, NOW)


@pytest.mark.parametrize(
    ("federation", "addresses"),
    [("Lungs", ["a"]), ("", ["a"]), ("lungs", []), ("lungs", ["a:0"]), ("lungs", ["a b"]), ("lungs", ["a", "a"])],
)
def test_what_cannot_be_founded_leaves_nothing(federation: str, addresses: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        init_federation(tmp_path / "director", federation, addresses, SECRET, NOW)
    assert not [*tmp_path.iterdir()]


def test_the_root_s_key_opens_with_its_passphrase_alone(folder: Path) -> None:
    assert b"ENCRYPTED" in (folder / "ca/root.key.pem").read_bytes()
    assert load_root(folder, SECRET).certificate.subject == load_issuer(folder, NOW)[1].subject
    with pytest.raises(PassphraseError, match="does not open"):
        load_root(folder, b"battery staple")


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassphraseError):
        init_federation(tmp_path / "director", "lungs", ["localhost"], b"", NOW)
    assert not [*tmp_path.iterdir()]


def test_expired_credentials_are_refused_with_their_end(folder: Path) -> None:
    with pytest.raises(IdentityError, match=r"director\.pem: the certificate expired on 2026-05-08"):
        load_tls(folder, Role.DIRECTOR, NOW + 8 * DAY)
    with pytest.raises(IdentityError, match="the issuer expired"):
        load_issuer(folder, NOW + 366 * DAY)


def test_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    write_private_file(folder / "ca/issuer.key.pem", (folder / "director.key.pem").read_bytes())
    with pytest.raises(IdentityError, match="not the key of"):
        load_issuer(folder, NOW)
    write_private_file(folder / "director.pem", (folder / "operator.pem").read_bytes())
    with pytest.raises(IdentityError, match=r"spiffe://lungs/operator/operator"):
        load_tls(folder, Role.DIRECTOR, NOW)
    (folder / "operator.pem").unlink()
    with pytest.raises(IdentityError, match="director init"):
        load_tls(folder, Role.OPERATOR, NOW)


# the passphrase


def test_a_passphrase_comes_from_a_file_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(b" from a file \r\n")
    environ = {PASSPHRASE_VARIABLE: "from the environment"}
    assert read_passphrase(True, file, environ) == b" from a file "
    assert read_passphrase(True, None, environ) == b"from the environment"


def test_a_passphrase_is_asked_for_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["one", "one", "two", "one", "two", ""])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert read_passphrase(True, None, {}, confirm=True) == b"one"
    assert read_passphrase(True, None, {}) == b"two"
    with pytest.raises(PassphraseError, match="differ"):
        read_passphrase(True, None, {}, confirm=True)
    with pytest.raises(PassphraseError):
        read_passphrase(True, None, {})


def test_no_passphrase_at_all_says_where_one_may_come_from(tmp_path: Path) -> None:
    with pytest.raises(PassphraseError, match=PASSPHRASE_VARIABLE):
        read_passphrase(False, None, {})
    with pytest.raises(PassphraseError, match="cannot be read"):
        read_passphrase(True, tmp_path / "none", {})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(PassphraseError):
        read_passphrase(True, tmp_path / "empty", {PASSPHRASE_VARIABLE: "x"})
    with pytest.raises(PassphraseError):
        read_passphrase(True, None, {PASSPHRASE_VARIABLE: ""})
