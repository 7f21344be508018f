"""How a federation begins: its authorities, the director's certificate, the first operator, and ``director.toml``.

    ca/root.pem          ca/root.key.pem      encrypted with the passphrase; move it off this machine
    ca/issuer.pem        ca/issuer.key.pem    what the registrar issues with
    director.pem         director.key.pem     leaf and issuer
    operator.pem         operator.key.pem     role operator, name "operator"
    operator.identity.pem, operator.identity.key.pem    Ed25519: signs what the operator proposes
    director.toml

Also reads these files back. ``own_leaves`` renews the certificates of director and operator, ``issuer`` the issuer.
"""

from __future__ import annotations

import contextlib
import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..utils.addresses import Address
from ..utils.certificates import (
    DAY_SECONDS,
    LEAF_DAYS,
    Authority,
    certificate_pem,
    check_passphrase,
    is_key_of,
    issue_client,
    issue_identity,
    issue_server,
    key_pem,
    make_issuer,
    make_key,
    make_root,
    read_key,
)
from ..utils.errors import IdentityError, PassphraseError, StorageError
from ..utils.identity import (
    PeerId,
    Role,
    check_chain,
    check_issued,
    check_validity,
    expires_at,
    fingerprint,
    read_certificate,
    read_chain,
)
from ..utils.private_files import make_private_folder, read_private_file, write_private_file
from .config import CONFIG_FILE, DEFAULT_LISTEN, DirectorConfig

PASSPHRASE_VARIABLE = "FEDVEIL_CA_PASSPHRASE"  # noqa: S105 - its name, not the passphrase
OPERATOR_NAME = "operator"
CA_FOLDER = "ca"
ROOT_FILE = "ca/root.pem"
ROOT_KEY_FILE = "ca/root.key.pem"
ISSUER_FILE = "ca/issuer.pem"
ISSUER_KEY_FILE = "ca/issuer.key.pem"
OPERATOR_IDENTITY_FILE = "operator.identity.pem"
OPERATOR_IDENTITY_KEY_FILE = "operator.identity.key.pem"


@dataclass(frozen=True, slots=True)
class TlsCredentials:
    """What one side shows in mutual TLS, and whom it believes."""

    peer: PeerId
    root: bytes  # PEM
    chain: bytes  # PEM: leaf, then issuer
    key: bytes = field(repr=False)  # PEM
    expires_at: float  # seconds since 1970


def init_federation(
    folder: Path,
    federation: str,
    addresses: Sequence[str],
    passphrase: bytes,
    now: float,
    *,
    listen: str = DEFAULT_LISTEN,
) -> str:
    """Make a federation in a folder of its own, and give the root's fingerprint.

    Args:
        folder: made if it is not there; may hold other files, but no federation.
        federation: its name, the trust domain of every identity in it.
        addresses: ``host`` or ``host:port`` as envoys reach the director; DNS names or IP addresses.
        passphrase: encrypts the root's key.
        now: seconds since 1970.
        listen: where the director listens; port 0 takes any that is free.

    Raises:
        ConfigError: a name or an address that is none.
        PassphraseError: the passphrase is empty or too long.
        StorageError: the folder holds a federation already, or cannot be written to.
    """
    config = DirectorConfig(federation, tuple(addresses), listen)
    check_passphrase(passphrase)
    refuse_overwriting(folder)
    files = _found(config, passphrase, now)
    make_private_folder(folder)
    make_private_folder(folder / CA_FOLDER)
    try:
        for name, content in files.items():  # director.toml last: with it, a federation is whole
            write_private_file(folder / name, content)
    except StorageError:
        for name in files:
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise
    return fingerprint(files[ROOT_FILE])


def refuse_overwriting(folder: Path) -> None:
    """Check that a federation may be made here.

    Raises:
        StorageError: there is one already.
    """
    for name in (CONFIG_FILE, ROOT_KEY_FILE, ROOT_FILE, ISSUER_KEY_FILE, "director.key.pem"):
        if (folder / name).exists():
            raise StorageError(
                f"{folder} holds a federation already ({name}); nothing was overwritten. Choose another folder"
            )


def load_issuer(folder: Path, now: float) -> tuple[Authority, x509.Certificate]:
    """The online issuer with its key, and the root.

    Raises:
        IdentityError: missing, damaged, readable by others, or expired.
    """
    issuer = read_certificate(_read(folder, ISSUER_FILE), ISSUER_FILE)
    root = read_certificate(_read(folder, ROOT_FILE), ROOT_FILE)
    key = read_key(_read(folder, ISSUER_KEY_FILE), ISSUER_KEY_FILE)
    if not is_key_of(issuer, key):
        raise IdentityError(f"{folder}: {ISSUER_KEY_FILE} is not the key of {ISSUER_FILE}; see `director ca renew`")
    check_issued(issuer, root, "the issuer")
    check_validity(root, "the root", now)
    check_validity(issuer, "the issuer", now)
    return Authority(issuer, key), root


def load_root_certificate(folder: Path) -> x509.Certificate:
    """The federation's root, without its key.

    Raises:
        IdentityError: missing or damaged.
    """
    return read_certificate(_read(folder, ROOT_FILE), ROOT_FILE)


def load_root(folder: Path, passphrase: bytes, key_file: Path | None = None) -> Authority:
    """The root with its key.

    Args:
        folder: the director's.
        passphrase: of the key.
        key_file: where the key is, if not in the folder.

    Raises:
        PassphraseError: the passphrase does not open it.
        IdentityError: missing or damaged.
    """
    root = read_certificate(_read(folder, ROOT_FILE), ROOT_FILE)
    where = key_file or folder / ROOT_KEY_FILE
    key = read_key(read_private_file(where), str(where), passphrase)
    if not is_key_of(root, key):
        raise IdentityError(f"{where} is not the key of {folder / ROOT_FILE}")
    return Authority(root, key)


