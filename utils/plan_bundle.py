"""A plan as it travels: a canonical JSON manifest and blobs by their hash, no archive.

    bundle/manifest.json        paths, sizes and SHA-256 of raw bytes; its own SHA-256 is the plan's digest
    bundle/blobs/SHA256         the plan's sources, layout.json, initial.safetensors

The plan's digest is what a site approves, so whatever the manifest names is checked against it before it is
used. Only regular files are read: a link, pipe or device in a blob's place is refused, never followed or waited for.
This module reads and writes bundles; it never runs what is in them, and knows no torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from .data_spec import DataSpec
from .differential_privacy import DifferentialPrivacy
from .errors import FederationError, MalformedMessageError, PlanError
from .recipe import Recipe
from .tensors import (
    Digest,
    Layout,
    Vector,
    canonical_json,
    digest_of,
    model_header,
    model_num_bytes,
    model_pieces,
    read_model,
)

SCHEMA = "fedveil.plan/1"
MANIFEST_FILE = "manifest.json"
BLOBS_FOLDER = "blobs"
LAYOUT_FILE = "layout.json"
INITIAL_FILE = "initial.safetensors"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 1000
MAX_LAYOUT_BYTES = 16 << 20  # it is read into memory as JSON

Setting: TypeAlias = bool | int | float | str
"""A plan's setting; whole numbers fit 64 bits and fractions are finite."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PATH_PIECE = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_T = TypeVar("_T")


class PlanKind(Enum):
    """What a plan is written for."""

    TORCH = "torch"
    ARRAY = "array"  # numpy alone
    DECLARATIVE = "declarative"  # no code: a recipe of names that the site knows


