"""An offline wheelhouse, made from wheels that lie here and installed without an index."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fedveil.director.__main__ import app
from fedveil.director.bundle import REQUIREMENTS, WHEELS, make_bundle, verify_bundle
from fedveil.utils.errors import DigestMismatchError, StorageError
from typer.testing import CliRunner


def wheel(folder: Path, name: str, version: str, *needs: str, extra: str = "") -> Path:
    """A wheel with one module, of its own name."""
    about = f"{name}-{version}.dist-info"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    lines += [f"Requires-Dist: {need}\n" for need in needs]
    lines += [f"Provides-Extra: {extra}\n"] if extra else []
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{about}/METADATA": "".join(lines),
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_hash(text)},{len(text.encode())}\n" for path, text in files.items())
    files[f"{about}/RECORD"] = record + f"{about}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that needs two others, one of them for an extra; pip finds wheels in a folder alone."""
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "tinyneed", "1.0")
    wheel(index, "tinyneed", "2.0")
    wheel(index, "tinyextra", "1.5")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheel(tmp_path, "tinyproject", "0.3", "tinyneed>=1", "tinyextra; extra == 'more'", extra="more")


def install(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """As the bundle's README says, but into a folder, which is quicker than a virtual environment."""
    given = ["--no-index", "--find-links", str(folder / WHEELS), "--require-hashes", "-r", str(folder / REQUIREMENTS)]
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", str(target), *given]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / WHEELS).iterdir())


def test_it_holds_the_project_and_what_it_needs_in_the_versions_asked_for(project, tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("tinyneed==1.0\n")
    made = make_bundle(tmp_path / "bundle", project, [], constraints)
    assert names(tmp_path / "bundle") == ["tinyneed-1.0-py3-none-any.whl", "tinyproject-0.3-py3-none-any.whl"]
    assert verify_bundle(tmp_path / "bundle", made.digest) == made
    assert made.wheels == 2
    assert not list(tmp_path.glob(".*"))


def test_pip_installs_it_without_an_index_and_with_the_extra(project, tmp_path, monkeypatch):
    make_bundle(tmp_path / "bundle", project, ["more"], _nothing(tmp_path))
    monkeypatch.delenv("PIP_FIND_LINKS")
    done = install(tmp_path / "bundle", tmp_path / "site")
    assert not done.returncode, done.stderr
    assert {path.name for path in (tmp_path / "site").glob("*.py")} == {"tinyproject.py", "tinyneed.py", "tinyextra.py"}


def _nothing(folder: Path) -> Path:
    (folder / "nothing.txt").write_text("")
    return folder / "nothing.txt"


def test_a_wheel_that_was_changed_is_refused_by_pip_and_named_by_verify(project, tmp_path, monkeypatch):
    made = make_bundle(tmp_path / "bundle", project, [], _nothing(tmp_path))
    path = tmp_path / "bundle" / WHEELS / "tinyneed-2.0-py3-none-any.whl"
    path.unlink()
    (tmp_path / "evil").mkdir()
    wheel(tmp_path / "evil", "tinyneed", "2.0", "os").rename(path)  # a right wheel, with another content
    monkeypatch.delenv("PIP_FIND_LINKS")
    done = install(tmp_path / "bundle", tmp_path / "site")
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "site").exists()
    with pytest.raises(DigestMismatchError, match="tinyneed"):
        verify_bundle(tmp_path / "bundle", made.digest)
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "bundle", capture_output=True, check=False)
    assert sums.returncode


def test_a_wheel_too_many_one_too_few_and_a_changed_list_are_found(project, tmp_path):
    made = make_bundle(tmp_path / "bundle", project, [], _nothing(tmp_path))
    extra = wheel(tmp_path / "bundle" / WHEELS, "other", "1.0")
    with pytest.raises(DigestMismatchError, match="other"):
        verify_bundle(tmp_path / "bundle")
    extra.unlink()
    verify_bundle(tmp_path / "bundle")
    listed = tmp_path / "bundle" / REQUIREMENTS
    text = listed.read_text()
    listed.write_text(text.replace("tinyneed==2.0", "tinyneed==2.0.0"))
    with pytest.raises(DigestMismatchError, match="expected"):
        verify_bundle(tmp_path / "bundle", made.digest)
    listed.write_text(text + "unpinned\n")
    with pytest.raises(DigestMismatchError, match="without a SHA-256"):
        verify_bundle(tmp_path / "bundle")
    listed.write_text(text)
    (tmp_path / "bundle" / WHEELS / "tinyneed-2.0-py3-none-any.whl").unlink()
    with pytest.raises(DigestMismatchError, match="missing"):
        verify_bundle(tmp_path / "bundle")


def test_what_pip_cannot_find_leaves_no_bundle(project, tmp_path):
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="pip wheel"):
        make_bundle(tmp_path / "bundle", project, [], _nothing(tmp_path))
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_holds_something_and_an_extra_that_is_none_are_refused(project, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("")
    with pytest.raises(StorageError, match="not empty"):
        make_bundle(tmp_path / "bundle", project, [], None)
    for wrong in ("a]b", "--index-url", "A B"):
        with pytest.raises(StorageError, match="no name of an extra"):
            make_bundle(tmp_path / "new", project, [wrong], None)


@pytest.mark.slow
def test_the_script_of_a_bundle_that_the_command_made_installs_it_into_an_environment_of_its_own(project, tmp_path):
    given = ["bundle", str(tmp_path / "bundle"), "--wheel", str(project), "--constraints", str(_nothing(tmp_path))]
    made = CliRunner().invoke(app, given)
    assert not made.exit_code, made.output
    digest = hashlib.sha256((tmp_path / "bundle" / REQUIREMENTS).read_bytes()).hexdigest()
    assert digest in made.output
    assert digest in (tmp_path / "bundle" / "README.txt").read_text()
    checked = CliRunner().invoke(app, ["bundle", str(tmp_path / "bundle"), "--verify", "--digest", digest])
    assert not checked.exit_code, checked.output
    script = ["sh", str(tmp_path / "bundle" / "install.sh"), str(tmp_path / "site")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_CONFIG_FILE": "/dev/null"}
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert not done.returncode, done.stderr
    shown = [str(tmp_path / "site" / "bin" / "python"), "-c", "import tinyneed; print(tinyneed.VERSION)"]
    assert subprocess.run(shown, capture_output=True, text=True, check=True).stdout == "2.0\n"
