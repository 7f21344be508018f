"""Models that were registered: each a version of a name, the file of a round, and a signed card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, false, insert, select
from sqlalchemy.exc import IntegrityError

from ...utils.errors import ConfigError, NameTakenError
from ...utils.messages import NAME_PATTERN, EnvoyName, RunId
from ...utils.model_card import SignedCard
from ...utils.tensors import Digest
from ..database import reading, transaction
from ..tables import RUNS
from .lineage import Offered, Parent
from .model_versions import Kept, Version, check_grows
from .rules import Actor, Operation, Resource, Scope
from .store import Store
from .tables import DATASETS, ENVOYS, MODEL_DATASETS, MODELS


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model.

    Raises:
        ConfigError: a name or version that can be none.
    """

    id: str
    name: str
    semver: str
    digest: Digest  # SHA-256 of the file
    run: RunId
    round: int
    plan: Digest
    collaboration: str
    card: Mapping[str, Any]
    key: bytes  # that signed the card
    signature: bytes
    organization: str  # that registered it
    user: str
    is_published: bool
    created_at: float
    version: int = 1

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError("name: expected 1 to 63 lower-case letters, digits and hyphens, the first no hyphen")
        Version.parse(self.semver)

    @property
    def signed(self) -> SignedCard:
        """Its card, as it was signed."""
        return SignedCard(self.card, self.key, self.signature)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A dataset that fed a model and was withdrawn."""

    dataset: str  # id
    name: str
    site: str
    at: float  # seconds since 1970


class Models(Store[Model]):
    """The registry; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, MODELS, "model", lambda row: Model(**row), asdict)

    def register(self, model: Model, layout: Digest, datasets: Iterable[str], write_down: Callable[[], None]) -> None:
        """Keep the next version of a name; whoever calls has the ``turn`` of the artifacts, so that its file stays.

        Args:
            model: not published.
            layout: of its tensors.
            datasets: ids of those that fed it, also by what it began with.
            write_down: puts it into the audit log, or nothing is kept.

        Raises:
            NameTakenError: the name is of another collaboration's models, or it has this version.
            ConfigError: the version does not grow as it should.
        """
        try:
            with transaction(self.engine) as connection:
                _check_next(connection, model, layout)
                connection.execute(insert(MODELS), asdict(model))
                rows = [{"model": model.id, "dataset": one} for one in sorted(set(datasets))]
                if rows:
                    connection.execute(insert(MODEL_DATASETS), rows)
                write_down()
        except IntegrityError as error:
            raise NameTakenError(f"{model.name} has version {model.semver}, or what it refers to is gone") from error

    def digests(self) -> frozenset[Digest]:
        """Files that stay, however old their rounds are."""
        with reading(self.engine) as connection:
            return frozenset(map(Digest, connection.execute(select(MODELS.c.digest)).scalars()))

    def seen(self, actor: Actor, digest: str) -> bool:
        """Is a file registered as a model that somebody may see?"""
        mine = seen_by(actor)
        return self.first(MODELS.c.digest == digest, *([] if mine is None else [mine])) is not None

    def versions(self, name: str, *where: ColumnElement[bool]) -> tuple[Model, ...]:
        """All of a name, the last version first."""
        found = self.all(MODELS.c.name == name, *where)
        return tuple(sorted(found, key=lambda one: Version.parse(one.semver), reverse=True))

    def withdrawn(self, model: str) -> tuple[Withdrawn, ...]:
        """The datasets that fed a model and were withdrawn since, or before; by site."""
        query = (
            select(DATASETS.c.id, DATASETS.c.name, DATASETS.c.envoy, DATASETS.c.withdrawn_at)
            .join(MODEL_DATASETS, MODEL_DATASETS.c.dataset == DATASETS.c.id)
            .where(MODEL_DATASETS.c.model == model, DATASETS.c.withdrawn_at.is_not(None))
            .order_by(DATASETS.c.envoy, DATASETS.c.name)
        )
        with reading(self.engine) as connection:
            return tuple(Withdrawn(*row) for row in connection.execute(query))

    def withdrawn_among(self, datasets: Iterable[str]) -> tuple[str, ...]:
        """The ids of those that are withdrawn, of some."""
        query = select(DATASETS.c.id).where(DATASETS.c.id.in_(sorted(datasets)), DATASETS.c.withdrawn_at.is_not(None))
        with reading(self.engine) as connection:
            return tuple(connection.execute(query.order_by(DATASETS.c.id)).scalars())

    def offered(self, name: str, sites: set[EnvoyName]) -> tuple[Offered, ...]:
        """The datasets of a name that are registered at these sites."""
        query = select(DATASETS.c.id, DATASETS.c.envoy, DATASETS.c.digest).where(
            DATASETS.c.name == name, DATASETS.c.envoy.in_(sorted(sites))
        )
        with reading(self.engine) as connection:
            return tuple(Offered(*row) for row in connection.execute(query))

    def whose(self, sites: set[EnvoyName]) -> dict[EnvoyName, str | None]:
        """The organizations of envoys; None where nobody claimed one."""
        query = select(ENVOYS.c.name, ENVOYS.c.organization).where(ENVOYS.c.name.in_(sorted(sites)))
        with reading(self.engine) as connection:
            return dict.fromkeys(sites) | {EnvoyName(row.name): row.organization for row in connection.execute(query)}

    def parents(self, digest: Digest, collaboration: str) -> tuple[tuple[Parent, ...], tuple[str, ...]]:
        """Registered models of these very bytes that a collaboration may know of, and the datasets that fed them."""
        is_known = MODELS.c.is_published | (MODELS.c.collaboration == collaboration)
        query = select(MODELS.c.id, MODELS.c.name, MODELS.c.semver).where(MODELS.c.digest == digest, is_known)
        with reading(self.engine) as connection:
            found = tuple(Parent(*row) for row in connection.execute(query.order_by(MODELS.c.name, MODELS.c.semver)))
            of_them = MODEL_DATASETS.c.model.in_([one.model for one in found])
            fed = connection.execute(select(MODEL_DATASETS.c.dataset).where(of_them).distinct()).scalars()
            return found, tuple(sorted(fed))


