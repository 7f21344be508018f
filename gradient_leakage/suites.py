"""The suites: fixed lists of cells, so that two measurements are of the same thing."""

from __future__ import annotations

from collections.abc import Mapping

from ..utils.errors import ConfigError
from .cells import Cell

SMOKE: tuple[Cell, ...] = ()
FULL: tuple[Cell, ...] = ()
CLAIM: tuple[Cell, ...] = ()

SUITES: Mapping[str, tuple[Cell, ...]] = {"smoke": SMOKE, "full": FULL, "claim": CLAIM}


def suite_named(name: str) -> tuple[Cell, ...]:
    """The suite of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SUITES:
        raise ConfigError(f"suite {name!r}: expected one of {', '.join(SUITES)}")
    return SUITES[name]
