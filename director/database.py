"""The director's database: how it is opened, and the lock that keeps a second director out.

SQLite (WAL) by default, PostgreSQL by URL. What is in it: ``tables`` and ``hub/tables``.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, InterfaceError, OperationalError

from ..utils.errors import MalformedMessageError, StorageError
from .hub import tables as _hub  # noqa: F401 - their tables are in METADATA too
from .tables import METADATA

HEAD = "0007"
"""The newest script in ``migrations/versions``."""

_BUSY_TIMEOUT_SECONDS = 10
_LOCK_TIMEOUT_SECONDS = 3  # PostgreSQL may need a moment to see that a killed director is gone
_DIRECTOR_LOCK, _MIGRATION_LOCK = 0x6665647665696C01, 0x6665647665696C02  # advisory locks: "fedveil", 1 and 2
_IMMEDIATE = MappingProxyType({"fedveil_immediate": True})


def open_database(url: str, durable: bool) -> Engine:
    """Open the database and bring its tables up to date; a new one is made where there is none.

    The engine may be shared by threads. Several processes may open one SQLite or PostgreSQL database (``director
    invite`` beside a running director); only one may be the director: ``DirectorLock``.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.
        durable: a committed transaction also survives a power cut; otherwise a kill -9. (PostgreSQL does what
            its own settings say unless this is set.)

    Raises:
        StorageError: not a database of this fedveil, of a newer one, or out of reach.
    """
    address = _address(url)
    engine = _postgres_engine(address, durable) if _is_postgres(address) else _sqlite_engine(address, durable)
    try:
        with _storage_errors():
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


def try_database(url: str) -> str | None:
    """Take the place of a writer and leave it again: nothing changes, and the tables are not brought up to date.

    Returns:
        the schema's revision; None where there is no database yet.

    Raises:
        StorageError: out of reach, held by another program, only to be read, or no database of fedveil.
    """
    address = _address(url)
    is_remote = _is_postgres(address)
    if not is_remote and (_is_in_memory(address) or not Path(str(address.database)).exists()):
        return None
    engine = _postgres_engine(address, durable=False) if is_remote else _sqlite_engine(address, durable=False)
    try:
        with transaction(engine) as connection:
            if is_remote and connection.execute(text("SHOW transaction_read_only")).scalar_one() == "on":
                raise StorageError("the database may only be read: it is a standby, or its user may not write")
            return _revision(connection)
    finally:
        engine.dispose()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: committed at the end, rolled back on any error.

    Raises:
        StorageError: the disk is full, the database is locked by another program, or is out of reach.
        MalformedMessageError: a value that no database keeps.
    """
    with _storage_errors(), engine.connect() as connection:
        connection.execution_options(**_IMMEDIATE)
        with connection.begin():
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads, and sees one state of the database.

    Raises:
        StorageError: as ``transaction``.
    """
    with _storage_errors(), engine.connect() as connection:
        yield connection


class DirectorLock:
    """Held by the one director that runs with a database; the operating system drops it when the process dies.

    A lock file beside an SQLite file, an advisory lock in PostgreSQL. An SQLite database in memory needs none.

    Raises:
        StorageError: another director is running with this database.
    """

    def __init__(self, url: str) -> None:
        address = _address(url)
        self._file: int | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        if _is_postgres(address):
            self._lock_postgres(address)
        elif not _is_in_memory(address):
            self._lock_file(Path(f"{address.database}.lock"))

    def release(self) -> None:
        """Let another director in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._connection is not None and self._engine is not None:
            self._connection.close()
            self._engine.dispose()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _lock_file(self, path: Path) -> None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(f"cannot make the lock file {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise StorageError(_SECOND_DIRECTOR) from error
        self._file = file

    def _lock_postgres(self, address: URL) -> None:
        self._engine = _postgres_engine(address, durable=False)
        try:
            with _storage_errors():
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'"))
            self._connection.execute(text(f"SELECT pg_advisory_lock({_DIRECTOR_LOCK})"))
        except OperationalError as error:
            self.release()
            raise StorageError(_SECOND_DIRECTOR) from error
        except StorageError:
            self._engine.dispose()
            raise


_SECOND_DIRECTOR = (
    "another director is running with this database; stop it, or give this one a database of its own "
    "(database.url in director.toml)"
)


def _address(url: str) -> URL:
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise StorageError("the database's URL cannot be read; expected sqlite:///PATH or postgresql://...") from error
    kind = address.get_backend_name()
    if kind == "postgresql":
        return address.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise StorageError(f"a database of kind {kind}; expected sqlite or postgresql")
    return address


def _is_postgres(address: URL) -> bool:
    return address.get_backend_name() == "postgresql"


def _is_in_memory(address: URL) -> bool:
    return address.database in (None, "", ":memory:")


def _sqlite_engine(address: URL, durable: bool) -> Engine:
    # A database in memory lives in one connection, which the threads take in turns.
    size, overflow = (1, 0) if _is_in_memory(address) else (4, 28)
    engine = create_engine(
        address,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=overflow,
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `begin` below does
        _use_wal(connection)
        for pragma in (
            f"synchronous = {'FULL' if durable else 'NORMAL'}",
            "foreign_keys = ON",
            "secure_delete = ON",  # what is scrubbed is overwritten
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its place at once: a reader that wants to write later can be refused however long it waits.
        writes = connection.get_execution_options().get("fedveil_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite waits for every lock but that of this switch, which two processes may want of a new file at once."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgres_engine(address: URL, durable: bool) -> Engine:
    options = {"options": "-c synchronous_commit=on"} if durable else {}
    try:
        return create_engine(address, pool_pre_ping=True, pool_size=4, max_overflow=28, connect_args=options)
    except ImportError as error:
        raise StorageError("PostgreSQL needs the driver psycopg: pip install 'fedveil[postgres]'") from error


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (DataError, OverflowError, UnicodeEncodeError) as error:
        raise MalformedMessageError(
            "a number beyond 63 bits, or a text with a null or half a character, cannot be kept in the database"
        ) from error
    except (OperationalError, InterfaceError) as error:
        raise StorageError(
            f"the director's database does not answer as it should: {_first_line(error)}; "
            "see that its disk has space and that nothing else holds it, then start the director again"
        ) from error
    except DatabaseError as error:
        raise StorageError(f"this is not a database of fedveil: {_first_line(error)}") from error


def _first_line(error: DatabaseError | InterfaceError) -> str:
    return (str(error.orig).splitlines() or [type(error.orig).__name__])[0]


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return  # as a rule; alembic is not even imported
    with engine.connect() as connection:
        connection.execution_options(**_IMMEDIATE)
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            revision = _revision(connection)
            if revision != HEAD:
                _upgrade(connection, revision)


def _revision(connection: Connection) -> str | None:
    """The schema's revision; None in a new database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: Connection, revision: str | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes.update(connection=connection, metadata=METADATA)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise StorageError(
            f"the database was written by a newer fedveil (schema {revision}, this one knows up to {HEAD}); "
            "install that version again, or give this one a database of its own"
        )
    command.upgrade(config, HEAD)
