"""Passwords, kept as argon2id: 64 MiB and three passes, the second choice of RFC 9106."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ...utils.errors import ConfigError, TooManyCallsError

LEAST, MOST = 12, 256
_MEMORY_KIB = 64 << 10
_PASSES = 3
_AT_ONCE, _AND_WAITING = threading.BoundedSemaphore(4), threading.BoundedSemaphore(16)
"""Passwords that are looked at, each with its 64 MiB; and those with them that have a thread of the door's forty."""


def check_new(password: str, user: str) -> None:
    """Is it one that somebody may choose?

    Raises:
        ConfigError: too short, too long, or hardly one; the text does not repeat it.
    """
    if not LEAST <= len(password) <= MOST:
        raise ConfigError(f"the password has {len(password)} characters, expected {LEAST} to {MOST}")
    if len(set(password)) < LEAST // 2 or user.casefold() in password.casefold():
        raise ConfigError("the password repeats few characters, or holds the user's name; four random words are good")


def hashed(password: str) -> str:
    """What is kept of a password."""
    return _hasher().hash(_normal(password))


def is_right(kept: str, password: str) -> bool:
    """Is it this one? Takes as long where nothing is kept, so that nobody learns which users there are."""
    try:
        return _hasher().verify(kept or _nobody(), _normal(password[: MOST + 1])) and bool(kept)
    except (VerificationError, InvalidHashError):
        return False


@contextmanager
def turn() -> Iterator[None]:
    """Around what strangers may ask for: they take neither all memory nor all threads.

    Raises:
        TooManyCallsError: too many wait already.
    """
    if not _AND_WAITING.acquire(blocking=False):
        raise TooManyCallsError("too many sign in at this moment: try again in some seconds")
    try:
        with _AT_ONCE:
            yield
    finally:
        _AND_WAITING.release()


def is_outdated(kept: str) -> bool:
    """Was it hashed with less than is used now?"""
    return _hasher().check_needs_rehash(kept)


def _normal(password: str) -> str:
    """Keyboards give one letter in several ways (RFC 8265)."""
    return unicodedata.normalize("NFC", password)


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher(_PASSES, _MEMORY_KIB, parallelism=1)


@cache
def _nobody() -> str:
    return _hasher().hash("the password of nobody")