@dataclass(frozen=True, slots=True)
class PlanFile:
    """One file of a plan."""

    path: str  # relative, with forward slashes
    size: int  # bytes
    sha256: Digest

    def __post_init__(self) -> None:
        if not 1 <= len(self.path) <= 255 or not all(_PATH_PIECE.fullmatch(p) for p in self.path.split("/")):
            raise PlanError(f"plan file {self.path!r}: expected a relative path of letters, digits, _ . - and no '..'")
        if self.size < 0 or not _DIGEST.fullmatch(self.sha256):
            raise PlanError(f"plan file {self.path}: expected a size of at least 0 and a SHA-256 in hexadecimal")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a plan is made of. The same manifest always has the same bytes, and so the same digest.

    Raises:
        PlanError: a path that leaves the bundle or comes twice, an entry that names no file, a setting of
            another type, or no layout or initial weights among the files.
    """

    name: str
    kind: PlanKind
    entry: str  # "plan.py:ClassName"; empty where there is no code
    files: tuple[PlanFile, ...]
    settings: Mapping[str, Setting]
    layout: Digest
    data: DataSpec
    software: str  # the version of fedveil that built it
    privacy: DifferentialPrivacy | None = None  # of its training; None: not private
    recipe: Recipe | None = None  # of a declarative plan, which has no code
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise PlanError(f"plan name {self.name!r}: expected 1 to 63 letters, digits, _ . -")
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths) or len(paths) > MAX_FILES:
            raise PlanError(f"plan {self.name}: a file comes twice, or there are more than {MAX_FILES}")
        if len({path.casefold() for path in paths}) != len(paths):
            raise PlanError(f"plan {self.name}: two files differ in capital letters alone")
        for needed in (LAYOUT_FILE, INITIAL_FILE):
            if needed not in paths:
                raise PlanError(f"plan {self.name}: {needed} is not among its files")
        self._check_entry(paths)
        for key, value in self.settings.items():
            _check_setting(key, value)
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))
        object.__setattr__(self, "digest", digest_of(self.to_json()))

    def _check_entry(self, paths: list[str]) -> None:
        if (self.recipe is not None) is not (self.kind is PlanKind.DECLARATIVE):
            raise PlanError(f"plan {self.name}: a recipe is for declarative plans, and they must have one")
        if self.recipe is not None:
            if self.entry or len(paths) != len((LAYOUT_FILE, INITIAL_FILE)):
                raise PlanError(f"plan {self.name}: a declarative plan has no entry and no file of its own")
            return
        source, _, class_name = self.entry.partition(":")
        if source not in paths or not source.endswith(".py") or not class_name.isidentifier():
            raise PlanError(f"plan {self.name}: entry {self.entry!r}, expected FILE.py:ClassName with one of its files")

    @property
    def is_declarative(self) -> bool:
        """Does it run no code but the site's own?"""
        return self.recipe is not None

    def file(self, path: str) -> PlanFile:
        """The entry of one file.

        Raises:
            PlanError: the plan has no such file.
        """
        for file in self.files:
            if file.path == path:
                return file
        raise PlanError(f"plan {self.name} has no file {path}; it has {', '.join(f.path for f in self.files)}")

    def blobs(self) -> tuple[tuple[Digest, int], ...]:
        """Digest and size of each blob, each once: what an envoy has to have."""
        return tuple(dict.fromkeys((file.sha256, file.size) for file in self.files))

    def to_json(self) -> bytes:
        """The raw bytes of the manifest; the plan's digest is their SHA-256."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "name": self.name,
                "kind": self.kind.value,
                "entry": self.entry,
                "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
                "settings": dict(self.settings),
                "layout": self.layout,
                "data": self.data.to_document(),
                "fedveil": self.software,
            }
            | ({} if self.privacy is None else {"privacy": self.privacy.to_document()})
            | ({} if self.recipe is None else {"recipe": self.recipe.to_document()})
        )


def read_manifest(raw: bytes) -> Manifest:
    """Read a manifest strictly: the schema, every field, no other field, canonical bytes.

    Raises:
        MalformedMessageError: not such a manifest; the message says where.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise MalformedMessageError(f"a plan manifest of {len(raw)} bytes, at most {MAX_MANIFEST_BYTES} are taken")
    try:
        manifest = _manifest_of(json.loads(raw))
        canonical = manifest.to_json() == raw
    except (ValueError, TypeError, RecursionError, FederationError) as error:
        raise MalformedMessageError(f"not a plan manifest: {error}") from error
    if not canonical:
        raise MalformedMessageError("not a plan manifest: its JSON is not canonical (sorted keys, no spaces)")
    return manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose every byte was checked when it was opened."""

    folder: Path
    manifest: Manifest
    layout: Layout

    @property
    def digest(self) -> Digest:
        """The plan's digest."""
        return self.manifest.digest

    def blob_path(self, path: str) -> Path:
        """Where the bytes of one of the plan's files lie."""
        return blob_file(self.folder, self.manifest.file(path).sha256)

    def blob(self, path: str) -> bytes:
        """The bytes of one of the plan's files, checked again as they are read."""
        file = self.manifest.file(path)
        with _opened(self.blob_path(path), f"plan {self.manifest.name}: {path}") as opened:
            content = opened.read(file.size + 1)
        if digest_of(content) != file.sha256:
            raise PlanError(f"plan {self.manifest.name}: {path} was changed on disk; fetch the plan again")
        return content

    def initial(self) -> tuple[Vector, bytes]:
        """The initial weights (a read-only view of the file) and the exact tensors' bytes."""
        return read_model(self.layout, mapped(self.blob_path(INITIAL_FILE)))


def open_bundle(folder: Path, expected: Digest | None = None) -> Bundle:
    """Open a bundle and check the size and SHA-256 of every blob.

    Args:
        folder: holds ``manifest.json`` and ``blobs/``.
        expected: the digest the plan must have, if it is known.

    Raises:
        PlanError: a file is missing, or is not what the manifest says; the message names it.
        MalformedMessageError: the manifest or the layout is not one.
    """
    manifest = manifest_in(folder, expected)
    for plan_file in manifest.files:
        _check_blob(folder, manifest, plan_file)
    return Bundle(folder, manifest, _layout_of(folder, manifest))


