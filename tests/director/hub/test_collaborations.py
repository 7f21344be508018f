"""Collaborations and agreements are kept as they are, and signed by their parties alone; on both databases."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fedveil.director.hub.agreements import Agreement, Collaboration, Kind, Permit
from fedveil.director.hub.collaborations import Agreements, collaborations
from fedveil.director.hub.organizations import Organization, organizations
from fedveil.director.hub.users import User, users
from fedveil.utils.errors import AgreementError, NameTakenError, UnknownEntityError

NORTH, SOUTH, WEST = (
    Organization(digit * 24, f"{name} Hospital") for digit, name in (("1", "North"), ("2", "South"), ("3", "West"))
)
ANNA = User("a" * 24, "anna", "Anna", NORTH.id)
PERMIT = Permit("MEC-2026-7", "the ethics board", "pneumonia", 100.0, 200.0, frozenset({"x-rays", "reports"}))
LUNGS = Collaboration("c" * 24, "lungs", frozenset({NORTH.id, SOUTH.id}), PERMIT, 5.0)
CONSORTIUM = Agreement(
    "d" * 24, Kind.CONSORTIUM, 1, "ab" * 32, LUNGS.organizations, LUNGS.id, 100.0,
    may_start_tasks=frozenset({NORTH.id}), may_publish=frozenset({SOUTH.id}), intellectual_property="shared",
)  # fmt: skip


def nothing(*_):
    """Logs nothing."""


@pytest.fixture
def kept(engine):
    for one in (NORTH, SOUTH, WEST):
        organizations(engine).add(one)
    users(engine).add(ANNA)
    collaborations(engine).add(LUNGS)
    return Agreements(engine)


def test_a_collaboration_comes_back_with_its_permit_and_parties_also_when_they_change(engine, kept):
    store = collaborations(engine)
    assert store.get(LUNGS.id) == LUNGS
    later = store.change(
        LUNGS.id, 1, nothing, organizations=frozenset({WEST.id}), permit=replace(PERMIT, ends_at=300.0)
    )
    assert store.get(LUNGS.id) == later
    assert (later.version, later.permit.ends_at) == (2, 300.0)
    with pytest.raises(NameTakenError):
        store.change(LUNGS.id, 2, nothing, organizations=frozenset({"nobody"}))
    assert store.get(LUNGS.id) == later


def test_versions_are_numbered_and_signed_by_each_party_once(kept):
    first = kept.add(CONSORTIUM, 10.0, nothing)
    second = kept.add(replace(CONSORTIUM, id="e" * 24), 11.0, nothing)
    other = kept.add(
        replace(
            CONSORTIUM, id="f" * 24, kind=Kind.DATA_PROCESSING, may_start_tasks=frozenset(), may_publish=frozenset()
        ),
        12.0,
        nothing,
    )
    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert kept.get(second.id) == second
    signed = kept.sign(second.id, NORTH.id, ANNA.id, 20.0, nothing)
    assert (signed.signed, signed.unsigned) == ({NORTH.id: 20.0}, {SOUTH.id})
    assert kept.sign(second.id, NORTH.id, ANNA.id, 30.0, nothing) == signed == kept.get(second.id)
    with pytest.raises(AgreementError, match="only its parties"):
        kept.sign(second.id, WEST.id, ANNA.id, 30.0, nothing)
    with pytest.raises(UnknownEntityError):
        kept.sign("nothing", NORTH.id, ANNA.id, 30.0, nothing)


def test_infrastructure_agreements_are_numbered_for_each_organization_and_found_with_its_collaborations(kept):
    def infrastructure(letter, organization):
        parties = frozenset({organization.id})
        return Agreement(letter * 24, Kind.INFRASTRUCTURE_USER, 1, "cd" * 32, parties, None, 0.0)

    made = [kept.add(infrastructure(*pair), 1.0, nothing) for pair in (("1", NORTH), ("2", NORTH), ("3", WEST))]
    assert [one.version for one in made] == [1, 2, 1]
    consortium = kept.add(CONSORTIUM, 2.0, nothing)
    assert kept.about(LUNGS) == (*made[:2], consortium)


def test_who_signs_at_the_same_moment_signs_once(kept):
    made = kept.add(CONSORTIUM, 10.0, nothing)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda at: kept.sign(made.id, NORTH.id, ANNA.id, at, nothing), [20.0] * 8))
    assert kept.get(made.id).signed == {NORTH.id: 20.0}
