"""What the REST API bears: many callers at once over TLS, status calls and downloads, beside a bare TLS socket.

A real director in a process of its own serves a registered model; its callers have processes of their own. Downloads
take turns with a bare TLS server that sends as many bytes from memory, so that the ratio holds although the machine's
speed drifts. Each caller has an address of its own, as organizations have: one address alone is limited (``limits``).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...director.audit import DirectorAudit, audit_key
from ...director.config import load_config
from ...director.database import open_database, transaction
from ...director.founding import ROOT_FILE
from ...director.history import History
from ...director.hub.agreements import Agreement, Collaboration, Kind, Permit
from ...director.hub.hub import Hub
from ...director.hub.models import Model
from ...director.hub.organizations import Organization, Status
from ...director.hub.store import new_id
from ...director.hub.tasks import Task
from ...director.hub.users import User
from ...director.records import RunRecord, RunState
from ...director.server import REST_ADDRESS_FILE
from ...utils.addresses import Address
from ...utils.artifacts import ArtifactStore
from ...utils.errors import UnreachableError
from ...utils.messages import RunId
from ...utils.model_card import SCHEMA, sign_card
from ...utils.tensors import Digest
from ..local_federation import LocalFederation
from ..processes import cpu_seconds, peak_megabytes
from .hub_load import Answered, Load, bare_server, put_load

_START_SECONDS = 60.0
STATUS_PATHS = ("/healthz", "/api/v1/me", "/api/v1/models")


@dataclass(frozen=True, slots=True)
class StatusCost:
    """Calls that only look."""

    path: str
    callers: int
    calls: int
    calls_per_second: float
    p50_ms: float
    p99_ms: float
    director_cpu_ms_per_call: float


@dataclass(frozen=True, slots=True)
class DownloadCost:
    """Downloads of one model by all callers at once; medians over the turns."""

    mb: float  # of the model, 1e6 bytes
    callers: int
    turns: int
    mb_per_second: float
    bare_mb_per_second: float  # of the bare TLS socket
    ratio: float  # median of each turn's ratio
    p50_s: float
    p99_s: float
    director_cpu_s_per_gb: float
    bare_cpu_s_per_gb: float


@dataclass(frozen=True, slots=True)
class HubCost:
    """The whole benchmark."""

    status: tuple[StatusCost, ...]
    downloads: tuple[DownloadCost, ...]
    director_peak_mb: float
    load_before: float  # of the machine: processes that ran or waited, over the last minute


@dataclass(frozen=True, slots=True)
class Stage:
    """A director that serves one model, and how it is called."""

    root: str
    port: int
    pid: int
    token: str
    model_path: str
    num_bytes: int

    def load(self, path: str, callers: int, seconds: float = 0.0) -> Load:
        """So many callers of a path."""
        return Load(self.root, self.port, path, self.token, callers, seconds)


def measure_hub(mb: float, callers: int, seconds: float, turns: int) -> HubCost:
    """Run the benchmark once.

    Args:
        mb: of the model, 1e6 bytes.
        callers: at once.
        seconds: for which each status call is repeated.
        turns: downloads by all callers, in turn with the bare socket.

    Raises:
        ConnectionError: a call was not answered as it should be.
        FederationError: the director did not start.
    """
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as folder, LocalFederation(Path(folder)) as federation:
        federation.found(settings={"rest.listen": '"127.0.0.1:0"', "log_level": '"warning"'})
        stage = _opened(federation, int(mb * 1e6))
        status = tuple(_status(stage, path, callers, seconds) for path in STATUS_PATHS)
        chain, key = federation.director_folder / "director.pem", federation.director_folder / "director.key.pem"
        with bare_server(chain, key, stage.num_bytes) as (port, pid):
            downloads = tuple(_downloads(stage, port, pid, many, turns) for many in sorted({1, callers}))
        return HubCost(status, downloads, peak_megabytes(stage.pid), load_before)


def as_json(cost: HubCost) -> dict[str, Any]:
    """Its figures, rounded to what can be told."""
    return {
        name: [{key: _rounded(value) for key, value in one.items()} for one in said]
        if isinstance(said, list | tuple)
        else _rounded(said)
        for name, said in asdict(cost).items()
    }


def as_markdown(cost: HubCost) -> str:
    """The two tables of the README."""
    lines = ["| call | callers | calls/s | p50 ms | p99 ms | director CPU ms a call |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `GET {one.path}` | {one.callers} | {one.calls_per_second:.0f} | {one.p50_ms:.1f} | {one.p99_ms:.1f} |"
        f" {one.director_cpu_ms_per_call:.2f} |"
        for one in cost.status
    ]
    lines += [
        "",
        "| model, callers | MB/s | bare TLS MB/s | ratio | p50 s | p99 s | director CPU-s/GB | bare CPU-s/GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.mb:g} MB, {one.callers} | {one.mb_per_second:.0f} | {one.bare_mb_per_second:.0f} | {one.ratio:.2f} |"
        f" {one.p50_s:.2f} | {one.p99_s:.2f} | {one.director_cpu_s_per_gb:.2f} | {one.bare_cpu_s_per_gb:.2f} |"
        for one in cost.downloads
    ]
    lines += ["", f"Peak memory of the director: {cost.director_peak_mb:.0f} MB. Load before: {cost.load_before:.1f}."]
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _status(stage: Stage, path: str, callers: int, seconds: float) -> StatusCost:
    put_load(stage.load(path, callers))  # handshakes, and what is made at first use
    answered, cpu = _with_cpu(stage.pid, lambda: put_load(stage.load(path, callers, seconds)))
    calls = len(answered.durations)
    return StatusCost(
        path,
        callers,
        calls,
        answered.rate,
        answered.percentile(0.5) * 1e3,
        answered.percentile(0.99) * 1e3,
        cpu / calls * 1e3,
    )


def _downloads(stage: Stage, bare_port: int, bare_pid: int, callers: int, turns: int) -> DownloadCost:
    ours: list[tuple[Answered, float]] = []
    bare: list[tuple[Answered, float]] = []
    load = stage.load(stage.model_path, callers)
    bare_load = Load(stage.root, bare_port, "/", "", callers)
    for _ in range(turns):
        bare.append(_with_cpu(bare_pid, lambda: put_load(bare_load)))
        ours.append(_with_cpu(stage.pid, lambda: put_load(load)))
    speeds, bare_speeds = ([one.num_bytes / one.seconds / 1e6 for one, _ in each] for each in (ours, bare))
    cpus, bare_cpus = ([cpu / one.num_bytes * 1e9 for one, cpu in each] for each in (ours, bare))
    whole = Answered(tuple(each for one, _ in ours for each in one.durations), 0, 1.0)
    return DownloadCost(
        mb=stage.num_bytes / 1e6,
        callers=callers,
        turns=turns,
        mb_per_second=statistics.median(speeds),
        bare_mb_per_second=statistics.median(bare_speeds),
        ratio=statistics.median(one / other for one, other in zip(speeds, bare_speeds, strict=True)),
        p50_s=whole.percentile(0.5),
        p99_s=whole.percentile(0.99),
        director_cpu_s_per_gb=statistics.median(cpus),
        bare_cpu_s_per_gb=statistics.median(bare_cpus),
    )


def _with_cpu(pid: int, call: Callable[[], Answered]) -> tuple[Answered, float]:
    before = cpu_seconds(pid)
    answered = call()
    return answered, cpu_seconds(pid) - before


# ------------------------------------------------------------ a director with one model


def _opened(federation: LocalFederation, num_bytes: int) -> Stage:
    folder = federation.director_folder
    model, token = _registered(folder, num_bytes)
    federation.start_director()
    federation.wait_for_director()
    director = federation.director
    if director is None:
        raise UnreachableError("no director was started")
    said, until = folder / REST_ADDRESS_FILE, time.monotonic() + _START_SECONDS
    while not said.exists() or not said.read_text("utf-8"):
        if director.poll() is not None or time.monotonic() > until:
            raise UnreachableError(f"the director does not serve its REST API; see {folder / 'log.txt'}")
        time.sleep(0.05)
    port = Address.parse(said.read_text("utf-8").removeprefix("https://")).port
    path = f"/api/v1/models/{model}/file"
    return Stage(str(folder / ROOT_FILE), port or 0, director.pid, token, path, num_bytes)


def _registered(folder: Path, num_bytes: int) -> tuple[str, str]:
    """A published model of random bytes in the director's database and folder, and the token of who may download it."""
    config, now = load_config(folder), time.time()
    engine = open_database(config.database_url(folder), config.is_durable)
    try:
        hub = Hub(config.federation, engine, DirectorAudit())
        whose = hub.organizations.add(Organization(new_id(), "Hospital", status=Status.ACTIVE, created_at=now))
        user = hub.users.add(User(new_id(), "anna", "Anna", whose.id, created_at=now))
        hub.roles.give(user.id, ["researcher"])
        permit = Permit("P-1", "an authority", "measuring", now, now + 86400, frozenset(["xrays"]))
        together = hub.collaborations.add(Collaboration(new_id(), "all", frozenset([whose.id]), permit, now))
        draft = Agreement(new_id(), Kind.DATA_PROCESSING, 1, "0" * 64, frozenset([whose.id]), together.id, now)
        agreement = hub.agreements.add(draft, now, lambda: None)
        digest = ArtifactStore(folder / "artifacts", config.is_durable).put([os.urandom(num_bytes)])
        run = _run(digest, now)
        History(engine).enqueue(run)
        with transaction(engine) as connection:
            task = Task(run.run, together.id, whose.id, user.id, agreement.id, None, now)
            hub.tasks.add(connection, task)
        card = {"schema": SCHEMA, "file": {"sha256": digest, "bytes": num_bytes}, "withdrawn_datasets": []}
        signed = sign_card(card, audit_key(folder))
        made = Model(
            new_id(),
            "bench",
            "1.0.0",
            digest,
            run.run,
            1,
            run.plan,
            together.id,
            signed.card,
            signed.key,
            signed.signature,
            whose.id,
            user.id,
            is_published=True,
            created_at=now,
        )
        hub.models.register(made, run.layout, (), lambda: None)
        return made.id, hub.sign_in.open(user, now).token
    finally:
        engine.dispose()


def _run(model: Digest, now: float) -> RunRecord:
    nothing = Digest("0" * 64)
    return RunRecord(
        RunId("bench-1"), "bench", RunState.FINISHED, "", nothing, nothing, bytes(32), now, now, now, "", model
    )
