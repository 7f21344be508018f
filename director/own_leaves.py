"""The certificates that the director's folder renews by itself: the director's own, and the operator's.

    director.pem, director.key.pem    operator.pem, operator.key.pem

The folder holds the issuer, so a leaf past two thirds of its life, expired, missing, or left without its key by a crash
between two files is issued anew, each time for a new key. A key that others may read is an error: it is not replaced in
silence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..utils.addresses import Address
from ..utils.certificates import (
    DAY_SECONDS,
    Authority,
    certificate_pem,
    issue_client,
    issue_server,
    key_pem,
    make_key,
)
from ..utils.errors import FederationError, IdentityError
from ..utils.identity import PeerId, Role, expires_at, read_chain
from ..utils.private_files import read_private_file, write_private_file
from ..utils.renewal import due_at
from .config import DirectorConfig
from .founding import OPERATOR_NAME, TlsCredentials, load_tls


def own_leaf(
    folder: Path,
    config: DirectorConfig,
    role: Role,
    issuer: Authority,
    now: float,
    complain: Callable[[str], None] = lambda _: None,
) -> TlsCredentials:
    """The director's or the operator's leaf; another where it is due.

    Args:
        folder: the director's.
        config: names the federation, the director's hosts, and how long leaves last.
        role: DIRECTOR or OPERATOR.
        issuer: issues it.
        now: seconds since 1970.
        complain: told why a leaf that is due was not replaced, while it is still good.

    Raises:
        IdentityError: the key can be read by others, or there is no good leaf and the issuer expired.
        StorageError: there is no good leaf, and another cannot be written.
    """
    key_file = folder / f"{role.value}.key.pem"
    if key_file.exists():
        read_private_file(key_file)
    try:
        held = load_tls(folder, role, now)
    except IdentityError:
        held = None
    if held is not None and not _is_due(held, issuer, now):
        return held
    try:
        return _issued(folder, config, role, issuer, now)
    except FederationError as error:
        if held is None:
            raise
        complain(str(error))
        return held


def next_look(held: TlsCredentials) -> float:
    """When the leaf is due, in seconds since 1970."""
    return due_at(read_chain(held.chain, "the chain")[0])


def _is_due(held: TlsCredentials, issuer: Authority, now: float) -> bool:
    may_last_longer = expires_at(issuer.certificate) > held.expires_at
    return now >= next_look(held) and may_last_longer


def _issued(folder: Path, config: DirectorConfig, role: Role, issuer: Authority, now: float) -> TlsCredentials:
    key, seconds = make_key(), config.leaf_days * DAY_SECONDS
    if role is Role.DIRECTOR:
        hosts = [Address.parse(text) for text in config.addresses]
        leaf = issue_server(issuer, key.public_key(), config.federation, hosts, seconds, now)
    else:
        peer = PeerId(config.federation, role, OPERATOR_NAME)
        leaf = issue_client(issuer, key.public_key(), peer, seconds, now)
    write_private_file(folder / f"{role.value}.key.pem", key_pem(key))
    write_private_file(folder / f"{role.value}.pem", certificate_pem(leaf, issuer.certificate))
    return load_tls(folder, role, now)
