"""A site's keys are made here, kept before they are announced, and used only while they are good."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from fedveil.envoy.enrolment import JoinKeys, keep_credentials, load_credentials, prepare_join, save_credentials
from fedveil.utils.certificates import (
    DAY_SECONDS,
    Authority,
    certificate_pem,
    issue_client,
    issue_identity,
    key_pem,
    make_issuer,
    make_key,
    make_root,
    read_key,
)
from fedveil.utils.errors import IdentityError
from fedveil.utils.identity import PeerId, Role, expires_at
from fedveil.utils.join_file import JoinFile, sign_join_file
from fedveil.utils.messages import EnvoyName, JoinReply, JoinRequest
from fedveil.utils.renewal import join_text

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = float(DAY_SECONDS)
ENVOY = PeerId("lungs", Role.ENVOY, "hospital-a")


@dataclass(frozen=True, slots=True)
class Federation:
    root: Authority
    issuer: Authority

    def invite(self) -> JoinFile:
        key = make_key()
        bootstrap = issue_client(self.issuer, key.public_key(), PeerId("lungs", Role.JOIN, "f00"), DAY, NOW)
        join = JoinFile(
            federation="lungs",
            name="hospital-a",
            organization="Hospital A",
            role=Role.ENVOY,
            addresses=("director.example.org:9443", "[::1]:9443"),
            root=certificate_pem(self.root.certificate),
            issuer=certificate_pem(self.issuer.certificate),
            bootstrap=certificate_pem(bootstrap),
            bootstrap_key=key_pem(key),
            expires_at=int(expires_at(bootstrap)),
        )
        return sign_join_file(join, self.issuer)

    def answer(self, request: JoinRequest, peer: PeerId = ENVOY) -> JoinReply:
        """As the registrar does."""
        key = x509.load_der_x509_csr(request.signing_request).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        leaf = issue_client(self.issuer, key, peer, 7 * DAY, NOW)
        identity = issue_identity(self.issuer, Ed25519PublicKey.from_public_bytes(request.identity_key), peer, NOW)
        chain = certificate_pem(leaf, self.issuer.certificate)
        renewing = x509.load_der_x509_csr(request.renewal_request).public_key()
        assert isinstance(renewing, ec.EllipticCurvePublicKey)
        renewer = PeerId(peer.federation, Role.RENEW, peer.name)
        renewal = certificate_pem(issue_client(self.issuer, renewing, renewer, 365 * DAY, NOW))
        return JoinReply("lungs", EnvoyName("hospital-a"), "Hospital A", chain, certificate_pem(identity), renewal)


def _federation() -> Federation:
    root = make_root("lungs", NOW)
    return Federation(root, make_issuer(root, "lungs", NOW))


@pytest.fixture(scope="module")
def ours() -> Federation:
    return _federation()


@pytest.fixture(scope="module")
def others() -> Federation:
    return _federation()


@pytest.fixture
def member(ours: Federation, tmp_path: Path) -> Path:
    join = ours.invite()
    request, keys = prepare_join(tmp_path, join)
    save_credentials(tmp_path, join, keys, ours.answer(request), NOW)
    return tmp_path


def test_a_request_proves_both_keys(ours: Federation, tmp_path: Path) -> None:
    request, keys = prepare_join(tmp_path, ours.invite())
    signing_request = x509.load_der_x509_csr(request.signing_request)
    assert signing_request.is_signature_valid
    assert signing_request.public_key() == read_key(keys.leaf_key, "key").public_key()
    identity = Ed25519PublicKey.from_public_bytes(request.identity_key)
    identity.verify(request.identity_proof, join_text(request.signing_request, request.renewal_request))
    renewing = x509.load_der_x509_csr(request.renewal_request)
    assert renewing.is_signature_valid
    assert renewing.public_key() == read_key(keys.renewal_key, "key").public_key() != signing_request.public_key()
    assert "PRIVATE" not in repr(keys)


def test_keys_are_on_disk_before_the_director_is_asked(ours: Federation, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    prepare_join(folder, ours.invite())
    assert stat.S_IMODE((folder / "joining.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_join_that_is_repeated_is_the_very_same_request(ours: Federation, tmp_path: Path) -> None:
    join = ours.invite()
    assert prepare_join(tmp_path, join) == prepare_join(tmp_path, join)


def test_another_join_file_gets_other_keys(ours: Federation, tmp_path: Path) -> None:
    first, _ = prepare_join(tmp_path, ours.invite())
    second, _ = prepare_join(tmp_path, ours.invite())
    assert first.signing_request != second.signing_request
    assert first.identity_key != second.identity_key


def test_credentials_survive_the_disk(ours: Federation, tmp_path: Path) -> None:
    join = ours.invite()
    request, keys = prepare_join(tmp_path, join)
    saved = save_credentials(tmp_path, join, keys, ours.answer(request), NOW)
    assert load_credentials(tmp_path, NOW) == saved
    assert saved.peer == ENVOY
    assert saved.organization == "Hospital A"
    assert saved.addresses == join.addresses
    assert saved.root == join.root
    assert saved.expires_at == NOW + 7 * DAY
    assert "PRIVATE" not in repr(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["credentials.json"]
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600


def test_a_member_does_not_join_again_in_its_folder(ours: Federation, member: Path) -> None:
    before = (member / "credentials.json").read_bytes()
    with pytest.raises(IdentityError, match="another folder"):
        prepare_join(member, ours.invite())
    assert (member / "credentials.json").read_bytes() == before


def test_a_folder_without_credentials_says_what_to_do(ours: Federation, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"has not joined .* see `envoy join FILE`"):
        load_credentials(tmp_path, NOW)
    prepare_join(tmp_path, ours.invite())
    with pytest.raises(IdentityError, match="begun and not answered"):
        load_credentials(tmp_path, NOW)


def test_a_leaf_that_expired_is_no_reason_not_to_read_the_rest(member: Path) -> None:
    held = load_credentials(member, NOW + 300 * DAY)
    assert held.expires_at == NOW + 7 * DAY
    with pytest.raises(IdentityError, match=r"expired on 2026-05-08 12:00 UTC"):  # it is kept as new by nobody
        keep_credentials(member, held, NOW + 7 * DAY + 1)


def test_an_expired_identity_says_when_and_what_to_do(member: Path) -> None:
    with pytest.raises(IdentityError, match=r"hospital-a expired on 2027-05-01 12:00 UTC.*new join file"):
        load_credentials(member, NOW + 365 * DAY + 1)


def test_credentials_of_an_earlier_version_have_nothing_to_renew_by_and_are_read(member: Path) -> None:
    path = member / "credentials.json"
    document = json.loads(path.read_text())
    for key in ("renewal_chain", "renewal_key"):
        del document[key]
    path.write_text(json.dumps(document))
    assert load_credentials(member, NOW).renewal_certificate is None


def test_a_join_that_was_prepared_by_an_earlier_version_is_the_same_request(ours: Federation, tmp_path: Path) -> None:
    join = ours.invite()
    _, keys = prepare_join(tmp_path, join)
    document = json.loads((tmp_path / "joining.json").read_text())
    for key in ("renewal_key", "renewal_request"):
        del document[key]
    (tmp_path / "joining.json").write_text(json.dumps(document))
    request, again = prepare_join(tmp_path, join)
    assert (request.signing_request, request.renewal_request) == (keys.signing_request, b"")
    identity = Ed25519PublicKey.from_public_bytes(request.identity_key)
    identity.verify(request.identity_proof, request.signing_request)
    assert again.renewal_key == b""


def test_credentials_that_others_may_read_are_not_used(member: Path) -> None:
    (member / "credentials.json").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_credentials(member, NOW)


def test_an_answer_of_another_federation_is_not_kept(ours: Federation, others: Federation, tmp_path: Path) -> None:
    join = ours.invite()
    request, keys = prepare_join(tmp_path, join)
    mallory = Ed25519PrivateKey.generate()
    stranger = replace(request, identity_key=mallory.public_key().public_bytes_raw())
    good = ours.answer(request)
    other_name = ours.answer(request, PeerId("lungs", Role.ENVOY, "hospital-b"))
    other_role = ours.answer(request, PeerId("lungs", Role.OPERATOR, "hospital-a"))
    refused = {
        "not issued by this federation": others.answer(request),
        "answered for hospital-a of hearts": replace(good, federation="hearts"),
        "answered for hospital-b of lungs": replace(good, name=EnvoyName("hospital-b")),
        "lungs/envoy/hospital-b's": other_name,
        "lungs/operator/hospital-a's": other_role,
        "identity key does not fit": ours.answer(stranger),
        "the identity certificate was not issued": replace(
            good, identity_certificate=others.answer(request).identity_certificate
        ),
        "not a client's": replace(good, chain=good.identity_certificate + join.issuer),
        "expected leaf and issuer": replace(good, chain=good.identity_certificate),
        "no PEM": replace(good, chain=b""),
        "the renewal certificate is spiffe://lungs/envoy/hospital-a's": replace(
            good, renewal_certificate=good.chain[: good.chain.index(b"-----END")] + b"-----END CERTIFICATE-----\n"
        ),
        "was not issued by this federation": replace(
            good, renewal_certificate=others.answer(request).renewal_certificate
        ),
    }
    for message, reply in refused.items():
        with pytest.raises(IdentityError, match=message):
            save_credentials(tmp_path, join, keys, reply, NOW)
    with pytest.raises(IdentityError, match="the key does not fit"):
        save_credentials(tmp_path, join, _other_keys(ours, tmp_path / "b"), good, NOW)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["joining.json"]
    save_credentials(tmp_path, join, keys, good, NOW)


def _other_keys(federation: Federation, folder: Path) -> JoinKeys:
    return prepare_join(folder, federation.invite())[1]


@pytest.mark.parametrize(
    "key",
    [
        "version",
        "peer",
        "organization",
        "addresses",
        "root",
        "chain",
        "leaf_key",
        "identity_certificate",
        "identity_key",
        "renewal_chain",
        "renewal_key",
    ],
)
def test_damaged_credentials_are_refused(key: str, member: Path) -> None:
    path = member / "credentials.json"
    document = json.loads(path.read_text())
    for value in (None, 3, "\ud800", "x y"):
        if key == "organization" and isinstance(value, str):  # any text is one
            continue
        path.write_text(json.dumps(document | {key: value}))
        with pytest.raises(IdentityError, match=r"credentials\.json"):
            load_credentials(member, NOW)
    if key == "renewal_chain":  # of an earlier version
        return
    del document[key]
    path.write_text(json.dumps(document))
    with pytest.raises(IdentityError, match=r"credentials\.json"):
        load_credentials(member, NOW)


def test_credentials_renamed_to_another_federation_are_refused(member: Path) -> None:
    path = member / "credentials.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"peer": "spiffe://hearts/envoy/hospital-a"}))
    with pytest.raises(IdentityError, match="expected spiffe://hearts/envoy/hospital-a"):
        load_credentials(member, NOW)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"version": "1"}', b"\xff", b"[" * 5000])
def test_a_damaged_preparation_is_refused(raw: bytes, ours: Federation, tmp_path: Path) -> None:
    join = ours.invite()
    prepare_join(tmp_path, join)
    (tmp_path / "joining.json").write_bytes(raw)
    with pytest.raises(IdentityError, match=r"joining\.json"):
        prepare_join(tmp_path, join)
