"""What goes with a model that is given out: did its sites approve that, and were data that fed it withdrawn?"""

from __future__ import annotations

from typing import Any

from ...utils.errors import NotAuthorizedError
from ...utils.proposal import Output, proposal_of
from ..hub.models import Withdrawn
from ..records import RunRecord
from .files import ANSWERS

WITHDRAWN_HEADER = "Fedveil-Withdrawn-Datasets"
WITHDRAWN: dict[str, Any] = {
    WITHDRAWN_HEADER: {
        "description": "Of a registered model, where data that fed it were withdrawn: the ids of those datasets.",
        "schema": {"type": "string"},
    }
}
"""The header, for the API's description."""
ABOUT_WITHDRAWN: dict[int | str, dict[str, Any]] = {
    status: ANSWERS[status] | {"headers": ANSWERS[status].get("headers", {}) | WITHDRAWN} for status in (200, 206, 304)
}
"""The answers of a file that say so."""


def marks(withdrawn: tuple[Withdrawn, ...]) -> dict[str, str]:
    """The header of a registered model, if there is something to say."""
    return {WITHDRAWN_HEADER: ", ".join(one.dataset for one in withdrawn)} if withdrawn else {}


def gives_model(record: RunRecord) -> bool:
    """Did the sites of a run approve that it gives its model? Of a run of before there were proposals: no."""
    return record.proposal is not None and Output.MODEL in proposal_of(record.proposal.content).outputs


def check_gives_model(record: RunRecord) -> None:
    """Is its model to be had?

    Raises:
        NotAuthorizedError: the study gives metrics alone.
    """
    if not gives_model(record):
        raise NotAuthorizedError(f"the sites were not asked for the model of {record.run}, only for its metrics")
