"""``fedveil.simulate``: the same plan, rounds and envoy code in one process, over an in-memory transport.

Nothing of a round is written again here: the director's coordinator and the envoys' sessions run as they do in their
own processes, with a database in memory, and talk by plain calls instead of gRPC. There is no TLS, since nothing
leaves the process; secure sums are made where the experiment asks for them, with keys that live as long as the call.
"""

from __future__ import annotations

import inspect
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..director.coordinator import Coordinator
from ..director.database import open_database
from ..director.downloads import download
from ..director.experiment_desk import ExperimentDesk
from ..director.experiments import ExperimentSettings
from ..director.history import History
from ..director.identity_store import Identity, IdentityStore
from ..director.membership import roster_of
from ..director.proposals import propose
from ..director.sums import Sums
from ..director.uploads import Uploads
from ..envoy.config import Device, EnvoyConfig, TrainingSettings
from ..envoy.datasets import DatasetRegistry
from ..envoy.inspection import inspect as inspect_dataset
from ..envoy.orders import WorkOrder, WorkResult
from ..envoy.plans import Plan
from ..envoy.policy import OPEN_POLICY, PLAIN_ALLOWED, ProtectionPolicy
from ..envoy.records import DataOptions
from ..envoy.session import Session
from ..envoy.summing import SumIdentity
from ..envoy.trainer import InProcessTrainer
from ..utils import messages as m
from ..utils.artifacts import ArtifactStore
from ..utils.certificates import certificate_pem, issue_identity, make_issuer, make_root, public_bytes
from ..utils.config import parse_toml
from ..utils.data_spec import DataKind
from ..utils.errors import ConfigError, FederationError, PlanError
from ..utils.identity import PeerId, Role
from ..utils.plan_bundle import Bundle, Manifest, Setting, open_bundle
from ..utils.proposal import sign
from ..utils.roster import Roster
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest
from .own_plans import OwnPlans
from .plan_builder import build_plan

Site: TypeAlias = Path | str | tuple[Path | str, DataOptions] | None
"""A dataset's path, with what `envoy data add` is told about it; None for a plan that reads no data."""

