"""Whoever was revoked is no member, whatever certificates it has; it comes back by a new join file alone."""

from __future__ import annotations

import pytest
from fedveil.director.database import open_database, transaction
from fedveil.director.identity_store import Identity, IdentityStore, Invitation, IssuedCertificate
from fedveil.director.revocations import Revocations
from fedveil.director.standing import LOOK_SECONDS, Standing
from fedveil.utils.errors import JoinFileError, NotAuthorizedError, ProtocolError, StorageError
from fedveil.utils.identity import PeerId, Role
from sqlalchemy.engine import Engine

OLD, NEW, RENEWAL = "1" * 64, "2" * 64, "3" * 64
SITE = PeerId("lungs", Role.ENVOY, "site-a")


def issued(sha256: str, at: float = 10.0, role: str = "envoy") -> IssuedCertificate:
    return IssuedCertificate(sha256, "site-a", role, at, at + 1000.0)


@pytest.fixture
def store(engine: Engine) -> IdentityStore:
    store = IdentityStore(engine)
    store.add_identity(Identity("site-a", "envoy", "Clinic A", OLD, b"k" * 32, 10.0), (issued(OLD),))
    store.add_identity(Identity("site-b", "envoy", "Clinic B", "b" * 64, b"l" * 32, 10.0))
    return store


@pytest.fixture
def revocations(engine: Engine, store: IdentityStore) -> Revocations:
    return Revocations(engine)


def test_a_member_is_good_also_with_a_certificate_that_is_not_known(revocations: Revocations) -> None:
    assert revocations.bad_since("site-a", OLD) is None
    assert revocations.bad_since("site-a", "f" * 64) is None  # of an earlier version: the authority vouches for it


def test_no_certificate_of_a_revoked_name_is_good(revocations: Revocations, store: IdentityStore) -> None:
    revocations.revoke("site-a", "left", 20.0)
    assert [revocations.bad_since("site-a", one) for one in (OLD, NEW, "f" * 64)] == [20.0] * 3
    assert revocations.since("site-a") == 20.0
    assert revocations.among(["site-a", "site-b"]) == {"site-a"}
    assert revocations.among(["site-b"]) == revocations.among([]) == frozenset()
    assert revocations.bad_since("site-b", "b" * 64) is None
    assert [one.name for one in store.identities()] == ["site-b"]
    assert [one.name for one in store.all_identities()] == ["site-a", "site-b"]


def test_a_name_that_comes_back_has_its_new_certificates_alone(revocations: Revocations, store: IdentityStore) -> None:
    revocations.revoke("site-a", "left", 20.0)
    back = Identity("site-a", "envoy", "Clinic A", NEW, b"m" * 32, 30.0)
    store.add_identity(back, (issued(NEW, 30.0), issued(RENEWAL, 30.0, "renew")), reinstates=True)
    assert revocations.since("site-a") is None
    assert revocations.among(["site-a"]) == frozenset()
    assert [revocations.bad_since("site-a", one) for one in (NEW, RENEWAL)] == [None, None]
    assert [revocations.bad_since("site-a", one) for one in (OLD, "f" * 64)] == [20.0] * 2
    assert back in store.identities()
    revocations.revoke("site-a", "again", 40.0)
    assert revocations.bad_since("site-a", NEW) == 40.0
    assert revocations.among(["site-a"]) == {"site-a"}
    assert [(one.reason, one.lifted_at) for one in revocations.all()] == [("left", 30.0), ("again", None)]


def test_a_join_file_is_revoked_with_its_name_also_one_that_was_used(
    revocations: Revocations, store: IdentityStore
) -> None:
    for number in ("a1", "a2", "a3"):
        store.add_invitation(Invitation(number, "site-a", "envoy", "Clinic A", 1000.0))
    store.use_invitation("a1", "c" * 64, 5.0)
    assert [one.id for one in store.invitations(20.0)] == ["a2", "a3"]
    assert revocations.revoke("site-a", "left", 20.0) == 2
    assert revocations.join_file_bad_since("a2") == 20.0
    assert store.invitations(20.0) == ()
    for number in ("a1", "a2"):  # the request that used the first may not come again either
        with pytest.raises(JoinFileError, match="was revoked"):
            store.use_invitation(number, "c" * 64, 21.0)


