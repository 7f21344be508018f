"""Is the model as good for one site, and for one subgroup, as for another? Of the sites that publish it. Pure.

Every figure here is made of what sites published: rounded values and ranges of counts (``utils.fairness``), and nothing
else, so a report tells no more than they did; a subgroup is pooled over two sites at least, what one alone published
stands under its own name. A pooled value comes with the bounds within which it lies whatever the true counts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.fairness import WHOLE, Cell, FairnessTable, Measured, is_better_lower, read
from ..utils.messages import EnvoyName, ExperimentView, RunId
from ..utils.signed_document import SignedDocument
from .records import RoundRecord
from .rounds import RoundState

Told = Mapping[tuple[int, int], Mapping[EnvoyName, SignedDocument]]
"""By round and attempt: what each site signed."""
LEAST_POOLED = 2
"""Sites whose cells make a pooled one."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """One metric of one subgroup over sites: their mean, weighted by the middles of their ranges of counts."""

    attribute: str
    value: str
    metric: str
    kind: str  # mean; or auc: the mean of the sites' areas, which is not the area of all together
    mean: float
    low: float  # it lies between these, whatever the counts within their ranges and the values within their rounding
    high: float
    sites: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How far apart some figures of one metric are."""

    metric: str
    of: str  # "sites", or an attribute
    best: str
    worst: str
    difference: float
    is_clear: bool  # more than rounding and unknown counts can make


@dataclass(frozen=True, slots=True)
class RoundFairness:
    """One round that was evaluated by subgroups."""

    round: int
    attempt: int
    kind: str  # evaluate: the final model; train: the model that the round began with
    answered: int  # sites in the round
    silent: tuple[EnvoyName, ...] | None  # of them, who publishes nothing; None: not known by name
    sites: Mapping[EnvoyName, FairnessTable]
    pooled: tuple[Pooled, ...]
    spreads: tuple[Spread, ...]

    @property
    def num_silent(self) -> int:
        """Sites of the round that publish nothing."""
        return self.answered - len(self.sites)


@dataclass(frozen=True, slots=True)
class FairnessReport:
    """All such rounds of a run, in order."""

    run: RunId
    rounds: tuple[RoundFairness, ...]

    @property
    def last(self) -> RoundFairness | None:
        """The latest, as a rule that of the final model."""
        return self.rounds[-1] if self.rounds else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        notes = [
            (
                "Sites publish these figures by their own choice; they are rounded, and counts are ranges. What is left"
                " out is of too few people, or would show a figure of too few."
            ),
            "Pooled figures are weighted by the middles of ranges; a pooled AUC is a mean of the sites' AUCs.",
        ]
        if self.last is None:
            return ("No site of this run published by subgroups; nothing is known of its fairness.",)
        if self.last.num_silent:
            notes.append(
                f"{self.last.num_silent} of {self.last.answered} sites of round {self.last.round} publish nothing:"
                " nothing here says anything of them."
            )
        if self.last.num_silent == 1:
            notes.append(
                "Where all sites but one publish, that one's figures as a whole can be estimated from the federation's."
            )
        return tuple(notes)


def of_history(run: RunId, rounds: Iterable[RoundRecord], told: Told) -> FairnessReport:
    """As the director knows it. Rounds that failed are left out."""
    found = []
    for record in rounds:
        this = record.round
        documents = told.get((this.ref.round, this.ref.attempt), {})
        if not documents or this.state is not RoundState.CLOSED:
            continue
        answered = frozenset(this.received if record.sum is None else record.sum.survivors) | documents.keys()
        silent = tuple(sorted(answered - documents.keys()))
        found.append(_round((this.ref.round, this.ref.attempt, this.kind.value), len(answered), silent, documents))
    return FairnessReport(run, tuple(found))


def of_view(view: ExperimentView) -> FairnessReport:
    """As an operator's view shows it: of its last such round."""
    found = []
    for one in view.rounds:
        if one.fairness and one.state == RoundState.CLOSED.value:
            names = None if one.sum is None else tuple(sorted(set(one.sum.survivors) - one.fairness.keys()))
            place = one.round, one.attempt, one.kind.value
            found.append(_round(place, max(one.received, len(one.fairness)), names, one.fairness))
    return FairnessReport(view.run, tuple(found))


def _round(
    place: tuple[int, int, str],
    answered: int,
    silent: tuple[EnvoyName, ...] | None,
    documents: Mapping[EnvoyName, SignedDocument],
) -> RoundFairness:
    sites = {site: read(document.content).table for site, document in sorted(documents.items())}
    pooled = pool(sites)
    spreads = [*_between_sites(sites), *_between_subgroups(pooled)]
    return RoundFairness(*place, answered, silent, sites, pooled, tuple(spreads))


