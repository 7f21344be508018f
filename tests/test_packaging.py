"""The checkout is the package: what is installed is what lies here, under one name."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import fedveil
import pytest

CHECKOUT = Path(__file__).parents[1]
NO_PACKAGES = {"tests", "runs", "build", "dist"}  # and hidden folders


def project() -> dict:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))


def folders_with_init() -> set[str]:
    found = {"fedveil"}
    for folder, inner, files in os.walk(CHECKOUT):
        inner[:] = [n for n in inner if not n.startswith(".") and n not in NO_PACKAGES and n != "__pycache__"]
        if "__init__.py" in files and Path(folder) != CHECKOUT:
            found.add(".".join(("fedveil", *Path(folder).relative_to(CHECKOUT).parts)))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built from a copy of the checkout, tests and all."""
    source, out = tmp_path_factory.mktemp("source") / "fedveil", tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(CHECKOUT, source, ignore=left_out)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return frozenset(archive.namelist())


def test_the_packages_list_is_the_tree():
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(folders_with_init())


def test_no_other_python_file_lies_at_the_root_but_the_federated_apis_name():
    assert sorted(path.name for path in CHECKOUT.glob("*.py")) == ["__init__.py", "federated.py"]


def test_tests_are_no_package():
    assert not list((CHECKOUT / "tests").rglob("__init__.py"))


def test_type_checkers_and_protoc_reach_the_checkout_by_its_package_name():
    link = CHECKOUT / ".typing" / "fedveil"
    assert link.is_symlink()
    assert link.resolve() == CHECKOUT.resolve()


def test_the_version_that_pip_knows_is_the_one_that_the_code_says():
    assert fedveil.__version__ == project()["project"]["version"]


@pytest.mark.parametrize("name", [name for name in dir(fedveil) if not name.startswith("_")])
def test_each_public_name_can_be_had_from_the_root(name):
    assert getattr(fedveil, name) is not None


def test_each_console_script_is_the_main_of_a_room():
    scripts = project()["project"]["scripts"]
    assert set(scripts) == {"director", "envoy", "fedveil"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        path = CHECKOUT / Path(*module.split(".")[1:]).with_suffix(".py")
        assert f"\ndef {function}() -> None:" in path.read_text("utf-8")


def test_a_wheel_holds_one_top_level_package(wheel):
    assert {name.partition("/")[0] for name in wheel if ".dist-info/" not in name} == {"fedveil"}


def test_a_wheel_holds_every_package_module_and_no_test(wheel):
    missing = []
    for package in project()["tool"]["setuptools"]["packages"]:
        folder = Path(*package.split(".")[1:])
        missing += [
            path.name
            for path in (CHECKOUT / folder).glob("*.py")
            if (Path("fedveil") / folder / path.name).as_posix() not in wheel
        ]
    assert not missing
    assert not [name for name in wheel if "tests" in name.split("/") or "/test_" in name]


@pytest.mark.parametrize(
    "needed",
    [
        "fedveil/py.typed",
        "fedveil/director/migrations/env.py",
        "fedveil/director/migrations/versions/v0001_first.py",
        "fedveil/workspace/pneumonia/plan.py",
    ],
)
def test_a_wheel_holds_what_is_read_at_run_time(wheel, needed):
    assert needed in wheel