_NAME = "simulation"
_MAX_MODEL_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulation gave."""

    view: m.ExperimentView
    model: bytes = field(repr=False)  # safetensors

    @property
    def rounds(self) -> tuple[m.RoundView, ...]:
        """Round by round: federated metrics, sums over sites."""
        return self.view.rounds

    @property
    def stop_reason(self) -> str:
        """Why it ended."""
        return self.view.reason


def simulate(
    plan: Path | str | type[Plan] | Bundle,
    sites: Mapping[str, Site],
    *,
    rounds: int = 10,
    settings: Mapping[str, Setting] | None = None,
    experiment: str = "",
    codec: Path | str | None = None,
    seed: int = 0,
    protection: ProtectionPolicy = OPEN_POLICY,
    device: str = "auto",
    threads: int = 0,
    folder: Path | None = None,
) -> Simulation:
    """Train a plan on several sites in this process.

    Args:
        plan: the plan's file, its class (from a file), or a built bundle.
        sites: a dataset for each site, by the site's name.
        rounds: at most so many.
        settings: of the plan, where they differ from its defaults.
        experiment: more of experiment.toml, as text: settings that stand before its tables, and further tables
            (``[aggregation]``, ``[server_optimizer]``, ``[stop]``, ``[protection]``, ``[secure_sum]``). It says
            ``secure_aggregation = "required"`` for real secure sums, of which each site is an organization; they are
            off by default, as nobody is there from whom they would hide anything. ``name`` is the run's: sums round by
            lots that are drawn by it too, so the bits of real processes need the name of theirs.
        codec: the file of the codec that the sites code their updates with; stands for the table ``[codec]``. A seeded
            one draws by the run's name too, so its model is another in real processes.
        seed: the same seed, device and threads give the same model, bit for bit; also as real processes. Noise is not
            repeated.
        protection: of each site, as in envoy.toml. By default the form of updates is checked, and nothing is protected.
        device: auto, cpu or cuda, as in envoy.toml.
        threads: of torch, as in envoy.toml; 0 is as many as there are cores.
        folder: keeps the sites' and the director's files; a temporary one by default.

    Raises:
        FederationError: a plan, dataset or setting that is not right, or a run that failed, with its reason; a plan's
            own error is its cause.
    """
    with ExitStack() as stack:
        home = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedveil-simulation-")))
        bundle = plan if isinstance(plan, Bundle) else _built(plan, home / "plan", settings)
        first, tables = _divided(experiment)
        head = f'plan = "plan"\nseed = "{seed % (1 << 256):064x}"\n{first}'
        limits = f"[rounds]\nmax_rounds = {rounds}\nmin_participants = {len(sites)}\n"
        config = EnvoyConfig(
            training=_training_settings(device, threads), protection=protection, secure_aggregation=PLAIN_ALLOWED
        )
        simulator = _Simulator(home, bundle, sites, config, stack)
        return simulator.run(head + limits + tables + simulator.put_codec(codec))


class _Simulator:
    """One director and its envoys in this process."""

    def __init__(
        self, home: Path, bundle: Bundle, sites: Mapping[str, Site], config: EnvoyConfig, stack: ExitStack
    ) -> None:
        self._bundle, self._config = bundle, config
        engine = open_database("sqlite://", durable=False)
        stack.callback(engine.dispose)
        history, members = History(engine), IdentityStore(engine)
        self._artifacts = ArtifactStore(home / "director" / "artifacts", durable=False)
        uploads = Uploads(home / "director" / "uploads", slots=4, durable=False)
        names = frozenset(m.EnvoyName(name) for name in sites)
        sums = Sums(home / "director" / "sums", lambda: _roster(members), durable=False)
        self._coordinator = Coordinator(history, self._artifacts, uploads, lambda: names, sums=sums)
        self._researcher = _Researcher()
        self._desk = ExperimentDesk(
            _NAME,
            history,
            self._artifacts,
            self._coordinator,
            members,
            self._researcher.root,
            max_model_bytes=_MAX_MODEL_BYTES,
        )
        self._ended = threading.Event()
        self._sessions: list[Session] = []
        self._trainers: list[_Trainer] = []
        for name, site in sites.items():
            key = Ed25519PrivateKey.generate()
            members.add_identity(Identity(name, "envoy", name, "", public_bytes(key.public_key()), 0.0))
            identity = SumIdentity(_NAME, key.sign, lambda: _roster(members))
            self._sessions.append(self._session(m.EnvoyName(name), home / "sites" / name, site, identity))

    def put_codec(self, file: Path | str | None) -> str:
        """Give the director a codec's file, and the table that names it; no text where there is none."""
        if file is None:
            return ""
        try:
            digest = self._artifacts.put([Path(file).read_bytes()])
        except OSError as error:
            raise ConfigError(f"codec {file}: cannot be read: {error.strerror}") from error
        return f'\n[codec]\ndigest = "{digest}"\n'

    def run(self, settings: str) -> Simulation:
        """Submit, and wait for the end."""
        self._artifacts_from_bundle()
        proposal = self._researcher.propose(settings, self._bundle.manifest)
        submission = m.Submission(settings, self._bundle.manifest.to_json(), proposal)
        reply = self._desk.submit(self._researcher.peer, submission)
        if reply.run is None:
            raise PlanError(f"plan {self._bundle.manifest.name} misses {len(reply.missing)} files")
        threads = [threading.Thread(target=session.run, daemon=True) for session in self._sessions]
        for thread in threads:
            thread.start()
        self._coordinator.start()
        try:
            view = self._wait(reply.run)
        finally:
            for session in self._sessions:
                session.end()
            self._coordinator.close()
            for thread in threads:
                thread.join()
        if view.state != "finished" or view.model is None:
            cause = next((one.error for one in self._trainers if one.error is not None), None)
            raise FederationError(f"the simulation {view.state}: {view.reason}") from cause
        return Simulation(view, self._artifacts.read(view.model))

    def _wait(self, run: m.RunId) -> m.ExperimentView:
        while not (view := self._desk.show(run)).is_over:
            self._coordinator.wait_for_change(run)
        return view

    def _artifacts_from_bundle(self) -> None:
        for file in self._bundle.manifest.files:
            self._artifacts.put([self._bundle.blob(file.path)])

    def _session(self, name: m.EnvoyName, folder: Path, site: Site, identity: SumIdentity) -> Session:
        folder.mkdir(parents=True, exist_ok=True)
        data = self._bundle.manifest.data
        if data.kind is not DataKind.NONE:
            if site is None:
                raise PlanError(f"plan {self._bundle.manifest.name} reads data; site {name} has none")
            path, options = site if isinstance(site, tuple) else (site, DataOptions(classes=data.classes))
            found = inspect_dataset(data.name, Path(path), options, time.time())
            DatasetRegistry(folder / "datasets").add(found.record, found.index, replace=True)
        link = _InMemoryLink(name, self._coordinator, self._artifacts)
        self._trainers.append(_Trainer())
        approvals = OwnPlans(self._bundle.digest)  # whoever simulates wrote the plan, and owns every site
        return Session(name, folder, link, self._trainers[-1], self._config, identity=identity, approvals=approvals)