def test_a_name_that_never_joined_has_join_files_alone(revocations: Revocations, store: IdentityStore) -> None:
    store.add_invitation(Invitation("c1", "site-c", "envoy", "Clinic C", 1000.0))
    assert revocations.revoke("site-c", "wrong name", 20.0) == 1
    assert revocations.since("site-c") is None  # it may be invited again
    assert revocations.all() == ()


@pytest.mark.parametrize("name", ["nobody", "site-a"])
def test_there_must_be_something_to_revoke_and_nothing_is_written_down_otherwise(
    name: str, revocations: Revocations
) -> None:
    revocations.revoke("site-a", "left", 20.0)
    written: list[str] = []
    with pytest.raises(ProtocolError, match=name):
        revocations.revoke(name, "left", 21.0, lambda: written.append(name))
    assert written == []


def test_what_cannot_be_written_down_is_not_done(revocations: Revocations) -> None:
    def full() -> None:
        raise StorageError("no space")

    with pytest.raises(StorageError):
        revocations.revoke("site-a", "left", 20.0, full)
    assert revocations.since("site-a") is None


def test_certificates_that_expired_are_forgotten(store: IdentityStore) -> None:
    assert [one.sha256 for one in store.certificates("site-a", 20.0)] == [OLD]
    again = Identity("site-a", "envoy", "Clinic A", NEW, b"k" * 32, 10.0)
    store.add_identity(again, (issued(NEW, 5000.0),))
    assert [one.sha256 for one in store.certificates("site-a", 0.0)] == [NEW]


# standing


def test_a_call_is_refused_at_once_and_an_open_one_within_half_a_second(revocations: Revocations) -> None:
    now = [100.0]
    standing = Standing(revocations, lambda: now[0])
    standing.check(SITE, OLD)
    standing.check_open(SITE, OLD)
    revocations.revoke("site-a", "left", 20.0)  # by another process
    with pytest.raises(NotAuthorizedError, match=r"site-a was revoked on 1970-01-01 00:00 UTC") as caught:
        standing.check(SITE, OLD)
    assert "left" not in str(caught.value)
    now[0] += LOOK_SECONDS
    with pytest.raises(NotAuthorizedError):
        standing.check_open(SITE, OLD)
    standing.check_open(PeerId("lungs", Role.ENVOY, "site-b"), "b" * 64)


@pytest.mark.parametrize("role", [Role.ENVOY, Role.RENEW])
def test_a_renewal_certificate_is_no_way_around(role: Role, revocations: Revocations) -> None:
    revocations.revoke("site-a", "left", 20.0)
    with pytest.raises(NotAuthorizedError):
        Standing(revocations).check(PeerId("lungs", role, "site-a"), RENEWAL)


def test_a_join_file_s_certificate_is_refused_once_revoked(revocations: Revocations, store: IdentityStore) -> None:
    store.add_invitation(Invitation("c1", "site-c", "envoy", "Clinic C", 1000.0))
    caller = PeerId("lungs", Role.JOIN, "c1")
    Standing(revocations).check(caller, "e" * 64)
    revocations.revoke("site-c", "lost", 20.0)
    with pytest.raises(NotAuthorizedError):
        Standing(revocations).check(caller, "e" * 64)


def test_nobody_is_let_in_while_it_cannot_be_known() -> None:
    engine = open_database("sqlite://", durable=False)
    standing = Standing(Revocations(engine))
    with transaction(engine) as connection:
        connection.exec_driver_sql("DROP TABLE revocations")
    for ask in (standing.check, standing.check_open):
        with pytest.raises(StorageError):
            ask(SITE, OLD)
    engine.dispose()
