"""What sites offer to be learned from: described, never counted, and withdrawn for good.

A dataset is one envoy's; its name is the one that a plan declares, so that several sites may offer data of one name.
Pure but for the stores at the end: what a withdrawal does to tasks is decided here, and enforced by whoever starts and
opens them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, RowMapping, select

from ...utils.errors import AgreementError, ConfigError
from ...utils.identity import when
from ..database import reading
from .store import Store
from .tables import DATASETS, MODEL_DATASETS

MIN_WIDTH = 10
"""A range of fewer numbers than these is as good as a count."""
MAX_COLUMNS, MAX_COLUMN, MAX_TEXT = 2_000, 200, 2_000
_RANGE = re.compile(r"(0|[1-9]\d{0,9})-([1-9]\d{0,9})|>=([1-9]\d{0,9})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """What one envoy says of data that it has.

    Raises:
        ConfigError: a field that says nothing, too much, or how many examples there are.
    """

    id: str
    name: str  # as at the site
    organization: str
    envoy: str
    description: str = ""
    modality: str = ""
    columns: tuple[str, ...] = ()
    examples: str = ""  # a range such as "100-499" or ">=1000"; "": not said
    digest: str = ""  # SHA-256 of what the site has, by its own word; "": not said
    withdrawn_at: float | None = None  # seconds since 1970
    withdrawn_why: str = ""
    created_at: float = 0.0
    version: int = 1

    def __post_init__(self) -> None:
        for name, most in (("description", MAX_TEXT), ("modality", 63), ("withdrawn_why", MAX_TEXT)):
            said = getattr(self, name)
            if len(said) > most or not said.isprintable():
                raise ConfigError(f"{name}: expected one printable line of at most {most} characters")
        if len(self.columns) > MAX_COLUMNS or len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"columns: expected at most {MAX_COLUMNS} names, each once")
        for column in self.columns:
            if not 0 < len(column) <= MAX_COLUMN or not column.isprintable():
                raise ConfigError(f"columns: expected names of 1 to {MAX_COLUMN} printable characters")
        if self.digest and not _DIGEST.fullmatch(self.digest):
            raise ConfigError("digest: expected a SHA-256 in hexadecimal")
        if self.examples:
            _check_range(self.examples)

    @property
    def is_withdrawn(self) -> bool:
        """For good."""
        return self.withdrawn_at is not None


def _check_range(text: str) -> None:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigError('examples: expected a range such as "100-499" or ">=1000", never a count')
    if found[1] and int(found[2]) - int(found[1]) < MIN_WIDTH - 1:
        raise ConfigError(f"examples: a range has at least {MIN_WIDTH} numbers, or it is as good as a count")


# ------------------------------------------------------------ what a withdrawal does to tasks


def withdrawn_envoys(datasets: Iterable[Dataset]) -> frozenset[str]:
    """Whose data of one name were withdrawn: no task that reads it asks them.

    Args:
        datasets: of that name.
    """
    return frozenset(one.envoy for one in datasets if one.is_withdrawn)


def check_offered(datasets: Collection[Dataset], sites: Collection[str] = ()) -> None:
    """May a new task read data of a name?

    Data that nobody described are none of the hub's business: the sites decide about each task themselves.

    Args:
        datasets: those of the name that the task reads, of the organizations of its collaboration.
        sites: envoys that the task names; none: it asks all it may.

    Raises:
        AgreementError: it names a site that withdrew it, or all who offered it did.
    """
    gone = {one.envoy: one for one in datasets if one.is_withdrawn}
    for envoy in sorted(gone.keys() & set(sites)):
        raise AgreementError(f"{_told(gone[envoy])}; name the other sites alone, or none, and it is not asked")
    if gone and len(gone) == len({one.envoy for one in datasets}):
        first = gone[min(gone)]
        raise AgreementError(f"{_told(first)}, and nobody else of the collaboration offers data of that name")


def withdrawn_since(datasets: Iterable[Dataset], started_at: float) -> str | None:
    """Why a task that began at a time may not go on; None where it may.

    Args:
        datasets: as ``check_offered``.
        started_at: when the task was submitted, in seconds since 1970.
    """
    since = [one for one in datasets if one.withdrawn_at is not None and one.withdrawn_at >= started_at]
    if not since:
        return None
    return f"{_told(min(since, key=lambda one: one.envoy))}; submitted again, the task goes on without that site"


def _told(one: Dataset) -> str:
    return f"dataset {one.name} of envoy {one.envoy} was withdrawn on {when(one.withdrawn_at or 0.0)}"


# ------------------------------------------------------------ stores


def datasets(engine: Engine) -> Store[Dataset]:
    """Where they are kept."""
    return Store(engine, DATASETS, "dataset", _dataset, _row)


def named(engine: Engine, name: str, organizations: Collection[str]) -> tuple[Dataset, ...]:
    """The datasets of a name that these organizations offer, or offered."""
    return datasets(engine).all(DATASETS.c.name == name, DATASETS.c.organization.in_(sorted(organizations)))


class Fed:
    """Which datasets went into which models of the registry."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._datasets = engine, datasets(engine)

    def models(self, dataset: str) -> tuple[str, ...]:
        """Ids of the models that a dataset fed."""
        query = select(MODEL_DATASETS.c.model).where(MODEL_DATASETS.c.dataset == dataset)
        with reading(self._engine) as connection:
            return tuple(sorted(connection.execute(query).scalars()))

    def withdrawn(self, model: str) -> tuple[Dataset, ...]:
        """The datasets that fed a model and were withdrawn: a model's mark."""
        fed = select(MODEL_DATASETS.c.dataset).where(MODEL_DATASETS.c.model == model)
        return self._datasets.all(DATASETS.c.id.in_(fed), DATASETS.c.withdrawn_at.is_not(None))


def _dataset(row: RowMapping) -> Dataset:
    return Dataset(**(dict(row) | {"columns": tuple(row["columns"])}))


def _row(one: Dataset) -> dict[str, Any]:
    return asdict(one) | {"columns": list(one.columns)}
