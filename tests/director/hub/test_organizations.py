"""Organizations are kept, changed by who saw them, and no envoy is two's; on both databases."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from fedveil.director.hub.organizations import Organization, Stations, Status, organizations
from fedveil.director.hub.store import new_id
from fedveil.utils.errors import (
    ChangedMeanwhileError,
    ConfigError,
    NameTakenError,
    StorageError,
    UnknownEntityError,
)

NORTH = Organization("1" * 24, "North Hospital", "it@north.example", "dpo@north.example", "", bytes(range(32)))
SOUTH = replace(NORTH, id="2" * 24, name="South Hospital")


@pytest.fixture
def kept(engine):
    return organizations(engine)


def nothing(_):
    """Logs nothing."""


def test_an_organization_comes_back_as_it_was_kept(kept):
    kept.add(NORTH)
    assert kept.get(NORTH.id) == NORTH
    with pytest.raises(UnknownEntityError, match="no such organization"):
        kept.get(SOUTH.id)


def test_two_of_one_name_are_refused(kept):
    kept.add(NORTH)
    with pytest.raises(NameTakenError):
        kept.add(replace(SOUTH, name=NORTH.name))
    kept.add(SOUTH)
    with pytest.raises(NameTakenError):
        kept.change(SOUTH.id, 1, nothing, name=NORTH.name)
    assert kept.get(SOUTH.id) == SOUTH


def test_pages_go_through_all_of_them_once(kept):
    ids = sorted(new_id() for _ in range(7))
    for number, id_ in enumerate(ids):
        kept.add(replace(NORTH, id=id_, name=f"hospital {number}"))
    seen, after = [], ""
    while page := kept.page(after, 3):
        seen, after = [*seen, *(one.id for one in page)], page[-1].id
    assert seen == ids
    assert [one.id for one in kept.page("", 10, kept.among(ids[2:4]))] == ids[2:4]


def test_of_many_who_change_what_they_saw_one_succeeds_and_the_others_are_told(kept):
    kept.add(NORTH)

    def rename(number):
        try:
            return kept.change(NORTH.id, 1, nothing, contact=f"person {number}").contact
        except ChangedMeanwhileError:
            return None

    with ThreadPoolExecutor(8) as pool:
        done = [one for one in pool.map(rename, range(16)) if one]
    assert len(done) == 1
    assert (kept.get(NORTH.id).contact, kept.get(NORTH.id).version) == (done[0], 2)


def test_what_cannot_be_logged_is_not_done(kept):
    def full(*_):
        raise StorageError("no space")

    with pytest.raises(StorageError):
        kept.add(NORTH, full)
    with pytest.raises(UnknownEntityError):
        kept.get(NORTH.id)
    kept.add(NORTH)
    with pytest.raises(StorageError):
        kept.change(NORTH.id, 1, full, status=Status.ACTIVE)
    assert kept.get(NORTH.id).status is Status.PENDING


def test_an_envoy_is_one_organizations(engine, kept):
    stations = Stations(engine)
    for one in (NORTH, SOUTH):
        kept.add(one)
    for _ in range(2):
        stations.take("site-a", NORTH.id, 1.0)
    stations.take("site-b", NORTH.id, 1.0)
    with pytest.raises(NameTakenError, match="another organization's"):
        stations.take("site-a", SOUTH.id, 2.0)
    assert stations.of(NORTH.id) == ("site-a", "site-b")
    assert (stations.whose("site-b"), stations.whose("site-c")) == (NORTH.id, None)


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"name": "  "}, {"name": "a\nb"}, {"name": "x" * 201}, {"contact": "x" * 501}, {"endpoint": "\x00"}],
)
def test_a_field_that_is_no_line_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(NORTH, **wrong)


@pytest.mark.parametrize("text", ["'; DROP TABLE hub_organizations; --", "{{7*7}}", "\\", "%s", "Ünïcode 医院"])
def test_whatever_is_in_a_name_it_is_only_a_name(kept, text):
    kept.add(replace(NORTH, name=text))
    assert kept.get(NORTH.id).name == text
    assert kept.first(kept.table.c.name == text) == replace(NORTH, name=text)
