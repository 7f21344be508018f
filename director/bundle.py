"""An offline wheelhouse: the project, all that it needs, and a list by which pip itself refuses any other byte.

    wheels/             one wheel a distribution, for this platform and this Python
    requirements.txt    name==version with the SHA-256 of each; its own SHA-256 stands for the whole bundle
    SHA256SUMS          the same for `sha256sum -c`
    install.sh, README.txt

Where wheels come from is pip's own business: whatever its configuration says.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import DigestMismatchError, StorageError
from .backup.scratch import scratch_folder

WHEELS, REQUIREMENTS, SUMS = "wheels", "requirements.txt", "SHA256SUMS"
_EXTRA = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LINE = re.compile(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})")
_INSTALL = """\
#!/bin/sh
# Makes a virtual environment and installs fedveil into it: from this folder alone, every file checked by its SHA-256.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
target=${1:?"usage: sh install.sh FOLDER-OF-THE-NEW-ENVIRONMENT"}
"${PYTHON:-python3}" -m venv "$target"
PIP_CONFIG_FILE=/dev/null "$target/bin/python" -m pip --isolated install --no-index --find-links "$here/wheels" \\
  --require-hashes --no-cache-dir --disable-pip-version-check -r "$here/requirements.txt"
echo "installed: $target/bin/envoy, $target/bin/director, $target/bin/fedveil"
"""
_README = """\
fedveil {version}, to be installed without a network. For {platform}, Python {python}.

1. Compare with whoever gave you this, by phone: sha256sum requirements.txt
   {digest}
2. sh install.sh /opt/fedveil          (PYTHON=/path/to/python{python} where `python3` is another)

pip checks every wheel against requirements.txt and opens no connection. By hand:
   python3 -m venv /opt/fedveil
   /opt/fedveil/bin/pip install --no-index --find-links wheels --require-hashes -r requirements.txt
To look before installing: sha256sum -c SHA256SUMS ; beside an installed fedveil: director bundle FOLDER --verify
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What lies in one."""

    wheels: int
    num_bytes: int
    digest: str  # SHA-256 of requirements.txt


def make_bundle(folder: Path, wheel: Path | None, extras: Sequence[str], constraints: Path | None) -> Bundle:
    """Gather everything into a new folder.

    Args:
        folder: not there yet, or empty.
        wheel: of the project; None builds it from the checkout that runs.
        extras: of the project, such as ``postgres``.
        constraints: versions to take, as pip reads them; None leaves them to pip, or to the checkout's.

    Raises:
        StorageError: the folder holds something; there is no checkout; pip failed, in its own words before this.
    """
    wrong = [extra for extra in extras if not _EXTRA.fullmatch(extra)]
    if wrong:
        raise StorageError(f"{', '.join(wrong)}: no name of an extra")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder}: is not empty; a bundle is made in a new folder")
    folder = folder.absolute()
    with scratch_folder(folder.with_name(f".{folder.name}.bundling")) as scratch:
        inner = scratch / "bundle"
        (inner / WHEELS).mkdir(parents=True)
        own = wheel.absolute() if wheel is not None else _own_wheel(scratch)
        asked = f"{own}[{','.join(extras)}]" if extras else str(own)
        held_to = constraints or _checkout() / "constraints.txt"
        more = ["--constraint", str(held_to)] if constraints or held_to.exists() else []
        _pip("wheel", "--wheel-dir", str(inner / WHEELS), *more, asked)
        made = _write_list(inner, _name(own), extras)
        for path in (inner, *inner.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        inner.rename(folder)
    return made


def verify_bundle(folder: Path, digest: str | None = None) -> Bundle:
    """Is a bundle whole, and what was given out?

    Args:
        folder: the bundle.
        digest: SHA-256 of its requirements.txt, as its maker reads it out.

    Raises:
        StorageError: no bundle.
        DigestMismatchError: a wheel was changed, is missing, or is one too many.
    """
    try:
        listed = (folder / REQUIREMENTS).read_bytes()
        found = {path.name: _sha256(path) for path in (folder / WHEELS).iterdir()}
    except OSError as error:
        raise StorageError(f"{folder}: is no bundle: {error.strerror}") from error
    own = hashlib.sha256(listed).hexdigest()
    if digest is not None and digest != own:
        raise DigestMismatchError(f"{folder / REQUIREMENTS} has SHA-256 {own}, expected {digest}")
    lines = listed.decode("utf-8", "replace").splitlines()
    wanted = [match[3] for match in map(_LINE.fullmatch, lines) if match]
    if len(wanted) != len(lines):
        raise DigestMismatchError(f"{folder / REQUIREMENTS}: a line without a SHA-256")
    odd = sorted(name for name, sha in found.items() if sha not in wanted)
    if odd or sorted(found.values()) != sorted(wanted):
        what = f"{', '.join(odd)} changed, or is not of this bundle" if odd else "a wheel is missing, or there twice"
        raise DigestMismatchError(f"{folder}: {what}; fetch the bundle again")
    return Bundle(len(found), _size(folder), own)


def _write_list(folder: Path, own: str, extras: Sequence[str]) -> Bundle:
    lines, sums = [], []
    for path in sorted((folder / WHEELS).iterdir()):
        name, version = path.name.split("-")[:2]  # the wheel's format: neither holds a hyphen
        asked = f"{name}[{','.join(sorted(extras))}]" if extras and name == own else name
        lines.append(f"{asked}=={version} --hash=sha256:{_sha256(path)}\n")
        sums.append(f"{_sha256(path)}  {WHEELS}/{path.name}\n")
    content = "".join(lines).encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / REQUIREMENTS).write_bytes(content)
    (folder / SUMS).write_text("".join([*sums, f"{digest}  {REQUIREMENTS}\n"]), "utf-8")
    (folder / "install.sh").write_text(_INSTALL, "utf-8")
    version = next(line.split("==")[1].split(" ")[0] for line in lines if line.startswith((f"{own}==", f"{own}[")))
    kind, python = f"{platform.system()} {platform.machine()}", f"{sys.version_info.major}.{sys.version_info.minor}"
    text = _README.format(version=version, platform=kind, python=python, digest=digest)
    (folder / "README.txt").write_text(text, "utf-8")
    return Bundle(len(lines), _size(folder), digest)


def _checkout() -> Path:
    return Path(__file__).parents[1]


def _own_wheel(scratch: Path) -> Path:
    """Build the project's wheel from a copy of the checkout, which stays clean."""
    checkout = _checkout()
    if not (checkout / "pyproject.toml").exists():
        raise StorageError("this fedveil was not installed from a checkout: give its wheel with --wheel")
    left_out = shutil.ignore_patterns(".*", "tests", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(checkout, scratch / "fedveil", ignore=left_out)
    _pip("wheel", "--no-deps", "--wheel-dir", str(scratch / "own"), str(scratch / "fedveil"))
    return next((scratch / "own").glob("*.whl"))


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    status = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
    if status:
        raise StorageError(f"pip {words[0]} ended with status {status}; its own words stand above")


def _name(wheel: Path) -> str:
    return wheel.name.split("-")[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
