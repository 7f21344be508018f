"""What sites without a line said: what they approved, and until when they answer. Kept, since nobody says it again.

An envoy that holds a line repeats it in each heartbeat, so a director that was killed learns it anew. A site that only
posts does not; so its word lies here, and a director that starts goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, insert, select

from ...utils.messages import EnvoyName
from ...utils.tensors import Digest
from ..database import reading, transaction
from .tables import SITE_WORDS


@dataclass(frozen=True, slots=True)
class SiteWord:
    """The latest word of one site."""

    envoy: EnvoyName
    approved: tuple[Digest, ...]  # proposals, all of them
    until: float  # it answers until then; seconds since 1970


class SiteWords:
    """The memory of them; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def keep(self, word: SiteWord, now: float, write_down: Callable[[], None] = lambda: None) -> None:
        """Keep a site's latest word; ``write_down`` puts it into the audit log, or it is not kept."""
        row = {"envoy": word.envoy, "approved": list(word.approved), "until": word.until, "said_at": now}
        with transaction(self._engine) as connection:
            connection.execute(delete(SITE_WORDS).where(SITE_WORDS.c.envoy == word.envoy))
            connection.execute(insert(SITE_WORDS), row)
            write_down()

    def of(self, envoy: EnvoyName) -> SiteWord | None:
        """The latest word of a site, also where its time is over."""
        return next(iter(self._where(SITE_WORDS.c.envoy == envoy)), None)

    def standing(self, now: float) -> tuple[SiteWord, ...]:
        """Those whose time is not over."""
        return self._where(SITE_WORDS.c.until > now)

    def _where(self, condition: ColumnElement[bool]) -> tuple[SiteWord, ...]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(SITE_WORDS).where(condition).order_by(SITE_WORDS.c.envoy)).all()
        return tuple(SiteWord(EnvoyName(one.envoy), tuple(map(Digest, one.approved)), one.until) for one in rows)
