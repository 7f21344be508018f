"""A database at one instant, between both kinds."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from fedveil.director.backup.snapshot import check_snapshot, fill_database, take_snapshot
from fedveil.director.database import HEAD, open_database, reading, transaction
from fedveil.director.tables import INVITATIONS
from fedveil.utils.errors import StorageError
from sqlalchemy import func, select, text

KINDS = ("sqlite", "postgresql")
NEW = {"id": "new", "name": "n", "role": "envoy", "organization": "o", "expires_at": 1.0, "used_by": ""}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_every_row_of_every_table_comes_over_between_any_two_kinds(source, target, make_url, fill, rows, tmp_path):
    url, goal = make_url(source), make_url(target)
    engine = open_database(url, durable=False)
    fill(engine)
    expected = rows(engine)
    assert all(len(found) == 3 for found in expected.values())
    assert take_snapshot(url, tmp_path / "copy") == HEAD
    snapshot = check_snapshot(tmp_path / "copy")
    fill_database(snapshot, goal)
    fill_database(snapshot, goal)  # one that was killed right after finds its own work
    restored = open_database(goal, durable=False)
    assert rows(restored) == expected
    _invites(restored)
    for one in (engine, snapshot, restored):
        one.dispose()


def _invites(engine) -> None:
    """The next number follows those that came over."""
    with transaction(engine) as connection:
        before = connection.execute(select(func.max(INVITATIONS.c.number))).scalar_one()
        number = connection.execute(INVITATIONS.insert().returning(INVITATIONS.c.number), NEW).scalar_one()
    assert number == before + 1


def test_a_snapshot_is_of_one_instant_while_others_write(database_url, tmp_path: Path):
    """Two rows that are always written together are both there, or neither."""
    engine = open_database(database_url, durable=False)
    ends, began = threading.Event(), threading.Event()

    def write() -> None:
        for number in itertools.count():
            with transaction(engine) as connection:
                for half in ("a", "b"):
                    connection.execute(INVITATIONS.insert(), NEW | {"id": f"{number}{half}"})
            began.set()
            if ends.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    began.wait()
    try:
        for number in range(5):
            take_snapshot(database_url, tmp_path / f"{number}")
            copy = check_snapshot(tmp_path / f"{number}")
            with reading(copy) as connection:
                count = connection.execute(select(func.count()).select_from(INVITATIONS)).scalar_one()
            copy.dispose()
            assert count % 2 == 0
            assert count
    finally:
        ends.set()
        writer.join()
        engine.dispose()


def test_a_database_that_holds_something_else_is_refused_and_keeps_it(database_url, make_url, fill, rows, tmp_path):
    engine = open_database(database_url, durable=False)
    with transaction(engine) as connection:
        connection.execute(INVITATIONS.insert(), NEW)
    held = rows(engine)
    other = make_url("sqlite")
    source = open_database(other, durable=False)
    fill(source)
    take_snapshot(other, tmp_path / "copy")
    snapshot = check_snapshot(tmp_path / "copy")
    with pytest.raises(StorageError, match="already holds something else"):
        fill_database(snapshot, database_url)
    assert rows(engine) == held
    for one in (engine, source, snapshot):
        one.dispose()


def test_another_schema_and_no_database_at_all_are_refused(database_url, tmp_path: Path):
    with pytest.raises(StorageError, match="no database of a director"):
        take_snapshot(database_url, tmp_path / "copy")
    engine = open_database(database_url, durable=False)
    with transaction(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StorageError, match="schema 9999"):
        take_snapshot(database_url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
