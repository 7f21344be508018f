"""``envoy join`` and ``envoy register``: how a site comes into a federation, with keys that are made here."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..utils.command_line import errors_in_words
from ..utils.errors import ConfigError, IdentityError, JoinFileError, UnreachableError
from .proxy import ProxySettings, way_to

_CONSOLE = Console(soft_wrap=True)
_FOLDER = Path("fedveil-envoy")

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The envoy's folder.", envvar="FEDVEIL_ENVOY")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", help="The root's, as the operator reads it out; then nothing is asked.")
]
ComparedOption = Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprint was compared already.")]
ProxyOption = Annotated[str | None, typer.Option(help="http://HOST:PORT of the site's proxy; kept in envoy.toml.")]
ProxyUserOption = Annotated[str, typer.Option(help="Who asks the proxy.")]
ProxyPasswordOption = Annotated[Path | None, typer.Option(help="Its first line is the proxy's password; mode 600.")]


def join(
    file: Annotated[Path, typer.Argument(help="The join file that the director's operator handed over.")],
    folder: FolderOption = _FOLDER,
    expected: FingerprintOption = None,
    yes: ComparedOption = False,
    proxy: ProxyOption = None,
    proxy_user: ProxyUserOption = "",
    proxy_password_file: ProxyPasswordOption = None,
) -> None:
    """Join a federation: make keys here, get certificates. The join file is good once."""
    from ..utils.identity import fingerprint
    from ..utils.join_file import read_join_file
    from .client import bootstrap_client
    from .config import load_config, write_default_config
    from .enrolment import prepare_join, save_credentials

    with errors_in_words():
        given = _given_proxy(proxy, proxy_user, proxy_password_file)
        way_out = given or load_config(folder).proxy
        invitation = read_join_file(file, time.time())
        root = fingerprint(invitation.root)
        _CONSOLE.print(f"Root fingerprint, to be compared by phone: {root}")
        _compare(root, expected, was_compared=yes)
        request, keys = prepare_join(folder, invitation)
        reply = None
        for address in invitation.addresses:
            client = bootstrap_client(invitation, address, way_to(address, way_out, folder))
            try:
                reply = client.join(request)
                break
            except UnreachableError as error:
                typer.echo(f"{address}: {error}", err=True)
            finally:
                client.close()
        if reply is None:
            raise UnreachableError(
                f"no director answers at {', '.join(invitation.addresses)}; nothing is lost, try again"
            )
        credentials = save_credentials(folder, invitation, keys, reply, time.time())
        is_new = write_default_config(folder, given)
    _CONSOLE.print(f"{credentials.peer} ({credentials.organization}) joined; its keys are in {folder}/.")
    _say_next(folder, given, is_new=is_new)


def register(
    name: Annotated[str, typer.Argument(help="Of this site in the federation: lower case letters, digits, hyphens.")],
    url: Annotated[str, typer.Option(help="https://HOST:PORT of the director's REST API.")],
    key_file: Annotated[Path, typer.Option(help="Its first line is the API key of your organization; mode 600.")],
    root: Annotated[
        Path | None, typer.Option(help="The federation's root.pem; not needed where only the key is replaced.")
    ] = None,
    folder: FolderOption = _FOLDER,
    expected: FingerprintOption = None,
    yes: ComparedOption = False,
    proxy: ProxyOption = None,
    proxy_user: ProxyUserOption = "",
    proxy_password_file: ProxyPasswordOption = None,
) -> None:
    """Join over HTTPS, by an API key instead of a join file: where a network lets nothing but HTTP/1.1 out.

    In a folder that registered before, the URL and the key are replaced.
    """
    from ..utils.identity import fingerprint
    from ..utils.rest_calls import address_of
    from .config import load_config, write_default_config
    from .enrolment import CREDENTIALS_FILE, load_credentials
    from .registration import ACCESS_FILE, RestAccess, save_access
    from .registration import register as registered

    with errors_in_words():
        access = RestAccess(url, _first_line(key_file))
        if (folder / ACCESS_FILE).exists() and (folder / CREDENTIALS_FILE).exists():
            held = load_credentials(folder, time.time())
            if held.peer.name != name:
                raise IdentityError(f"{folder} is that of {held.peer.name}, not of {name}")
            save_access(folder, access)
            _CONSOLE.print(f"{held.peer} calls {url} from its next start on.")
            return
        if root is None:
            raise ConfigError("--root: expected the federation's root.pem, as the director's operator handed it over")
        given = _given_proxy(proxy, proxy_user, proxy_password_file)
        way_out = given or load_config(folder).proxy
        try:
            believed = root.read_bytes()
        except OSError as error:
            raise ConfigError(f"--root: {root}: cannot be read: {error.strerror}") from error
        printed = fingerprint(believed)
        _CONSOLE.print(f"Root fingerprint, to be compared by phone: {printed}")
        _compare(printed, expected, was_compared=yes)
        way = way_to(str(address_of(url)), way_out, folder)
        credentials = registered(folder, access, believed, name, time.time(), way)
        is_new = write_default_config(folder, given)
    _CONSOLE.print(f"{credentials.peer} ({credentials.organization}) joined; its keys are in {folder}/.")
    _say_next(folder, given, is_new=is_new)


def _first_line(path: Path) -> str:
    from ..utils.private_files import read_private_file

    try:
        first, *_ = read_private_file(path).decode("ascii").splitlines() or [""]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: its first line is no API key") from error
    return first.strip()


def _say_next(folder: Path, given: ProxySettings | None, *, is_new: bool) -> None:
    if is_new:
        _CONSOLE.print(
            f"{folder}/envoy.toml says what may leave this site. As it is, it protects no patient: see to it."
        )
    if given is not None and not is_new:
        _CONSOLE.print(f"{folder}/envoy.toml was there before: see that its table [proxy] names this proxy, too.")
    _CONSOLE.print("Next: `envoy data add NAME PATH`, then `envoy start`. If something does not work: `envoy doctor`.")


def _compare(root: str, expected: str | None, *, was_compared: bool) -> None:
    """Is this the federation that the operator speaks for? Before it is known, nothing is sent.

    Raises:
        JoinFileError: the fingerprint is not the one expected.
        typer.Abort: somebody was asked, and said no.
    """
    if expected is not None:
        if _hexadecimal(expected) != _hexadecimal(root):
            raise JoinFileError(
                f"the root's fingerprint is {root}, expected {expected}; nothing was sent."
                " The file is another federation's, or not the operator's: ask for it again, another way"
            )
    elif not was_compared and _somebody_is_there():
        typer.confirm("Does the director's operator read out the same?", abort=True)
    elif not was_compared:
        typer.echo("The fingerprint was not compared: no terminal to ask at, and no --fingerprint.", err=True)


def _given_proxy(url: str | None, user: str, password_file: Path | None) -> ProxySettings | None:
    """The proxy of the command line; a password has no place there, where every user of the machine can read it."""
    if url is None:
        if user or password_file is not None:
            raise ConfigError("--proxy-user and --proxy-password-file go with --proxy http://HOST:PORT")
        return None
    try:
        return ProxySettings(url, user, password_file.absolute() if password_file is not None else None)
    except ConfigError as error:
        raise ConfigError(
            f"--proxy: {error}".replace("user and password_file", "--proxy-user and --proxy-password-file")
        ) from error


def _hexadecimal(fingerprint: str) -> str:
    """Its digits alone, however they were grouped."""
    return re.sub(r"[\s:]", "", fingerprint).lower()


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()