def pool(sites: Mapping[EnvoyName, FairnessTable]) -> tuple[Pooled, ...]:
    """Each metric of the whole and of each subgroup that two sites or more published."""
    gathered: dict[tuple[str, str, str, str], list[tuple[Cell, Measured]]] = {}
    for table in sites.values():
        for cell in table.cells:
            for one in cell.measured:
                gathered.setdefault((cell.attribute, cell.value, one.name, one.kind), []).append((cell, one))
    return tuple(
        Pooled(*key, *_weighted(found), len(found))
        for key, found in sorted(gathered.items())
        if len(found) >= LEAST_POOLED
    )


def _weighted(found: Sequence[tuple[Cell, Measured]]) -> tuple[float, float, float]:
    """The mean by the middles of the counts, and the least and most that it can be.

    A weighted mean is least where the lowest values have their most weight and the others their least.
    """
    middle = [(cell.least + cell.most) / 2 for cell, _ in found]
    mean = sum(w * one.value for w, (_, one) in zip(middle, found, strict=True)) / sum(middle)
    low = _extreme([(one.bounds[0], cell.least, cell.most) for cell, one in found])
    high = -_extreme([(-one.bounds[1], cell.least, cell.most) for cell, one in found])
    return round(mean, 4), round(low, 4), round(high, 4)


def _extreme(found: Iterable[tuple[float, int, int]]) -> float:
    rising = sorted(found)
    return min(
        sum(v * (most if i < k else least) for i, (v, least, most) in enumerate(rising))
        / sum(most if i < k else least for i, (_, least, most) in enumerate(rising))
        for k in range(len(rising) + 1)
    )


def _between_sites(sites: Mapping[EnvoyName, FairnessTable]) -> Iterable[Spread]:
    figures: dict[str, list[tuple[str, float, float, float]]] = {}
    for site, table in sites.items():
        for one in next(cell for cell in table.cells if cell.attribute == WHOLE).measured:
            figures.setdefault(one.name, []).append((site, one.value, *one.bounds))
    return (_spread(metric, "sites", found) for metric, found in sorted(figures.items()) if len(found) > 1)


def _between_subgroups(pooled: Iterable[Pooled]) -> Iterable[Spread]:
    figures: dict[tuple[str, str], list[tuple[str, float, float, float]]] = {}
    for one in pooled:
        if one.attribute != WHOLE:
            figures.setdefault((one.attribute, one.metric), []).append((one.value, one.mean, one.low, one.high))
    return (_spread(metric, of, found) for (of, metric), found in sorted(figures.items()) if len(found) > 1)


def _spread(metric: str, of: str, found: Sequence[tuple[str, float, float, float]]) -> Spread:
    rising = sorted(found, key=lambda one: (one[1], one[0]))
    worst, best = (rising[-1], rising[0]) if is_better_lower(metric) else (rising[0], rising[-1])
    low, high = (best, worst) if is_better_lower(metric) else (worst, best)
    return Spread(metric, of, best[0], worst[0], round(abs(best[1] - worst[1]), 4), low[3] < high[2])


def to_json(report: FairnessReport) -> dict[str, Any]:
    """As JSON values."""
    return {
        "task_id": report.run,
        "rounds": [
            {
                "round": one.round,
                "attempt": one.attempt,
                "kind": one.kind,
                "answered": one.answered,
                "publishing": len(one.sites),
                "silent": None if one.silent is None else list(one.silent),
                "sites": [{"site": site} | table.to_document() for site, table in one.sites.items()],
                "pooled": [_pooled_json(cell) for cell in one.pooled],
                "spreads": [
                    {
                        "metric": s.metric,
                        "of": s.of,
                        "best": s.best,
                        "worst": s.worst,
                        "difference": s.difference,
                        "is_clear": s.is_clear,
                    }
                    for s in one.spreads
                ],
            }
            for one in report.rounds
        ],
        "notes": list(report.notes),
    }


def _pooled_json(one: Pooled) -> dict[str, Any]:
    return {
        "attribute": one.attribute,
        "value": one.value,
        "metric": one.metric,
        "kind": one.kind,
        "mean": one.mean,
        "low": one.low,
        "high": one.high,
        "sites": one.sites,
    }


def summary(report: FairnessReport) -> dict[str, Any]:
    """What a model card says of it: of the last round, how many sites publish, and how far apart the figures are."""
    last = report.last
    if last is None:
        return {"publishing": 0, "answered": None, "spreads": [], "notes": list(report.notes)}
    spreads = to_json(report)["rounds"][-1]["spreads"]
    return {
        "round": last.round,
        "publishing": len(last.sites),
        "answered": last.answered,
        "spreads": spreads,
        "notes": list(report.notes),
    }