def manifest_in(folder: Path, expected: Digest | None = None) -> Manifest:
    """The manifest of a bundle alone: nothing is said of its blobs.

    Raises:
        PlanError: there is none, or that of another plan.
        MalformedMessageError: it is no manifest.
    """
    with _opened(folder / MANIFEST_FILE, f"no plan bundle in {folder}: {MANIFEST_FILE}") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise PlanError(f"{folder / MANIFEST_FILE}: larger than the {MAX_MANIFEST_BYTES} bytes a manifest may have")
    manifest = read_manifest(raw)
    if expected is not None and manifest.digest != expected:
        raise PlanError(f"the bundle in {folder} holds plan {manifest.digest[:12]}, expected {expected[:12]}")
    return manifest


def write_bundle(
    folder: Path,
    *,
    name: str,
    kind: PlanKind,
    entry: str,
    sources: Mapping[str, bytes],
    settings: Mapping[str, Setting],
    layout: Layout,
    initial: tuple[Vector, bytes],
    data: DataSpec,
    software: str,
    privacy: DifferentialPrivacy | None = None,
    recipe: Recipe | None = None,
) -> Manifest:
    """Write a plan's bundle: blobs first, the manifest last, so that a torn bundle has no manifest.

    Raises:
        PlanError: what was given makes no manifest.
        LayoutMismatchError: the initial weights do not fit the layout.
    """
    pieces: dict[str, tuple[bytes | memoryview, ...]] = {path: (content,) for path, content in sources.items()}
    pieces |= {LAYOUT_FILE: (layout.to_json(),), INITIAL_FILE: model_pieces(layout, *initial)}
    files = tuple(
        PlanFile(path, sum(memoryview(part).nbytes for part in parts), digest_of(*parts))
        for path, parts in sorted(pieces.items())
    )
    manifest = Manifest(name, kind, entry, files, settings, layout.digest, data, software, privacy, recipe)
    for file in files:
        _write_atomically(blob_file(folder, file.sha256), pieces[file.path])
    _write_atomically(folder / MANIFEST_FILE, (manifest.to_json(),))
    return manifest


def store_manifest(folder: Path, raw: bytes) -> Manifest:
    """Begin a bundle from downloaded bytes; the blobs that ``missing_blobs`` names follow.

    Raises:
        MalformedMessageError: not a manifest; nothing is written.
    """
    manifest = read_manifest(raw)
    _write_atomically(folder / MANIFEST_FILE, (raw,))
    return manifest


