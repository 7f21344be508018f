"""The operator signs with a key of its own, which a folder of an earlier version gets when it is first asked for."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from fedveil.director.founding import (
    OPERATOR_IDENTITY_FILE,
    OPERATOR_IDENTITY_KEY_FILE,
    init_federation,
    load_issuer,
)
from fedveil.director.operator_identity import load_operator_identity
from fedveil.utils.certificates import DAY_SECONDS, certificate_pem, key_pem, make_issuer, make_root
from fedveil.utils.errors import ConfigError, IdentityError, StorageError
from fedveil.utils.identity import PeerId, Role, expires_at, read_chain
from fedveil.utils.messages import RunId
from fedveil.utils.private_files import write_private_file
from fedveil.utils.proposal import Patch, Step, read_patch, sign
from fedveil.utils.tensors import Digest

NOW = 1_800_000_000.0
OPERATOR = PeerId("lungs", Role.OPERATOR, "operator")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_federation(tmp_path / "director", "lungs", ["localhost"], b"passphrase", NOW)
    return tmp_path / "director"


def end_of(chain: bytes) -> float:
    return expires_at(read_chain(chain, "chain")[0])


def test_what_the_operator_signs_is_believed_by_whoever_pinned_the_root(folder: Path) -> None:
    peer, key, chain = load_operator_identity(folder, NOW + 1)
    assert peer == OPERATOR
    patch = Patch(RunId("x-1"), Digest("ab" * 32), 1, Step.PAUSE, {}, None, {}, None, "why", peer, NOW)
    document, (_, root) = sign(patch, key, chain), load_issuer(folder, NOW + 1)
    assert read_patch(document, root, "lungs", NOW + 1) == patch
    with pytest.raises(IdentityError, match="changed"):
        read_patch(replace(document, content=document.content.replace(b"why", b"who")), root, "lungs", NOW + 1)
    with pytest.raises(IdentityError, match="not issued by this federation"):
        read_patch(document, make_root("lungs", NOW).certificate, "lungs", NOW + 1)


def test_the_same_identity_is_given_again(folder: Path) -> None:
    first, second = load_operator_identity(folder, NOW), load_operator_identity(folder, NOW + 200 * DAY_SECONDS)
    assert first[2] == second[2]
    assert first[1].private_bytes_raw() == second[1].private_bytes_raw()


def test_a_folder_of_an_earlier_version_gets_one(folder: Path) -> None:
    for name in (OPERATOR_IDENTITY_FILE, OPERATOR_IDENTITY_KEY_FILE):
        (folder / name).unlink()
    chain = load_operator_identity(folder, NOW)[2]
    assert load_operator_identity(folder, NOW + 1)[2] == chain
    assert stat.S_IMODE((folder / OPERATOR_IDENTITY_KEY_FILE).stat().st_mode) == 0o600


def test_a_crash_between_key_and_certificate_is_harmless(folder: Path) -> None:
    (folder / OPERATOR_IDENTITY_FILE).unlink()
    _, key, chain = load_operator_identity(folder, NOW)
    assert read_chain(chain, "chain")[0].public_key() == key.public_key()
    (folder / OPERATOR_IDENTITY_KEY_FILE).unlink()
    _, other, chain = load_operator_identity(folder, NOW)
    assert other.public_key() != key.public_key()
    assert read_chain(chain, "chain")[0].public_key() == other.public_key()


def test_an_identity_that_is_nearly_over_is_issued_anew_for_the_same_key(folder: Path) -> None:
    _, key, chain = load_operator_identity(folder, NOW)
    later = NOW + 300 * DAY_SECONDS
    assert load_operator_identity(folder, later)[2] == chain  # the issuer ends with it: nothing longer is to be had
    root = make_root("lungs", NOW)
    issuer = make_issuer(root, "lungs", later)
    write_private_file(folder / "ca/root.pem", certificate_pem(root.certificate))
    write_private_file(folder / "ca/issuer.pem", certificate_pem(issuer.certificate))
    write_private_file(folder / "ca/issuer.key.pem", key_pem(issuer.key))
    _, same, renewed = load_operator_identity(folder, later)
    assert same.private_bytes_raw() == key.private_bytes_raw()
    assert end_of(renewed) == later + 365 * DAY_SECONDS


def test_a_key_that_others_may_read_signs_nothing(folder: Path) -> None:
    (folder / OPERATOR_IDENTITY_KEY_FILE).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_operator_identity(folder, NOW)


def test_where_there_is_no_federation_there_is_no_operator(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, IdentityError)):
        load_operator_identity(tmp_path, NOW)


def test_a_full_disk_is_an_error_and_the_next_call_succeeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / OPERATOR_IDENTITY_FILE).unlink()

    def full(path: Path, content: bytes) -> None:
        raise StorageError(f"{path}: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedveil.director.operator_identity.write_private_file", full)
        with pytest.raises(StorageError, match="No space"):
            load_operator_identity(folder, NOW)
    assert load_operator_identity(folder, NOW)[0] == OPERATOR
