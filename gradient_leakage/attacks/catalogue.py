"""Every attack by name, with its paper and its adversary. One line an attack; nothing registers itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...utils.errors import ConfigError
from ..threat_model import Adversary


@dataclass(frozen=True, slots=True)
class Listed:
    """One attack as ``fedveil attack list`` shows it."""

    name: str
    title: str
    paper: str  # authors, year and arXiv number
    adversary: Adversary
    module: str  # in this folder
    class_name: str
    finds: str  # "images", "labels", "members", ...

    def make(self, **options: Any) -> Any:
        """The attack with its options.

        Raises:
            ConfigError: an option that it does not have.
        """
        made: Callable[..., Any] = getattr(import_module(f".{self.module}", __package__), self.class_name)
        try:
            return made(**options)
        except TypeError as error:
            raise ConfigError(f"attack {self.name}: {error}") from error


ATTACKS: tuple[Listed, ...] = ()


def listed(name: str) -> Listed:
    """The attack of that name.

    Raises:
        ConfigError: there is none; the message names them all.
    """
    for attack in ATTACKS:
        if attack.name == name:
            return attack
    raise ConfigError(f"attack {name!r}: expected one of {', '.join(attack.name for attack in ATTACKS)}")
