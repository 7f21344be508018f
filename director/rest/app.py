"""The REST API as one app: its routers, what surrounds every call, and its description."""

from __future__ import annotations

import json
import threading

from fastapi import FastAPI
from fastapi.routing import APIRoute
from sqlalchemy import create_engine

from ... import __version__
from ..audit import DirectorAudit
from ..hub.hub import Hub
from . import (
    audit,
    collaborations,
    datasets,
    envoys,
    events,
    federated_gradients,
    federated_model,
    federated_organizations,
    federated_privacy,
    federated_rounds,
    health,
    identities,
    keys,
    models,
    organizations,
    plans,
    problems,
    remarks,
    reports,
    roles,
    sessions,
    site_calls,
    sites,
    tasks,
    users,
)
from .event_feeds import Feeds
from .idempotency import Answers, Idempotency
from .limits import Limits
from .numbers import Counting, Numbers
from .protobuf_bodies import threads
from .works import Works

_ABOUT = """Who takes part in a federation, who may do what on which data, and what became of it.

Refusals are `application/problem+json`. Lists come in pages (`limit`, `after`, `next`). A POST with an
`Idempotency-Key` is done once, however often it is sent. A change says which version it is of (`If-Match`, the ETag of
what was read)."""


def make_app(hub: Hub, works: Works | None = None) -> FastAPI:
    """The app of one hub; safe to call from many threads.

    Args:
        hub: who takes part.
        works: the federation that runs; without one, calls that need it are refused.
    """
    app = FastAPI(
        title="fedveil",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        generate_unique_id_function=_operation_id,
        strict_content_type=True,
        redirect_slashes=False,  # they lead to whatever host the caller named
    )
    app.state.hub, app.state.works, app.state.numbers = hub, works, Numbers()
    app.state.ends = threading.Event()  # set when the server closes
    app.state.feeds = Feeds(app.state.ends)
    app.state.waiting = threads()
    problems.install(app)
    for router in (
        health.router,
        audit.router,
        sessions.router,
        organizations.router,
        users.router,
        keys.router,
        collaborations.router,
        envoys.router,
        datasets.router,
        roles.router,
        identities.router,
        plans.router,
        tasks.router,
        remarks.router,
        events.router,
        sites.router,
        site_calls.router,
        federated_organizations.router,
        federated_rounds.router,
        federated_gradients.router,
        federated_model.router,
        federated_privacy.router,
        models.router,
        reports.router,
    ):
        app.include_router(router)
    app.state.registrations = federated_organizations.new_registrations()
    app.add_middleware(
        Idempotency,
        answers=Answers(hub.engine, hub.now),
        caller=lambda token: hub.sign_in.caller(token, hub.now()),
    )
    app.add_middleware(Limits)
    app.add_middleware(Counting, numbers=app.state.numbers)
    drawn = app.openapi
    app.openapi = lambda: problems.in_description(drawn())  # type: ignore[method-assign] # as FastAPI says to
    return app


def description() -> str:
    """The OpenAPI document of every director, as it stands in ``openapi.json``; a test holds them equal."""
    app = make_app(Hub("federation", create_engine("sqlite://"), DirectorAudit()))
    return json.dumps(app.openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _operation_id(route: APIRoute) -> str:
    return route.name


if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path(sys.argv[1]).write_text(description(), "utf-8")
