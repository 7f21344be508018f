"""environment.yml asks conda for what pyproject.toml asks pip for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).parents[1]
RENAMED = {"torch": "pytorch", "prometheus-client": "prometheus_client"}  # as conda-forge calls them
BY_PIP = {"medmnist"}
OF_CONDA = {"pip"}


def asked(requirement: str) -> tuple[str, str]:
    name, versions = re.fullmatch(r"([A-Za-z0-9_.-]+?)(?:\[[^]]*\])?\s*([<>=!~].*)?", requirement).groups()
    return name, (versions or "").replace(" ", "")


def test_conda_is_asked_for_the_same_packages_in_the_same_versions():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text("utf-8"))
    wanted = dict(asked(one) for one in project["dependencies"])
    conda = dict(asked(one) for one in environment["dependencies"] if isinstance(one, str))
    (pip,) = [one["pip"] for one in environment["dependencies"] if isinstance(one, dict)]
    assert conda.pop("python") == project["requires-python"]
    assert conda.keys() >= OF_CONDA
    assert {name: conda[name] for name in conda if name not in OF_CONDA} == {
        RENAMED.get(name, name): versions for name, versions in wanted.items() if name not in BY_PIP
    }
    assert [one for one in pip if one != "--editable ."] == [f"{name}{wanted[name]}" for name in sorted(BY_PIP)]
    assert pip[-1] == "--editable ."


def test_packages_come_from_conda_forge_alone():
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text("utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert environment["name"] == "fedveil"
