"""A director's folder with a database that has rows in every table."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedveil.director.audit import DirectorAudit
from fedveil.director.config import DirectorConfig, load_config
from fedveil.director.database import open_database, reading, transaction
from fedveil.director.founding import init_federation
from fedveil.director.tables import METADATA
from fedveil.utils.artifacts import ArtifactStore
from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Engine, Integer, LargeBinary, select

ROWS = 3


def value(column: Column[Any], row: int) -> object:
    """One that differs by row, and is the same in all columns that may refer to each other."""
    match column.type:
        case Boolean():
            return row % 2 == 0
        case BigInteger():
            return 2**62 + row
        case Integer():
            return row
        case Double():
            return 0.1 + row
        case JSON():
            return {"köpfe": [row, None, 1e-300, "\u2028"]} if row else []
        case LargeBinary():
            return bytes([0, 255, row]) * 10
        case _:
            return f"{'ä' if column.type.length is None else 'v'}{row}"


def fill(engine: Engine) -> None:
    """Rows in every table; what may be empty is, in one of them."""
    with transaction(engine) as connection:
        for table in METADATA.sorted_tables:
            for row in range(ROWS):
                given = {one.name: None if one.nullable and row == 2 else value(one, row) for one in table.columns}
                connection.execute(table.insert(), given)


def rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in a database."""
    with reading(engine) as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in METADATA.sorted_tables
        }


@pytest.fixture(name="rows")
def _rows() -> Callable[[Engine], dict[str, list[tuple[Any, ...]]]]:
    return rows


@pytest.fixture(name="fill")
def _fill() -> Callable[[Engine], None]:
    return fill


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """An empty database of a kind."""
    made = iter(range(10))

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / f'elsewhere-{next(made)}.sqlite'}"
        return request.getfixturevalue("postgres")()

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A director that was started once, with two artifacts."""
    folder = tmp_path / "director"
    init_federation(folder, "toys", ["127.0.0.1"], b"the root's", time.time())
    config = load_config(folder)
    engine = open_database(config.database_url(folder), durable=False)
    fill(engine)
    engine.dispose()
    artifacts = ArtifactStore(folder / "artifacts", durable=False)
    artifacts.put([b"a model"])
    artifacts.put([b"a plan"])
    DirectorAudit.open(folder, config.federation).close()
    return folder


@pytest.fixture
def config(folder: Path) -> DirectorConfig:
    return load_config(folder)
