"""Join files: read whole, or refused with the reason."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fedveil.utils.certificates import (
    DAY_SECONDS,
    Authority,
    certificate_pem,
    issue_client,
    key_pem,
    make_issuer,
    make_key,
    make_root,
)
from fedveil.utils.errors import JoinFileError
from fedveil.utils.identity import PeerId, Role, expires_at
from fedveil.utils.join_file import JoinFile, read_join_file, sign_join_file, write_join_file

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = float(DAY_SECONDS)
ENVOY = PeerId("lungs", Role.ENVOY, "hospital-a")


@dataclass(frozen=True, slots=True)
class Federation:
    root: Authority
    issuer: Authority


def _federation() -> Federation:
    root = make_root("lungs", NOW)
    return Federation(root, make_issuer(root, "lungs", NOW))


@pytest.fixture(scope="module")
def ours() -> Federation:
    return _federation()


@pytest.fixture(scope="module")
def others() -> Federation:
    return _federation()


def _join_file(federation: Federation, ttl: float = DAY, **changes: object) -> JoinFile:
    key = make_key()
    peer = PeerId("lungs", Role.JOIN, "0123456789abcdef")
    bootstrap = issue_client(federation.issuer, key.public_key(), peer, ttl, NOW)
    fields: dict[str, object] = {
        "federation": "lungs",
        "name": "hospital-a",
        "organization": "Hôpital A",
        "role": Role.ENVOY,
        "addresses": ("director.example.org:9443", "[::1]:9443"),
        "root": certificate_pem(federation.root.certificate),
        "issuer": certificate_pem(federation.issuer.certificate),
        "bootstrap": certificate_pem(bootstrap),
        "bootstrap_key": key_pem(key),
        "expires_at": int(expires_at(bootstrap)),
    }
    return sign_join_file(JoinFile(**(fields | changes)), federation.issuer)  # type: ignore[arg-type]


def test_a_join_file_survives_the_disk(ours: Federation, tmp_path: Path) -> None:
    join = _join_file(ours)
    path = tmp_path / "hospital-a.join"
    write_join_file(path, join)
    assert read_join_file(path, NOW) == join
    assert join.peer == ENVOY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE KEY" not in repr(join)


def test_a_join_file_is_read_also_after_it_was_reformatted(ours: Federation, tmp_path: Path) -> None:
    path = tmp_path / "a.join"
    write_join_file(path, _join_file(ours))
    before = read_join_file(path, NOW)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_join_file(path, NOW) == before


def _tampered(key: str, value: object, other: JoinFile) -> object:
    """Another value of the same form: what an attacker would put there."""
    if key == "version":
        return 2
    if key == "expires_at":
        return int(str(value)) + 3600
    if key == "role":
        return "operator"
    if key == "addresses":
        return ["evil.example.org:9443"]
    if key == "signature":
        return base64.b64encode(other.signature).decode()
    if key in {"root", "issuer", "bootstrap", "bootstrap_key"}:
        return getattr(other, key).decode()
    return f"{value}x"


KEYS = (
    "version",
    "federation",
    "name",
    "organization",
    "role",
    "addresses",
    "root",
    "issuer",
    "bootstrap",
    "bootstrap_key",
    "expires_at",
    "signature",
)


def test_the_list_of_keys_here_is_that_of_the_file(ours: Federation, tmp_path: Path) -> None:
    write_join_file(tmp_path / "a.join", _join_file(ours))
    assert set(json.loads((tmp_path / "a.join").read_text())) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_join_file_with_one_field_of_another_is_refused(
    key: str, ours: Federation, others: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "a.join"
    write_join_file(path, _join_file(ours))
    document = json.loads(path.read_text())
    for other in (_join_file(ours), _join_file(others)):
        value = _tampered(key, document[key], other)
        if value == document[key]:  # two files of one federation share root and issuer
            continue
        path.write_text(json.dumps(document | {key: value}))
        with pytest.raises(JoinFileError, match=r"a\.join"):
            read_join_file(path, NOW)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, 1.5, "", "\ud800", "é", [], {}, True, 10**400])
def test_a_join_file_with_nonsense_in_a_field_is_refused(
    key: str, value: object, ours: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "a.join"
    write_join_file(path, _join_file(ours))
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {key: value}))
    with pytest.raises(JoinFileError):
        read_join_file(path, NOW)
    del document[key]
    path.write_text(json.dumps(document))
    with pytest.raises(JoinFileError):
        read_join_file(path, NOW)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 5000, b" " * 70_000, b'{"version": 1, "version": 1}']
)
def test_what_is_no_join_file_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.join").write_bytes(raw)
    with pytest.raises(JoinFileError):
        read_join_file(tmp_path / "a.join", NOW)


def test_an_unknown_key_in_a_join_file_is_refused_by_name(ours: Federation, tmp_path: Path) -> None:
    path = tmp_path / "a.join"
    write_join_file(path, _join_file(ours))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(JoinFileError, match="surprise"):
        read_join_file(path, NOW)


def test_a_join_file_that_is_missing_or_too_old_says_so(ours: Federation, tmp_path: Path) -> None:
    with pytest.raises(JoinFileError, match="No such file"):
        read_join_file(tmp_path / "none.join", NOW)
    write_join_file(tmp_path / "a.join", _join_file(ours))
    read_join_file(tmp_path / "a.join", NOW + DAY)
    with pytest.raises(JoinFileError, match=r"ended on 2026-05-02 12:00 UTC.*Ask for a new one"):
        read_join_file(tmp_path / "a.join", NOW + DAY + 1)


def _with_leaf(federation: Federation, peer: PeerId) -> JoinFile:
    key = make_key()
    leaf = issue_client(federation.issuer, key.public_key(), peer, DAY, NOW)
    return _join_file(federation, bootstrap=certificate_pem(leaf), bootstrap_key=key_pem(key))


def test_a_signed_join_file_with_the_wrong_certificate_is_refused(
    ours: Federation, others: Federation, tmp_path: Path
) -> None:
    refused = {
        "expected one to join": _with_leaf(ours, ENVOY),
        "expected one to join lungs": _with_leaf(ours, PeerId("hearts", Role.JOIN, "a")),
        "does not fit its certificate": _join_file(ours, bootstrap_key=key_pem(make_key())),
        "another time": _join_file(ours, expires_at=int(NOW + 1800)),
        "not issued by this federation": _join_file(ours, bootstrap=_join_file(others).bootstrap),
        "the issuer was not issued": _join_file(ours, root=certificate_pem(others.root.certificate)),
    }
    for message, join in refused.items():
        write_join_file(tmp_path / "a.join", join)
        with pytest.raises(JoinFileError, match=message):
            read_join_file(tmp_path / "a.join", NOW)


def test_a_join_file_ends_with_join(ours: Federation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="join"):
        write_join_file(tmp_path / "hospital-a.txt", _join_file(ours))
