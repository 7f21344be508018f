"""Takes what a site publishes by subgroups: it must be the site's own, about this task, and of no cell too small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..utils import fairness
from ..utils.errors import IdentityError
from ..utils.messages import EnvoyName, TaskRef
from ..utils.signed_document import SignedDocument


@dataclass(frozen=True, slots=True)
class FairnessDesk:
    """What this federation takes."""

    federation: str
    min_cell: int  # people in a cell that is told, at least
    key_of: Callable[[EnvoyName], bytes | None]  # a member's identity key

    def check(self, site: EnvoyName, ref: TaskRef, told: SignedDocument) -> None:
        """May it be kept?

        Raises:
            IdentityError: the site did not sign it.
            MalformedMessageError: it cannot be read, is about something else, or tells of too small a cell.
        """
        key = self.key_of(site)
        if key is None:
            raise IdentityError(f"{site} publishes by subgroups, and is no member")
        fairness.check(told, site, ref, self.federation, key, self.min_cell)
