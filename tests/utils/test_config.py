"""Settings files: read strictly, refused with the name of what is wrong."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NewType

import pytest
from fedveil.utils.config import load_toml, parse_toml
from fedveil.utils.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

Name = NewType("Name", str)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, slots=True)
class Inner:
    size: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size must be at least 0")


@dataclass(frozen=True, slots=True)
class Settings:
    name: Name
    inner: Inner = Inner(1)
    colour: Colour = Colour.RED
    folder: Path | None = None
    tags: tuple[str, ...] = ()
    sites: tuple[Inner, ...] = ()
    extra: dict[str, int | float | bool | str] = field(default_factory=dict)
    strict: bool = True

    def __post_init__(self) -> None:
        if self.name == "forbidden":
            raise ConfigError("name forbidden is taken")


def parse(text: str) -> Settings:
    return parse_toml(text, Settings, "x.toml")


def test_every_kind_of_value_is_read() -> None:
    settings = parse(
        """
        name = "a"
        colour = "green"
        folder = "some/where"
        tags = ["p", "q"]
        strict = false
        [inner]
        size = 3
        ratio = 2
        [[sites]]
        size = 1
        [[sites]]
        size = 2
        [extra]
        epochs = 3
        rate = 0.5
        deep = true
        kind = "cnn"
        """
    )
    assert settings == Settings(
        Name("a"),
        Inner(3, 2.0),
        Colour.GREEN,
        Path("some/where"),
        ("p", "q"),
        (Inner(1), Inner(2)),
        {"epochs": 3, "rate": 0.5, "deep": True, "kind": "cnn"},
        strict=False,
    )
    assert type(settings.inner.ratio) is float
    assert [type(value) for value in settings.extra.values()] == [int, float, bool, str]


def test_what_has_a_default_may_be_left_out() -> None:
    assert parse('name = "a"') == Settings(Name("a"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('nam = "a"', ["x.toml: nam: is not a setting", "did you mean name?"]),
        ('name = "a"\n[inner]\nsize = 1\nratoi = 1', ["inner.ratoi: is not a setting", "did you mean ratio?"]),
        ('name = "a"\n[inner]\nsize = 1\nzzz = 1', ["inner.zzz", "known in [inner] are: ratio, size"]),
        ('name = "a"\n[[sites]]\nsize = 1\n[[sites]]\nsiz = 2', ["sites[1].siz", "did you mean size?"]),
        ("strict = true", ["x.toml: name: must be given"]),
        ('name = "a"\n[inner]', ["inner.size: must be given"]),
        ("name = 3", ["name: expected text, got a whole number"]),
        ('name = "a"\nstrict = 1', ["strict: expected true or false, got a whole number"]),
        ('name = "a"\n[inner]\nsize = true', ["inner.size: expected a whole number, got true or false"]),
        ('name = "a"\n[inner]\nsize = 1.0', ["inner.size: expected a whole number, got a number"]),
        ('name = "a"\n[inner]\nsize = "1"', ["inner.size: expected a whole number, got text"]),
        ('name = "a"\n[inner]\nsize = 1\nratio = true', ["inner.ratio: expected a number, got true or false"]),
        ('name = "a"\n[inner]\nsize = 1\nratio = nan', ["inner.ratio: expected a finite number"]),
        (f'name = "a"\n[inner]\nsize = 1\nratio = 1{"0" * 400}', ["inner.ratio: expected a finite number"]),
        ('name = "a"\ncolour = "gren"', ["colour: expected one of red, green", "did you mean green?"]),
        ('name = "a"\ncolour = 1', ["colour: expected one of red, green, got a whole number"]),
        ('name = "a"\nfolder = 1', ["folder: expected a path, as text, got a whole number"]),
        ('name = "a"\ntags = "p"', ["tags: expected an array, got text"]),
        ('name = "a"\ntags = ["p", 2]', ["tags[1]: expected text, got a whole number"]),
        ('name = "a"\ninner = 3', ["inner: expected a table, got a whole number"]),
        ('name = "a"\n[extra]\na = [1]', ["extra.a: expected", "got an array"]),
        ('name = "a"\n[extra]\na = 1979-05-27', ["extra.a: expected", "got a date or time"]),
        ('name = "a"\n[inner]\nsize = -1', ["x.toml: [inner]: size must be at least 0"]),
        ('name = "forbidden"', ["x.toml: name forbidden is taken"]),
        ("name = ", ["x.toml: is not TOML"]),
        ("a = " + "[" * 5000, ["x.toml: is not TOML"]),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_value_is_not_repeated_since_it_may_be_a_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('name = "a"\n[inner]\nsize = "hunter2"')
    assert "hunter2" not in str(caught.value)


def test_a_file_is_read_and_named_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('name = "a"\n')
    assert load_toml(path, Settings) == Settings(Name("a"))
    path.write_text("name = 1\n")
    with pytest.raises(ConfigError, match=r"settings\.toml: name"):
        load_toml(path, Settings)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "none.toml", Settings)
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_toml(path, Settings)


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)
