"""The director as one object: everything it needs opened, wired together, listening, and closed again.

Built by ``__main__`` (and by tests, with a history of their own); nothing else in this room makes its parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from sqlalchemy import Engine

from ..utils import transport
from ..utils.addresses import Address
from ..utils.artifacts import ArtifactStore
from ..utils.audit_chain import read_entries
from ..utils.errors import ConfigError
from ..utils.identity import Role
from ..utils.messages import EnvoyName
from ..utils.private_files import read_private_file
from ..utils.roster import Roster
from .admission import Admission
from .audit import LOG_FILE, DirectorAudit
from .config import DirectorConfig, OpenIdSettings
from .control import ControlService
from .coordinator import Coordinator
from .database import DirectorLock, open_database
from .envoy_calls import EnvoyCalls
from .experiment_desk import ExperimentDesk
from .fairness_desk import FairnessDesk
from .history import History
from .hub.hub import Hub
from .hub.lasting_files import LastingFiles
from .hub.mandates import TaskMandates
from .identity_store import IdentityStore
from .issuer import IssuerFile
from .membership import roster_of
from .registrar import Registrar
from .revocations import Revocations
from .server_certificate import ServerCertificate
from .service import FederationService
from .site_heads import SiteHeads
from .standing import Standing
from .sums import Sums
from .uploads import Uploads

if TYPE_CHECKING:
    from .hub.device_sign_in import DeviceSignIns
    from .rest.serving import RestServer
    from .rest.works import Works

ADDRESS_FILE = "director.address"
REST_ADDRESS_FILE = "rest.address"
_MAX_THREADS = 1024  # made as calls come. Each envoy holds one for its work stream
_MAX_CALLS = 1000  # more are refused at once instead of waiting for a thread, unheard
_GOODBYE_SECONDS = 0.5


class Director:
    """A director that listens, until it is closed.

    Args:
        folder: with ``director.toml``, the keys, and all that is kept.
        config: read from that folder.
        history: makes the history from the database's engine.
        broken: called when the rounds cannot go on in this process.

    Raises:
        ConfigError: the port is taken.
        IdentityError: certificates are missing or expired.
        StorageError: another director runs here, or the database cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        config: DirectorConfig,
        history: Callable[[Engine], History] = History,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        transport.keep_memory_low()
        with ExitStack() as stack:
            stack.enter_context(DirectorLock(config.database_url(folder)))
            engine = open_database(config.database_url(folder), config.is_durable)
            stack.callback(engine.dispose)
            issuer = IssuerFile(folder)
            shown = ServerCertificate(folder, config, issuer)
            kept, members = history(engine), IdentityStore(engine)
            artifacts = ArtifactStore(folder / "artifacts", config.is_durable)
            uploads = Uploads(folder / "uploads", config.uploads.slots, durable=config.is_durable)
            audit = DirectorAudit.open(folder, config.federation)  # always durable: sites refuse a log that went back
            stack.callback(audit.close)
            heads = SiteHeads(audit, read_entries(folder / LOG_FILE), lambda name: _identity_key(members, name))

            def roster() -> Roster:
                return roster_of(config.federation, members.identities())

            sums = Sums(folder / "sums", roster, durable=config.is_durable, keep=config.keep_sums, audit=audit)
            self._coordinator = Coordinator(
                kept,
                artifacts,
                uploads,
                lambda: _envoys(members),
                sums=sums,
                audit=audit,
                fairness=FairnessDesk(
                    config.federation, config.fairness.min_cell, lambda name: _identity_key(members, name)
                ),
                suspects=lambda: frozenset(heads.suspicions),
                mandates=TaskMandates(engine, needs_infrastructure_user=config.rest.needs_infrastructure_user),
                keep_models=config.keep_models,
                registered=LastingFiles(engine, artifacts).digests,
                broken=broken,
            )
            desk = ExperimentDesk(
                config.federation,
                kept,
                artifacts,
                self._coordinator,
                members,
                issuer.root,
                max_model_bytes=config.uploads.max_model_bytes,
                suspicions=lambda: heads.suspicions,
            )
            revocations = Revocations(engine)
            standing = Standing(revocations)
            registrar = Registrar(
                config.federation, issuer, issuer.root, members, revocations, leaf_days=config.leaf_days, audit=audit
            )
            calls = EnvoyCalls(self._coordinator, artifacts, registrar, roster, heads)
            service = FederationService(config.federation, calls, standing)
            control = ControlService(config.federation, desk, artifacts, roster, standing)
            self._server = grpc.server(
                ThreadPoolExecutor(_MAX_THREADS, "call"),
                options=transport.SERVER_OPTIONS,
                maximum_concurrent_rpcs=_MAX_CALLS,
            )
            self._server.add_generic_rpc_handlers((service.handlers(), control.handlers()))
            credentials = transport.server_credentials(shown.shown, shown.renewed)
            self.port = _listen(self._server, str(config.listen_address), credentials)
            (folder / ADDRESS_FILE).write_text(config.announced(self.port)[0], "utf-8")
            self.rest_port = 0
            if config.rest.listen:
                from .rest.works import Works  # with FastAPI: loaded only where it is wanted

                hub = Hub(
                    config.federation,
                    engine,
                    audit,
                    needs_infrastructure_user=config.rest.needs_infrastructure_user,
                    device_sign_ins=_device_sign_ins(folder, config.open_id),
                )
                works = Works(
                    folder=folder,
                    addresses=config.announced(self.port),
                    root=issuer.root,
                    coordinator=self._coordinator,
                    desk=desk,
                    history=kept,
                    artifacts=artifacts,
                    members=members,
                    registrar=registrar,
                    roster=roster,
                    heads=heads,
                    standing=standing,
                    calls=calls,
                    site_admission=Admission(standing),
                )
                for word in hub.site_words.standing(hub.now()):
                    self._coordinator.stay(word.envoy, word.approved, word.until)
                self.rest_port = stack.enter_context(_rest(config, hub, works, shown)).port
            self._coordinator.start()
            self._server.start()
            self._resources = stack.pop_all()

    def close(self) -> None:
        """Take no more calls, finish what is being summed, and leave the rest to the next start."""
        stopped = self._server.stop(_GOODBYE_SECONDS)
        self._coordinator.close()
        stopped.wait()
        self._resources.close()


