"""Codes of an authenticator app (TOTP, RFC 6238): SHA-1, six digits, thirty seconds, as all apps can.

A code is good for its own thirty seconds and for the ones before and after, since clocks differ, and never twice: the
step of the last good one is kept, and an earlier or equal one is refused.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

SECRET_BYTES = 20
STEP_SECONDS = 30
_DIGITS = 6
_WINDOW = 1


def make_secret(random: Callable[[int], bytes]) -> bytes:
    """A new secret."""
    return random(SECRET_BYTES)


def provisioning_uri(secret: bytes, user: str, federation: str) -> str:
    """What the app reads, as a text or a picture of it. It holds the secret: shown once.

    >>> provisioning_uri(bytes(20), "anna", "lungs")[:38]
    'otpauth://totp/fedveil%20lungs:anna?di'
    """
    return _totp(secret).get_provisioning_uri(user, f"fedveil {federation}")


def secret_text(secret: bytes) -> str:
    """The secret in base 32, for typing."""
    return base64.b32encode(secret).decode("ascii")


def code_at(secret: bytes, now: float) -> str:
    """The code that an app shows."""
    return _totp(secret).generate(int(now)).decode("ascii")


def accepted_step(secret: bytes, code: str, now: float, last_step: int) -> int | None:
    """The step that a code is for, if it is good now; None otherwise.

    Args:
        secret: of the user.
        code: as it was typed.
        now: seconds since 1970.
        last_step: of the last code that was accepted; -1: none yet.
    """
    if len(code) != _DIGITS or not code.isascii() or not code.isdecimal():
        return None
    present = int(now) // STEP_SECONDS
    found = None
    for step in range(present - _WINDOW, present + _WINDOW + 1):  # all of them, whichever is right
        is_right = hmac.compare_digest(code_at(secret, max(0, step) * STEP_SECONDS), code)
        if is_right and step > last_step and step >= 0:
            found = step
    return found


def _totp(secret: bytes) -> TOTP:
    return TOTP(secret, _DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303 - RFC 6238; HMAC-SHA-1 is not broken
