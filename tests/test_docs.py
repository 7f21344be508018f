"""The pages keep their promises: settings, errors, commands, links and examples are those of the code."""

import dataclasses
import doctest
import importlib
import inspect
import re
import shlex
import typing
from enum import Enum
from pathlib import Path

import pytest
import typer
from fedveil.director.__main__ import app as director
from fedveil.director.config import DirectorConfig
from fedveil.director.experiments import ExperimentSettings
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.config import EnvoyConfig
from fedveil.utils import errors
from fedveil.utils.config import parse_toml
from fedveil.workspace.__main__ import app as fedveil_app

CHECKOUT = Path(__file__).parents[1]
ROOMS = ("director", "envoy", "gradient_leakage", "utils", "workspace", "protos", "tests")
COMMANDS = {"director": director, "envoy": envoy, "fedveil": fedveil_app}
SUMMARY_KEYS = (
    "secure_aggregation",
    "test_auc",
    "test_accuracy",
    "sites",
    "alone_auc",
    "num_examples",
    "rounds",
    "stop_reason",
    "transport",
    "data_source",
    "first_round_open_seconds",
    "wall_seconds",
    "cpu_seconds",
    "bytes_up",
    "bytes_down",
    "bytes_up_without_codec",
    "codec",
    "defense",
)


def pages() -> list[Path]:
    hidden = {"runs", "build", "dist"}
    found = (path for path in CHECKOUT.rglob("*.md") if not any(p.startswith(".") for p in _parts(path)))
    return sorted(path for path in found if not hidden & set(_parts(path)))


def _parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(CHECKOUT).parts


def read(page: str) -> str:
    return (CHECKOUT / page).read_text("utf-8")


def settings_of(cls: type, prefix: str = "") -> dict[str, object]:
    """Every key by its dotted name, with its type."""
    found: dict[str, object] = {}
    for name, hint in typing.get_type_hints(cls).items():
        kind = next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), hint)  # X | None
        if dataclasses.is_dataclass(kind):
            found |= settings_of(kind, f"{prefix}{name}.")
        elif name in {field.name for field in dataclasses.fields(cls)}:
            found[prefix + name] = kind
    return found


def commands_in(page: str) -> list[str]:
    """The lines of shell blocks that call one of our commands, continued lines joined, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", read(page), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]
    return [call for call in calls if call.removeprefix(".venv/bin/").split(" ")[0] in COMMANDS]


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_its_duty_what_comes_in_what_goes_out_and_what_it_never_does(room):
    page = read(f"{room}/README.md")
    assert [h for h in ("## Duty", "## Comes in", "## Goes out", "## Never") if h not in page] == []


@pytest.mark.parametrize(
    ("page", "cls"),
    [
        ("director/README.md", DirectorConfig),
        ("director/README.md", ExperimentSettings),
        ("envoy/README.md", EnvoyConfig),
    ],
)
def test_every_setting_and_each_of_its_choices_stands_in_its_rooms_page(page, cls):
    text, settings = read(page), settings_of(cls)
    words = [f"`{name}`" for name in settings]
    for kind in settings.values():
        if isinstance(kind, type) and issubclass(kind, Enum):
            words += [f"`{member.value}`" for member in kind]
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("page", "classes"),
    [("director/README.md", (DirectorConfig, ExperimentSettings)), ("envoy/README.md", (EnvoyConfig,))],
)
def test_no_page_names_a_setting_that_is_not_there(page, classes):
    known = {name for cls in classes for name in settings_of(cls)}
    tables = re.findall(r"^\| key \| default \| meaning \|\n((?:\|.*\n)+)", read(page), re.MULTILINE)
    named = {name for table in tables for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}
    assert named == known


@pytest.mark.parametrize("page", ["README.md", "director/README.md", "envoy/README.md"])
def test_every_settings_file_in_a_page_is_one_that_is_taken(page):
    readers = {"director.toml": DirectorConfig, "envoy.toml": EnvoyConfig, "experiment.toml": ExperimentSettings}
    files = re.findall(r"```toml\n# (\S+)\n(.*?)```", read(page), re.DOTALL)
    assert len(files) == read(page).count("```toml")
    for name, text in files:
        assert parse_toml(text, readers[name], f"{name} in {page}")


def test_every_error_stands_in_the_page_of_utils():
    page = read("utils/README.md")
    assert [name for name in errors.__all__ if f"`{name}`" not in page] == []


def test_the_readme_documents_every_key_of_the_summary():
    page = read("README.md")
    assert [key for key in SUMMARY_KEYS if f"`{key}`" not in page] == []


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE))
    named = {target for page in pages() for target in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8"))}
    named |= set(re.findall(r"^make ([a-z-]+)", read("README.md"), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", [path.relative_to(CHECKOUT).as_posix() for path in pages()])
def test_links_within_the_checkout_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL))
    inner = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in inner if not ((CHECKOUT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "director/README.md", "envoy/README.md", "workspace/README.md"])
def test_every_command_in_a_page_is_one_that_the_command_line_takes(page):
    calls = commands_in(page)
    assert calls
    for call in calls:
        _check_call(call)


def _check_call(call: str) -> None:
    name, *words = shlex.split(call.removeprefix(".venv/bin/"))
    command = typer.main.get_command(COMMANDS[name])
    while hasattr(command, "commands"):
        assert words, f"{call}: stops at a group"
        assert words[0] in command.commands, f"{call}: there is no {words[0]}"
        command = command.commands[words.pop(0)]
    command.make_context(name, words, resilient_parsing=False)  # raises where options or arguments do not fit


def _with_examples() -> list[str]:
    files = (path for room in ROOMS[:-1] for path in (CHECKOUT / room).rglob("*.py"))
    found = (path for path in files if ">>> " in path.read_text("utf-8"))
    return sorted(".".join(("fedveil", *_parts(path.with_suffix("")))) for path in found)


@pytest.mark.parametrize("module", _with_examples())
def test_the_examples_in_docstrings_are_true(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


def test_every_error_says_when_it_is_raised():
    assert [name for name in errors.__all__ if not inspect.getdoc(getattr(errors, name))] == []
