"""How often a secret may be guessed. Pure: failures and a clock in, seconds to wait out.

The first few failures cost nothing: people mistype. Each one after that doubles the wait, up to an hour, so that
somebody who guesses for a year has made fewer than ten thousand guesses. A success forgets them, and so does a day
without any: names that nobody has are counted like others, and cannot be remembered for ever. Whoever guesses at
somebody else's name keeps that user waiting too, at most as long as an hour: that is the price, and the audit log and
the user's page say that it happens.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_FAILURES = 4
FIRST_WAIT_SECONDS = 2.0
MOST_WAIT_SECONDS = 3600.0
FORGOTTEN_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed attempts since the last success."""

    count: int = 0
    last_at: float = 0.0  # seconds since 1970

    def wait(self, now: float) -> float:
        """Seconds until another attempt is looked at; 0: now.

        >>> Failures(5, 100.0).wait(100.5)
        1.5
        """
        if self.count <= FREE_FAILURES:
            return 0.0
        doublings = min(self.count - FREE_FAILURES - 1, 30)
        pause = min(FIRST_WAIT_SECONDS * 2.0**doublings, MOST_WAIT_SECONDS)
        return min(max(0.0, self.last_at + pause - now), pause)  # a clock that was set back locks nobody out for long

    def failed(self, now: float) -> Failures:
        """One more."""
        return Failures(1 if now - self.last_at > FORGOTTEN_SECONDS else self.count + 1, now)
