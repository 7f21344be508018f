"""What a version of a model is called: the SHA-256 of its file always, and x.y.z where it is in the registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select

from ...utils.messages import RunId
from ...utils.tensors import Digest
from ..database import reading
from ..hub.hub import Hub
from ..hub.tables import MODELS

_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SEMVER = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(?:-[0-9A-Za-z.-]{1,16})?")


@dataclass(frozen=True, slots=True)
class Registered:
    """A model of the registry."""

    id: str
    semver: str
    digest: Digest
    run: RunId
    is_published: bool


def sha256_of(version: str) -> Digest | None:
    """The digest that a version is, if it is one."""
    found = _SHA256.fullmatch(version)
    return None if found is None else Digest(found.group(1))


def is_semver(version: str) -> bool:
    """Could it be one of the registry's?"""
    return _SEMVER.fullmatch(version) is not None


def registered(hub: Hub, *, semver: str | None = None, digest: Digest | None = None) -> tuple[Registered, ...]:
    """Models of the registry, the latest first."""
    where: list[ColumnElement[bool]] = []
    if semver is not None:
        where.append(MODELS.c.semver == semver)
    if digest is not None:
        where.append(MODELS.c.digest == digest)
    with reading(hub.engine) as connection:
        rows = connection.execute(select(MODELS).where(*where).order_by(MODELS.c.created_at.desc())).all()
    return tuple(
        Registered(row.id, row.semver, Digest(row.digest), RunId(row.run), bool(row.is_published)) for row in rows
    )


def digest_of_version(hub: Hub, version: str) -> Digest | None:
    """The model that a version names, if one and no other has it."""
    digest = sha256_of(version)
    if digest is not None or not is_semver(version):
        return digest
    found = {one.digest for one in registered(hub, semver=version)}
    return found.pop() if len(found) == 1 else None
