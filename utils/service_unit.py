"""Units for systemd, so that a director or an envoy starts with its machine and is walled in. Pure: text alone.

Both sides need the same text but for a few lines, and must not differ in the rest. What is deliberately not set for an
envoy, since its sandbox (bubblewrap) would not work inside: ``RestrictNamespaces`` (it makes user namespaces),
``ProtectKernelTunables``, ``ProtectKernelLogs``, ``ProtectProc`` and ``ProcSubset`` (it mounts a /proc of its own, as
the kernel allows where the present one is wholly visible), ``ProtectHostname`` (it names its box), ``SystemCallFilter``
(it mounts), ``PrivateDevices`` and ``ProtectClock`` (they hide GPUs). Plans have a stricter filter of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .errors import ConfigError

_HIDDEN = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - refused: PrivateTmp shows others in their place


class Side(Enum):
    """Whose unit it is; also the command's name."""

    DIRECTOR = "director"
    ENVOY = "envoy"


@dataclass(frozen=True, slots=True)
class Service:
    """What one service runs, and as whom."""

    side: Side
    python: Path  # the interpreter of the virtual environment
    folder: Path  # absolute; all that it may write to
    user: str = ""  # the account; empty for a unit of somebody's own systemd, who may not choose one

    def __post_init__(self) -> None:
        for path in (self.python, self.folder):
            if not path.is_absolute() or any(ord(letter) < 32 for letter in str(path)):
                raise ConfigError(f"{str(path)!r} cannot stand in a unit: an absolute path of plain characters can")
            if self.user and any(path.is_relative_to(hidden) for hidden in _HIDDEN):
                raise ConfigError(f"{path}: lies in a folder for temporary files, which a service does not see")
        if self.user and not self.user.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{self.user!r} is no name of an account")

    @property
    def name(self) -> str:
        """Of the unit's file."""
        return f"fedveil-{self.side.value}.service"

    def text(self) -> str:
        """The unit."""
        words = [str(self.python), "-m", f"fedveil.{self.side.value}", "start", "--folder", str(self.folder)]
        command = " ".join(map(quoted, words)).replace("$", "$$")  # variables are replaced in commands alone
        sections = {
            "Unit": [
                f"Description=fedveil {self.side.value} in {str(self.folder).replace('%', '%%')}",
                "Wants=network-online.target",
                "After=network-online.target",
                "StartLimitIntervalSec=0",
            ],
            "Service": [
                "Type=exec",
                f"ExecStart={command}",
                "Restart=on-failure",
                "RestartSec=5",
                "KillMode=mixed",
                "TimeoutStopSec=60",
                *_walls(self),
            ],
            "Install": [f"WantedBy={'multi-user' if self.user else 'default'}.target"],
        }
        return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sections.items())


def quoted(word: str) -> str:
    r"""One word as systemd reads it back.

    >>> print(quoted("/srv/a site/100%"))
    "/srv/a site/100%%"
    """
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != word or not word.isascii() or " " in word or "'" in word else word


def _walls(service: Service) -> Sequence[str]:
    for_all = [
        "NoNewPrivileges=yes",
        "UMask=0077",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
    ]
    if not service.user:  # somebody's own systemd has not the rights for more
        return for_all
    system = [
        f"User={service.user}",
        f"Group={service.user}",
        "ProtectSystem=strict",
        f"ReadWritePaths={quoted(str(service.folder))}",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "ProtectControlGroups=yes",
        "ProtectKernelModules=yes",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "RemoveIPC=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    ]
    if service.side is Side.ENVOY:
        return [*for_all, *system, "SocketBindDeny=any"]  # it calls out and is called by nobody
    return [
        *for_all,
        *system,
        "RestrictNamespaces=yes",
        "PrivateDevices=yes",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelTunables=yes",
        "ProtectProc=invisible",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
    ]
