"""Strict TOML into frozen dataclasses: what is not known, not of its type or missing is refused by its name.

A table becomes a dataclass, an array becomes a ``tuple[X, ...]``, a text becomes an ``Enum`` by its value or a
``Path``, and a whole number may stand where a float is asked for. Nothing else is converted: ``true`` is no
number and ``"3"`` is none either. What goes together is checked by each dataclass itself, in ``__post_init__``.

Messages name the file, the key by its dotted name and what was expected, and never repeat a value that may be
a secret. This module knows no setting of any room; a dataclass may say in ``REFUSED`` why it has not what is sought,
and in a class method ``spelled_out`` what a table stands for that says something in other words.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T")

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path, as text",
    list: "an array",
    dict: "a table",
}


def load_toml(path: Path, cls: type[T]) -> T:
    """Read a settings file.

    Raises:
        ConfigError: the file cannot be read, or as ``parse_toml``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}") from error
    return parse_toml(text, cls, str(path))


def parse_toml(text: str, cls: type[T], source: str) -> T:
    """Read settings from TOML text.

    Args:
        text: the TOML.
        cls: a dataclass; its nested dataclasses are tables, and fields with defaults may be left out.
        source: the file's name, for messages.

    Raises:
        ConfigError: not TOML, an unknown or missing key, a wrong type, or a value that ``__post_init__`` refuses.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: is not TOML: {error}") from error
    return cast("T", _Reader(source).table(document, cls, ""))


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    source: str

    def table(self, value: Mapping[str, object], cls: type[Any], where: str) -> object:
        """One table into its dataclass."""
        hints = get_type_hints(cls)
        spelled_out = getattr(cls, "spelled_out", None)
        if spelled_out is not None:
            try:
                value = spelled_out(value)
            except ConfigError as error:
                raise ConfigError(f"{self.source}: {error}") from error
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        for key in value:
            if key not in fields:
                reason = getattr(cls, "REFUSED", {}).get(key)  # what people look for here, and why it is not here
                if reason is not None:
                    raise self._refusal(_dotted(where, key), f"is refused: {reason}")
                raise self._refusal(_dotted(where, key), f"is not a setting{_did_you_mean(key, fields, where)}")
        missing = [_dotted(where, name) for name, field in fields.items() if name not in value and _is_required(field)]
        if missing:
            raise self._refusal(", ".join(missing), "must be given")
        given = {key: self.value(held, hints[key], _dotted(where, key)) for key, held in value.items()}
        try:
            return cls(**given)
        except (ValueError, ConfigError) as error:
            at = f"[{where}]: " if where else ""
            raise ConfigError(f"{self.source}: {at}{error}") from error

    def value(self, value: object, kind: Any, where: str) -> object:
        """One value into what the field's annotation says."""
        while hasattr(kind, "__supertype__"):  # NewType
            kind = kind.__supertype__
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in {Union, types.UnionType}:
            return self._one_of(value, [choice for choice in arguments if choice is not type(None)], where)
        if origin is tuple:
            held = self._expect(value, list, where)
            return tuple(self.value(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(held))
        if origin is dict:
            entries = self._expect(value, dict, where)
            return {key: self.value(item, arguments[1], _dotted(where, key)) for key, item in entries.items()}
        if dataclasses.is_dataclass(kind):
            return self.table(self._expect(value, dict, where), cast("type[Any]", kind), where)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return self._choice(value, kind, where)
        return self._scalar(value, kind, where)

    def _scalar(self, value: object, kind: Any, where: str) -> object:
        if kind is Path:
            return Path(self._expect(value, str, where, kind))
        if kind is float:
            return self._number(value, where)
        if kind in {bool, int, str}:
            return self._expect(value, kind, where)
        raise TypeError(f"{where}: settings of type {kind!r} are not supported")

    def _expect(self, value: object, kind: type[T], where: str, shown: object = None) -> T:
        """The value, if it is of exactly this type: a bool is no int."""
        if type(value) is not kind:
            raise self._refusal(where, f"expected {_WORDS[shown or kind]}, got {_word(value)}")
        return value

    def _number(self, value: object, where: str) -> float:
        if type(value) not in {int, float}:
            raise self._refusal(where, f"expected a number, got {_word(value)}")
        try:
            number = float(cast("float", value))
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._refusal(where, "expected a finite number")
        return number

    def _choice(self, value: object, kind: type[Enum], where: str) -> Enum:
        for member in kind:
            if type(member.value) is type(value) and member.value == value:
                return member
        choices = ", ".join(str(member.value) for member in kind)
        hint = (
            _near(value, [str(member.value) for member in kind]) if isinstance(value, str) else f", got {_word(value)}"
        )
        raise self._refusal(where, f"expected one of {choices}{hint}")

    def _one_of(self, value: object, choices: list[Any], where: str) -> object:
        """The first choice of the value's own type; with one choice (``X | None``) its own message if it is wrong."""
        if len(choices) == 1:
            return self.value(value, choices[0], where)
        for choice in choices:
            if type(value) is choice:
                return self.value(value, choice, where)
        if type(value) is int and float in choices:
            return self._number(value, where)
        words = " or ".join(_WORDS.get(choice, str(choice)) for choice in choices)
        raise self._refusal(where, f"expected {words}, got {_word(value)}")

    def _refusal(self, where: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.source}: {where}: {reason}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _did_you_mean(key: str, known: Iterable[str], where: str) -> str:
    names = sorted(known)
    return _near(key, names) or f"; known {f'in [{where}] ' if where else ''}are: {', '.join(names)}"


def _word(value: object) -> str:
    return _WORDS.get(type(value), "a date or time")
