"""The director's settings: ``director.toml``, beside the keys in the director's folder.

Read once, when the director starts. Nothing here says who may do what: that is in certificates, and what sites allow
is the sites' own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from ..utils.addresses import Address
from ..utils.certificates import LEAF_DAYS, MAX_LEAF_DAYS, MIN_LEAF_DAYS
from ..utils.config import load_toml
from ..utils.errors import ConfigError, IdentityError
from ..utils.fairness import LEAST_MIN_CELL, MAX_MIN_CELL, MIN_CELL
from ..utils.identity import check_name
from ..utils.logs import LogLevel

CONFIG_FILE = "director.toml"
DEFAULT_LISTEN = "0.0.0.0:9443"  # a director is there to be reached; callers need a certificate
MAX_MODEL_BYTES = 4 << 30
_MAX_SLOTS = 256


class Durability(Enum):
    """What a receipt survives."""

    PAGE_CACHE = "page-cache"  # kill -9 of the director
    FSYNC = "fsync"  # a power cut too


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The table ``[database]``."""

    url: str = field(default="", repr=False)  # may hold a password; empty: SQLite in the director's folder


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """The table ``[uploads]``."""

    slots: int = 4  # envoys that upload at the same time
    max_model_bytes: int = MAX_MODEL_BYTES  # plans with larger models are refused

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= _MAX_SLOTS:
            raise ConfigError(f"slots is {self.slots}, expected 1 to {_MAX_SLOTS}")
        if self.max_model_bytes < 1:
            raise ConfigError(f"max_model_bytes is {self.max_model_bytes}, expected at least 1")


@dataclass(frozen=True, slots=True)
class RestSettings:
    """The table ``[rest]``: the API for people and other people's software."""

    listen: str = ""  # host:port; empty: no such door
    needs_infrastructure_user: bool = True  # no task starts where an organization has no such agreement in force

    def __post_init__(self) -> None:
        if self.listen and Address.parse(self.listen).port is None:
            raise ConfigError(f"rest.listen is {self.listen!r}, expected host:port, or nothing for no REST API")


@dataclass(frozen=True, slots=True)
class OpenIdSettings:
    """The table ``[open_id]``: the provider through which users of the REST API may sign in, by its device flow."""

    issuer: str = ""  # https://...; empty: passwords and keys alone
    client_id: str = "fedveil"
    client_secret_file: str = ""  # in the director's folder, or an absolute path; empty: a public client
    ca_file: str = ""  # likewise: PEM of whom the provider's certificate is from; empty: the system's


@dataclass(frozen=True, slots=True)
class FairnessSettings:
    """The table ``[fairness]``: of what sites publish by subgroups, if they do."""

    min_cell: int = MIN_CELL  # people in a cell that is told, at least; a site may set more, never less

    def __post_init__(self) -> None:
        if not LEAST_MIN_CELL <= self.min_cell <= MAX_MIN_CELL:
            raise ConfigError(f"fairness.min_cell is {self.min_cell}, expected {LEAST_MIN_CELL} to {MAX_MIN_CELL}")


@dataclass(frozen=True, slots=True)
class DirectorConfig:
    """All of ``director.toml``.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    federation: str
    addresses: tuple[str, ...]  # host or host:port, as envoys reach the director; they stand in its certificate
    listen: str = DEFAULT_LISTEN  # port 0: any that is free
    durability: Durability = Durability.PAGE_CACHE
    keep_models: int = 5  # of a run: the last so many rounds' models stay on disk, to roll back to; 0 keeps all
    keep_sums: bool = False  # what was said in secure sums stays on disk, with the masked vectors, for auditors
    leaf_days: float = LEAF_DAYS  # how long TLS certificates last; all are renewed before they end
    log_level: LogLevel = LogLevel.INFO
    database: DatabaseSettings = DatabaseSettings()
    uploads: UploadSettings = UploadSettings()
    rest: RestSettings = RestSettings()
    open_id: OpenIdSettings = OpenIdSettings()
    fairness: FairnessSettings = FairnessSettings()

    def __post_init__(self) -> None:
        try:
            check_name("federation", self.federation)
        except IdentityError as error:
            raise ConfigError(f"federation: {error}") from error
        if not self.addresses:
            raise ConfigError("addresses is empty; envoys need at least one to reach the director by")
        announced = [Address.parse(text) for text in self.addresses]
        port = self.listen_address.port
        if port is None:
            raise ConfigError(f"listen is {self.listen!r}, expected host:port")
        if len(set(announced)) != len(announced):
            raise ConfigError("addresses names one address twice")
        if any(address.port == 0 for address in announced):
            raise ConfigError("addresses: port 0 cannot be dialled; leave the port out to announce that of listen")
        if self.keep_models < 0:
            raise ConfigError(f"keep_models is {self.keep_models}, expected 0 (keep all) or more")
        if not MIN_LEAF_DAYS <= self.leaf_days <= MAX_LEAF_DAYS:
            raise ConfigError(
                f"leaf_days is {self.leaf_days:g}, expected an hour (0.042) to {MAX_LEAF_DAYS} days; {LEAF_DAYS} is"
                " right for most, since certificates are renewed without anybody's doing"
            )

    @property
    def listen_address(self) -> Address:
        """Where the director listens."""
        return Address.parse(self.listen)

    @property
    def is_durable(self) -> bool:
        """Does a receipt survive a power cut?"""
        return self.durability is Durability.FSYNC

    def announced(self, port: int) -> tuple[str, ...]:
        """The addresses as envoys dial them.

        Args:
            port: the one that is really listened on, for addresses without their own.

        Raises:
            ConfigError: that port is 0.
        """
        return tuple(str(Address.parse(text).with_port(port)) for text in self.addresses)

    def database_url(self, folder: Path) -> str:
        """The database's URL; an SQLite file in the director's folder unless another is set."""
        return self.database.url or f"sqlite:///{(folder / 'director.sqlite').absolute()}"


def load_config(folder: Path) -> DirectorConfig:
    """Read ``director.toml`` of a director's folder.

    Raises:
        ConfigError: it is not there, or not right; the message names the key.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{path}: there is none; see `director init --help`, or name the --folder")
    return load_toml(path, DirectorConfig)
