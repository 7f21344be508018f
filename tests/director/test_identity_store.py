"""Who was invited and who joined, over SQLite and a real PostgreSQL server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fedveil.director.identity_store import Identity, IdentityStore, Invitation
from fedveil.utils.errors import JoinFileError
from sqlalchemy.engine import Engine

INVITATION = Invitation("a1", "site-a", "envoy", "Clinic A", expires_at=1000.0)
IDENTITY = Identity("site-a", "envoy", "Clinic A", "c" * 64, b"k" * 32, joined_at=5.0)
CSR, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def store(engine: Engine) -> IdentityStore:
    return IdentityStore(engine)


def test_an_invitation_is_used_once_and_remembers_by_whom(store: IdentityStore) -> None:
    store.add_invitation(INVITATION)
    used = store.use_invitation("a1", CSR, now=999.0)
    assert used == Invitation("a1", "site-a", "envoy", "Clinic A", 1000.0, used_by=CSR)


def test_the_same_request_may_come_again_even_when_the_answer_took_too_long(store: IdentityStore) -> None:
    store.add_invitation(INVITATION)
    assert store.use_invitation("a1", CSR, 1.0) == store.use_invitation("a1", CSR, 2000.0)


def test_another_request_with_a_used_join_file_is_refused_and_named(store: IdentityStore) -> None:
    store.add_invitation(INVITATION)
    store.use_invitation("a1", CSR, 1.0)
    with pytest.raises(JoinFileError, match="site-a was used before, by another key"):
        store.use_invitation("a1", OTHER, 2.0)
    assert store.use_invitation("a1", CSR, 3.0).used_by == CSR


def test_an_expired_join_file_is_refused_and_stays_unused(store: IdentityStore) -> None:
    store.add_invitation(INVITATION)
    with pytest.raises(JoinFileError, match="expired 2 min ago"):
        store.use_invitation("a1", CSR, 1061.0)
    assert store.use_invitation("a1", OTHER, 999.0).used_by == OTHER


def test_an_unknown_join_file_is_refused(store: IdentityStore) -> None:
    with pytest.raises(JoinFileError, match="did not make that join file"):
        store.use_invitation("' OR 1=1 --", CSR, 1.0)


def test_of_many_requests_at_once_exactly_one_uses_the_invitation(store: IdentityStore) -> None:
    store.add_invitation(INVITATION)
    start = Barrier(8)

    def join(number: int) -> bool:
        start.wait()
        try:
            store.use_invitation("a1", f"{number:064}", 1.0)
        except JoinFileError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(join, range(1, 9))) == 1


def test_one_name_may_have_several_invitations_and_ids_are_unique(store: IdentityStore) -> None:
    later = Invitation("a2", "site-a", "envoy", "Clinic A", expires_at=10.0)
    store.add_invitation(INVITATION)
    store.add_invitation(later)
    assert store.use_invitation("a1", CSR, 1.0).id == "a1"
    assert store.use_invitation("a2", CSR, 1.0).id == "a2"
    with pytest.raises(JoinFileError, match="id of an earlier one"):
        store.add_invitation(later)


def test_identities_come_back_as_they_went_in_and_a_second_joining_replaces_the_first(store: IdentityStore) -> None:
    other = Identity("ops", "operator", "Universität", "d" * 64, b"", joined_at=6.5)
    store.add_identity(IDENTITY)
    store.add_identity(other)
    assert store.identity("site-a") == IDENTITY
    assert store.identity("nobody") is None
    again = Identity("site-a", "envoy", "Clinic A", "e" * 64, bytes(range(32)), joined_at=7.0)
    store.add_identity(again)
    assert store.identities() == (other, again)
