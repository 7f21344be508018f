"""Whether a run's model is for those who may see its models: its sites approve what a study gives, and that is all."""

from __future__ import annotations

from ...utils.errors import NotAuthorizedError
from ...utils.proposal import Output, proposal_of
from ..records import RunRecord


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
