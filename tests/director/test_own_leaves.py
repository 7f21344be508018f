"""The director's folder renews its own certificates, from the issuer that lies in it, and the issuer from the root."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedveil.director.config import load_config
from fedveil.director.founding import init_federation, load_issuer, load_tls
from fedveil.director.issuer import IssuerFile, issuer_warning, renew_issuer
from fedveil.director.operator_identity import load_operator_identity, load_operator_tls
from fedveil.director.own_leaves import next_look, own_leaf
from fedveil.director.server_certificate import ServerCertificate
from fedveil.utils.certificates import DAY_SECONDS
from fedveil.utils.errors import IdentityError, PassphraseError, StorageError
from fedveil.utils.identity import Role, check_chain, expires_at, read_chain
from fedveil.utils.private_files import write_private_file

NOW = 1_800_000_000.0
DAY = float(DAY_SECONDS)
SECRET = b"correct horse"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_federation(tmp_path / "director", "lungs", ["localhost"], SECRET, NOW)
    return tmp_path / "director"


def leaf_of(folder: Path, role: Role, now: float) -> bytes:
    return own_leaf(folder, load_config(folder), role, load_issuer(folder, now)[0], now).chain


@pytest.mark.parametrize("role", [Role.DIRECTOR, Role.OPERATOR])
def test_a_leaf_is_replaced_from_two_thirds_of_its_life_on(folder: Path, role: Role) -> None:
    first = load_tls(folder, role, NOW)
    due = next_look(first)
    assert 4 * DAY < due - NOW < 5 * DAY
    assert leaf_of(folder, role, due - 1) == first.chain
    second = leaf_of(folder, role, due)
    assert load_tls(folder, role, due + 5 * DAY).chain == second != first.chain
    certificates = [read_chain(chain, "chain")[0] for chain in (first.chain, second)]
    assert certificates[0].public_key() != certificates[1].public_key()  # a new key each time
    assert expires_at(certificates[1]) == int(due) + 7 * DAY


@pytest.mark.parametrize("role", [Role.DIRECTOR, Role.OPERATOR])
def test_one_that_expired_is_replaced_as_well(folder: Path, role: Role) -> None:
    later = NOW + 100 * DAY
    chain = leaf_of(folder, role, later)
    assert check_chain(*read_chain(chain, "chain"), load_issuer(folder, later)[1], later).role is role


@pytest.mark.parametrize("lost", ["director.pem", "director.key.pem"])
def test_a_crash_between_key_and_certificate_is_healed(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    leaf_of(folder, Role.DIRECTOR, NOW)
    load_tls(folder, Role.DIRECTOR, NOW)
    write_private_file(folder / "director.key.pem", (folder / "operator.key.pem").read_bytes())
    leaf_of(folder, Role.DIRECTOR, NOW)
    load_tls(folder, Role.DIRECTOR, NOW)


def test_a_key_that_others_may_read_is_not_replaced_in_silence(folder: Path) -> None:
    (folder / "director.key.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        leaf_of(folder, Role.DIRECTOR, NOW + 100 * DAY)


def test_a_full_disk_leaves_the_old_one_in_force_as_long_as_it_is_good(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, issuer, said = load_config(folder), load_issuer(folder, NOW)[0], []
    before = load_tls(folder, Role.DIRECTOR, NOW).chain

    def full(path: Path, content: bytes) -> None:
        raise StorageError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("fedveil.director.own_leaves.write_private_file", full)
    assert own_leaf(folder, config, Role.DIRECTOR, issuer, NOW + 6 * DAY, said.append).chain == before
    assert "No space" in said[0]
    with pytest.raises(StorageError, match="No space"):
        own_leaf(folder, config, Role.DIRECTOR, issuer, NOW + 8 * DAY, said.append)


def test_where_the_issuer_ends_too_nothing_is_issued_over_and_over(folder: Path) -> None:
    late = NOW + 364 * DAY
    chain = leaf_of(folder, Role.DIRECTOR, late)
    assert leaf_of(folder, Role.DIRECTOR, NOW + 364.9 * DAY) == chain


def test_the_operator_s_leaf_is_renewed_where_the_issuer_is_and_used_where_it_is_not(folder: Path) -> None:
    renewed = load_operator_tls(folder, NOW + 30 * DAY)
    assert renewed.expires_at == NOW + 37 * DAY
    identity = load_operator_identity(folder, NOW + 30 * DAY)
    for name in ("ca/issuer.key.pem", "ca/root.key.pem"):  # the operator's files alone
        (folder / name).unlink()
    assert load_operator_tls(folder, NOW + 36 * DAY).chain == renewed.chain
    assert load_operator_identity(folder, NOW + 36 * DAY)[2] == identity[2]
    with pytest.raises(IdentityError, match="expired"):
        load_operator_tls(folder, NOW + 38 * DAY)
    with pytest.raises(IdentityError, match="copy it from the director's folder"):
        load_operator_identity(folder, NOW + 366 * DAY)


# what the server shows


def test_what_is_shown_changes_once_it_is_due_and_not_before(folder: Path) -> None:
    now = [NOW]
    own = ServerCertificate(folder, load_config(folder), IssuerFile(folder, lambda: NOW), lambda: now[0])
    first = own.shown
    assert own.renewed() is None
    now[0] += 5 * DAY
    second = own.renewed()
    assert second == own.shown != first
    assert own.renewed() is None
    assert "PRIVATE" not in repr(second)


def test_a_server_whose_issuer_is_gone_shows_what_it_has_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [NOW]
    own = ServerCertificate(folder, load_config(folder), IssuerFile(folder, lambda: NOW), lambda: now[0])
    now[0] += 364 * DAY + 12 * 3600  # nobody called for a year
    assert own.renewed() is not None
    now[0] += DAY
    assert own.renewed() is None
    assert "was not renewed" in caplog.text
    assert "director ca renew" in caplog.text


# the issuer


def test_an_issuer_is_replaced_with_the_root_s_key_and_old_chains_stay_good(folder: Path, tmp_path: Path) -> None:
    offline = tmp_path / "usb" / "root.key.pem"
    offline.parent.mkdir()
    (folder / "ca/root.key.pem").rename(offline)
    later = NOW + 300 * DAY
    source = IssuerFile(folder, lambda: later)
    old, chain = source(), leaf_of(folder, Role.OPERATOR, later)
    with pytest.raises(PassphraseError):
        renew_issuer(folder, "lungs", b"wrong", later, offline)
    with pytest.raises(IdentityError, match="no such file"):
        renew_issuer(folder, "lungs", SECRET, later)
    assert source() == old
    assert renew_issuer(folder, "lungs", SECRET, later, offline) == later + 365 * DAY
    assert source() != old  # a director that runs has it at once
    assert check_chain(*read_chain(chain, "chain"), source.root, later + 1).role is Role.OPERATOR
    leaf, above = read_chain(leaf_of(folder, Role.DIRECTOR, later + 100 * DAY), "chain")
    assert above == source().certificate
    assert check_chain(leaf, above, source.root, later + 100 * DAY).role is Role.DIRECTOR


def test_between_two_files_of_an_issuer_the_one_before_is_in_force(folder: Path) -> None:
    source = IssuerFile(folder, lambda: NOW)
    old = source()
    write_private_file(folder / "ca/issuer.key.pem", (folder / "director.key.pem").read_bytes())
    assert source() == old
    with pytest.raises(IdentityError, match="director ca renew"):
        load_issuer(folder, NOW)
    renew_issuer(folder, "lungs", SECRET, NOW)
    assert source() != old


def test_another_federation_s_root_renews_nothing(folder: Path, tmp_path: Path) -> None:
    init_federation(tmp_path / "other", "lungs", ["localhost"], SECRET, NOW)
    with pytest.raises(IdentityError, match="is not the key of"):
        renew_issuer(folder, "lungs", SECRET, NOW, tmp_path / "other/ca/root.key.pem")


def test_an_issuer_warns_before_it_ends(folder: Path) -> None:
    issuer = load_issuer(folder, NOW)[0].certificate
    assert issuer_warning(issuer, NOW) is None
    assert "in 60 days" in (issuer_warning(issuer, NOW + 305 * DAY) or "")
    assert "nobody joins and nothing is renewed; `director ca renew`" in (issuer_warning(issuer, NOW + 366 * DAY) or "")
