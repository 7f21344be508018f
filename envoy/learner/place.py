"""Where a learner's federation is, and where its folder lies: from arguments, the environment, or what the folder says.

learner.json    organization, site name and URL; no key
root.pem        the federation's root certificate, until the site is registered; then credentials.json has it
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ...utils.certificates import certificate_pem
from ...utils.errors import ConfigError, IdentityError
from ...utils.identity import read_certificate
from ...utils.messages import NAME_PATTERN
from ...utils.private_files import make_private_folder, read_private_file, write_private_file

URL_VARIABLE, ROOT_VARIABLE = "FEDVEIL_URL", "FEDVEIL_ROOT"
LEARNER_FILE, ROOT_FILE = "learner.json", "root.pem"
_ORGANIZATION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Of one learner."""

    organization_id: str
    name: str  # of the site
    url: str  # https://host:port of the director's REST API
    folder: Path
    root: bytes  # PEM: whom it believes


def place_of(
    organization_id: str,
    *,
    url: str | None = None,
    folder: Path | str | None = None,
    name: str | None = None,
    root: Path | str | bytes | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place:
    """Find out, and remember it in the folder.

    Args:
        organization_id: as the director's API says it.
        url: of the API; else ``FEDVEIL_URL``, else what the folder remembers.
        folder: the site's; by default one of the organization's under the user's home.
        name: of the site; by default one made of the organization's id.
        root: the root certificate, as PEM or its file; else ``FEDVEIL_ROOT``, else what the folder remembers.
        environment: variables.

    Raises:
        ConfigError: something is missing or cannot be, or the folder is another organization's or site's.
        IdentityError: the root is no certificate.
        StorageError: the folder cannot be written.
    """
    if not isinstance(organization_id, str) or not _ORGANIZATION.fullmatch(organization_id):
        raise ConfigError(f"organization_id {str(organization_id)[:80]!r}: expected one as the director's API says it")
    place = Path(folder).expanduser() if folder is not None else Path.home() / ".fedveil" / f"learner-{organization_id}"
    kept = _kept(place / LEARNER_FILE)
    _same("organization", kept.get("organization_id"), organization_id, place)
    if name is not None:
        _same("site", kept.get("name"), name, place)
    chosen = name or kept.get("name") or f"learner-{organization_id.lower().replace('_', '-')}"[:63].rstrip("-")
    if not NAME_PATTERN.fullmatch(chosen):
        raise ConfigError(f"name {chosen[:80]!r}: a site's name is of lower-case letters, digits, dots and dashes")
    address = _checked_url(url or environment.get(URL_VARIABLE) or kept.get("url"))
    believed = _root(root if root is not None else environment.get(ROOT_VARIABLE), place)
    make_private_folder(place)
    document = {"version": _VERSION, "organization_id": organization_id, "name": chosen, "url": address}
    write_private_file(place / LEARNER_FILE, json.dumps(document, indent=1).encode() + b"\n")
    write_private_file(place / ROOT_FILE, believed)
    return Place(organization_id, chosen, address, place, believed)


def checked_key(api_key: str) -> str:
    """An API key that can stand in a header.

    Raises:
        ConfigError: it cannot be one; the message does not repeat it.
    """
    if not isinstance(api_key, str) or not re.fullmatch(r"[!-~]{8,512}", api_key):
        raise ConfigError("api_key: expected the key as the director's API showed it once, without spaces")
    return api_key


def _checked_url(url: str | None) -> str:
    if not url:
        raise ConfigError(f"no url: give url='https://HOST:PORT' of the director's REST API, or set {URL_VARIABLE}")
    parts = urlsplit(url)
    try:
        is_right = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_right = False
    if not is_right or parts.username or parts.query or parts.fragment or parts.path not in {"", "/"}:
        raise ConfigError(f"url {url[:200]!r}: expected https://HOST:PORT, and nothing more")
    return url.rstrip("/")


def _root(given: Path | str | bytes | None, folder: Path) -> bytes:
    if isinstance(given, bytes) or (isinstance(given, str) and given.lstrip().startswith("-----BEGIN")):
        raw = given if isinstance(given, bytes) else given.encode()
    else:
        path = Path(given).expanduser() if given is not None else folder / ROOT_FILE
        if given is None and not path.exists():
            raise ConfigError(
                f"whom to believe? Give root=, or {ROOT_VARIABLE}, the file of the federation's root certificate (PEM),"
                " as the director's operator handed it over"
            )
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: the root certificate cannot be read: {error.strerror}") from error
    root = certificate_pem(read_certificate(raw, "the root"))
    before = folder / ROOT_FILE
    if before.exists() and before.read_bytes() != root:
        raise IdentityError(
            f"{folder} belongs to a federation with another root certificate than the one that was given: take another"
            " folder, or the right root"
        )
    return root


def _kept(path: Path) -> Mapping[str, str]:
    if not path.exists():
        return {}
    try:
        document = json.loads(read_private_file(path))
        kept = {key: str(document[key]) for key in ("version", "organization_id", "name", "url")}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}); take another folder, or repair it") from error
    if kept["version"] != str(_VERSION):
        raise ConfigError(f"{path} is of another fedveil (version {kept['version'][:20]}); use that one")
    return kept


def _same(what: str, before: str | None, now: str, folder: Path) -> None:
    if before is not None and before != now:
        raise ConfigError(f"{folder} belongs to {what} {before}, not to {now}; give another folder")
