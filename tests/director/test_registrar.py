"""Who may join: invited names, once, with keys of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.database import open_database
from fedveil.director.founding import init_federation, load_issuer
from fedveil.director.identity_store import IdentityStore
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.utils.certificates import DAY_SECONDS, public_bytes
from fedveil.utils.errors import (
    ConfigError,
    FederationError,
    IdentityError,
    JoinFileError,
    MalformedMessageError,
    NotAuthorizedError,
)
from fedveil.utils.identity import (
    PeerId,
    Role,
    check_chain,
    expires_at,
    fingerprint,
    is_for_clients,
    peer_of,
    read_certificate,
    read_chain,
)
from fedveil.utils.join_file import JoinFile, read_join_file, write_join_file
from fedveil.utils.messages import JoinRequest

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = float(DAY_SECONDS)
ADDRESSES = ("director.example.org:9443",)


@dataclass(frozen=True, slots=True)
class Desk:
    registrar: Registrar
    store: IdentityStore
    root: x509.Certificate
    issuer: x509.Certificate

    def invite(self, name: str = "hospital-a", role: Role = Role.ENVOY, ttl: float = DAY) -> JoinFile:
        return self.registrar.invite(name, "Hospital A", role, ADDRESSES, ttl, NOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("director")
    init_federation(folder, "lungs", ADDRESSES, b"correct horse", NOW)
    return folder


@pytest.fixture
def desk(folder: Path) -> Iterator[Desk]:
    engine = open_database("sqlite://", durable=False)
    issuer, root = load_issuer(folder, NOW)
    store = IdentityStore(engine)
    yield Desk(Registrar("lungs", issuer, root, store, Revocations(engine)), store, root, issuer.certificate)
    engine.dispose()


def bootstrap_of(join: JoinFile) -> PeerId:
    return peer_of(read_certificate(join.bootstrap, "bootstrap"))


def signing_request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey, name: str | None = None
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if name is not None:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def request(csr: bytes | None = None) -> JoinRequest:
    csr = signing_request(ec.generate_private_key(ec.SECP256R1())) if csr is None else csr
    identity = Ed25519PrivateKey.generate()
    return JoinRequest(csr, public_bytes(identity.public_key()), identity.sign(csr))


# invite


def test_an_invitation_can_be_written_and_read(desk: Desk, folder: Path, tmp_path: Path) -> None:
    join = desk.invite()
    write_join_file(tmp_path / "a.join", join)
    assert read_join_file(tmp_path / "a.join", NOW) == join
    assert join.addresses == ADDRESSES
    assert join.expires_at == NOW + DAY
    assert fingerprint(join.root) == fingerprint((folder / "ca/root.pem").read_bytes())
    assert desk.store.use_invitation(bootstrap_of(join).name, "1" * 64, NOW).name == "hospital-a"


@pytest.mark.parametrize("name", ["", "Hospital", "a/b", "../a", "a b", "-a", "a" * 64, "operator", "director"])
def test_a_name_that_cannot_be_is_not_invited(desk: Desk, name: str) -> None:
    with pytest.raises(IdentityError):
        desk.invite(name)


@pytest.mark.parametrize("role", [Role.DIRECTOR, Role.JOIN])
def test_only_envoys_and_operators_are_invited(desk: Desk, role: Role) -> None:
    with pytest.raises(ConfigError, match="expected envoy or operator"):
        desk.invite(role=role)


@pytest.mark.parametrize("ttl", [0, -1, 59, 31 * DAY, float("nan"), float("inf")])
def test_an_invitation_lasts_a_minute_to_thirty_days(desk: Desk, ttl: float) -> None:
    with pytest.raises(ConfigError, match="a minute to 30 days"):
        desk.invite(ttl=ttl)


@pytest.mark.parametrize("organization", ["", "  ", "a\nb", "x" * 201])
def test_an_organization_is_readable(desk: Desk, organization: str) -> None:
    with pytest.raises(ConfigError, match="organization"):
        desk.registrar.invite("a", organization, Role.ENVOY, ADDRESSES, DAY, NOW)


@pytest.mark.parametrize("addresses", [(), ("director.example.org",), ("director.example.org:0",), ("a b:1",)])
def test_an_invitation_says_where_to_go(desk: Desk, addresses: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        desk.registrar.invite("a", "A", Role.ENVOY, addresses, DAY, NOW)


# join


@pytest.mark.parametrize("role", [Role.ENVOY, Role.OPERATOR])
def test_a_join_gives_a_leaf_and_an_identity_with_the_invited_name(desk: Desk, role: Role) -> None:
    asked = request()
    reply = desk.registrar.join(bootstrap_of(desk.invite(role=role)), asked, NOW)
    leaf, issuer = read_chain(reply.chain, "chain")
    identity = read_certificate(reply.identity_certificate, "identity")
    expected = PeerId("lungs", role, "hospital-a")
    assert (reply.federation, reply.name, reply.organization) == ("lungs", "hospital-a", "Hospital A")
    assert check_chain(leaf, issuer, desk.root, NOW) == check_chain(identity, issuer, desk.root, NOW) == expected
    assert is_for_clients(leaf)
    assert expires_at(leaf) == NOW + 7 * DAY
    assert leaf.public_key() == x509.load_der_x509_csr(asked.signing_request).public_key()
    held = desk.store.identity("hospital-a")
    assert held is not None
    assert held.certificate_sha256 == leaf.fingerprint(hashes.SHA256()).hex()
    assert (held.role, held.identity_key, held.joined_at) == (role.value, asked.identity_key, NOW)


def test_the_signing_request_cannot_choose_a_name_or_become_an_authority(desk: Desk) -> None:
    wish = signing_request(ec.generate_private_key(ec.SECP256R1()), "spiffe://lungs/operator/root")
    reply = desk.registrar.join(bootstrap_of(desk.invite()), request(wish), NOW)
    leaf = read_chain(reply.chain, "chain")[0]
    assert str(peer_of(leaf)) == "spiffe://lungs/envoy/hospital-a"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_join_whose_answer_was_lost_may_be_repeated(desk: Desk) -> None:
    bootstrap, asked = bootstrap_of(desk.invite()), request()
    first = desk.registrar.join(bootstrap, asked, NOW)
    second = desk.registrar.join(bootstrap, asked, NOW + 60)
    assert first.name == second.name
    key = x509.load_der_x509_csr(asked.signing_request).public_key()
    assert read_chain(second.chain, "chain")[0].public_key() == key
    held = desk.store.identity("hospital-a")
    assert held is not None
    assert held.joined_at == NOW
    assert held.certificate_sha256 == read_chain(second.chain, "chain")[0].fingerprint(hashes.SHA256()).hex()


def test_a_join_file_used_twice_is_refused(desk: Desk) -> None:
    bootstrap, asked = bootstrap_of(desk.invite()), request()
    desk.registrar.join(bootstrap, asked, NOW)
    for other in (request(), request(asked.signing_request)):  # also the same leaf key with another identity
        with pytest.raises(JoinFileError, match="used before"):
            desk.registrar.join(bootstrap, other, NOW)


def test_of_two_join_files_for_one_name_the_first_that_is_used_wins(desk: Desk) -> None:
    first, second = bootstrap_of(desk.invite()), bootstrap_of(desk.invite())
    desk.registrar.join(second, request(), NOW)
    with pytest.raises(JoinFileError, match="another join file, used before"):
        desk.registrar.join(first, request(), NOW)


def test_of_two_join_files_for_one_name_with_different_roles_one_alone_is_good_for_one_key(desk: Desk) -> None:
    envoy, operator, asked = bootstrap_of(desk.invite()), bootstrap_of(desk.invite(role=Role.OPERATOR)), request()
    desk.registrar.join(envoy, asked, NOW)
    with pytest.raises(JoinFileError, match="another join file, used before"):
        desk.registrar.join(operator, asked, NOW)
    held = desk.store.identity("hospital-a")
    assert held is not None
    assert held.role == Role.ENVOY.value


def test_of_many_joins_at_once_one_alone_succeeds(desk: Desk) -> None:
    bootstraps = [bootstrap_of(desk.invite()) for _ in range(3)] * 3
    requests = [request() for _ in bootstraps]

    def joined(bootstrap: PeerId, asked: JoinRequest) -> bool:
        try:
            desk.registrar.join(bootstrap, asked, NOW)
        except JoinFileError:
            return False
        return True

    with ThreadPoolExecutor(len(requests)) as pool:
        assert sum(pool.map(joined, bootstraps, requests)) == 1


def test_a_member_s_name_is_not_invited_again(desk: Desk) -> None:
    desk.registrar.join(bootstrap_of(desk.invite()), request(), NOW)
    for role in (Role.ENVOY, Role.OPERATOR):
        with pytest.raises(IdentityError, match="joined on 2026-05-01"):
            desk.invite(role=role)


def test_a_join_that_comes_too_late_is_refused(desk: Desk) -> None:
    bootstrap = bootstrap_of(desk.invite(ttl=3600))
    with pytest.raises(JoinFileError, match="expired"):
        desk.registrar.join(bootstrap, request(), NOW + 3601)


def test_an_invitation_that_was_never_made_is_refused(desk: Desk) -> None:
    with pytest.raises(JoinFileError, match="did not make"):
        desk.registrar.join(PeerId("lungs", Role.JOIN, "0" * 32), request(), NOW)


@pytest.mark.parametrize(
    "caller",
    [
        PeerId("lungs", Role.ENVOY, "hospital-a"),
        PeerId("lungs", Role.OPERATOR, "operator"),
        PeerId("hearts", Role.JOIN, "hospital-a"),
    ],
)
def test_only_a_join_file_s_certificate_may_join(desk: Desk, caller: PeerId) -> None:
    with pytest.raises(NotAuthorizedError):
        desk.registrar.join(caller, request(), NOW)


def test_a_key_of_another_curve_is_refused(desk: Desk) -> None:
    bootstrap = bootstrap_of(desk.invite())
    keys = {
        "secp384r1": ec.generate_private_key(ec.SECP384R1()),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "RSA": rsa.generate_private_key(65537, 2048),
        "Ed25519": Ed25519PrivateKey.generate(),
    }
    for kind, key in keys.items():
        with pytest.raises(MalformedMessageError, match=kind):
            desk.registrar.join(bootstrap, request(signing_request(key)), NOW)


def test_a_bad_proof_of_a_key_is_refused(desk: Desk) -> None:
    bootstrap, good = bootstrap_of(desk.invite()), request()
    csr = bytearray(good.signing_request)
    csr[-1] ^= 1  # the signature alone
    other = Ed25519PrivateKey.generate()
    with pytest.raises(IdentityError, match="its own key"):
        desk.registrar.join(bootstrap, request(bytes(csr)), NOW)
    for proof in (b"", bytes(64), other.sign(good.signing_request)):
        with pytest.raises(IdentityError, match="did not sign"):
            desk.registrar.join(bootstrap, replace(good, identity_proof=proof), NOW)
    with pytest.raises(IdentityError, match="did not sign"):
        desk.registrar.join(bootstrap, replace(good, signing_request=request().signing_request), NOW)


def test_nonsense_for_keys_is_refused_and_uses_nothing_up(desk: Desk) -> None:
    bootstrap, good = bootstrap_of(desk.invite()), request()
    for csr in (b"", b"x", bytes(9000), good.signing_request[:-9], b"-----BEGIN CERTIFICATE REQUEST-----\n"):
        with pytest.raises(MalformedMessageError):
            desk.registrar.join(bootstrap, request(csr), NOW)
    for key in (b"", bytes(31), bytes(33)):
        with pytest.raises(FederationError):
            desk.registrar.join(bootstrap, replace(good, identity_key=key), NOW)
    desk.registrar.join(bootstrap, good, NOW)


def test_any_changed_byte_of_what_a_signing_request_says_is_refused(desk: Desk) -> None:
    bootstrap, good = bootstrap_of(desk.invite()), request().signing_request
    said = x509.load_der_x509_csr(good).tbs_certrequest_bytes
    start = good.index(said)
    for position in range(start, start + len(said)):
        changed = bytearray(good)
        changed[position] ^= 0x41
        with pytest.raises(FederationError):
            desk.registrar.join(bootstrap, request(bytes(changed)), NOW)
    assert desk.store.identity("hospital-a") is None


def test_an_issuer_that_expired_invites_nobody(desk: Desk) -> None:
    with pytest.raises(IdentityError, match="expired"):
        desk.registrar.invite("a", "A", Role.ENVOY, ADDRESSES, DAY, NOW + 366 * DAY)


def test_a_key_for_which_anybody_can_sign_is_no_identity(desk: Desk) -> None:
    csr = signing_request(ec.generate_private_key(ec.SECP256R1()))
    neutral = (1).to_bytes(32, "little")  # a point of order 1: every signature that begins with it fits
    forged = JoinRequest(csr, neutral, neutral + bytes(32))
    with pytest.raises(IdentityError):
        desk.registrar.join(bootstrap_of(desk.invite()), forged, NOW)
