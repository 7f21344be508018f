"""What a round costs when nobody trains: the real director, real envoys, the full path.

The rounds' times are those at which the director closed them; CPU seconds are read for the same moments, so neither
start-up nor submission counts. The floor to compare with is a bare gRPC round over mutual TLS.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

from ...director.database import open_database
from ...director.history import History
from ...director.records import RoundRecord
from ...utils.errors import FederationError
from ...utils.messages import RunId, TaskKind
from ...utils.plan_bundle import Bundle, open_bundle
from ..local_federation import LocalFederation
from ..plan_builder import build_plan
from ..processes import CpuSampler, peak_megabytes

_PLAN = Path(__file__).parent / "noop_plan.py"
_ENVOY = """
log_level = "warning"
[training]
preload_torch = false
[protection]
chain = ["check", "encode"]
[secure_aggregation]
rule = "allowed"
"""
_SETTINGS = """
name = "bench"
plan = "plan"
seed = "{seed}"
secure_aggregation = "{secure}"
[study]
purpose = "measure rounds"
[rounds]
max_rounds = {rounds}
min_participants = {envoys}
final_evaluation = false
"""


@dataclass(frozen=True, slots=True)
class RoundCost:
    """One benchmark's figures. Medians and means are over all rounds but the first."""

    mb: float  # of the model, 1e6 bytes
    envoys: int
    rounds: int
    round_s_median: float
    server_cpu_s_per_round: float
    envoy_cpu_s_per_round: float  # all envoys with their training processes
    server_peak_mb: float
    envoy_peak_mb: float  # the largest envoy with its training process; shared pages count twice


@dataclass(frozen=True, slots=True)
class SecureRoundCost:
    """A protected round beside the plain one, of one federation, in turn; medians over the turns."""

    plain: RoundCost
    secure: RoundCost
    round_ratio: float
    server_cpu_ratio: float
    envoy_cpu_ratio: float


def measure_round(mb: float, envoys: int, rounds: int) -> RoundCost:
    """Run the benchmark once, without secure aggregation.

    Raises:
        FederationError: the run did not finish.
    """
    with idle_federation(mb, envoys) as (federation, bundle):
        return _measured(federation, bundle, mb, envoys, rounds)


def measure_secure_round(mb: float, envoys: int, rounds: int, turns: int = 3) -> SecureRoundCost:
    """Plain and protected runs in turn.

    Raises:
        FederationError: a run did not finish, as with fewer than three envoys.
    """
    plain: list[RoundCost] = []
    secure: list[RoundCost] = []
    with idle_federation(mb, envoys) as (federation, bundle):
        for _ in range(turns):
            plain.append(_measured(federation, bundle, mb, envoys, rounds))
            secure.append(_measured(federation, bundle, mb, envoys, rounds, secure=True))
    usual, guarded = _median(plain), _median(secure)
    return SecureRoundCost(
        plain=usual,
        secure=guarded,
        round_ratio=_ratio(guarded.round_s_median, usual.round_s_median),
        server_cpu_ratio=_ratio(guarded.server_cpu_s_per_round, usual.server_cpu_s_per_round),
        envoy_cpu_ratio=_ratio(guarded.envoy_cpu_s_per_round, usual.envoy_cpu_s_per_round),
    )


def _ratio(guarded: float, usual: float) -> float:
    """Rounds of a small model may take less than a clock tick."""
    return round(guarded / max(usual, 1e-4), 2)


def _median(costs: list[RoundCost]) -> RoundCost:
    names = [field.name for field in fields(RoundCost)]
    return RoundCost(**{name: statistics.median(getattr(cost, name) for cost in costs) for name in names})


def _measured(
    federation: LocalFederation, bundle: Bundle, mb: float, envoys: int, rounds: int, *, secure: bool = False
) -> RoundCost:
    pids = [process.pid for process in (federation.director, *federation.envoys.values()) if process]
    sampler = CpuSampler(pids)
    ends = run_rounds(federation, bundle, envoys, rounds, secure=secure)
    sampler.end()
    peaks = [peak_megabytes(pid) for pid in pids]
    first, last = sampler.at(ends[0]), sampler.at(ends[-1])
    cpu = [(b - a) / (len(ends) - 1) for a, b in zip(first, last, strict=True)]
    return RoundCost(
        mb=mb,
        envoys=envoys,
        rounds=rounds,
        round_s_median=round(statistics.median(b - a for a, b in pairwise(ends)), 4),
        server_cpu_s_per_round=round(cpu[0], 4),
        envoy_cpu_s_per_round=round(sum(cpu[1:]), 4),
        server_peak_mb=round(peaks[0]),
        envoy_peak_mb=round(max(peaks[1:])),
    )


@contextmanager
def idle_federation(mb: float, envoys: int) -> Iterator[tuple[LocalFederation, Bundle]]:
    """A director and envoys that wait for work, and the plan that trains nothing; ended when it is left."""
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name, LocalFederation(Path(name)) as federation:
        federation.found(settings={"log_level": '"warning"'})
        federation.start_director()
        build_plan(_PLAN, federation.folder / "plan", {"elements": int(mb * 1e6 / 4)})
        federation.wait_for_director()
        for number in range(envoys):
            site = federation.join(f"site-{number}", f"Site {number}")
            (site / "envoy.toml").write_text(_ENVOY, "utf-8")
            federation.start_envoy(f"site-{number}")
        yield federation, open_bundle(federation.folder / "plan")


def run_rounds(
    federation: LocalFederation, bundle: Bundle, envoys: int, rounds: int, further: str = "", *, secure: bool = False
) -> list[float]:
    """Run an experiment, with further tables of its settings; gives when the director closed each round.

    Raises:
        FederationError: the run did not finish.
    """
    rule = "required" if secure else "off"
    settings = _SETTINGS.format(seed="0" * 64, rounds=rounds, envoys=envoys, secure=rule)
    run = federation.submit(settings + further, bundle)
    view = federation.wait_for(run)
    if view.state != "finished":
        raise FederationError(f"the benchmark's run is {view.state}: {view.reason}")
    return _ends(federation, run)


def as_json(cost: RoundCost | SecureRoundCost) -> dict[str, object]:
    """The figures by name."""
    return asdict(cost)


def _ends(federation: LocalFederation, run: RunId) -> list[float]:
    engine = open_database(f"sqlite:///{federation.director_folder / 'director.sqlite'}", durable=False)
    try:
        records: tuple[RoundRecord, ...] = History(engine).rounds(run)
    finally:
        engine.dispose()
    return [r.closed_at for r in records if r.round.kind is TaskKind.TRAIN and r.closed_at is not None]
