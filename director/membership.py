"""The director's own roster: the envoys that joined, by the identity keys that the registrar certified.

It says whose signatures the director expects in a secure sum. Sites believe their own rosters and not this one.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..utils.identity import Role
from ..utils.messages import EnvoyName, RosterMember, RosterReply
from ..utils.roster import Roster, RosterEntry
from .identity_store import Identity


def roster_of(federation: str, identities: Iterable[Identity]) -> Roster:
    """The envoys among the members.

    Raises:
        IdentityError: a key or a name that can be none, or one key twice.
    """
    envoys = [one for one in identities if one.role == Role.ENVOY.value]
    entries = tuple(RosterEntry(EnvoyName(one.name), one.organization, one.identity_key) for one in envoys)
    return Roster(federation, entries)


def roster_reply(roster: Roster) -> RosterReply:
    """The roster as it is told to whoever asks."""
    members = tuple(RosterMember(one.name, one.organization, one.identity_key) for one in roster.entries)
    return RosterReply(roster.federation, members)
