"""The roster that this site accepted, and the one that it was last offered.

    roster.json           accepted by the site, by its digest; what secure sums are checked against
    roster-offered.json   as the director said it at the last ``envoy roster fetch``; checked against nothing

Nothing is accepted by default, and a new offer changes nothing until it is accepted. What a roster is, and how two
differ, is ``utils/roster.py``'s.
"""

from __future__ import annotations

from pathlib import Path

from ..utils.errors import FederationError, IdentityError
from ..utils.identity import PeerId
from ..utils.private_files import make_private_folder, read_private_file, write_private_file
from ..utils.roster import Roster, grouped

ROSTER_FILE = "roster.json"
OFFERED_FILE = "roster-offered.json"


def load_roster(folder: Path, peer: PeerId, identity_key: bytes) -> Roster:
    """The roster that this site accepted.

    Args:
        folder: the envoy's.
        peer: who the envoy is.
        identity_key: its own public identity key, 32 bytes.

    Raises:
        IdentityError: none was accepted, it is damaged, or it is not one that this envoy is in with this key; the
            message says what to do.
    """
    roster = accepted_roster(folder)
    if roster is None:
        raise IdentityError(
            f"{folder}: this site has accepted no roster, so it sums with nobody: `envoy roster fetch`, compare the"
            " keys with the other sites, then `envoy roster accept DIGEST`"
        )
    return check_own_entry(roster, peer, identity_key)


def accepted_roster(folder: Path) -> Roster | None:
    """The roster that this site accepted, None where it accepted none.

    Raises:
        IdentityError: the file is damaged, or others may read it.
    """
    return _read(folder / ROSTER_FILE, "accept one again: `envoy roster fetch`")


def offer_roster(folder: Path, roster: Roster, peer: PeerId, identity_key: bytes) -> None:
    """Keep what the director offers, so that just this can be accepted. Accepts nothing.

    Raises:
        IdentityError: another federation's, or this envoy is not in it with its own key; nothing is kept.
        StorageError: it cannot be written.
    """
    check_own_entry(roster, peer, identity_key)
    make_private_folder(folder)
    write_private_file(folder / OFFERED_FILE, roster.to_json())


def accept_offered(folder: Path, digest: str, peer: PeerId, identity_key: bytes) -> Roster:
    """Accept the roster that was offered, if it has exactly this digest.

    Args:
        folder: the envoy's.
        digest: as ``envoy roster fetch`` printed it, all 64 digits; blanks between them do not matter.
        peer: who the envoy is.
        identity_key: its own public identity key, 32 bytes.

    Raises:
        IdentityError: nothing was offered, it has another digest, or is not one to be accepted here.
        StorageError: it cannot be written; what was accepted before stays.
    """
    offered = _read(folder / OFFERED_FILE, "`envoy roster fetch` again")
    if offered is None:
        raise IdentityError(f"{folder}: no roster was offered yet: `envoy roster fetch`, and compare the keys")
    if "".join(digest.split()).lower() != offered.digest:
        raise IdentityError(
            f"the roster that was offered has the digest {grouped(offered.digest)}, not {digest}; nothing was accepted."
            " `envoy roster fetch` shows what it is"
        )
    return accept_roster(folder, offered, peer, identity_key)


def accept_roster(folder: Path, roster: Roster, peer: PeerId, identity_key: bytes) -> Roster:
    """Put a roster in force at this site. Whoever calls this has compared its keys, or owns all of its sites.

    Raises:
        IdentityError: another federation's, or this envoy is not in it with its own key.
        StorageError: it cannot be written; what was accepted before stays.
    """
    check_own_entry(roster, peer, identity_key)
    write_private_file(folder / ROSTER_FILE, roster.to_json())
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
