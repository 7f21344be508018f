"""The table ``[proxy]`` of ``envoy.toml``: the site's way out to the director.

The password is in a file of its own, so that ``envoy.toml`` can be shown to anybody and no command line holds it.
Without the table gRPC takes the proxy that the environment names, if any.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..utils.addresses import Address
from ..utils.errors import ConfigError, IdentityError
from ..utils.private_files import read_private_file
from ..utils.proxies import Direct, Proxy, Way, is_exempt, read_proxy


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """All of ``[proxy]``.

    Raises:
        ConfigError: no proxy, or a user without a password; the message repeats neither.
    """

    url: str  # http://host:port, without user and password
    user: str = ""
    password_file: Path | None = None  # from the envoy's folder on; mode 600; its first line is the password
    no_proxy: tuple[str, ...] = ("localhost", "127.0.0.0/8", "::1")  # hosts that are called directly

    def __post_init__(self) -> None:
        if "@" in self.url:
            raise ConfigError("url holds a user or a password; they belong into user and password_file")
        try:
            read_proxy(self.url)
        except ConfigError as error:
            raise ConfigError(f"url: {error}") from error
        if bool(self.user) is not (self.password_file is not None):
            raise ConfigError("user and password_file belong together; give both, or none")


def way_to(address: str, settings: ProxySettings | None, folder: Path) -> Way:
    """How the director at ``host:port`` is called.

    Args:
        address: of the director.
        settings: of ``envoy.toml``; None: as the environment says.
        folder: the envoy's, where the password's file is looked for.

    Raises:
        ConfigError: the password's file cannot be read, others may read it too, or it is empty.
    """
    if settings is None:
        return None
    if is_exempt(Address.parse(address), settings.no_proxy):
        return Direct()
    password = _password(folder / settings.password_file) if settings.password_file is not None else ""
    return Proxy(read_proxy(settings.url).address, settings.user, password)


def _password(path: Path) -> str:
    try:
        first, *_ = read_private_file(path).decode("utf-8").splitlines() or [""]
    except IdentityError as error:
        raise ConfigError(
            f"[proxy] password_file: {error}".replace("holds a private key", "holds a password")
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"[proxy] password_file: {path}: is not UTF-8 text") from error
    if not first:
        raise ConfigError(f"[proxy] password_file: {path}: its first line is empty, expected the password")
    return first
