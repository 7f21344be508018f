"""What follows a round that is over: another round, another attempt, or the run's end. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..utils.messages import EnvoyName, TaskKind
from ..utils.proposal import Proposal
from . import rounds
from .experiments import ExperimentSettings
from .records import Ending, RunState
from .rounds import Round
from .stop_rule import verdict

_MOST_REFUSALS = 3  # that a reason quotes


def after_close(
    settings: ExperimentSettings,
    closed: Round,
    progress: Sequence[Mapping[str, float]],
    began: float,
    now: float,
    out_of_budget: str | None = None,
) -> tuple[Round | None, Ending | None]:
    """The next training round; once the stop rule speaks, a final evaluation if one is wanted; then the end.

    Args:
        settings: of the experiment.
        closed: the round.
        progress: federated metrics of every training round so far, this one's last.
        began: when the run started, seconds since 1970.
        now: seconds since 1970.
        out_of_budget: why no further training round may begin, where its privacy budget lets none.

    Returns:
        A planned round and no ending, or the other way round.
    """
    if closed.kind is TaskKind.EVALUATE:
        return None, Ending(RunState.FINISHED, closed.reason)
    reason = verdict(settings.stop_rule, closed.ref.round, progress, now - began) or out_of_budget
    ref = replace(closed.ref, round=closed.ref.round + 1, attempt=1)
    if reason is None:
        return Round(ref, TaskKind.TRAIN, now), None
    if settings.wants_final_evaluation:
        return Round(ref, TaskKind.EVALUATE, now, reason=reason), None
    return None, Ending(RunState.FINISHED, reason)


def after_failure(
    settings: ExperimentSettings, before: Round, failed: Round, now: float, out_of_budget: str | None = None
) -> tuple[Round | None, Ending | None]:
    """Another attempt while there are some left; a final evaluation that fails does not fail the run.

    Args:
        settings: of the experiment.
        before: the round as it was; an evaluation's reason says why the run ends.
        failed: the same with the reason of its failure.
        now: seconds since 1970.
        out_of_budget: why no further training may begin, another attempt neither.
    """
    if out_of_budget is not None and failed.kind is TaskKind.TRAIN:
        return None, Ending(RunState.FAILED, f"{failed.ref}: {failed.reason}; {out_of_budget}")
    if failed.ref.attempt < settings.rounds.max_attempts:
        return replace(rounds.again(failed, now), reason=before.reason), None
    if failed.kind is TaskKind.EVALUATE:
        return None, Ending(RunState.FINISHED, f"{before.reason}; without final evaluation: {failed.reason}")
    return None, Ending(RunState.FAILED, f"{failed.ref}: {failed.reason}")


def stopped(reason: str) -> Ending:
    """An operator ends the run."""
    return Ending(RunState.STOPPED, f"stopped: {reason}")


def withheld(present: Round, objection: str) -> Ending:
    """What a run may not go on for ends it; of a final evaluation, it ends without."""
    if present.kind is TaskKind.EVALUATE:
        return Ending(RunState.FINISHED, f"{present.reason}; without final evaluation: {objection}")
    return stopped(objection)


def after_expiry(planned: Round, proposal: Proposal | None, now: float) -> Ending | None:
    """How the run ends where its proposal's time is over before a round was opened; None where it is not.

    A final evaluation that cannot be asked for does not fail the run.
    """
    if proposal is None or now < proposal.expires_at:
        return None
    reason = f"its proposal expired on {time.strftime('%Y-%m-%d', time.gmtime(proposal.expires_at))}"
    if planned.kind is TaskKind.EVALUATE:
        return Ending(RunState.FINISHED, f"{planned.reason}; without final evaluation: {reason}")
    return Ending(RunState.FAILED, f"{reason}; for further rounds, submit it anew")


def with_refusals(failed: Round, refusals: Mapping[EnvoyName, str]) -> Round:
    """The failed round, its reason with what sites said when they declined; for the operator, not for other sites."""
    said = "; ".join([text for envoy, text in sorted(refusals.items()) if envoy in failed.declined][:_MOST_REFUSALS])
    return replace(failed, reason=f"{failed.reason} ({said})") if said else failed
