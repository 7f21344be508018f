"""A site at work, put together from its folder: what ``envoy start`` and a learner in Python have in common.

The doors to the outside (the link to the director, and who trains) are given; all that decides what leaves is built
here from the folder alone: approvals, protection, leak test, secure sums, audit log, and the socket for commands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..utils.certificates import read_identity_key
from ..utils.identity import read_certificate
from ..utils.messages import EnvoyName
from ..utils.secure_sum.relayed import opening_key
from .accepted_roster import load_roster
from .aggregating import AggregatorIdentity
from .approval_guard import ApprovalGuard, Approvals
from .approval_store import ApprovalStore
from .audit import SiteAudit
from .audit_door import log_policy
from .config import Device, EnvoyConfig
from .control_socket import ControlSocket
from .enrolment import Credentials
from .gate import LeakGate
from .link import Link
from .premises import premises_of
from .sandbox.sandbox import Sandbox
from .session import Session
from .summing import SumIdentity
from .trainer import ChildTrainer, Trainer
from .veto_commands import questions_of


@dataclass(frozen=True, slots=True)
class Site:
    """What works here; ``run`` until ``end``, then ``close``."""

    session: Session
    gate: LeakGate | None
    log: SiteAudit
    socket: ControlSocket

    def run(self) -> None:
        """Work until ``end``."""
        self.session.run()

    def end(self) -> None:
        """Stop, from any thread or a signal handler."""
        _end(self.session, self.gate)

    def close(self) -> None:
        """Answer no command any more, and close the log."""
        self.socket.close()
        self.log.close()


def boxed_trainer(folder: Path, config: EnvoyConfig) -> tuple[Sandbox, ChildTrainer]:
    """The site's box, and who does its work in there."""
    sandbox = Sandbox(config.sandbox, folder, has_gpu=config.training.device is not Device.CPU)
    preload, premises = config.training.preload_torch, partial(premises_of, folder)
    return sandbox, ChildTrainer(folder / "state", sandbox, preload_torch=preload, premises=premises)


def site_of(
    folder: Path,
    config: EnvoyConfig,
    credentials: Credentials,
    link: Link,
    sandbox: Sandbox,
    trainer: Trainer,
    approvals: Callable[[Approvals], Approvals] = lambda guard: guard,
) -> Site:
    """Put a site together.

    Args:
        folder: the envoy's.
        config: its ``envoy.toml``.
        credentials: what it holds.
        link: the director.
        sandbox: in which plans are measured.
        trainer: does the local work.
        approvals: may be asked on top of what the data manager approved; it can only say no to more.

    Raises:
        FederationError: the folder is not in order; the message says what.
    """
    name = EnvoyName(credentials.peer.name)
    gate = LeakGate(folder, config.protection, sandbox) if config.protection is not None else None
    key = read_identity_key(credentials.identity_key, "the identity key")
    accepted = partial(load_roster, folder, credentials.peer, credentials.public_identity)
    log = SiteAudit.open(folder, credentials.peer, key)
    log_policy(log, folder)
    identity = SumIdentity(credentials.peer.federation, key.sign, accepted, log)
    aggregator = AggregatorIdentity(identity, opening_key(key), log)
    guard = ApprovalGuard(
        name,
        credentials.peer.federation,
        read_certificate(credentials.root, "the root"),
        ApprovalStore(folder, credentials.public_identity, key.sign),
        config.steering,
        log,
        allows_unasked=config.approval.allows_unasked,
        taken_back=log.taken_back,
    )
    session = Session(name, folder, link, trainer, config, gate, identity, aggregator, log, approvals=approvals(guard))
    socket = ControlSocket(folder, questions_of(session, log, lambda: _end(session, gate)))
    return Site(session, gate, log, socket)


def _end(session: Session, gate: LeakGate | None) -> None:
    session.end()
    if gate is not None:
        gate.close()
