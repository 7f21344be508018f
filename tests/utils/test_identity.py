"""Names and certificates: what is believed, and everything that is not."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.verification import PolicyBuilder, Store
from fedveil.utils.addresses import Address
from fedveil.utils.certificates import (
    CLOCK_SKEW_SECONDS,
    DAY_SECONDS,
    LEAF_DAYS,
    Authority,
    certificate_pem,
    is_key_of,
    issue_client,
    issue_identity,
    issue_server,
    key_pem,
    make_issuer,
    make_key,
    make_root,
    read_identity_key,
    read_key,
)
from fedveil.utils.errors import ConfigError, IdentityError, PassphraseError, StorageError
from fedveil.utils.identity import (
    PeerId,
    Role,
    check_chain,
    check_issued,
    expires_at,
    fingerprint,
    is_for_clients,
    parse_spiffe,
    peer_of,
    read_certificate,
    read_chain,
)
from fedveil.utils.messages import NAME_PATTERN
from fedveil.utils.private_files import read_private_file, write_private_file
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = float(DAY_SECONDS)
TODAY = datetime.now(UTC).timestamp()
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


# names


def test_a_spiffe_uri_names_federation_role_and_name() -> None:
    assert parse_spiffe("spiffe://lungs/envoy/hospital-a") == ENVOY
    assert str(ENVOY) == "spiffe://lungs/envoy/hospital-a"


@given(st.from_regex(NAME_PATTERN, fullmatch=True), st.sampled_from(Role), st.from_regex(NAME_PATTERN, fullmatch=True))
def test_every_identity_survives_its_uri(federation: str, role: Role, name: str) -> None:
    assert parse_spiffe(str(PeerId(federation, role, name))) == PeerId(federation, role, name)


@given(st.text())
def test_no_other_text_is_an_identity(text: str) -> None:
    with contextlib.suppress(IdentityError):
        assert str(parse_spiffe(text)) == text


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://",
        "spiffe://lungs/envoy",
        "spiffe://lungs/envoy/",
        "spiffe://lungs/envoy/hospital-a/",
        "spiffe://lungs/envoy/hospital-a/b",
        "spiffe://lungs/envoy/hospital-a\n",
        "spiffe://lungs/envoy/..",
        "spiffe://lungs/envoy/%61",
        "spiffe://lungs/envoy/Hospital-A",
        "spiffe://lungs/envoy/hospital-a?x=1",
        "spiffe://lungs/admin/hospital-a",
        "spiffe:///envoy/hospital-a",
        "spiffe://lungs:1/envoy/hospital-a",
        "SPIFFE://lungs/envoy/hospital-a",
        "https://lungs/envoy/hospital-a",
        f"spiffe://lungs/envoy/{'a' * 64}",
    ],
)
def test_an_identity_that_is_almost_one_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_spiffe(uri)


# addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("director.example.org:9443", "director.example.org", 9443),
        ("director.example.org", "director.example.org", None),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:9443", "::1", 9443),
        ("[fe80::1]", "fe80::1", None),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, host: str, port: int | None) -> None:
    assert Address.parse(text) == Address(host, port)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":9443",
        "host:",
        "host:x",
        "host:99999",
        "::1",
        "[::1",
        "[1.2.3.4]:1",
        "1.2.3.4.5",
        "a b",
        "a/b",
        "-a",
        "h:1:2",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.parse(text)


def test_an_address_without_a_port_takes_the_one_that_is_listened_on() -> None:
    assert str(Address.parse("[::1]").with_port(9443)) == "[::1]:9443"
    assert str(Address.parse("a:1").with_port(9443)) == "a:1"
    with pytest.raises(ConfigError, match="port"):
        Address.parse("a").with_port(0)


# certificates


def test_a_client_certificate_names_its_owner_and_chains_to_the_root(ours: Federation) -> None:
    key = make_key()
    leaf = issue_client(ours.issuer, key.public_key(), ENVOY, LEAF_DAYS * DAY, NOW)
    assert check_chain(leaf, ours.issuer.certificate, ours.root.certificate, NOW) == ENVOY
    assert is_for_clients(leaf)
    assert is_key_of(leaf, key)
    assert expires_at(leaf) == NOW + 7 * DAY


def test_cryptography_s_own_verifier_agrees_about_chains(ours: Federation, others: Federation) -> None:
    leaf = issue_client(ours.issuer, make_key().public_key(), ENVOY, DAY, NOW)

    def verify(root: Authority, days: float) -> None:
        time = datetime.fromtimestamp(NOW + days * DAY, UTC)
        builder = PolicyBuilder().store(Store([root.certificate])).time(time)
        builder.build_client_verifier().verify(leaf, [ours.issuer.certificate])

    verify(ours.root, 0.5)
    for root, days in ((others.root, 0.5), (ours.root, 1.5)):
        with pytest.raises(x509.verification.VerificationError):
            verify(root, days)
        with pytest.raises(IdentityError):
            check_chain(leaf, ours.issuer.certificate, root.certificate, NOW + days * DAY)


def test_another_ca_s_certificate_is_refused(ours: Federation, others: Federation) -> None:
    leaf = issue_client(others.issuer, make_key().public_key(), ENVOY, DAY, NOW)
    with pytest.raises(IdentityError, match="not issued by this federation"):
        check_chain(leaf, others.issuer.certificate, ours.root.certificate, NOW)
    with pytest.raises(IdentityError, match="not issued by this federation"):
        check_chain(leaf, ours.issuer.certificate, ours.root.certificate, NOW)


def test_an_expired_certificate_is_refused_with_its_end(ours: Federation) -> None:
    leaf = issue_client(ours.issuer, make_key().public_key(), ENVOY, DAY, NOW)
    with pytest.raises(IdentityError, match="expired on 2026-05-02 12:00 UTC"):
        check_chain(leaf, ours.issuer.certificate, ours.root.certificate, NOW + DAY + 1)


def test_a_clock_that_is_five_minutes_slow_is_no_obstacle(ours: Federation) -> None:
    leaf = issue_client(ours.issuer, make_key().public_key(), ENVOY, DAY, NOW)
    check_chain(leaf, ours.issuer.certificate, ours.root.certificate, NOW - CLOCK_SKEW_SECONDS)
    with pytest.raises(IdentityError, match="clock"):
        check_chain(leaf, ours.issuer.certificate, ours.root.certificate, NOW - CLOCK_SKEW_SECONDS - 1)


def test_a_leaf_cannot_issue(ours: Federation) -> None:
    key = make_key()
    leaf = issue_client(ours.issuer, key.public_key(), ENVOY, DAY, NOW)
    forged = issue_client(Authority(leaf, key), make_key().public_key(), ENVOY, DAY, NOW)
    with pytest.raises(IdentityError, match="may not issue"):
        check_issued(forged, leaf, "the certificate")


def test_the_issuer_cannot_make_another_issuer(ours: Federation) -> None:
    below = make_issuer(ours.issuer, "lungs", NOW)
    with pytest.raises(IdentityError, match="only issue leaves"):
        check_issued(below.certificate, ours.issuer.certificate, "the issuer")


def test_the_issuer_ends_after_a_year_and_no_leaf_outlives_it(ours: Federation) -> None:
    assert expires_at(ours.issuer.certificate) == NOW + 365 * DAY
    assert expires_at(ours.root.certificate) == NOW + 3650 * DAY
    late = issue_client(ours.issuer, make_key().public_key(), ENVOY, 90 * DAY, NOW + 360 * DAY)
    assert expires_at(late) == NOW + 365 * DAY
    with pytest.raises(IdentityError, match="expired"):
        issue_client(ours.issuer, make_key().public_key(), ENVOY, DAY, NOW + 366 * DAY)


def test_a_director_s_certificate_is_no_client_s(ours: Federation) -> None:
    hosts = [Address("localhost")]
    server = issue_server(ours.issuer, make_key().public_key(), "lungs", hosts, DAY, NOW)
    assert peer_of(server) == PeerId("lungs", Role.DIRECTOR, "director")
    assert not is_for_clients(server)
    with pytest.raises(ValueError, match="server"):
        issue_client(ours.issuer, make_key().public_key(), peer_of(server), DAY, NOW)


def test_an_identity_certificate_signs_and_opens_no_connection(ours: Federation) -> None:
    key = Ed25519PrivateKey.generate()
    certificate = issue_identity(ours.issuer, key.public_key(), ENVOY, NOW)
    assert check_chain(certificate, ours.issuer.certificate, ours.root.certificate, NOW) == ENVOY
    assert is_key_of(certificate, read_identity_key(key_pem(key), "key"))
    assert not is_for_clients(certificate)


def test_a_certificate_with_two_identities_is_refused(ours: Federation) -> None:
    names = [x509.UniformResourceIdentifier(f"spiffe://lungs/envoy/{name}") for name in ("a", "b")]
    leaf = issue_client(ours.issuer, make_key().public_key(), ENVOY, DAY, NOW)
    builder = (
        x509.CertificateBuilder(leaf.issuer, leaf.subject, leaf.public_key(), leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    twice = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for certificate in (twice.sign(ours.issuer.key, leaf.signature_hash_algorithm), ours.root.certificate):
        with pytest.raises(IdentityError, match="identit"):
            peer_of(certificate)


def test_the_fingerprint_is_that_of_openssl(ours: Federation) -> None:
    pem = certificate_pem(ours.root.certificate)
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    assert fingerprint(pem).replace(" ", "") == hashlib.sha256(der).hexdigest()
    assert len(fingerprint(pem).split()) == 16


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 70_000])
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(IdentityError):
        read_chain(pem, "the certificate")


def test_one_certificate_is_not_two(ours: Federation) -> None:
    with pytest.raises(IdentityError, match="2 certificates, expected one"):
        read_certificate(certificate_pem(ours.root.certificate, ours.issuer.certificate), "the root")
    with pytest.raises(IdentityError, match="chain of 5"):
        read_chain(certificate_pem(*[ours.root.certificate] * 5), "the root")


# keys


def test_the_wrong_passphrase_does_not_open_a_key() -> None:
    key = make_key()
    pem = key_pem(key, b"correct horse")
    assert b"ENCRYPTED" in pem
    assert read_key(pem, "key", b"correct horse").private_numbers() == key.private_numbers()
    for wrong in (b"battery staple", b"", None):
        with pytest.raises(PassphraseError):
            read_key(pem, "key", wrong)


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1001])
def test_a_passphrase_that_openssl_cannot_take_is_refused(passphrase: bytes) -> None:
    with pytest.raises(PassphraseError):
        key_pem(make_key(), passphrase)


def test_a_key_of_another_kind_is_refused() -> None:
    other_curve = key_pem(ec.generate_private_key(ec.SECP384R1()))
    ed25519 = key_pem(Ed25519PrivateKey.generate())
    for pem in (other_curve, ed25519, b"", b"no key"):
        with pytest.raises(IdentityError):
            read_key(pem, "key")
    with pytest.raises(IdentityError):
        read_identity_key(other_curve, "key")


def test_a_private_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private_file(path, b"old")
    write_private_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private_file(path) == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


def test_a_private_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_private_file(path, b"key")
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        read_private_file(path)


def test_a_private_file_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        write_private_file(tmp_path / "nowhere" / "key.pem", b"key")
    with pytest.raises(IdentityError, match="no such file"):
        read_private_file(tmp_path / "key.pem")


# TLS, in memory


def _handshake(federation: Federation, client: PeerId | None, host: str, now: float, folder: Path) -> str | None:
    """OpenSSL on both ends without a socket; gives the client's URI as the server saw it."""
    chains = {"server": make_key(), "client": make_key()}
    hosts = [Address("director.example.org"), Address("10.0.0.7")]
    server_leaf = issue_server(federation.issuer, chains["server"].public_key(), "lungs", hosts, DAY, now)
    client_leaf = server_leaf
    if client is not None:
        client_leaf = issue_client(federation.issuer, chains["client"].public_key(), client, DAY, now)
    else:
        chains["client"] = chains["server"]
    for end, leaf in (("server", server_leaf), ("client", client_leaf)):
        write_private_file(folder / f"{end}.pem", certificate_pem(leaf, federation.issuer.certificate))
        write_private_file(folder / f"{end}.key", key_pem(chains[end]))
    root = certificate_pem(federation.root.certificate).decode()
    ends = {}
    for end, protocol in (("server", ssl.PROTOCOL_TLS_SERVER), ("client", ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(protocol)
        context.load_cert_chain(folder / f"{end}.pem", folder / f"{end}.key")
        context.load_verify_locations(cadata=root)
        context.verify_mode = ssl.CERT_REQUIRED
        ends[end] = context
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ends["server"].wrap_bio(to_server, to_client, server_side=True)
    caller = ends["client"].wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for end in (caller, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = server.getpeercert() or {}
    return next((value for kind, value in found.get("subjectAltName", ()) if kind == "URI"), None)


@pytest.fixture(scope="module")
def today() -> Federation:
    """OpenSSL looks at the clock, so these certificates are of today."""
    root = make_root("lungs", TODAY - DAY)
    return Federation(root, make_issuer(root, "lungs", TODAY - DAY))


@pytest.mark.parametrize("host", ["director.example.org", "10.0.0.7"])
def test_openssl_shakes_hands_with_these_certificates(today: Federation, host: str, tmp_path: Path) -> None:
    assert _handshake(today, ENVOY, host, TODAY, tmp_path) == str(ENVOY)


def test_openssl_refuses_another_host_and_a_server_as_a_client(today: Federation, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|mismatch|not valid for"):
        _handshake(today, ENVOY, "elsewhere.example.org", TODAY, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        _handshake(today, None, "director.example.org", TODAY, tmp_path)