class _Researcher:
    """Signs what is simulated, with a key and authorities that live as long as the call."""

    def __init__(self) -> None:
        now = time.time()
        root = make_root(_NAME, now)
        issuer = make_issuer(root, _NAME, now)
        self.root, self.peer = root.certificate, PeerId(_NAME, Role.OPERATOR, "researcher")
        self._key = Ed25519PrivateKey.generate()
        identity = issue_identity(issuer, self._key.public_key(), self.peer, now)
        self._chain = certificate_pem(identity, issuer.certificate)

    def propose(self, text: str, manifest: Manifest) -> SignedDocument:
        """What the sites of the simulation are asked to approve."""
        settings = parse_toml(text, ExperimentSettings, "experiment.toml")
        return sign(propose(settings, text, manifest, _NAME, self.peer, time.time()), self._key, self._chain)


class _Trainer(InProcessTrainer):
    """Keeps what went wrong first, with the plan's own traceback: here whoever simulates may see it."""

    def __init__(self) -> None:
        super().__init__()
        self.error: FederationError | None = None

    def run(self, order: WorkOrder, timeout_seconds: float, cancelled: threading.Event) -> WorkResult:
        try:
            return super().run(order, timeout_seconds, cancelled)
        except FederationError as error:
            if self.error is None and not cancelled.is_set():
                self.error = error
            raise


class _InMemoryLink:
    """A ``Link`` of plain calls."""

    def __init__(self, name: m.EnvoyName, coordinator: Coordinator, artifacts: ArtifactStore) -> None:
        self._name, self._coordinator, self._artifacts = name, coordinator, artifacts
        self._closed = threading.Event()

    def work(self, held: tuple[m.TaskRef, ...], approved: tuple[Digest, ...] = ()) -> Iterator[m.WorkItem]:
        line = self._coordinator.open_line(self._name, held, approved)
        try:
            yield m.Idle()
            while not (line.is_closed or self._closed.is_set()):
                item = line.next(timeout_seconds=0.2)
                if item is not None:
                    yield item
        finally:
            self._coordinator.close_line(line)

    def next_work(
        self, held: tuple[m.TaskRef, ...], wait_seconds: float, approved: tuple[Digest, ...] = ()
    ) -> m.WorkItem:
        line = self._coordinator.open_line(self._name, held, approved, is_poll=True)
        try:
            return line.next(wait_seconds) or m.Idle()
        finally:
            self._coordinator.close_line(line)

    def download(self, request: m.DownloadRequest) -> Iterator[m.Part]:
        return download(self._artifacts, request, self._coordinator.count_download)

    def request_upload(self, header: m.UpdateHeader) -> m.Grant:
        return self._coordinator.request_upload(self._name, header)

    def upload(self, parts: Iterable[m.Part]) -> m.Receipt:
        return self._coordinator.upload(self._name, iter(parts))

    def report(self, report: m.MetricsReport) -> m.Receipt:
        return self._coordinator.report(self._name, report)

    def tell_sum(self, statement: m.SumStatement) -> m.SumReply:
        return self._coordinator.tell_sum(self._name, statement)

    def decline(self, refusal: m.Refusal) -> None:
        self._coordinator.decline(self._name, refusal)

    def beat(self, heartbeat: m.Heartbeat) -> m.Acknowledgement:
        self._coordinator.beat(self._name, heartbeat)
        return m.Acknowledgement()

    def close(self) -> None:
        self._closed.set()


def _roster(members: IdentityStore) -> Roster:
    """What every site of a simulation accepts: all of them, each as an organization."""
    return roster_of(_NAME, members.identities())


def _divided(experiment: str) -> tuple[str, str]:
    """Settings that stand before the first table, with the defaults of simulations, and the tables."""
    lines = experiment.splitlines(keepends=True)
    at = next((number for number, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    first = "".join(lines[:at])
    try:
        said = tomllib.loads(first)
    except tomllib.TOMLDecodeError:
        return first, "".join(lines[at:])  # the experiment's own reader says what is wrong with it
    defaults = {"name": _NAME, "secure_aggregation": "off"}
    if not any(line.strip().startswith("[study]") for line in lines[at:]):
        defaults["study.purpose"] = "a simulation"
    first += "".join(f'{key} = "{value}"\n' for key, value in defaults.items() if key.partition(".")[0] not in said)
    return first, "".join(lines[at:])


def _training_settings(device: str, threads: int) -> TrainingSettings:
    try:
        return TrainingSettings(device=Device(device), threads=threads)
    except ValueError as error:
        raise ConfigError(f"device {device!r}: expected {', '.join(one.value for one in Device)}") from error


def _built(plan: Path | str | type[Plan], out: Path, settings: Mapping[str, Setting] | None) -> Bundle:
    if isinstance(plan, type):
        try:
            source = Path(inspect.getfile(plan))
        except (TypeError, OSError) as error:
            raise PlanError(
                f"plan {plan.__name__} lies in no file; write it to one (in a notebook: %%writefile)"
            ) from error
    else:
        source = Path(plan)
    if source.is_dir():
        return open_bundle(source)
    build_plan(source, out, settings)
    return open_bundle(out)
