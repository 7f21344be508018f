"""A renewal asks with new keys, keeps what it is given whole or not at all, and never loses what was there before."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedveil.director.database import open_database
from fedveil.director.identity_store import IdentityStore
from fedveil.director.registrar import Registrar
from fedveil.director.revocations import Revocations
from fedveil.envoy import enrolment
from fedveil.envoy.audit import LOG_FILE
from fedveil.envoy.enrolment import Credentials, load_credentials, prepare_join, save_credentials
from fedveil.envoy.renewal import prepare_renewal, renewal_due, renewed
from fedveil.envoy.renewing import Renewer, renew
from fedveil.utils.audit_chain import AuditChain, read_entries
from fedveil.utils.certificates import Authority, key_pem, make_issuer, make_root
from fedveil.utils.errors import (
    FederationError,
    IdentityError,
    MalformedMessageError,
    NotAuthorizedError,
    StorageError,
    TooManyCallsError,
    UnreachableError,
)
from fedveil.utils.identity import PeerId, Role, expires_at, peer_of, read_certificate, read_chain
from fedveil.utils.messages import JoinReply, RenewRequest
from fedveil.utils.renewal import due_at, join_text, renewal_text
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0
ENVOY, RENEW = PeerId("lungs", Role.ENVOY, "hospital-a"), PeerId("lungs", Role.RENEW, "hospital-a")


@dataclass
class Federation:
    """A registrar, and the way to it: whatever chain is shown is who calls."""

    registrar: Registrar
    revocations: Revocations
    root: Authority
    issuer: list[Authority]
    now: float = NOW
    asked: list[tuple[PeerId, RenewRequest]] = field(default_factory=list)

    def ask(self, chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        """As over a connection: an expired certificate opens none."""
        leaf = read_chain(chain, "chain")[0]
        if self.now > expires_at(leaf):
            raise UnreachableError("unavailable: certificate has expired")
        self.asked.append((peer_of(leaf), request))
        return self.registrar.renew(peer_of(leaf), request, self.now)

    def joined(self, folder: Path, name: str = "hospital-a") -> Credentials:
        """A member, as of now."""
        join = self.registrar.invite(name, "Hospital", Role.ENVOY, ["localhost:1"], DAY, self.now)
        request, keys = prepare_join(folder, join)
        bootstrap = peer_of(read_certificate(join.bootstrap, "bootstrap"))
        return save_credentials(folder, join, keys, self.registrar.join(bootstrap, request, self.now), self.now)


@pytest.fixture
def federation():
    engine = open_database("sqlite://", durable=False)
    root = make_root("lungs", NOW - DAY)
    issuer = [make_issuer(root, "lungs", NOW - DAY)]
    revocations = Revocations(engine)
    registrar = Registrar("lungs", lambda: issuer[0], root.certificate, IdentityStore(engine), revocations)
    yield Federation(registrar, revocations, root, issuer)
    engine.dispose()


@pytest.fixture
def held(federation: Federation, tmp_path: Path) -> Credentials:
    return federation.joined(tmp_path)


def full(path: Path, content: bytes) -> None:
    raise StorageError(f"{path}: cannot be written: No space left on device")


def test_a_join_gives_three_certificates_for_three_keys(held: Credentials) -> None:
    renewal = held.renewal_certificate
    assert renewal is not None
    identity = read_certificate(held.identity_certificate, "identity")
    assert (peer_of(held.leaf), peer_of(identity), peer_of(renewal)) == (ENVOY, ENVOY, RENEW)
    assert held.leaf.public_key() != renewal.public_key()
    assert (expires_at(held.leaf), expires_at(renewal)) == (NOW + 7 * DAY, NOW + 364 * DAY)  # not beyond the issuer


def test_a_renewal_is_due_two_thirds_into_a_leaf_s_life(held: Credentials) -> None:
    assert NOW + 4.6 * DAY < renewal_due(held) < NOW + 4.7 * DAY
    assert renewal_due(held) == due_at(held.leaf)


def test_a_renewed_member_has_a_new_leaf_for_a_new_key_and_is_who_it_was(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    federation.now += 5 * DAY
    new = renew(tmp_path, held, federation.ask, federation.now)
    assert load_credentials(tmp_path, federation.now) == new
    assert new.leaf.public_key() != held.leaf.public_key()
    assert new.leaf_key != held.leaf_key
    assert new.expires_at == federation.now + 7 * DAY
    assert (new.peer, new.identity_key, new.root) == (held.peer, held.identity_key, held.root)
    assert (new.renewal_chain, new.renewal_key) == (held.renewal_chain, held.renewal_key)  # not due
    assert federation.asked[0][1].renewal_request == b""
    assert "PRIVATE" not in repr(prepare_renewal(held, NOW))
    log = (tmp_path / "audit.jsonl").read_text()
    assert f'"certificate":"{new.leaf.fingerprint(hashes.SHA256()).hex()}"' in log
    assert stat.S_IMODE((tmp_path / "credentials.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("days", [14, 100, 300])
def test_a_site_that_was_off_for_long_renews_by_its_renewal_certificate(
    days: int, federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    federation.now += days * DAY
    new = renew(tmp_path, load_credentials(tmp_path, federation.now), federation.ask, federation.now)
    assert federation.asked[-1][0] == RENEW
    assert federation.now < new.expires_at
    assert (new.renewal_chain != held.renewal_chain) is (days == 300)  # past two thirds of its own life


def test_a_site_that_was_off_for_more_than_a_year_is_told_what_to_do(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    federation.now += 366 * DAY
    federation.issuer[0] = make_issuer(federation.root, "lungs", federation.now)
    with pytest.raises(IdentityError, match=r"the identity of hospital-a expired .*new join file.*--reinstate"):
        load_credentials(tmp_path, federation.now)
    with pytest.raises(IdentityError, match=r"has none to renew by.*--reinstate"):
        renew(tmp_path, held, federation.ask, federation.now)


def test_a_member_of_an_earlier_version_gets_a_renewal_certificate_with_its_first_renewal(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    old = replace(held, renewal_chain=b"", renewal_key=b"")
    new = renew(tmp_path, old, federation.ask, federation.now)
    assert new.renewal_certificate is not None
    assert peer_of(new.renewal_certificate) == RENEW
    with pytest.raises(IdentityError, match="has none to renew by"):
        renew(tmp_path, old, federation.ask, federation.now + 8 * DAY)


def test_after_a_new_issuer_all_certificates_belong_together(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    federation.now += 100 * DAY
    federation.issuer[0] = make_issuer(federation.root, "lungs", federation.now)
    new = renew(tmp_path, held, federation.ask, federation.now)
    assert read_chain(new.chain, "chain")[1] == federation.issuer[0].certificate
    assert expires_at(read_certificate(new.identity_certificate, "identity")) == federation.now + 365 * DAY
    assert load_credentials(tmp_path, federation.now) == new


def test_a_full_disk_loses_nothing(
    federation: Federation, held: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "write_private_file", full)
        with pytest.raises(StorageError, match="No space"):
            renew(tmp_path, held, federation.ask, federation.now)
    (tmp_path / "audit.jsonl").rename(tmp_path / "away")
    (tmp_path / "audit.jsonl").mkdir()  # where nothing can be logged, nothing is kept
    with pytest.raises(StorageError):
        renew(tmp_path, held, federation.ask, federation.now)
    (tmp_path / "audit.jsonl").rmdir()
    assert load_credentials(tmp_path, federation.now) == held
    assert federation.registrar.renew(ENVOY, prepare_renewal(held, NOW)[0], NOW)  # what is held still renews


def test_a_renewal_is_logged_before_it_is_kept(
    federation: Federation, held: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = renew(tmp_path, held, federation.ask, federation.now)
    last = list(read_entries(tmp_path / LOG_FILE))[-1].event
    assert (last["what"], last["expires_at"]) == ("renewed", new.expires_at)
    assert last["certificate"] == new.leaf.fingerprint(hashes.SHA256()).hex()
    monkeypatch.setattr(AuditChain, "_write", full)
    with pytest.raises(StorageError, match="No space"):
        renew(tmp_path, new, federation.ask, federation.now)
    assert load_credentials(tmp_path, federation.now) == new


def test_an_answer_that_was_lost_is_harmless(federation: Federation, held: Credentials, tmp_path: Path) -> None:
    """As when the envoy is killed between the answer and the file."""
    request, _ = prepare_renewal(held, federation.now)
    federation.ask(held.chain, held.leaf_key, request)
    assert load_credentials(tmp_path, federation.now) == held
    assert renew(tmp_path, held, federation.ask, federation.now).expires_at == federation.now + 7 * DAY


def test_what_another_answers_is_not_kept(federation: Federation, held: Credentials, tmp_path: Path) -> None:
    other = federation.joined(tmp_path / "b", "hospital-b")
    stranger = make_issuer(make_root("lungs", NOW), "lungs", NOW)

    def as_other(chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        return federation.ask(other.chain, other.leaf_key, prepare_renewal(other, NOW)[0])

    def renamed(chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        return replace(as_other(chain, key, request), name=held.peer.name)

    def other_keys(chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        return federation.ask(chain, key, prepare_renewal(held, NOW)[0])

    def another_authority(chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        federation.issuer[0] = stranger
        return federation.ask(chain, key, request)

    lies: dict[str, Callable[[bytes, bytes, RenewRequest], JoinReply]] = {
        "answered for hospital-b": as_other,
        "lungs/envoy/hospital-b's": renamed,
        "the key does not fit": other_keys,
        "was not issued by this federation": another_authority,
    }
    for message, ask in lies.items():
        with pytest.raises(IdentityError, match=message):
            renew(tmp_path, held, ask, NOW)
        assert load_credentials(tmp_path, NOW) == held


# what the registrar refuses


def test_another_s_key_renews_nothing(federation: Federation, held: Credentials, tmp_path: Path) -> None:
    thief = replace(held, identity_key=key_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(IdentityError, match="did not sign"):
        renew(tmp_path, thief, federation.ask, NOW)
    other = federation.joined(tmp_path / "b", "hospital-b")
    request, _ = prepare_renewal(other, NOW)
    with pytest.raises(IdentityError, match="did not sign"):  # another member's own request, over this one's line
        federation.registrar.renew(ENVOY, request, NOW)


def test_a_request_that_comes_again_gives_certificates_for_the_same_keys(
    federation: Federation, held: Credentials
) -> None:
    request, keys = prepare_renewal(held, NOW)
    first, second = (federation.registrar.renew(ENVOY, request, NOW + late) for late in (0, 60))
    both = [read_chain(reply.chain, "chain")[0].public_key() for reply in (first, second)]
    assert both[0] == both[1]
    renewed(held, keys, second)


@pytest.mark.parametrize(
    ("late", "said"),
    [(DAY, "1440 min behind"), (3600, "60 min behind"), (301, "5 min behind"), (-3600, "60 min ahead")],
)
def test_a_request_of_another_hour_is_refused_and_says_how_far_the_clock_is_off(
    late: float, said: str, federation: Federation, held: Credentials
) -> None:
    request, _ = prepare_renewal(held, NOW)
    with pytest.raises(IdentityError, match=f"{said}.* set the clock that is wrong"):
        federation.registrar.renew(ENVOY, request, NOW + late)
    federation.registrar.renew(ENVOY, request, NOW + 300)


@pytest.mark.parametrize("name", ["signing_request", "renewal_request", "asked_at", "identity_proof"])
def test_any_part_that_is_changed_is_refused(name: str, federation: Federation, held: Credentials) -> None:
    old = replace(held, renewal_chain=b"", renewal_key=b"")
    request, _ = prepare_renewal(old, NOW)
    another, _ = prepare_renewal(old, NOW + 1)
    with pytest.raises(IdentityError, match="did not sign"):
        federation.registrar.renew(ENVOY, replace(request, **{name: getattr(another, name)}), NOW)
    shifted = replace(request, signing_request=request.renewal_request, renewal_request=request.signing_request)
    with pytest.raises(IdentityError, match="did not sign"):
        federation.registrar.renew(ENVOY, shifted, NOW)
    with pytest.raises(IdentityError, match="did not sign"):
        federation.registrar.renew(ENVOY, replace(request, renewal_request=b""), NOW)


def test_nonsense_is_no_renewal(federation: Federation, held: Credentials) -> None:
    request, _ = prepare_renewal(held, NOW)
    for raw in (b"", b"x", bytes(9000), request.signing_request[:-9]):
        with pytest.raises(MalformedMessageError):
            federation.registrar.renew(ENVOY, replace(request, signing_request=raw), NOW)
    with pytest.raises(MalformedMessageError):
        federation.registrar.renew(ENVOY, replace(request, renewal_request=b"x"), NOW)


@pytest.mark.parametrize("caller", [ENVOY, RENEW])
def test_a_revoked_name_is_not_renewed(caller: PeerId, federation: Federation, held: Credentials) -> None:
    federation.revocations.revoke("hospital-a", "left", NOW)
    request, _ = prepare_renewal(held, NOW)
    with pytest.raises(NotAuthorizedError, match=r"was revoked .* nothing was renewed"):
        federation.registrar.renew(caller, request, NOW)


@pytest.mark.parametrize(
    "caller",
    [
        PeerId("hearts", Role.ENVOY, "hospital-a"),
        PeerId("lungs", Role.JOIN, "hospital-a"),
        PeerId("lungs", Role.DIRECTOR, "director"),
        PeerId("lungs", Role.ENVOY, "hospital-z"),
        PeerId("lungs", Role.RENEW, "hospital-z"),
    ],
)
def test_nobody_else_renews(caller: PeerId, federation: Federation, held: Credentials) -> None:
    with pytest.raises(IdentityError):
        federation.registrar.renew(caller, prepare_renewal(held, NOW)[0], NOW)


def test_one_that_renews_without_end_is_stopped(
    federation: Federation, held: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedveil.director.registrar.MAX_CERTIFICATES", 5)
    for _ in range(3):  # a leaf and a renewal certificate came with the join
        federation.registrar.renew(ENVOY, prepare_renewal(held, NOW)[0], NOW)
    with pytest.raises(TooManyCallsError, match="wait until some have"):
        federation.registrar.renew(ENVOY, prepare_renewal(held, NOW)[0], NOW)
    later = NOW + 8 * DAY
    federation.registrar.renew(RENEW, prepare_renewal(held, later)[0], later)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_no_two_pairs_of_requests_are_signed_as_one(a: bytes, b: bytes, c: bytes, d: bytes) -> None:
    if (a, b) != (c, d):
        assert renewal_text(ENVOY, NOW, a, b) != renewal_text(ENVOY, NOW, c, d)
        if b and d:
            assert join_text(a, b) != join_text(c, d)
    assert renewal_text(ENVOY, NOW, a, b) != renewal_text(RENEW, NOW, a, b) != renewal_text(RENEW, NOW + 1, a, b)
    assert join_text(a, b + b"x") != renewal_text(ENVOY, NOW, a, b + b"x")


# while the envoy works


class Moved:
    """Remembers what it was told to show."""

    def __init__(self) -> None:
        self.to: list[Credentials] = []
        self.error: FederationError | None = None

    def adopt(self, credentials: Credentials) -> None:
        if self.error is not None:
            raise self.error
        self.to.append(credentials)


def test_the_envoy_renews_once_it_is_due_and_not_before(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    link = Moved()
    renewer = Renewer(tmp_path, federation.ask, link, held.chain, lambda: federation.now)
    renewer.look()
    federation.now = renewal_due(held) - 1
    renewer.look()
    assert (link.to, federation.asked) == ([], [])
    federation.now += 1
    renewer.look()
    renewer.look()
    assert link.to == [load_credentials(tmp_path, federation.now)]
    assert len(federation.asked) == 1


def test_what_another_process_renewed_is_taken_up(federation: Federation, held: Credentials, tmp_path: Path) -> None:
    link = Moved()
    renewer = Renewer(tmp_path, federation.ask, link, held.chain, lambda: federation.now)
    new = renew(tmp_path, held, federation.ask, federation.now)  # `envoy renew`
    renewer.look()
    assert link.to == [new]


def test_a_renewal_that_fails_is_tried_again_and_one_that_was_kept_is_adopted_later(
    federation: Federation, held: Credentials, tmp_path: Path
) -> None:
    link = Moved()
    renewer = Renewer(tmp_path, federation.ask, link, held.chain, lambda: federation.now)
    federation.now += 10 * DAY
    link.error = UnreachableError("the director is away")
    with pytest.raises(UnreachableError):
        renewer.look()
    link.error = None
    renewer.look()
    assert [one.chain for one in link.to] == [load_credentials(tmp_path, federation.now).chain]
    assert len(federation.asked) == 1


def test_signing_requests_name_nobody(held: Credentials) -> None:
    request, _ = prepare_renewal(held, NOW)
    assert x509.load_der_x509_csr(request.signing_request).subject == x509.Name([])
