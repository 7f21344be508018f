"""A whole federation on this machine: a real director and real envoys, each a process, over mutual TLS on loopback.

The demo, the benchmark and several tests run on it. Nothing is simulated: the processes are those of ``director start``
and ``envoy start``; only the typing is spared. So are the phone calls: whoever runs this owns all sites, so each
accepts the roster of all that joined, and approves what is proposed to it. Between hospitals both are for each own data
manager, by `envoy roster` and `envoy plan`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self, TypeVar

from ..director.config import load_config
from ..director.database import open_database
from ..director.founding import init_federation, load_issuer
from ..director.identity_store import Identity, IdentityStore
from ..director.operator_client import OperatorClient
from ..director.registrar import Registrar
from ..director.revocations import Revocations
from ..director.server import ADDRESS_FILE
from ..envoy.accepted_roster import accept_roster
from ..envoy.approvals import Standing
from ..envoy.client import bootstrap_client
from ..envoy.config import write_default_config
from ..envoy.enrolment import Credentials, load_credentials, prepare_join, save_credentials
from ..utils import messages as m
from ..utils.certificates import read_identity_key
from ..utils.errors import UnreachableError
from ..utils.identity import Role
from ..utils.join_file import JoinFile
from ..utils.plan_bundle import Bundle
from ..utils.roster import Roster, RosterEntry
from .own_approvals import OwnDataManagers

_START_SECONDS = 60.0
_END_SECONDS = 10.0
_Answer = TypeVar("_Answer")


class LocalFederation:
    """Folders, keys and processes of one federation; ends its processes when it is left.

    Args:
        folder: takes ``director/`` and one folder an envoy.
        name: of the federation.
        approved: is told what each site approved, by the site's folder.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "local",
        approved: Callable[[Path, Standing], None] = lambda _folder, _standing: None,
    ) -> None:
        self.folder, self._name = folder, name
        self.data_managers = OwnDataManagers(approved)
        self.director_folder = folder / "director"
        self.director: subprocess.Popen[bytes] | None = None
        self.envoys: dict[str, subprocess.Popen[bytes]] = {}
        self._joined: dict[Path, Credentials] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def found(self, *, settings: Mapping[str, str] | None = None) -> None:
        """Make the federation. Its root's passphrase is forgotten at once: it lives as long as this folder.

        Args:
            settings: lines of director.toml to replace, as text, by key; ``rest.listen`` is that of the table [rest].
        """
        passphrase = secrets.token_hex(16).encode()
        init_federation(self.director_folder, self._name, ["127.0.0.1"], passphrase, time.time(), listen="127.0.0.1:0")
        if settings:
            file = self.director_folder / "director.toml"
            file.write_text(_replaced(file.read_text("utf-8"), settings), "utf-8")

    def start_director(self) -> None:
        """``director start``; returns as soon as the process runs."""
        (self.director_folder / ADDRESS_FILE).unlink(missing_ok=True)
        self.director = self._start("director", self.director_folder)

    def wait_for_director(self) -> str:
        """The address it listens on.

        Raises:
            UnreachableError: it ended, or does not listen in time.
        """
        file = self.director_folder / ADDRESS_FILE

        def listens() -> bool:
            if self.director is not None and self.director.poll() is not None:
                raise UnreachableError(f"the director ended at once; see {self.director_folder / 'log.txt'}")
            return file.exists() and bool(file.read_text("utf-8"))

        _wait_until(listens, "the director does not listen")
        return file.read_text("utf-8")

    def join(self, name: str, organization: str) -> Path:
        """Invite an envoy and let it join as `envoy join` does; the director must listen. Gives the envoy's folder.

        It, and all that joined here before it, accept the roster of all that are in now.
        """
        folder = self.folder / name
        invitation = self._invite(name, organization)
        request, keys = prepare_join(folder, invitation)
        client = bootstrap_client(invitation, invitation.addresses[0])
        try:
            reply = _until_reachable(lambda: client.join(request))
        finally:
            client.close()
        save_credentials(folder, invitation, keys, reply, time.time())
        write_default_config(folder)
        self.adopt(folder)
        return folder

    def adopt(self, folder: Path) -> None:
        """One more site is in, however it came: all accept the roster anew, and what is proposed to it is approved."""
        self._joined[folder] = load_credentials(folder, time.time())
        self._accept_roster()
        self.data_managers.watch(folder)

    def start_envoy(self, name: str) -> None:
        """``envoy start``."""
        self.envoys[name] = self._start("envoy", self.folder / name)

    def wait_for_envoys(self) -> None:
        """Until the director sees every envoy that was started here.

        Raises:
            UnreachableError: it does not, in time.
        """

        def are_there() -> bool:
            with self.operator() as operator:
                status = _until_reachable(operator.status)
            return self.envoys.keys() <= {envoy.name for envoy in status.envoys if envoy.connected}

        _wait_until(are_there, f"{len(self.envoys)} envoys are not connected")

    def operator(self) -> OperatorClient:
        """A connection as the operator."""
        return OperatorClient(self.director_folder, None, time.time())

    def submit(self, settings: str, bundle: Bundle, codec: Path | None = None) -> m.RunId:
        """Queue an experiment; ``codec`` is the file of the one that it names."""
        with self.operator() as operator:
            return _until_reachable(lambda: operator.submit(settings, bundle, codec))

    def wait_for(
        self,
        run: m.RunId,
        seen: Callable[[m.ExperimentView], None] = lambda _: None,
        timeout_seconds: float = 3600.0,
        every_seconds: float = 0.2,
    ) -> m.ExperimentView:
        """Wait until an experiment is over; ``seen`` gets it now and then meanwhile.

        Raises:
            UnreachableError: it is not over in time.
        """
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        with self.operator() as operator:
            while time.monotonic() < deadline:
                view = _until_reachable(lambda: operator.show(run))
                seen(view)
                if view.is_over:
                    return view
                pause.wait(every_seconds)
        raise UnreachableError(f"{run} is not over after {timeout_seconds:g} s")

    def end(self) -> None:
        """End all processes, politely first."""
        self.data_managers.end()
        processes = [*self.envoys.values(), *([self.director] if self.director else [])]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _accept_roster(self) -> None:
        config = load_config(self.director_folder)
        engine = open_database(config.database_url(self.director_folder), config.is_durable)
        try:
            roster = _roster(config.federation, IdentityStore(engine).identities())
        finally:
            engine.dispose()
        for folder, credentials in self._joined.items():
            key = read_identity_key(credentials.identity_key, "the identity key")
            accept_roster(folder, roster, credentials.peer, key)

    def _invite(self, name: str, organization: str) -> JoinFile:
        config = load_config(self.director_folder)
        issuer, root = load_issuer(self.director_folder, time.time())
        engine = open_database(config.database_url(self.director_folder), config.is_durable)
        try:
            registrar = Registrar(config.federation, issuer, root, IdentityStore(engine), Revocations(engine))
            address = (self.director_folder / ADDRESS_FILE).read_text("utf-8")
            return registrar.invite(name, organization, Role.ENVOY, [address], 3600.0, time.time())
        finally:
            engine.dispose()

    @staticmethod
    def _start(room: str, folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"fedveil.{room}", "start", "--folder", str(folder)]
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )


def _replaced(text: str, settings: Mapping[str, str]) -> str:
    """A file's lines, with those of some keys replaced; a key of a table is TABLE.KEY."""
    lines, table = [], ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[] ") + "."
        key = line.partition(" = ")[0]
        lines.append(f"{key} = {settings[table + key]}" if table + key in settings else line)
    return "\n".join(lines) + "\n"


def _roster(federation: str, identities: Iterable[Identity]) -> Roster:
    envoys = (one for one in identities if one.role == Role.ENVOY.value)
    return Roster(federation, tuple(RosterEntry(m.EnvoyName(e.name), e.organization, e.identity_key) for e in envoys))


def _wait_until(is_so: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > deadline:
            raise UnreachableError(f"{complaint} after {_START_SECONDS:g} s")
        pause.wait(0.01)


def _until_reachable(ask: Callable[[], _Answer]) -> _Answer:
    answers: list[_Answer] = []

    def asked() -> bool:
        try:
            answers.append(ask())
        except UnreachableError:
            return False
        return True

    _wait_until(asked, "the director does not answer")
    return answers[0]
