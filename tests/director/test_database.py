"""Opening the director's database: migrations, versions, locks, over SQLite and a real PostgreSQL server."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fedveil.director import database
from fedveil.director.database import HEAD, DirectorLock, open_database, reading, transaction
from fedveil.director.history import History
from fedveil.director.records import Published
from fedveil.director.tables import METADATA
from fedveil.utils.errors import StorageError
from fedveil.utils.messages import RunId
from sqlalchemy import inspect, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError


def test_migrations_make_exactly_the_tables_that_the_code_uses(engine: Engine) -> None:
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []


def test_constraints_have_the_names_that_the_code_gives_them(engine: Engine) -> None:
    seen = inspect(engine)
    for table in METADATA.sorted_tables:
        assert seen.get_pk_constraint(table.name)["name"] == f"pk_{table.name}"
        found = {key["name"] for key in seen.get_foreign_keys(table.name) + seen.get_unique_constraints(table.name)}
        assert {str(each.name) for each in table.constraints} == found | {f"pk_{table.name}"}


def test_the_head_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_opening_again_keeps_what_is_there_and_needs_no_alembic(engine: Engine, database_url: str) -> None:
    with transaction(engine) as connection:
        connection.execute(text("INSERT INTO identities VALUES ('a', 'envoy', 'A', 'c', '', 1.5)"))
    code = (
        "import sys; from fedveil.director.database import open_database; from sqlalchemy import text;"
        "engine = open_database(sys.argv[1], True); connection = engine.connect();"
        "print(connection.execute(text('SELECT joined_at FROM identities')).scalar_one(), 'alembic' in sys.modules)"
    )
    again = [sys.executable, "-c", code, database_url]
    assert subprocess.run(again, capture_output=True, text=True, check=True, timeout=60).stdout == "1.5 False\n"


def test_runs_from_before_secure_sums_are_read_as_runs_without(database_url: str) -> None:
    engine = open_database(database_url, durable=False)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.connect() as connection, connection.begin():
        config.attributes.update(connection=connection, metadata=METADATA)
        command.downgrade(config, "0001")
        values = "1, 'a-1', 'a', 'running', '', 'p', 'l', '', 1.0, 1.0, NULL, '', 'm', 0, 0"
        connection.execute(text(f"INSERT INTO runs VALUES ({values})"))
        values = (
            "'a-1', 1, 1, 'p', 'train', 'open', 1.0, '[]', '[]', '[]', '[]', '', 'm', NULL, NULL, '[]', 0, 1.0, NULL"
        )
        connection.execute(text(f"INSERT INTO rounds VALUES ({values})"))
        connection.execute(text("INSERT INTO submissions VALUES ('a-1', 1, 1, 'site-a', 'd', 1, 5, '[]', '')"))
    engine.dispose()
    engine = open_database(database_url, durable=False)
    history = History(engine)
    assert dict(history.run(RunId("a-1")).expelled) == {}
    (record,) = history.rounds(RunId("a-1"))
    assert record.sum is None
    assert [one.published for one in history.submissions(record.round.ref)] == [Published()]
    engine.dispose()


def test_several_processes_may_make_the_same_new_database_at_once(database_url: str) -> None:
    def open_and_close(_: int) -> str | None:
        engine = open_database(database_url, durable=False)
        with reading(engine) as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        engine.dispose()
        return revision

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(open_and_close, range(3))) == [HEAD] * 3


def test_a_database_of_a_newer_fedveil_is_refused_and_left_alone(engine: Engine, database_url: str) -> None:
    with transaction(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match="newer fedveil \\(schema 9999, this one knows up to 0007\\)"):
        open_database(database_url, durable=False)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def test_one_director_a_database_and_the_next_when_it_is_gone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.1)
    with DirectorLock(database_url):
        with pytest.raises(StorageError, match="another director is running with this database"):
            DirectorLock(database_url)
        open_database(database_url, durable=False).dispose()  # `director invite` beside a running director
    DirectorLock(database_url).release()


HOLD = """
import sys
from fedveil.director.database import DirectorLock
lock = DirectorLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_director_is_free_at_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout.readline() == b"held\n"
        with monkeypatch.context() as patch:
            patch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.1)
            with pytest.raises(StorageError, match="another director"):
                DirectorLock(database_url)
        first.kill()
    DirectorLock(database_url).release()


def test_directors_with_databases_of_their_own_do_not_meet(tmp_path: Path, postgres: Callable[[], str]) -> None:
    with (
        DirectorLock(f"sqlite:///{tmp_path / 'a'}"),
        DirectorLock(f"sqlite:///{tmp_path / 'b'}"),
        DirectorLock(postgres()),
        DirectorLock(postgres()),
        DirectorLock("sqlite://"),
        DirectorLock("sqlite://"),
    ):
        pass


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    row = text("INSERT INTO identities VALUES ('a', 'envoy', 'A', 'c', '', 1)")
    with pytest.raises(IntegrityError), transaction(engine) as connection:
        deque(map(connection.execute, [row, row]))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM identities")).scalar_one() == 0


def test_a_database_in_memory_is_one_database_for_all_threads() -> None:
    engine = open_database("sqlite://", durable=False)

    def add(number: int) -> None:
        with transaction(engine) as connection:
            connection.execute(text(f"INSERT INTO identities VALUES ('{number}', 'envoy', 'A', 'c', '', 1)"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM identities")).scalar_one() == 20
    engine.dispose()


@pytest.mark.parametrize(("durable", "level"), [(False, 1), (True, 2)])
def test_sqlite_is_set_up_for_kill_or_for_power_loss(tmp_path: Path, durable: bool, level: int) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'd'}", durable)
    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        ]
    assert found == ["wal", level, 1, 1, 10_000]
    engine.dispose()


def test_a_durable_postgres_waits_for_its_disk(postgres: Callable[[], str]) -> None:
    engine = open_database(postgres(), durable=True)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "cannot be read; expected sqlite:///PATH"),
        ("mysql://root@localhost/x", "of kind mysql; expected sqlite or postgresql"),
        ("sqlite:////proc/nowhere/director.sqlite", "unable to open database file"),
        ("postgresql://127.0.0.1:1/x?connect_timeout=2", "does not answer as it should"),
    ],
)
def test_a_url_that_leads_nowhere_says_so(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        open_database(url, durable=False)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database\n" * 100, encoding="utf-8")
    with pytest.raises(StorageError, match="not a database"):
        open_database(f"sqlite:///{tmp_path / 'notes.txt'}", durable=False)


def test_a_full_disk_is_a_storage_error_and_the_database_stays_whole(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'd'}", durable=False)
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(
            f"PRAGMA max_page_count = {pages + 1}"
        )  # of this one connection, which the pool keeps
    with (
        pytest.raises(StorageError, match="database or disk is full; see that its disk has space"),
        transaction(engine) as connection,
    ):
        connection.execute(
            text("INSERT INTO identities VALUES ('a', 'envoy', :much, 'c', '', 1)"), {"much": "x" * 99999}
        )
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM identities")).scalar_one() == 0
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    engine.dispose()
