"""Who it is that asks: right once, slow for who guesses, and nothing that is kept can be used; on both databases."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import BoundedSemaphore

import pytest
from fedveil.director.hub.lockout import FREE_FAILURES
from fedveil.director.hub.one_time_codes import code_at
from fedveil.director.hub.organizations import Organization, organizations
from fedveil.director.hub.passwords import check_new, hashed, is_right, turn
from fedveil.director.hub.rules import Operation, Resource, Rule, Target, decide
from fedveil.director.hub.sign_in import SESSION_SECONDS, SignIn
from fedveil.director.hub.users import OwnRole, Roles, User, own_roles, users
from fedveil.utils.errors import (
    ConfigError,
    IdentityError,
    LockedOutError,
    NotAuthorizedError,
    TooManyCallsError,
    UnknownEntityError,
)
from sqlalchemy import text

NOW = 1_800_000_000.0
PASSWORD = "correct horse battery staple"
SECRET = b"12345678901234567890"
NORTH = Organization("1" * 24, "North Hospital")
KEPT = hashed(PASSWORD)
ANNA = User("a" * 24, "anna", "Anna", NORTH.id, KEPT, SECRET)
BEN = User("b" * 24, "ben", "Ben", NORTH.id, KEPT)


@pytest.fixture
def sign_in(engine):
    organizations(engine).add(NORTH)
    for user in (ANNA, BEN):
        users(engine).add(user)
    return SignIn(engine, os.urandom)


def code(now=NOW):
    return code_at(SECRET, now)


def test_password_and_code_open_a_session_that_ends(sign_in):
    session = sign_in.sign_in("anna", PASSWORD, code(), NOW)
    assert sign_in.caller(session.token, NOW + SESSION_SECONDS - 1).user.name == "anna"
    with pytest.raises(IdentityError, match="it is over"):
        sign_in.caller(session.token, NOW + SESSION_SECONDS)


@pytest.mark.parametrize(
    ("name", "password", "typed"),
    [
        ("anna", PASSWORD[:-1], None),
        ("anna", PASSWORD, "000000"),
        ("anna", PASSWORD, ""),
        ("nobody", PASSWORD, None),
        ("anna", "", None),
        ("anna", KEPT, None),
    ],
    ids=["password", "code", "no code", "name", "no password", "what is kept"],
)
def test_whatever_is_wrong_the_answer_is_the_same(sign_in, name, password, typed):
    with pytest.raises(IdentityError, match=r"^name, password or code is not right$"):
        sign_in.sign_in(name, password, code() if typed is None else typed, NOW)


def test_a_code_is_good_once_also_for_many_who_come_at_once(sign_in):
    def attempt(_):
        try:
            return sign_in.sign_in("anna", PASSWORD, code(), NOW)
        except (IdentityError, LockedOutError):
            return None

    with ThreadPoolExecutor(4) as pool:
        assert sum(one is not None for one in pool.map(attempt, range(4))) == 1
    later = NOW + 3600
    assert sign_in.sign_in("anna", PASSWORD, code(later), later)


def test_who_guesses_waits_and_who_knows_it_forgets_the_failures(sign_in):
    for _ in range(FREE_FAILURES + 1):
        with pytest.raises(IdentityError):
            sign_in.sign_in("ben", "wrong wrong wrong", "", NOW)
    with pytest.raises(LockedOutError, match="wait 2 s"):
        sign_in.sign_in("ben", PASSWORD, "", NOW)  # the right one too, or a guesser would know it by that
    assert sign_in.sign_in("ben", PASSWORD, "", NOW + 3)
    with pytest.raises(IdentityError):
        sign_in.sign_in("ben", "wrong wrong wrong", "", NOW + 4)
    assert sign_in.sign_in("ben", PASSWORD, "", NOW + 4)


def test_who_is_signed_in_guesses_no_quicker_than_who_signs_in(sign_in):
    """The two are counted together: a session that was found is no way around the wait, nor the other way round."""
    with pytest.raises(IdentityError):
        sign_in.sign_in("ben", "wrong wrong wrong", "", NOW)
    for _ in range(FREE_FAILURES):
        with pytest.raises(NotAuthorizedError, match="is not right"):
            sign_in.prove(BEN, "wrong wrong wrong", NOW)
    for attempt in (lambda: sign_in.prove(BEN, PASSWORD, NOW), lambda: sign_in.sign_in("ben", PASSWORD, "", NOW)):
        with pytest.raises(LockedOutError, match="wait 2 s"):
            attempt()
    sign_in.prove(BEN, PASSWORD, NOW + 3)
    for _ in range(FREE_FAILURES):
        with pytest.raises(NotAuthorizedError):
            sign_in.prove(BEN, "wrong wrong wrong", NOW + 4)
    sign_in.prove(BEN, PASSWORD, NOW + 4)  # whoever was right began anew
    with pytest.raises(NotAuthorizedError):
        sign_in.prove(replace(BEN, password=""), PASSWORD, NOW + 4)


def test_proofs_that_come_at_once_wait_for_their_turn(sign_in, monkeypatch):
    monkeypatch.setattr("fedveil.director.hub.passwords._AND_WAITING", BoundedSemaphore(1))
    with turn(), pytest.raises(TooManyCallsError):
        sign_in.prove(BEN, PASSWORD, NOW)
    sign_in.prove(BEN, PASSWORD, NOW)


def test_who_is_told_to_wait_does_not_learn_by_it_that_there_is_such_a_user(sign_in, monkeypatch):
    monkeypatch.setattr("fedveil.director.hub.sign_in.is_right", lambda *_: False)  # quick

    def answers(name, times):
        told = []
        for now in times:
            with pytest.raises((IdentityError, LockedOutError)) as caught:
                sign_in.sign_in(name, "wrong wrong wrong", "", now)
            told.append((type(caught.value), str(caught.value)))
        return told

    times = (
        [NOW] * (FREE_FAILURES + 2) + [NOW + 3, NOW + 4, NOW + 4000, NOW + 4001, NOW + 200_000] + [NOW + 200_001] * 5
    )
    assert answers("ben", times) == answers("nobody", times)
    assert LockedOutError in {kind for kind, _ in answers("a name that can be none", [NOW] * 6)}


def test_guesses_that_come_at_once_are_as_many_as_one_by_one(sign_in, monkeypatch):
    looked_at = []

    def look(kept, password):
        looked_at.append(password)
        return False

    monkeypatch.setattr("fedveil.director.hub.sign_in.is_right", look)

    def guess(number):
        with pytest.raises((IdentityError, LockedOutError)):
            sign_in.sign_in("ben", f"guess {number}", "", NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(guess, range(30)))
    assert len(looked_at) == FREE_FAILURES + 1


def test_who_finds_too_many_signing_in_is_sent_away_and_not_counted(sign_in, monkeypatch):
    monkeypatch.setattr("fedveil.director.hub.passwords._AND_WAITING", BoundedSemaphore(1))
    with turn():
        for _ in range(FREE_FAILURES + 2):
            with pytest.raises(TooManyCallsError):
                sign_in.sign_in("ben", PASSWORD, "", NOW)
    assert sign_in.sign_in("ben", PASSWORD, "", NOW)


def test_a_session_ends_when_its_user_says_so_or_is_disabled(sign_in, engine):
    first, second, third = (sign_in.sign_in("ben", PASSWORD, "", NOW).token for _ in range(3))
    sign_in.sign_out(first)
    for token in (first,):
        with pytest.raises(IdentityError):
            sign_in.caller(token, NOW)
    assert sign_in.caller(second, NOW)
    users(engine).change(BEN.id, 1, lambda _: None, disabled_at=NOW)
    for token in (second, third):
        with pytest.raises(IdentityError, match="disabled"):
            sign_in.caller(token, NOW)
    with pytest.raises(IdentityError, match="is not right"):
        sign_in.sign_in("ben", PASSWORD, "", NOW + 60)


def test_a_key_acts_for_its_user_within_its_rules_until_its_day(sign_in, engine):
    Roles(engine).give(BEN.id, ["researcher"])
    rule = Rule.parse("view:model:organization")
    key, told = sign_in.make_key(BEN, "notebook", frozenset({rule}), NOW, NOW + 100)
    caller = sign_in.caller(told, NOW + 50)
    assert (caller.user.name, caller.key, caller.actor.key) == ("ben", key.id, frozenset({rule}))
    assert decide(caller.actor, Operation.VIEW, Resource.MODEL, Target(NORTH.id)).is_allowed
    assert not decide(caller.actor, Operation.START, Resource.TASK, Target(NORTH.id)).is_allowed
    assert sign_in.keys(BEN.id)[0].last_used_at == NOW + 50
    with pytest.raises(IdentityError):
        sign_in.caller(told, NOW + 100)
    another, other = sign_in.make_key(BEN, "another", frozenset({rule}), NOW, NOW + 100)
    sign_in.revoke_key(another.id, NOW)
    with pytest.raises(IdentityError):
        sign_in.caller(other, NOW)


@pytest.mark.parametrize(
    "bearer", ["", "fs_", "fs_" + "A" * 43, "fv_0123456789abcdef_" + "A" * 43, "x" * 10_000, "fs_\ud800"]
)
def test_what_nobody_was_given_opens_nothing(sign_in, bearer):
    with pytest.raises(IdentityError):
        sign_in.caller(bearer, NOW)


def test_nothing_that_is_kept_is_a_secret(sign_in, engine):
    session = sign_in.sign_in("ben", PASSWORD, "", NOW)
    _, told = sign_in.make_key(BEN, "notebook", frozenset(), NOW, NOW + 100)
    with engine.connect() as connection:
        rows = [
            str(row)
            for table in ("hub_users", "hub_sessions", "hub_api_keys")
            for row in connection.execute(text(f"SELECT * FROM {table}"))
        ]
    for secret in (PASSWORD, session.token, told, told.rpartition("_")[2]):
        assert not any(secret in row for row in rows)
    for shown in (repr(session), repr(ANNA)):
        assert session.token not in shown
        assert KEPT not in shown
        assert "1234567890" not in shown


def test_what_a_user_may_is_what_its_roles_say_now(sign_in, engine):
    own = own_roles(engine).add(OwnRole("c" * 24, "card-writer", NORTH.id, frozenset({Rule.parse("edit:model:own")})))
    roles = Roles(engine)
    assert set(roles.find(["auditor", own.id], NORTH.id)) == {"auditor", own.id}
    with pytest.raises(UnknownEntityError):
        roles.find([own.id], "2" * 24)
    roles.give(BEN.id, ["auditor", own.id])
    assert {role.name for role in roles.of(BEN.id)} == {"auditor", "card-writer"}
    own_roles(engine).change(own.id, 1, lambda _: None, rules=frozenset())
    assert {role.name: len(role.rules) for role in roles.of(BEN.id)}["card-writer"] == 0
    roles.give(BEN.id, [])
    assert roles.of(BEN.id) == ()


@pytest.mark.parametrize("password", ["short", "x" * 257, "aaaaaaaaaaaaaaaa", "abababababababab", "my name is anna ok"])
def test_a_password_that_is_hardly_one_is_refused_and_not_repeated(password):
    with pytest.raises(ConfigError) as caught:
        check_new(password, "anna")
    assert password not in str(caught.value)
    check_new(PASSWORD, "anna")


def test_letters_are_the_same_however_a_keyboard_gives_them():
    assert is_right(hashed("caf\u00e9 caf\u00e9 caf\u00e9"), "cafe\u0301 cafe\u0301 cafe\u0301")
    assert not is_right("", PASSWORD)
    assert not is_right("no hash at all", PASSWORD)


def test_a_user_or_role_of_no_name_is_refused():
    for wrong in ({"name": "Anna B"}, {"name": ""}, {"full_name": "a\nb"}):
        with pytest.raises(ConfigError):
            replace(ANNA, **wrong)
    with pytest.raises(ConfigError):
        OwnRole("c" * 24, "auditor", NORTH.id, frozenset())
