"""What a director knows of the privacy of a run: what its sites published, and how much it saw. Pure.

Never what a site kept to itself: a site that publishes nothing is counted, and not named.
"""

from __future__ import annotations

from typing import Any

from ..utils.messages import ExperimentView, TaskKind
from ..utils.privacy.values import ADJACENCY


def of_run(view: ExperimentView) -> dict[str, Any]:
    """What a director knows of a run: the last epsilon and the scores of sites that publish them; whether it saw sums.

    No total where an update came without an epsilon, or metrics left the sites: then nothing bounds the whole.
    """
    told = {name: one for this in view.rounds for name, one in this.privacy.items()}
    answered = [one for one in view.rounds if one.received]
    participants = max((one.received for one in answered), default=0)
    units = {(one.unit, one.delta) for one in told.values()}
    worst = max(told.values(), key=lambda one: one.epsilon, default=None)
    trained = [one for one in answered if one.kind is TaskKind.TRAIN]
    if (
        any(len(one.privacy) < one.received for one in trained)
        or any(one.metrics for one in answered)
        or len(units) > 1
    ):
        worst = None
    scores = [score for one in view.rounds for score in one.leakage.values()]
    masked = sum(one.received for one in answered if one.sum is not None)
    in_clear = sum(one.received for one in answered if one.sum is None)
    return {
        "total_epsilon": worst.epsilon if worst else None,
        "delta": worst.delta if worst else None,
        "unit": worst.unit.value if worst else None,
        "adjacency": ADJACENCY,
        "mechanism": "as the sites' own ledgers account for it, over all their studies",
        "accountant": "the sites' own",
        "participants": participants,
        "sites": {
            name: {"total_epsilon": one.epsilon, "delta": one.delta, "unit": one.unit.value}
            for name, one in sorted(told.items())
        },
        "secure_aggregation": {
            "state": "none left" if not answered else "some" if masked and in_clear else "all" if masked else "off",
            "masked": masked,
            "in_clear": in_clear,
            "metrics_in_clear": sum(one.received for one in answered if one.sum is None and one.metrics),
        },
        "leakage_score": max(scores, default=None),
        "attack_used": "the worst attack of the leak tests of the sites that publish it" if scores else None,
        "suppressed_cells": None,
    }
