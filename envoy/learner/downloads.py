"""A model from the director: resumable by range, and believed only once its digest and its signature are right.

The key of the director's audit log signs what a model is: of which federation, task and round, with which SHA-256. It
stands in no certificate; it is the one whose heads this site's own log witnessed, or else the first that came.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...utils.errors import (
    ConfigError,
    DigestMismatchError,
    IdentityError,
    MalformedMessageError,
    StorageError,
)
from ...utils.private_files import make_private_folder, read_private_file, write_private_file
from ...utils.rest_calls import RestCalls
from ...utils.tensors import Digest, canonical_json
from ..audit import LOG_FILE, heads_in
from ..patience import a_few_times

MODEL_PATH = "/api/v1/federated/model"
SIGNED_CONTEXT = b"fedveil-model-answer/1\0"
LOG_KEY_FILE = "director-log-key"
_VERSION = re.compile(r"[0-9A-Za-z:.+-]{1,80}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DownloadedModel:
    """A model file that was checked, and what the director says of it."""

    path: Path  # safetensors
    model_version: str  # x.y.z of the registry, else the SHA-256
    sha256: Digest
    task_id: str
    training_round: int  # that gave it; 0: the plan's initial one
    organizations_contributed: int
    accuracy: float | None  # as the sites evaluated it together; None: none did yet
    model_card: str | None  # where it is, at the director

    def load(self) -> dict[str, NDArray[Any]]:
        """The weights, as arrays by name.

        Raises:
            DigestMismatchError: the file was changed since it came.
            MalformedMessageError: it is no safetensors file.
        """
        if _digest(self.path) != self.sha256:
            raise DigestMismatchError(f"{self.path} was changed since it was downloaded; download it again")
        try:
            return dict(load_file(self.path))
        except (SafetensorError, OSError) as error:
            raise MalformedMessageError(f"{self.path} is no safetensors file") from error

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The float32 arrays by name, read anew each time."""
        return {name: one for name, one in self.load().items() if one.dtype == np.float32}


def downloaded(
    calls: RestCalls, version: str, folder: Path, federation: str, expected_key: Callable[[bytes], None]
) -> DownloadedModel:
    """Fetch a model into a folder; what is there already is not fetched again, and what broke goes on where it stopped.

    Args:
        calls: the director.
        version: ``latest``, x.y.z, or a SHA-256.
        folder: takes ``SHA256.safetensors``.
        federation: whose model it must be.
        expected_key: refuses another key of the director's log than the one that this site knows.

    Raises:
        ConfigError: no version.
        DigestMismatchError: the bytes are not those that were signed; they are gone again.
        IdentityError: the signature is wrong, or of another key.
        StorageError: there is no room.
        FederationError: what the director refuses.
    """
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ConfigError(f"version {str(version)[:80]!r}: expected latest, x.y.z or a SHA-256")
    make_private_folder(folder)
    return a_few_times(partial(_once, calls, version, folder, federation, expected_key))


def known_key(folder: Path) -> Callable[[bytes], None]:
    """Refuses a key of the director's log that is not the one this site knows; the first one is remembered.

    Args:
        folder: the envoy's.
    """

    def check(key: bytes) -> None:
        witnessed, kept = _witnessed(folder), folder / LOG_KEY_FILE
        if witnessed is None and kept.exists():
            witnessed = bytes.fromhex(read_private_file(kept).decode("ascii", "replace").strip())
        if witnessed is not None and witnessed != key:
            raise IdentityError(
                "the model is signed by another key than that of the director's log as this site knows it; if the"
                " director was set up anew, and its operator says so: `envoy audit accept-director`"
            )
        if witnessed is None:
            write_private_file(kept, key.hex().encode() + b"\n")

    return check


def _witnessed(folder: Path) -> bytes | None:
    """The key of the last of the director's heads that this site found right."""
    if not (folder / LOG_FILE).exists():
        return None
    return next((head.key for head in reversed(list(heads_in(folder)))), None)


def _once(
    calls: RestCalls, version: str, folder: Path, federation: str, expected_key: Callable[[bytes], None]
) -> DownloadedModel:
    arriving = folder / f".{hashlib.sha256(version.encode()).hexdigest()[:16]}.part"
    came, tag = _partial(arriving)
    headers = {"Range": f"bytes={came}-", "If-Range": tag} if came else {}
    query = {"version": version, "format": "safetensors"}
    with calls.open("GET", MODEL_PATH, params=query, headers=headers) as answer:
        told = {name.lower(): value for name, value in answer.headers.items()}
        digest = told.get("etag", "").strip('"')
        if not _DIGEST.fullmatch(digest):
            raise MalformedMessageError("the director's answer names no SHA-256 of the model")
        _check_signature(told, digest, federation, expected_key)
        path = folder / f"{digest}.safetensors"
        if not path.exists():
            _receive(arriving, digest, answer.iter_bytes(), is_rest=answer.status_code == 206)
            if _digest(arriving) != digest:
                _forget(arriving)
                raise DigestMismatchError("the model that came is not the one that the director signed; try again")
            arriving.replace(path)
            _forget(arriving)
    if _digest(path) != digest:
        path.unlink(missing_ok=True)
        raise DigestMismatchError(f"{path} was changed since it was downloaded; it is removed, download it again")
    return _described(path, Digest(digest), told)


def _check_signature(
    told: Mapping[str, str], digest: str, federation: str, expected_key: Callable[[bytes], None]
) -> None:
    try:
        key, signature = bytes.fromhex(told["x-log-key"]), bytes.fromhex(told["x-signature"])
        said = {
            "federation": federation,
            "task_id": told["x-task-id"],
            "training_round": int(told["x-training-round"]),
            "sha256": digest,
        }
        public = Ed25519PublicKey.from_public_bytes(key)
    except (KeyError, ValueError) as error:
        raise IdentityError("the director did not sign this model, so nobody vouches for it") from error
    expected_key(key)
    try:
        public.verify(signature, SIGNED_CONTEXT + canonical_json(said))
    except InvalidSignature as error:
        raise IdentityError("the signature of this model is wrong: it is no word of the director") from error


def _described(path: Path, digest: Digest, told: Mapping[str, str]) -> DownloadedModel:
    try:
        return DownloadedModel(
            path=path,
            model_version=told.get("x-model-version", digest),
            sha256=digest,
            task_id=told["x-task-id"],
            training_round=int(told["x-training-round"]),
            organizations_contributed=int(told.get("x-organizations-contributed", "0")),
            accuracy=float(told["x-accuracy"]) if told.get("x-accuracy") else None,
            model_card=told.get("x-model-card") or None,
        )
    except (KeyError, ValueError) as error:
        raise MalformedMessageError("the director's answer does not say what the model is") from error


def _partial(arriving: Path) -> tuple[int, str]:
    """How much of which file came before the line broke."""
    mark = arriving.with_suffix(".tag")
    try:
        return arriving.stat().st_size, mark.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return 0, ""


def _receive(arriving: Path, digest: str, pieces: Any, *, is_rest: bool) -> None:
    try:
        arriving.with_suffix(".tag").write_text(f'"{digest}"', "ascii")
        descriptor = os.open(arriving, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if is_rest else os.O_TRUNC), 0o600)
        with os.fdopen(descriptor, "ab" if is_rest else "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"no room for a model in {arriving.parent}: {error.strerror}") from error


def _forget(arriving: Path) -> None:
    arriving.unlink(missing_ok=True)
    arriving.with_suffix(".tag").unlink(missing_ok=True)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
