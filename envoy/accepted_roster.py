"""The roster that this site accepted, and the one that it was last offered.

    roster.json           accepted by the site, by its digest; signed by its identity key; what sums are held against
    roster-offered.json   as the director said it at the last ``envoy roster fetch``; checked against nothing

Nothing is accepted by default, and a new offer changes nothing until it is accepted. A roster that somebody put there
without the site's identity key is none. What a roster is, and how two differ, is ``utils/roster.py``'s.
"""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..utils.certificates import public_bytes
from ..utils.errors import FederationError, IdentityError
from ..utils.identity import PeerId
from ..utils.private_files import make_private_folder, read_private_file, write_private_file
from ..utils.roster import Roster, grouped
from ..utils.tensors import canonical_json

_CONTEXT = b"fedveil-accepted-roster/1\0"  # so that the signature is good for nothing else
_AGAIN = "accept one again: `envoy roster fetch`"
ROSTER_FILE = "roster.json"
OFFERED_FILE = "roster-offered.json"


def load_roster(folder: Path, peer: PeerId, identity_key: bytes) -> Roster:
    """The roster that this site accepted.

    Args:
        folder: the envoy's.
        peer: who the envoy is.
        identity_key: its own public identity key, 32 bytes.

    Raises:
        IdentityError: none was accepted, it is damaged, another key signed it, or it is not one that this envoy is in
            with this key; the message says what to do.
    """
    roster = accepted_roster(folder, identity_key)
    if roster is None:
        raise IdentityError(
            f"{folder}: this site has accepted no roster, so it sums with nobody: `envoy roster fetch`, compare the"
            " keys with the other sites, then `envoy roster accept DIGEST`"
        )
    return check_own_entry(roster, peer, identity_key)


def accepted_roster(folder: Path, identity_key: bytes) -> Roster | None:
    """The roster that this site accepted, None where it accepted none.

    Raises:
        IdentityError: the file is damaged, others may read it, or this site's identity key did not sign it.
    """
    path = folder / ROSTER_FILE
    if not path.exists():
        return None
    try:
        document = json.loads(read_private_file(path))
        content, signature = document["roster"].encode(), bytes.fromhex(document["signature"])
        Ed25519PublicKey.from_public_bytes(identity_key).verify(signature, _CONTEXT + content)
        return Roster.from_json(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidSignature) as error:
        raise IdentityError(f"{path}: was not signed by this site's identity key, or is damaged; {_AGAIN}") from error
    except FederationError as error:
        raise IdentityError(f"{path}: {error}; {_AGAIN}") from error


def offer_roster(folder: Path, roster: Roster, peer: PeerId, identity_key: bytes) -> None:
    """Keep what the director offers, so that just this can be accepted. Accepts nothing.

    Raises:
        IdentityError: another federation's, or this envoy is not in it with its own key; nothing is kept.
        StorageError: it cannot be written.
    """
    check_own_entry(roster, peer, identity_key)
    make_private_folder(folder)
    write_private_file(folder / OFFERED_FILE, roster.to_json())


def offered_roster(folder: Path, digest: str) -> Roster:
    """The roster that was offered, if it has exactly this digest.

    Args:
        folder: the envoy's.
        digest: as ``envoy roster fetch`` printed it, all 64 digits; blanks between them do not matter.

    Raises:
        IdentityError: nothing was offered, or it has another digest.
    """
    offered = _read(folder / OFFERED_FILE, "`envoy roster fetch` again")
    if offered is None:
        raise IdentityError(f"{folder}: no roster was offered yet: `envoy roster fetch`, and compare the keys")
    if "".join(digest.split()).lower() != offered.digest:
        raise IdentityError(
            f"the roster that was offered has the digest {grouped(offered.digest)}, not {digest}; nothing was accepted."
            " `envoy roster fetch` shows what it is"
        )
    return offered


def accept_roster(folder: Path, roster: Roster, peer: PeerId, key: Ed25519PrivateKey) -> Roster:
    """Put a roster in force at this site, signed. Whoever calls this has compared its keys, or owns all of its sites.

    Raises:
        IdentityError: another federation's, or this envoy is not in it with its own key.
        StorageError: it cannot be written; what was accepted before stays.
    """
    check_own_entry(roster, peer, public_bytes(key.public_key()))
    content = roster.to_json()
    signature = key.sign(_CONTEXT + content).hex()
    write_private_file(folder / ROSTER_FILE, canonical_json({"roster": content.decode(), "signature": signature}))
    return roster


def check_own_entry(roster: Roster, peer: PeerId, identity_key: bytes) -> Roster:
    """Give the roster back if this envoy is in it, with its own key.

    Raises:
        IdentityError: another federation's, or the envoy is missing, or there with another's key.
    """
    if roster.federation != peer.federation:
        raise IdentityError(
            f"a roster of {roster.federation}, expected one of {peer.federation}, which this site joined"
        )
    if peer.name not in roster:
        raise IdentityError(
            f"the roster {roster.digest[:12]}… of {roster.federation} does not name {peer.name}, which this site is;"
            " ask the director's operator why"
        )
    own = roster.entry(peer.name)
    if own.identity_key != identity_key:
        raise IdentityError(
            f"the roster {roster.digest[:12]}… names {peer.name} with a key that is not this site's: {own.fingerprint}."
            " Somebody else may be in its place: tell the other sites, and the director's operator"
        )
    return roster


def _read(path: Path, remedy: str) -> Roster | None:
    if not path.exists():
        return None
    try:
        return Roster.from_json(read_private_file(path))
    except FederationError as error:
        raise IdentityError(f"{path}: {error}; {remedy}") from error
