"""How a site registers over HTTPS, and how it calls from then on: for networks that let nothing but HTTP/1.1 out.

    rest.json    where the director's REST API is, and the key of the site's organization (mode 600)

The rest of the folder is as ``envoy join`` leaves it: the same credentials, by which the site signs. As with a join,
the keys are on disk before the director is asked, so that a registration whose answer was lost is repeated with the
very same request.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from ..utils.addresses import Address
from ..utils.errors import ConfigError, IdentityError, MalformedMessageError
from ..utils.identity import PeerId, Role, read_certificate
from ..utils.messages import EnvoyName, JoinReply, JoinRequest
from ..utils.private_files import read_private_file, write_private_file
from ..utils.proxies import Way
from ..utils.rest_calls import RestCalls, address_of, proxy_to
from ..utils.tensors import digest_of
from .enrolment import Credentials, keep_answer, prepare_keys
from .rest_link import SITES

ACCESS_FILE = "rest.json"
_MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class RestAccess:
    """Where the REST API is, and what opens it.

    Raises:
        ConfigError: no https URL, or no key; the message does not repeat it.
    """

    url: str  # https://host:port
    api_key: str = field(repr=False)

    def __post_init__(self) -> None:
        address_of(self.url)
        if not (0 < len(self.api_key) <= _MAX_KEY and self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError("the API key: expected one line as the director showed it once, fv_...")


def register(folder: Path, access: RestAccess, root: bytes, name: str, now: float, way: Way = None) -> Credentials:
    """Make keys here, have them certified over HTTPS, and keep both in the envoy's folder.

    Args:
        folder: the envoy's.
        access: to the director.
        root: PEM of the federation's root.
        name: of the envoy.
        now: seconds since 1970.
        way: through a proxy, or directly.

    Raises:
        FederationError: the director refused; nothing is lost, and the same call may be made again.
        UnreachableError: it does not answer.
        IdentityError: its answer is not for this name, these keys or this root; nothing was kept.
        StorageError: it cannot be written.
    """
    believed = read_certificate(root, "the root")
    request, keys = prepare_keys(folder, digest_of(root, access.url.encode(), name.encode()))
    calls = RestCalls(access.url, access.api_key, root, proxy_to(access.url, way))
    try:
        said = calls.json("POST", SITES, _asked(name, request))
    finally:
        calls.close()
    reply, told_root, addresses = _answer(said)
    if reply.name != name or read_certificate(told_root, "the answer").public_bytes(
        Encoding.DER
    ) != believed.public_bytes(Encoding.DER):
        raise IdentityError(f"the director answered for {reply.name}, or names another root; asked was {name}")
    save_access(folder, access)
    peer = PeerId(reply.federation, Role.ENVOY, reply.name)
    return keep_answer(folder, peer, reply.organization, addresses, root, keys, reply, now)


def save_access(folder: Path, access: RestAccess) -> None:
    """Keep how the director is called; in the place of what was kept before, as when a key is replaced.

    Raises:
        StorageError: it cannot be written.
    """
    said = {"version": "1", "url": access.url, "api_key": access.api_key}
    write_private_file(folder / ACCESS_FILE, json.dumps(said, indent=1).encode() + b"\n")


def load_access(folder: Path) -> RestAccess | None:
    """How the director is called; None for a site that calls over gRPC.

    Raises:
        IdentityError: the file is damaged, or others may read it too.
    """
    path = folder / ACCESS_FILE
    if not path.exists():
        return None
    try:
        said = json.loads(read_private_file(path))
        return RestAccess(said["url"], said["api_key"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise IdentityError(f"{path}: is damaged; write it anew with `envoy register --key-file`") from error


def _asked(name: str, request: JoinRequest) -> dict[str, str]:
    def text(raw: bytes) -> str:
        return base64.b64encode(raw).decode("ascii")

    return {
        "name": name,
        "signing_request": text(request.signing_request),
        "identity_key": text(request.identity_key),
        "identity_proof": text(request.identity_proof),
        "renewal_request": text(request.renewal_request),
    }


def _answer(said: Any) -> tuple[JoinReply, bytes, tuple[str, ...]]:
    try:
        texts = ("federation", "name", "organization", "chain", "identity_certificate", "renewal_certificate", "root")
        fields = {key: str(said[key]) for key in texts}
        addresses = tuple(str(Address.parse(one)) for one in said["addresses"])
    except (KeyError, TypeError, ConfigError) as error:
        raise MalformedMessageError("the director's answer to a registration is none") from error
    reply = JoinReply(
        federation=fields["federation"],
        name=EnvoyName(fields["name"]),
        organization=fields["organization"],
        chain=fields["chain"].encode(),
        identity_certificate=fields["identity_certificate"].encode(),
        renewal_certificate=fields["renewal_certificate"].encode(),
    )
    return reply, fields["root"].encode(), addresses
