"""What the API reaches beside the hub: the federation that runs. Each router takes the parts that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography import x509
from fastapi import Depends, Request

from ...utils.artifacts import ArtifactStore
from ...utils.errors import StorageError
from ...utils.roster import Roster
from ..admission import Admission
from ..coordinator import Coordinator
from ..envoy_calls import EnvoyCalls
from ..experiment_desk import ExperimentDesk
from ..history import History
from ..identity_store import IdentityStore
from ..registrar import Registrar
from ..site_heads import SiteHeads
from ..standing import Standing


@dataclass(frozen=True, slots=True)
class Works:
    """The parts of a director that is running; the gRPC doors have the same."""

    folder: Path  # the director's
    addresses: tuple[str, ...]  # host:port of gRPC, as join files say it
    root: x509.Certificate
    coordinator: Coordinator
    desk: ExperimentDesk
    history: History
    artifacts: ArtifactStore
    members: IdentityStore
    registrar: Registrar
    roster: Callable[[], Roster]
    heads: SiteHeads
    standing: Standing
    calls: EnvoyCalls
    site_admission: Admission  # of the sites that call over HTTPS


def works_of(request: Request) -> Works:
    """The federation behind this app.

    Raises:
        StorageError: there is none: the app describes the API and runs nothing.
    """
    works: Works | None = request.app.state.works
    if works is None:
        raise StorageError("no federation runs behind this API")
    return works


TheWorks = Annotated[Works, Depends(works_of)]