def adopt_blob(folder: Path, digest: Digest, downloaded: Path) -> Path:
    """Move a downloaded file into a bundle, without reading it into memory.

    Raises:
        PlanError: the bytes are not those of the digest; the file stays where it is.
    """
    with _opened(downloaded, f"blob {digest[:12]}") as file:
        found = _digest_of_file(file)
    if found != digest:
        raise PlanError(f"blob {digest[:12]}: the file that came has another SHA-256; fetch it again")
    path = blob_file(folder, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    downloaded.replace(path)
    return path


def missing_blobs(folder: Path, manifest: Manifest) -> tuple[tuple[Digest, int], ...]:
    """Digest and size of the blobs that are not there yet, or not in their full length."""
    return tuple(blob for blob in manifest.blobs() if _size_of(blob_file(folder, blob[0])) != blob[1])


def blob_file(folder: Path, digest: Digest) -> Path:
    """Where a bundle keeps a blob."""
    return folder / BLOBS_FOLDER / digest


def mapped(path: Path) -> memoryview:
    """A file's bytes as a read-only view, paged in as they are used.

    Raises:
        PlanError: the file is missing or empty.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from error


def _manifest_of(document: object) -> Manifest:
    whole = _of(dict, document, "the manifest")
    privacy, recipe = whole.get("privacy"), whole.get("recipe")  # plans without them have the bytes they always had
    rest = {key: value for key, value in whole.items() if key not in ("privacy", "recipe") or value is None}
    top = _fields(rest, "schema name kind entry files settings layout data fedveil", "the manifest")
    if top["schema"] != SCHEMA:
        raise ValueError(f"schema {top['schema']!r}, expected {SCHEMA!r}")
    files = [_fields(file, "path size sha256", "a file") for file in _of(list, top["files"], "files")]
    return Manifest(
        name=_of(str, top["name"], "name"),
        kind=PlanKind(top["kind"]),
        entry=_of(str, top["entry"], "entry"),
        files=tuple(
            PlanFile(_of(str, f["path"], "path"), _of(int, f["size"], "size"), Digest(_of(str, f["sha256"], "sha256")))
            for f in files
        ),
        settings=_of(dict, top["settings"], "settings"),
        layout=Digest(_of(str, top["layout"], "layout")),
        data=DataSpec.from_document(_of(dict, top["data"], "data")),
        software=_of(str, top["fedveil"], "fedveil"),
        privacy=None if privacy is None else DifferentialPrivacy.from_document(_of(dict, privacy, "privacy")),
        recipe=None if recipe is None else Recipe.from_document(recipe),
    )


def _fields(value: object, names: str, where: str) -> dict[str, object]:
    found, expected = _of(dict, value, where), set(names.split())
    if set(found) != expected:
        raise ValueError(f"{where} has fields {sorted(found)}, expected {sorted(expected)}")
    return found


def _of(kind: type[_T], value: object, where: str) -> _T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _check_setting(name: str, value: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise PlanError(f"setting {name!r}: expected the name of a field")
    if not isinstance(value, bool | int | float | str):
        raise PlanError(f"setting {name}: expected a number, true or false, or text, got {type(value).__name__}")
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise PlanError(f"setting {name}: {value} is not finite, or does not fit 64 bits")


def _check_blob(folder: Path, manifest: Manifest, plan_file: PlanFile) -> None:
    path, where = blob_file(folder, plan_file.sha256), f"plan {manifest.name}: {plan_file.path}"
    size = _size_of(path)
    if size is None:
        raise PlanError(f"{where} is missing (blob {plan_file.sha256[:12]}); fetch or build the plan again")
    with _opened(path, where) as file:
        size = os.fstat(file.fileno()).st_size
        if size != plan_file.size:
            raise PlanError(f"{where} has {size} bytes, expected {plan_file.size}; fetch or build the plan again")
        found = _digest_of_file(file)
    if found != plan_file.sha256:
        raise PlanError(f"{where} has SHA-256 {found[:12]}, expected {plan_file.sha256[:12]}; fetch the plan again")


def _layout_of(folder: Path, manifest: Manifest) -> Layout:
    """The layout, whose numbers fit the length of the file of weights: nothing is allocated for numbers alone."""
    file, name = manifest.file(LAYOUT_FILE), f"plan {manifest.name}"
    if file.size > MAX_LAYOUT_BYTES:
        raise PlanError(f"{name}: {LAYOUT_FILE} has {file.size} bytes, expected {MAX_LAYOUT_BYTES} at most")
    with _opened(blob_file(folder, file.sha256), f"{name}: {LAYOUT_FILE}") as opened:
        layout = Layout.from_json(opened.read(file.size))
    if layout.digest != manifest.layout:
        raise PlanError(f"{name}: {LAYOUT_FILE} is layout {layout.digest[:12]}, not {manifest.layout[:12]}")
    initial, header = manifest.file(INITIAL_FILE), model_header(layout)
    with _opened(blob_file(folder, initial.sha256), f"{name}: {INITIAL_FILE}") as opened:
        if initial.size != model_num_bytes(layout) or opened.read(len(header)) != header:
            raise PlanError(
                f"{name}: {INITIAL_FILE} is no model of its layout ({initial.size} bytes, expected"
                f" {model_num_bytes(layout)}); build the plan again"
            )
    return layout


def _opened(path: Path, where: str) -> BufferedReader:
    """A regular file, opened to be read; links are not followed, and nothing is waited for.

    Raises:
        PlanError: it is not there, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PlanError(f"{where} is a link; bundles hold plain files") from error
        raise PlanError(f"{where} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PlanError(f"{where} is no plain file")
    return os.fdopen(descriptor, "rb")


def _size_of(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return None


def _digest_of_file(file: BufferedReader) -> Digest:
    return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _write_atomically(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(pieces)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