@contextmanager
def _rest(config: DirectorConfig, hub: Hub, works: Works, shown: ServerCertificate) -> Iterator[RestServer]:
    """The REST API while the director runs."""
    from .rest.app import make_app
    from .rest.serving import RestServer

    server = RestServer(make_app(hub, works), Address.parse(config.rest.listen), shown)
    host = Address.parse(config.addresses[0]).with_port(server.port)
    (works.folder / REST_ADDRESS_FILE).write_text(f"https://{host}", "utf-8")
    try:
        yield server
    finally:
        server.close()


def _device_sign_ins(folder: Path, settings: OpenIdSettings) -> DeviceSignIns | None:
    if not settings.issuer:
        return None
    try:
        from .hub.device_sign_in import DeviceSignIns
        from .hub.open_id import OpenIdProvider
    except ImportError as error:
        raise ConfigError("[open_id] needs the extra oidc: pip install 'fedveil[oidc]'") from error
    secret = ""
    if settings.client_secret_file:
        secret = read_private_file(folder / settings.client_secret_file).decode("utf-8").strip()
    ca_file = folder / settings.ca_file if settings.ca_file else None
    return DeviceSignIns(OpenIdProvider(settings.issuer, settings.client_id, secret, ca_file, time.time), time.time)


def _envoys(members: IdentityStore) -> frozenset[EnvoyName]:
    return frozenset(EnvoyName(one.name) for one in members.identities() if one.role == Role.ENVOY.value)


def _identity_key(members: IdentityStore, name: EnvoyName) -> bytes | None:
    member = members.identity(name)
    return member.identity_key if member is not None else None


def _listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        port: int = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(f"cannot listen on {address}: the port is taken, or the address is not this machine's")
    return port
