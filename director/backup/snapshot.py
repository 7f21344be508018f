"""A director's database at one instant, as an SQLite file; and such a file put into either kind of database.

SQLite is copied by its own online backup, page by page. PostgreSQL is read in one transaction that sees one state
(repeatable read), table by table, into an SQLite file of the same schema: so a backup may be made of one kind and
restored to the other, and no program of a PostgreSQL installation is needed. Writers wait for neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, Table, func, make_url, select, text

from ...utils.errors import StorageError
from ..database import HEAD, open_database, reading, transaction, try_database
from ..tables import METADATA

_ROWS = 500  # read at a time
_BUSY_SECONDS = 10.0


def sqlite_file(url: str) -> Path | None:
    """Where a database's file lies; None for one on a server.

    Raises:
        StorageError: it is in memory.
    """
    address = make_url(url)
    if address.get_backend_name() != "sqlite":
        return None
    if address.database in {None, "", ":memory:"}:
        raise StorageError("a database in memory can be neither backed up nor restored")
    return Path(str(address.database))


def take_snapshot(url: str, out: Path) -> str:
    """Copy a database as it is at one instant, whoever writes to it. Gives its schema's revision.

    Args:
        url: as in director.toml.
        out: the SQLite file; it is not there yet.

    Raises:
        StorageError: there is none, of another version, or out of reach.
    """
    revision = try_database(url)
    if revision != HEAD:
        raise StorageError(
            "there is no database of a director here"
            if revision is None
            else f"the database has schema {revision}, this version's is {HEAD}: back it up with the version that"
            " wrote it, or start this one's director once"
        )
    path = sqlite_file(url)
    if path is not None:
        _copy_file(path, out)
        return revision
    engine, copy = open_database(url, durable=False), open_database(f"sqlite:///{out}", durable=False)
    try:
        with reading(engine.execution_options(isolation_level="REPEATABLE READ")) as read, transaction(copy) as write:
            _copy_tables(read, write)
    finally:
        engine.dispose()
        copy.dispose()
    return revision


def check_snapshot(path: Path) -> Engine:
    """Open a snapshot, brought up to this version's schema.

    Raises:
        StorageError: damaged, of a newer fedveil, or no database of one.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        raise StorageError(f"the backup's database is damaged: {error}") from error
    if found != ["ok"]:
        raise StorageError(f"the backup's database is damaged: {found[0]}")
    return open_database(f"sqlite:///{path}", durable=True)


def fill_database(snapshot: Engine, url: str) -> None:
    """Put a snapshot into an empty database, in one transaction; one that holds just this already is left as it is.

    Raises:
        StorageError: it holds something else, or is out of reach.
    """
    engine = open_database(url, durable=True)
    try:
        with reading(snapshot) as read, transaction(engine) as write:
            if _is_empty(write):
                _copy_tables(read, write)
                _set_counters(write)
            elif not _is_same(read, write):
                raise StorageError(
                    "the database already holds something else; nothing in it was changed. Restore to an empty one:"
                    " --database-url"
                )
    finally:
        engine.dispose()


def _copy_file(path: Path, out: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as live, closing(sqlite3.connect(out)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        out.chmod(0o600)
    except sqlite3.Error as error:
        raise StorageError(f"{path}: the database cannot be copied: {error}") from error


def _copy_tables(read: Connection, write: Connection) -> None:
    for table in METADATA.sorted_tables:
        rows = read.execution_options(yield_per=_ROWS).execute(_all_of(table))
        for some in rows.mappings().partitions():
            write.execute(table.insert(), [dict(row) for row in some])


def _all_of(table: Table) -> Any:
    return select(table).order_by(*table.primary_key.columns)


def _is_empty(connection: Connection) -> bool:
    return not any(connection.execute(select(table).limit(1)).first() for table in METADATA.sorted_tables)


def _is_same(one: Connection, other: Connection) -> bool:
    return all(_same_rows(one, other, table) for table in METADATA.sorted_tables)


def _same_rows(one: Connection, other: Connection, table: Table) -> bool:
    def rows(connection: Connection) -> Iterator[Row[Any]]:
        found = list(connection.execute(_all_of(table)))
        return iter(sorted(found, key=repr))  # the two kinds of database order texts differently

    return all(a == b for a, b in zip_longest(rows(one), rows(other)))


def _set_counters(connection: Connection) -> None:
    """PostgreSQL counts the numbers that it gives apart from the rows."""
    if connection.dialect.name != "postgresql":
        return
    for table in METADATA.sorted_tables:
        column = table.autoincrement_column
        if column is None:
            continue
        last = connection.execute(select(func.max(column))).scalar()
        if last is not None:
            named = {"table": connection.dialect.identifier_preparer.format_table(table), "column": column.name}
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)"), named | {"last": last}
            )