def seen_by(actor: Actor) -> ColumnElement[bool] | None:
    """Which rows somebody may see, as ``rules.decide`` would say of each; None: all.

    A published model is seen by whoever may see models at all: it is every organization's as if it were its own.
    """
    grants = actor.grants(Operation.VIEW, Resource.MODEL)
    if not grants:
        return false()
    widest = grants[0][1].scope
    if widest is Scope.FEDERATION:
        return None
    seen = MODELS.c.is_published | (MODELS.c.user == actor.user)
    if widest >= Scope.ORGANIZATION:
        seen = seen | (MODELS.c.organization == actor.organization)
    if widest >= Scope.COLLABORATION:
        seen = seen | MODELS.c.collaboration.in_(sorted(actor.collaborations))
    return seen


def _check_next(connection: Connection, model: Model, layout: Digest) -> None:
    query = select(MODELS.c.semver, MODELS.c.plan, MODELS.c.collaboration, RUNS.c.layout).join(
        RUNS, RUNS.c.id == MODELS.c.run
    )
    kept = connection.execute(query.where(MODELS.c.name == model.name)).all()
    if any(row.collaboration != model.collaboration for row in kept):
        raise NameTakenError(f"another collaboration has models of the name {model.name}; choose another name")
    if any(row.semver == model.semver for row in kept):
        raise NameTakenError(f"{model.name} has version {model.semver}")
    check_grows(
        [Kept(Version.parse(row.semver), row.plan, row.layout) for row in kept],
        Kept(Version.parse(model.semver), model.plan, layout),
    )
