"""What the hub gives to a bundle of evidence: who agreed to what, under which permit, and which tasks ran under it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select

from ...utils.tensors import digest_of
from ..database import reading
from .collaborations import Agreements, collaborations
from .organizations import organizations
from .remarks import Remarks
from .tables import ENVOYS, TASKS
from .users import users


def hub_evidence(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Each file of the bundle, by name, as JSON. No password, code, key or address of a person is in it."""
    names = {one.id: one.name for one in users(engine).all()}
    with reading(engine) as connection:
        envoys = connection.execute(select(ENVOYS.c.name, ENVOYS.c.organization).order_by(ENVOYS.c.name)).all()
        tasks = connection.execute(select(TASKS).order_by(TASKS.c.created_at, TASKS.c.run)).mappings().all()
    return {
        "organizations.json": [
            {
                "organization_id": one.id,
                "name": one.name,
                "status": one.status.value,
                "envoys": [row.name for row in envoys if row.organization == one.id],
                "created_at": one.created_at,
            }
            for one in organizations(engine).all()
        ],
        "permits.json": [
            {
                "collaboration_id": one.id,
                "name": one.name,
                "organizations": sorted(one.organizations),
                "number": one.permit.number,
                "authority": one.permit.authority,
                "purpose": one.permit.purpose,
                "starts_at": one.permit.starts_at,
                "ends_at": one.permit.ends_at,
                "datasets": sorted(one.permit.datasets),
                "reviews_needed": one.reviews_needed,
                "version": one.version,
            }
            for one in collaborations(engine).all()
        ],
        "organization-agreements.json": [
            {
                "agreement_id": one.id,
                "kind": one.kind.value,
                "number": one.version,
                "document_sha256": one.document,
                "parties": sorted(one.parties),
                "collaboration_id": one.collaboration,
                "valid_from": one.valid_from,
                "valid_until": one.valid_until,
                "may_start_tasks": sorted(one.may_start_tasks),
                "may_publish": sorted(one.may_publish),
                "intellectual_property": one.intellectual_property,
                "signed": dict(sorted(one.signed.items())),
            }
            for one in Agreements(engine).all()
        ],
        "remarks.json": [
            {
                "subject": one.subject.value,
                "about": one.about,
                "number": one.number,
                "author": names.get(one.user),
                "organization_id": one.organization,
                "sha256": digest_of(one.text.encode("utf-8")),  # what people wrote may name people
                "verdict": one.verdict.value if one.verdict else None,
                "created_at": one.created_at,
            }
            for one in Remarks(engine).all()
        ],
        "tasks.json": [
            {
                "run": row["run"],
                "collaboration_id": row["collaboration"],
                "organization_id": row["organization"],
                "started_by": names.get(row["user"]),
                "processing": row["processing"],
                "dataset": row["dataset"],
                "created_at": row["created_at"],
            }
            for row in tasks
        ],
    }
