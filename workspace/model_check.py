"""A downloaded model held against its signed card, and the card against a key that the reader trusts. Offline."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..utils.errors import StorageError, SuspectLogError
from ..utils.model_card import MAX_CARD_BYTES, SignedCard, check_model_file, read_card
from ..utils.roster import key_fingerprint
from ..utils.wire_fields import said
from .audit_check import expected_key, read_log


def check_model(file: Path, card: Path, key: str = "", log: Path | None = None) -> list[str]:
    """Check all that the files show; what was found right, in lines.

    Args:
        file: the model.
        card: signed, as the REST API gives it.
        key: that must have signed; empty: the one in the card is believed, and said to be.
        log: of an envoy, which kept heads of its director's log, or the director's own; None: it is not looked at.

    Raises:
        IdentityError: the key is none.
        MalformedMessageError: no signed card.
        SuspectLogError: the card was changed, or another key signed it than the one that is expected.
        DigestMismatchError: the file is another.
        StorageError: a file cannot be read.
    """
    signed = read_card(_read(card))
    if key and expected_key(key) not in (signed.key, hashlib.sha256(signed.key).digest()):
        raise SuspectLogError(f"{card} is signed by another key, {key_fingerprint(signed.key)}, than was expected")
    lines = [_from_log(signed, log)] if log is not None else []
    check_model_file(signed, file)
    one = signed.card
    found = [
        f"{file}: {one['name']} {one['version']} of {one['federation']}",
        f"SHA-256 {signed.file_sha256}, as its card says",
        f"{card}: as the key {signed.key.hex()} signed it, fingerprint {key_fingerprint(signed.key)}",
        *lines,
    ]
    if not key and log is None:
        found.append("the key is the one that the card itself names: compare it, or give it with --key or --log")
    withdrawn = one.get("withdrawn_datasets")
    if withdrawn:
        found.append(f"when it was signed, data that fed it were withdrawn: {', '.join(map(str, withdrawn))}")
    found.append("whether data were withdrawn since, the director says: GET /api/v1/models/ID")
    return [said(line) for line in found]


def _from_log(signed: SignedCard, path: Path) -> str:
    """Is the key that of the director whose log this is, or whose heads are in it?"""
    log = read_log(path)
    if log.federation != signed.card["federation"]:
        raise SuspectLogError(f"{path} is a log of {log.federation}, the card is of {signed.card['federation']}")
    keys = {head.key for head in log.witnesses.of()} if log.site else {log.found.key}
    if not keys:
        raise SuspectLogError(f"{path} keeps no head of the director's log yet; give the key with --key")
    if keys != {signed.key}:
        raise SuspectLogError(
            f"the card is signed by the key {key_fingerprint(signed.key)}; by {path} the director's is"
            f" {', '.join(sorted(map(key_fingerprint, keys)))}"
        )
    return f"{path}: by it, that is the key of the director's audit log"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
