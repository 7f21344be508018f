"""Renews what this site shows: by hand, at the start, and while the envoy works, without a call that fails.

The request goes over the leaf, and over the renewal certificate where the leaf expired while this machine was off. The
new credentials are on disk before they are used: killed between the answer and the file, the envoy still has the old
ones, which stay good until they end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes

from ..utils.errors import FederationError, IdentityError, UnreachableError
from ..utils.identity import when
from ..utils.messages import JoinReply, RenewRequest
from ..utils.rest_calls import address_of
from .audit_door import logging_to
from .client import DirectorClient
from .config import EnvoyConfig
from .enrolment import Credentials, keep_credentials, load_credentials
from .link import Link
from .patience import a_few_times
from .registration import load_access
from .renewal import may_renew_offline, prepare_renewal, renewal_due, renewed
from .renewing_link import RenewingLink
from .rest_link import RestLink

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 60.0
Ask = Callable[[bytes, bytes, RenewRequest], JoinReply]
"""Asks the director over this chain and key (PEM)."""


class Moves(Protocol):
    """What changes to new credentials; ``renewing_link.RenewingLink``."""

    def adopt(self, credentials: Credentials) -> None:
        """Call with these from now on."""


def renew(folder: Path, held: Credentials, ask: Ask, now: float) -> Credentials:
    """Renew and keep.

    Args:
        folder: the envoy's.
        held: what it holds.
        ask: the call.
        now: seconds since 1970.

    Raises:
        UnreachableError: no director answers.
        IdentityError: it refused, or its answer does not fit, or there is nothing left to ask with; the message says
            what to do. What was held stays.
        NotAuthorizedError: this member was revoked.
        StorageError: the new credentials, or the site's audit log, cannot be written; what was held stays.
    """
    request, keys = prepare_renewal(held, now)
    reply = _asked(held, request, ask, now)
    new = renewed(held, keys, reply)

    def write_down() -> None:
        with logging_to(folder, lambda: now) as log:
            log.renewed(new.leaf.fingerprint(hashes.SHA256()).hex(), new.expires_at)

    keep_credentials(folder, new, now, write_down)
    _LOG.info("renewed the certificate of %s: good until %s", new.peer.name, when(new.expires_at))
    return new


def over_the_network(held: Credentials, config: EnvoyConfig, folder: Path) -> Ask:
    """Asks at the addresses that the envoy knows, one after the other, over a connection of its own.

    A site that calls over HTTPS asks there: its key stands for the certificate, and the identity key signs.
    """
    access = load_access(folder)

    def ask_over_https(_: bytes, __: bytes, request: RenewRequest) -> JoinReply:
        link = dial_rest(folder, config, held)
        try:
            return link.renew(request)
        finally:
            link.close()

    if access is not None:
        return ask_over_https

    def ask(chain: bytes, key: bytes, request: RenewRequest) -> JoinReply:
        failure = UnreachableError("the director has no address")
        for address in config.dialled(held.addresses):
            client = DirectorClient(address, chain, key, held.root, config.way_to(address, folder))
            try:
                return a_few_times(partial(client.renew, request))
            except UnreachableError as error:
                failure = error
            finally:
                client.close()
        raise failure

    return ask


def usable_credentials(folder: Path, config: EnvoyConfig, now: float) -> Credentials:
    """What a member holds, with a leaf that opens connections: renewed first, where it expired.

    Raises:
        FederationError: as ``load_credentials`` and ``renew``.
    """
    held = load_credentials(folder, now)
    if now <= held.expires_at:
        return held
    return renew(folder, held, over_the_network(held, config, folder), now)


class Renews(Moves, Link, Protocol):
    """A link that goes on over new credentials."""


def connect(folder: Path, config: EnvoyConfig, now: float) -> tuple[Credentials, Renews, Renewer]:
    """What an envoy works with: its credentials, a link over them, and what renews both.

    A leaf that expired is renewed first; while no director answers, that is left to the renewer.

    Raises:
        FederationError: as ``load_credentials``, and ``renew`` but for ``UnreachableError``.
    """
    credentials = load_credentials(folder, now)
    with contextlib.suppress(UnreachableError):
        credentials = usable_credentials(folder, config, now)
    link: Renews = (
        dial_rest(folder, config, credentials) if is_over_https(folder) else _dial(folder, config, credentials)
    )
    return credentials, link, Renewer(folder, over_the_network(credentials, config, folder), link, credentials.chain)


def is_over_https(folder: Path) -> bool:
    """Does this site call the REST API?"""
    return load_access(folder) is not None


def dial_rest(folder: Path, config: EnvoyConfig, held: Credentials) -> RestLink:
    """A link over HTTPS, for a site that registered so.

    Raises:
        IdentityError: its access is damaged.
    """
    access = load_access(folder)
    if access is None:
        raise IdentityError(f"{folder} did not register over HTTPS")
    way = config.way_to(str(address_of(access.url)), folder)
    return RestLink(access.url, access.api_key, held.root, held.peer.name, way)


def _dial(folder: Path, config: EnvoyConfig, credentials: Credentials) -> RenewingLink:
    address = config.dialled(credentials.addresses)[0]
    way = config.way_to(address, folder)

    def dial(held: Credentials) -> DirectorClient:
        return DirectorClient(address, held.chain, held.leaf_key, held.root, way)

    return RenewingLink(dial, credentials)


class Renewer:
    """Renews while the envoy works, and moves its link to what another process renewed.

    Args:
        folder: the envoy's.
        ask: the call.
        link: moves to new credentials.
        shown: the chain that it shows now.
        clock: seconds since 1970.
    """

    def __init__(
        self, folder: Path, ask: Ask, link: Moves, shown: bytes, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._ask, self._link, self._shown, self._clock = folder, ask, link, shown, clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="envoy-renewer", daemon=True)

    def start(self) -> None:
        """Look now, and from time to time."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join(timeout=2.0)

    def look(self) -> None:
        """Renew if it is due, and move to whatever is newer than what is shown.

        Raises:
            FederationError: as ``load_credentials``, ``renew`` and ``DirectorClient``; what is shown stays.
        """
        now = self._clock()
        held = load_credentials(self._folder, now)
        if now >= renewal_due(held):
            held = renew(self._folder, held, self._ask, now)
        if held.chain != self._shown and now <= held.expires_at:
            self._link.adopt(held)
            self._shown = held.chain

    def _work(self) -> None:
        complained = ""
        while not self._ended.is_set():
            try:
                self.look()
                complained = ""
            except FederationError as error:
                if str(error) != complained:
                    _LOG.warning("the certificate was not renewed, and is tried again: %s", error)
                complained = str(error)
            except Exception:  # noqa: BLE001 - the thread must outlive what nobody thought of; all of it is logged
                _LOG.exception("the certificate was not renewed, and is tried again")
            self._ended.wait(_LOOK_SECONDS)


def _asked(held: Credentials, request: RenewRequest, ask: Ask, now: float) -> JoinReply:
    """Over the leaf; over the renewal certificate where that is over, or the director thinks so."""
    unreachable: UnreachableError | None = None
    if now <= held.expires_at:
        try:
            return ask(held.chain, held.leaf_key, request)
        except UnreachableError as error:
            unreachable = error
    if may_renew_offline(held, now):
        return ask(held.renewal_chain, held.renewal_key, request)
    if unreachable is not None:
        raise unreachable
    raise IdentityError(
        f"the certificate of {held.peer.name} expired on {when(held.expires_at)}, and it has none to renew by. Ask the"
        f" operator of {held.peer.federation} for a new join file (`director revoke`, then `director invite"
        " --reinstate`), and join with a new folder"
    )
