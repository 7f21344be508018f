"""A director that is killed -9 while its run is paused and rolled back goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fedveil.director.rounds import RoundState
from fedveil.utils.messages import ExperimentView, RunId
from fedveil.utils.proposal import Step


def steered(federation, text: str, plan, kill: Callable[[], None]) -> ExperimentView:
    """Two rounds, a pause, back to the first, and one more; ``kill`` comes after each patch."""
    run: RunId = federation.submit(text, plan)
    federation.wait_for_round(run, 2, RoundState.OPEN)
    for step, change in ((Step.PAUSE, {}), (Step.ROLL_BACK, {"to_round": 1}), (Step.RESUME, {})):
        with federation.operator() as operator:
            assert operator.steer(run, step, **change).patches == {"pause": 1, "rollback": 2, "resume": 3}[step.value]
        kill()
        if step is Step.PAUSE:
            federation.wait_for_round(run, 2, RoundState.CLOSED)
            federation.wait_for_round(run, 3, RoundState.PLANNED)
    return federation.finish(run)


@pytest.mark.slow
def test_a_director_killed_after_each_patch_goes_on_to_the_same_bits(federation, settings):
    plan = federation.plan(seconds=1.0)
    calm = steered(federation, settings("calm", rounds=3, optimizer="fedadam"), plan, lambda: None)

    def kill() -> None:
        federation.kill_director()
        federation.start_director()
        federation.wait_for_all()

    wild = steered(federation, settings("wild", rounds=3, optimizer="fedadam"), plan, kill)
    assert wild.model == calm.model
    records = [one for one in federation.rounds(wild.run) if one.round.state is RoundState.CLOSED]
    assert records[2].model_in == records[0].model_out != records[1].model_out
