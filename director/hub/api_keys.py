"""API keys: for a program that acts for a user, within rules of its own and until a day.

``fv_ID_SECRET``: the id is looked up and may be shown, the secret has 256 random bits and is kept as its SHA-256 alone
(a slow hash protects what can be guessed, which this cannot). It is shown once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .rules import Rule

MAX_DAYS = 366
_SECRET_BYTES, _ID_BYTES = 32, 8
_KEY = re.compile(r"fv_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, as it is kept."""

    id: str
    user: str
    label: str  # for people
    secret_sha256: str = field(repr=False)
    rules: frozenset[Rule]
    created_at: float  # seconds since 1970
    expires_at: float
    revoked_at: float | None = None
    last_used_at: float | None = None

    def is_good(self, now: float) -> bool:
        """Not over, and not taken back."""
        return self.revoked_at is None and now < self.expires_at


@dataclass(frozen=True, slots=True)
class Presented:
    """What a caller presents."""

    id: str
    secret: str = field(repr=False)

    @property
    def sha256(self) -> str:
        """As it is kept."""
        return hashlib.sha256(self.secret.encode("ascii")).hexdigest()

    def opens(self, key: ApiKey) -> bool:
        """Is it this key? Takes as long whatever is wrong with it."""
        return hmac.compare_digest(self.sha256, key.secret_sha256) and self.id == key.id


def make(random: Callable[[int], bytes]) -> Presented:
    """A new one."""
    return Presented(
        random(_ID_BYTES).hex(), base64.urlsafe_b64encode(random(_SECRET_BYTES)).rstrip(b"=").decode("ascii")
    )


def text_of(key: Presented) -> str:
    """As it is handed to the user, once."""
    return f"fv_{key.id}_{key.secret}"


def presented(text: str) -> Presented | None:
    """Read what a caller sent; None where it is no key at all."""
    found = _KEY.fullmatch(text)
    return Presented(*found.groups()) if found else None
