"""Who is there. Pure: ``now`` is an argument.

An envoy is there from its first word. It is gone when its last line broke and it did not come back within a moment,
or when it was silent too long. One without a line that says until when it will answer is there until then. One that was
not seen since the director started is not gone before it had the time to come back: until then a restarted director
asks and loses nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..utils.messages import EnvoyName
from ..utils.transport import SILENCE_SECONDS

RETURN_SECONDS = 2.0
"""A line that broke may be another one within this time, and nothing happened."""
COMEBACK_SECONDS = 5.0
"""Envoys whose director was away come back within this time: longer than they ever pause between two attempts."""


@dataclass(slots=True)
class _Seen:
    heard_at: float
    lines: int = 0
    broke_at: float | None = None
    until: float = -math.inf  # it said that it answers until then, line or no line


@dataclass(slots=True)
class Attendance:
    """The envoys seen since the director started.

    Args:
        started_at: when that was.
    """

    started_at: float
    _seen: dict[EnvoyName, _Seen] = field(default_factory=dict)

    def hear(self, envoy: EnvoyName, now: float) -> None:
        """It said something."""
        seen = self._seen.setdefault(envoy, _Seen(now))
        seen.heard_at = now
        if seen.broke_at is not None:
            seen.broke_at = now  # alive without a line: it is on its way back

    def arrive(self, envoy: EnvoyName, now: float) -> None:
        """It opened a line."""
        self.hear(envoy, now)
        self._seen[envoy].lines += 1
        self._seen[envoy].broke_at = None

    def leave(self, envoy: EnvoyName, now: float) -> None:
        """One of its lines ended."""
        seen = self._seen[envoy]
        seen.lines -= 1
        if seen.lines == 0:
            seen.broke_at = now

    def stay(self, envoy: EnvoyName, until: float, now: float) -> None:
        """It says until when it will answer without a line; a time that is over takes that back."""
        self.hear(envoy, now)
        seen = self._seen[envoy]
        seen.until = until
        if until <= now and not seen.lines:
            seen.broke_at = now - RETURN_SECONDS - 1

    def is_there(self, envoy: EnvoyName, now: float) -> bool:
        """Seen, and neither silent nor without a line for too long; or it said that it will be."""
        seen = self._seen.get(envoy)
        if seen is not None and now < seen.until:
            return True
        if seen is None or now - seen.heard_at > SILENCE_SECONDS:
            return False
        return seen.broke_at is None or now - seen.broke_at <= RETURN_SECONDS

    def is_gone(self, envoy: EnvoyName, now: float) -> bool:
        """No longer there; or not seen at all although the director started a while ago."""
        if envoy not in self._seen:
            return now - self.started_at > COMEBACK_SECONDS
        return not self.is_there(envoy, now)

    def there(self, now: float) -> frozenset[EnvoyName]:
        """All who are there."""
        return frozenset(envoy for envoy in self._seen if self.is_there(envoy, now))

    def shift(self, seconds: float) -> None:
        """The director itself stood still for so long, or its clock was set: nobody was silent meanwhile."""
        self.started_at += seconds
        for seen in self._seen.values():
            seen.heard_at += seconds
            seen.broke_at = None if seen.broke_at is None else seen.broke_at + seconds

    def silent_seconds(self, envoy: EnvoyName, now: float) -> float:
        """Since its last word; infinity without any."""
        seen = self._seen.get(envoy)
        return now - seen.heard_at if seen else float("inf")
