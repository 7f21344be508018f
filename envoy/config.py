"""The envoy's settings: ``envoy.toml``, beside its credentials and data in the envoy's folder.

Everything has a default, so a site may start without this file. Nothing here can weaken what protects an update; such
settings will have a file of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..utils.addresses import Address
from ..utils.config import load_toml
from ..utils.errors import ConfigError
from ..utils.logs import LogLevel

CONFIG_FILE = "envoy.toml"
_MAX_THREADS = 1024


class Device(Enum):
    """Where the model is trained."""

    AUTO = "auto"  # CUDA where there is one
    CPU = "cpu"
    CUDA = "cuda"


class Work(Enum):
    """How work comes."""

    STREAM = "stream"  # pushed down a stream that the envoy opened
    POLL = "poll"  # long-poll, for proxies that cut streams


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The table ``[training]``."""

    device: Device = Device.AUTO
    threads: int = 0  # 0: as many as there are cores
    preload_torch: bool = True  # import torch while the envoy waits for its first task
    max_train_seconds: float | None = None  # longer training is stopped and refused; none: only the round's own limit

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}, expected 0 (as many as cores) to {_MAX_THREADS}")
        if self.max_train_seconds is not None and not self.max_train_seconds > 0:
            raise ConfigError(f"max_train_seconds is {self.max_train_seconds:g}; leave it out for no limit")


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """All of ``envoy.toml``.

    Raises:
        ConfigError: a value is out of range.
    """

    addresses: tuple[str, ...] = ()  # host:port of the director; empty: those of the join file
    work: Work = Work.STREAM
    log_level: LogLevel = LogLevel.INFO
    training: TrainingSettings = TrainingSettings()

    def __post_init__(self) -> None:
        for text in self.addresses:
            if not Address.parse(text).port:
                raise ConfigError(f"addresses: {text!r} has no port, expected host:port")

    def dialled(self, joined: tuple[str, ...]) -> tuple[str, ...]:
        """Where the director is: as set here, else as the join file said."""
        return self.addresses or joined


def load_config(folder: Path) -> EnvoyConfig:
    """Read ``envoy.toml`` of an envoy's folder; all defaults where there is none.

    Raises:
        ConfigError: it is not right; the message names the key.
    """
    path = folder / CONFIG_FILE
    return load_toml(path, EnvoyConfig) if path.exists() else EnvoyConfig()