def load_tls(folder: Path, role: Role, now: float) -> TlsCredentials:
    """The director's own credentials, or the first operator's.

    Args:
        folder: the director's.
        role: DIRECTOR or OPERATOR.
        now: seconds since 1970.

    Raises:
        IdentityError: missing, damaged, readable by others, or expired; the message says what to do.
    """
    chain, key = _read(folder, f"{role.value}.pem"), _read(folder, f"{role.value}.key.pem")
    root = _read(folder, ROOT_FILE)
    certificates = read_chain(chain, f"{role.value}.pem")
    if len(certificates) != 2:
        raise IdentityError(f"{folder}: {role.value}.pem holds {len(certificates)} certificates, expected two")
    leaf, issuer = certificates
    try:
        peer = check_chain(leaf, issuer, read_certificate(root, ROOT_FILE), now)
    except IdentityError as error:
        raise IdentityError(f"{folder / f'{role.value}.pem'}: {error}") from error
    if peer.role is not role or not is_key_of(leaf, read_key(key, f"{role.value}.key.pem")):
        raise IdentityError(f"{folder}: {role.value}.pem is {peer}'s, or its key is another's")
    return TlsCredentials(peer, root, chain, key, expires_at(leaf))


def read_passphrase(prompt: bool, file: Path | None, environ: Mapping[str, str], *, confirm: bool = False) -> bytes:
    """The passphrase of the root's key: from a file, the environment, or a prompt, in this order.

    Args:
        prompt: may a person be asked?
        file: its content without the line's end is the passphrase.
        environ: where ``FEDVEIL_CA_PASSPHRASE`` may be.
        confirm: ask twice, for a passphrase that is new.

    Raises:
        PassphraseError: none was given, it is empty, or the two answers differ.
    """
    if file is not None:
        try:
            return check_passphrase(file.read_bytes().rstrip(b"\r\n"))
        except OSError as error:
            raise PassphraseError(f"the passphrase file {file} cannot be read: {error.strerror}") from error
    if PASSPHRASE_VARIABLE in environ:
        return check_passphrase(environ[PASSPHRASE_VARIABLE].encode(errors="surrogateescape"))
    if not prompt:
        raise PassphraseError(f"the root's key needs a passphrase: give a file with it, or set {PASSPHRASE_VARIABLE}")
    answer = getpass.getpass("Passphrase of the federation's root key: ")
    if confirm and answer != getpass.getpass("The same again: "):
        raise PassphraseError("the two passphrases differ; nothing was made")
    return check_passphrase(answer.encode())


def _found(config: DirectorConfig, passphrase: bytes, now: float) -> dict[str, bytes]:
    """Every file's content; nothing is written yet."""
    seconds = LEAF_DAYS * DAY_SECONDS
    hosts = [Address.parse(text) for text in config.addresses]
    root = make_root(config.federation, now)
    issuer = make_issuer(root, config.federation, now)
    director_key, operator_key = make_key(), make_key()
    director = issue_server(issuer, director_key.public_key(), config.federation, hosts, seconds, now)
    operator_id = PeerId(config.federation, Role.OPERATOR, OPERATOR_NAME)
    operator = issue_client(issuer, operator_key.public_key(), operator_id, seconds, now)
    signing_key = Ed25519PrivateKey.generate()
    identity = issue_identity(issuer, signing_key.public_key(), operator_id, now)
    return {
        ROOT_FILE: certificate_pem(root.certificate),
        ROOT_KEY_FILE: key_pem(root.key, passphrase),
        ISSUER_FILE: certificate_pem(issuer.certificate),
        ISSUER_KEY_FILE: key_pem(issuer.key),
        "director.pem": certificate_pem(director, issuer.certificate),
        "director.key.pem": key_pem(director_key),
        "operator.pem": certificate_pem(operator, issuer.certificate),
        "operator.key.pem": key_pem(operator_key),
        OPERATOR_IDENTITY_FILE: certificate_pem(identity, issuer.certificate),
        OPERATOR_IDENTITY_KEY_FILE: key_pem(signing_key),
        CONFIG_FILE: _settings(config).encode(),
    }


def _settings(config: DirectorConfig) -> str:
    """``director.toml`` with every setting, so that nobody has to look their names up."""
    addresses = ", ".join(json.dumps(address) for address in config.addresses)
    return f"""\
federation = {json.dumps(config.federation)}
addresses = [{addresses}]     # as envoys reach the director; they stand in its certificate
listen = {json.dumps(config.listen)}
durability = "{config.durability.value}"      # "fsync": a receipt survives a power cut too
keep_models = {config.keep_models}                  # of a run: the last so many rounds stay on disk; 0 keeps all
leaf_days = {config.leaf_days:g}                   # how long certificates of envoys and operators last
log_level = "{config.log_level.value}"               # debug, info, warning, error

[database]
url = ""                         # empty: SQLite in this folder; or postgresql://USER@HOST/NAME

[uploads]
slots = {config.uploads.slots}                        # envoys that upload at the same time
max_model_bytes = {config.uploads.max_model_bytes}

[rest]
listen = {json.dumps(config.rest.listen)}                      # the REST API, such as "0.0.0.0:9444"; empty: none
needs_infrastructure_user = {json.dumps(config.rest.needs_infrastructure_user)} # no task without this agreement
"""


def _read(folder: Path, name: str) -> bytes:
    """A file of the federation; keys must be readable by their owner alone.

    Raises:
        IdentityError: it is not there or cannot be read.
    """
    path = folder / name
    if name.endswith(".key.pem"):
        return read_private_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read: {error.strerror}; see `director init`") from error
