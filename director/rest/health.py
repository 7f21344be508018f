"""``/healthz``, ``/readyz`` and ``/metrics``: for whoever watches over the director. No value of a site is in them."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from ..database import reading
from .asking import TheHub, TheNumbers
from .problems import documented

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """It answers."""

    status: str = "ok"


@router.get("/healthz")
def healthz() -> Alive:
    """The process answers."""
    return Alive()


@router.get("/readyz", responses=documented(503))
def readyz(hub: TheHub) -> Alive:
    """The database answers too."""
    with reading(hub.engine) as connection:
        connection.execute(text("SELECT 1"))
    return Alive()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(numbers: TheNumbers) -> Response:
    """Figures in the text format of Prometheus."""
    return Response(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)
