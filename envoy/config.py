"""The envoy's settings: ``envoy.toml``, beside its credentials and data in the envoy's folder.

Everything has a default but the table ``[protection]``: without it a site declines every task. ``envoy join`` writes a
first one, which the site then makes its own. Without ``[secure_aggregation]`` nothing leaves but under masks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..utils.addresses import Address
from ..utils.config import load_toml
from ..utils.errors import ConfigError, StorageError
from ..utils.logs import LogLevel
from ..utils.plan_bundle import Manifest
from ..utils.proxies import Way
from .policy import REQUIRED_SUMS, ProtectionPolicy, SecureAggregationPolicy
from .proxy import ProxySettings, way_to
from .sandbox.policy import DEFAULT_SANDBOX, SandboxPolicy
from .steering import ANY_CHANGE, SteeringPolicy
from .subgroups import NOTHING_TOLD, FairnessPolicy

CONFIG_FILE = "envoy.toml"
DEFAULT_CONFIG = """\
# What leaves this site passes [protection]. Without the table, nothing leaves.
#
# As it stands, the form of an update is checked, and no patient is protected by that: whoever reads an update can
# often rebuild images from it. Bound it and add noise, and read "Protection" in envoy/README.md first:
#
#   chain = ["check", "encode", "clip", "noise", "audit"]
#   max_norm = 1.0             # L2 of what leaves
#   noise_multiplier = 0.5     # noise standard deviation / max_norm
#   codec = "allowed"          # required, refused
#   metrics = ["loss", "auc"]  # names that may leave; "*" is every name
#   max_leakage = 0.1          # the leak test's limit
#   publish_leakage = true     # tell the director the score, for auditors

[protection]
chain = ["check", "encode"]
metrics = ["*"]

# Updates, weights and metrics leave under masks that only cancel in a sum over several sites; a task that asks for
# them in the clear is declined (rule = "allowed" would do it). The floors are this site's own, whatever the director
# says: a sum needs so many organizations, and stays safe while fewer than `colluding` + 1 of them work with the
# director and at least `honest` are honest. Who the sites are is said by the roster: `envoy roster accept`.
[secure_aggregation]
rule = "required"
min_organizations = 3          # 3 is the least
colluding = 1
honest = 2
suites = ["mlkem768-x25519"]   # add "x25519" where the others have no ML-KEM
max_differing_sums = 10        # a run: sums whose sites differ by fewer than colluding + honest organizations
aggregators = ["director"]     # who may make the sum; or an envoy's name
"""
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


class Asking(Enum):
    """Whether somebody at the site is asked before a declarative plan runs."""

    ASK = "ask"
    ALLOW = "allow"  # within the limits of [approval]


@dataclass(frozen=True, slots=True)
class ApprovalSettings:
    """The table ``[approval]``. For plans that hold code there is nothing here that lets them run unasked.

    Raises:
        ConfigError: a limit out of range, limits where nothing is allowed, or a module that plans never get.
    """

    declarative: Asking = Asking.ASK
    recipes: tuple[str, ...] = ()  # names of declarative plans that run unasked; with allow
    datasets: tuple[str, ...] = ()  # that they may read; with allow
    max_rounds: int = 0  # of one proposal of theirs, at most; with allow
    imports: tuple[str, ...] = ()  # further modules that plans with code may import; they are installed by the site

    def __post_init__(self) -> None:
        limits = bool(self.recipes) + bool(self.datasets) + bool(self.max_rounds)
        expected = 0 if self.declarative is Asking.ASK else 3
        if limits != expected:
            raise ConfigError(
                "recipes, datasets and max_rounds say which declarative plans run unasked: all three belong to"
                ' declarative = "allow", and none of them to "ask"'
            )
        if self.max_rounds < 0:
            raise ConfigError(f"max_rounds is {self.max_rounds}, expected at least 1")
        for name in self.imports:
            if not all(piece.isidentifier() for piece in name.split(".")) or name.partition(".")[0] == "fedveil":
                raise ConfigError(f"imports: {name!r} is not the name of a module that could be allowed")

    def allows_unasked(self, manifest: Manifest, max_rounds: int) -> bool:
        """May a proposal of so many rounds run this plan without an approval of its own?"""
        return (
            self.declarative is Asking.ALLOW
            and manifest.is_declarative
            and manifest.name in self.recipes
            and manifest.data.name in self.datasets
            and max_rounds <= self.max_rounds
        )


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
    proxy: ProxySettings | None = None  # none: as the environment says
    protection: ProtectionPolicy | None = None  # none: nothing leaves
    secure_aggregation: SecureAggregationPolicy = REQUIRED_SUMS
    steering: SteeringPolicy = ANY_CHANGE
    approval: ApprovalSettings = ApprovalSettings()
    sandbox: SandboxPolicy = DEFAULT_SANDBOX
    fairness: FairnessPolicy = NOTHING_TOLD

    def __post_init__(self) -> None:
        for text in self.addresses:
            if not Address.parse(text).port:
                raise ConfigError(f"addresses: {text!r} has no port, expected host:port")

    def dialled(self, joined: tuple[str, ...]) -> tuple[str, ...]:
        """Where the director is: as set here, else as the join file said."""
        return self.addresses or joined

    def way_to(self, address: str, folder: Path) -> Way:
        """How the director at ``host:port`` is called: through the site's proxy, directly, or as the environment says.

        Raises:
            ConfigError: the proxy's password cannot be read.
        """
        return way_to(address, self.proxy, folder)


def proxy_table(proxy: ProxySettings) -> str:
    """A table ``[proxy]`` as it stands in ``envoy.toml``.

    >>> print(proxy_table(ProxySettings("http://proxy.hospital.example:3128")).strip())
    [proxy]
    url = "http://proxy.hospital.example:3128"
    """
    lines = ["", "[proxy]", f"url = {json.dumps(proxy.url)}"]
    if proxy.password_file is not None:
        lines += [f"user = {json.dumps(proxy.user)}", f"password_file = {json.dumps(str(proxy.password_file))}"]
    return "\n".join([*lines, ""])


def load_config(folder: Path) -> EnvoyConfig:
    """Read ``envoy.toml`` of an envoy's folder; all defaults where there is none.

    Raises:
        ConfigError: it is not right; the message names the key.
    """
    path = folder / CONFIG_FILE
    return load_toml(path, EnvoyConfig) if path.exists() else EnvoyConfig()


def write_default_config(folder: Path, proxy: ProxySettings | None = None) -> bool:
    """Write the first ``envoy.toml`` of a site; one that is there already stays as it is, and False is returned.

    Args:
        folder: the envoy's.
        proxy: the one that the site joined through, to be kept.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with (folder / CONFIG_FILE).open("x", encoding="utf-8") as file:
            file.write(DEFAULT_CONFIG + (proxy_table(proxy) if proxy is not None else ""))
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"{folder / CONFIG_FILE}: cannot be written: {error.strerror}") from error
    return True
