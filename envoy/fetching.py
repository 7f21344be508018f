"""Fetch a plan's bundle, a run's codec and each round's model, in pieces that survive a broken line.

A download that broke goes on where it stopped. What comes is checked against the digest that was asked for before
anything reads it, and against the announced length before anything is allocated for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

from ..gradient_leakage.vae.codec import Codec, read_codec
from ..gradient_leakage.vae.fitting import DENSE
from ..utils import messages as m
from ..utils.errors import (
    ConfigError,
    DigestMismatchError,
    LayoutMismatchError,
    LengthMismatchError,
    MalformedMessageError,
    PlanError,
    StorageError,
)
from ..utils.plan_bundle import (
    LAYOUT_FILE,
    MAX_LAYOUT_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    Manifest,
    adopt_blob,
    blob_file,
    missing_blobs,
    open_bundle,
    read_manifest,
    store_manifest,
)
from ..utils.tensors import Digest, Layout, model_num_bytes
from .link import Link
from .patience import Patience, asking_the_director

CODECS_FOLDER, PLANS_FOLDER = "codecs", "plans"
_MAX_DAMAGED = 3
_MAX_PLANS = 8  # kept at the site, the newest used ones
_MAX_CODEC_HEADER = 1 << 20  # a codec says what its parameters are
_MAX_DENSE_BYTES = 256 << 20  # of a codec's parameters where it codes all of a small update at once


class Fetcher:
    """Keeps plans by digest, one codec and one model, in folders of the envoy.

    Args:
        link: the director.
        folder: the envoy's; ``plans/`` and ``work/`` lie in it.
        max_bytes: a larger model, or a plan whose files are larger together, is refused before a byte of it is taken.
        kept: plans and codecs that make no room for others.
    """

    def __init__(
        self, link: Link, folder: Path, max_bytes: int, kept: Callable[[], Collection[Digest]] = frozenset
    ) -> None:
        self._link, self._max_bytes, self._kept = link, max_bytes, kept
        self._codecs = folder / CODECS_FOLDER
        self._run: m.RunId | None = None
        self._plans, self._work = folder / PLANS_FOLDER, folder / "work"
        self._work.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._bundles: dict[Digest, Bundle] = {}
        self._codec: Codec | None = None
        self._model: Digest | None = None  # what work/model.safetensors holds, as far as this process knows

    def plan(self, ref: m.TaskRef, patience: Patience) -> Bundle:
        """The plan of a task, every byte of it checked.

        Raises:
            PlanError, MalformedMessageError: what the director has under that digest is no plan.
            StorageError: the disk is full.
        """
        try:
            if ref.run != self._run:  # every byte is checked again for each run
                self._bundles.clear()
            bundle = self._bundles.get(ref.plan) or self._fetch_plan(ref, patience)
            self._run = ref.run
            os.utime(bundle.folder)  # used last
        except OSError as error:
            raise StorageError(f"a plan cannot be kept at this site: {error.strerror}") from error
        self._bundles[ref.plan] = bundle
        return bundle

    def _fetch_plan(self, ref: m.TaskRef, patience: Patience) -> Bundle:
        folder = self._plans / ref.plan
        arriving = self._work / "arriving"
        manifest_path = self._fetch(ref, ref.plan, arriving, MAX_MANIFEST_BYTES, patience)
        raw = manifest_path.read_bytes()
        self._check_sizes(read_manifest(raw))
        self._forget_old_plans(ref.plan)
        manifest = store_manifest(folder, raw)
        for digest, size in missing_blobs(folder, manifest):
            adopt_blob(folder, digest, self._fetch(ref, digest, arriving, size, patience))
        return open_bundle(folder, ref.plan)

    def _check_sizes(self, manifest: Manifest) -> None:
        size = sum(size for _, size in manifest.blobs())
        if size > self._max_bytes:
            raise PlanError(f"plan {manifest.name} holds {size} bytes; this envoy takes {self._max_bytes} at most")
        size = manifest.file(LAYOUT_FILE).size
        if size > MAX_LAYOUT_BYTES:
            raise PlanError(
                f"plan {manifest.name}: {LAYOUT_FILE} has {size} bytes, expected {MAX_LAYOUT_BYTES} at most"
            )

    def _forget_old_plans(self, coming: Digest) -> None:
        """Make room for one more; the envoy does one task at a time, so that no other plan is in use."""
        needed = self._kept()
        kept = [path for path in self._plans.glob("*") if path.name != coming and path.name not in needed]
        kept.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in kept[_MAX_PLANS - 1 :]:
            self._bundles.pop(Digest(path.name), None)
            shutil.rmtree(path)

    def model(self, task: m.Task, bundle: Bundle, patience: Patience) -> Path:
        """The file that holds a task's model.

        Raises:
            LengthMismatchError: the model is not as long as the plan's layout makes it, or longer than may be taken.
            DigestMismatchError: it came damaged, three times.
        """
        expected = model_num_bytes(bundle.layout)
        if task.model_bytes != expected or task.layout != bundle.layout.digest:
            raise LengthMismatchError(
                f"{task.ref} announces a model of {task.model_bytes} bytes, the plan's has {expected} bytes"
            )
        if expected > self._max_bytes:
            raise LengthMismatchError(
                f"{task.ref} has a model of {expected} bytes; this envoy takes {self._max_bytes} bytes at most"
            )
        initial = blob_file(bundle.folder, task.model)
        if initial.exists():
            return initial
        path = self._work / "model.safetensors"
        if self._model != task.model:
            self._model = None
            self._fetch(task.ref, task.model, path, expected, patience)
            self._model = task.model
        return path

    @property
    def codec_path(self) -> Path:
        """Where the codec lies that was fetched last."""
        return self._work / "codec.safetensors"

    def codec(self, task: m.Task, bundle: Bundle, patience: Patience) -> Codec:
        """The codec of a task.

        Raises:
            ConfigError: the task names none.
            LayoutMismatchError: it is another model's.
            LengthMismatchError: longer than a codec of its model can be.
            MalformedMessageError: what the director has under that digest is no codec.
            StorageError: the disk is full.
        """
        if task.codec is None:
            raise ConfigError(f"{task.ref} asks for codes and names no codec")
        if self._codec is None or self._codec.digest != task.codec:
            most = min(_most_codec_bytes(bundle.layout), self._max_bytes)
            path = self._fetch(task.ref, task.codec, self.codec_path, most, patience)
            try:
                self._codec = read_codec(path.read_bytes())
            except OSError as error:
                raise StorageError(f"a codec cannot be kept at this site: {error.strerror}") from error
        if self._codec.digest != task.codec:
            raise DigestMismatchError(f"codec {task.codec[:12]}… was changed while it was read")
        if self._codec.layout != bundle.layout:
            raise LayoutMismatchError(
                f"codec {task.codec[:12]}… is for layout {self._codec.layout.digest[:12]}…, the plan's is"
                f" {bundle.layout.digest[:12]}…"
            )
        return self._codec

    def proposed(self, ref: m.TaskRef, codec: Digest | None, patience: Patience) -> Bundle:
        """What a proposal names: its plan, and its codec into ``codecs/``. Nothing of them runs.

        Raises:
            PlanError, MalformedMessageError, LayoutMismatchError, LengthMismatchError: they are not right.
            StorageError: the disk is full.
        """
        bundle = self.plan(ref, patience)
        if codec is not None:
            path = self._codecs / f"{codec}.safetensors"
            try:
                self._codecs.mkdir(exist_ok=True, mode=0o700)
                for other in self._codecs.glob("*.safetensors"):
                    if other.stem not in {codec, *self._kept()}:
                        other.unlink()
                self._fetch(ref, codec, path, min(_most_codec_bytes(bundle.layout), self._max_bytes), patience)
                held = read_codec(path.read_bytes())
            except OSError as error:
                raise StorageError(f"a codec cannot be kept at this site: {error.strerror}") from error
            if held.layout != bundle.layout:
                raise LayoutMismatchError(f"codec {codec[:12]}… is not for the plan that is proposed with it")
        return bundle

    def artifact(self, ref: m.TaskRef, digest: Digest, path: Path, most: int, patience: Patience) -> Path:
        """Anything that the director has under a digest, into a file of its own; safe beside other threads.

        Raises:
            LengthMismatchError: longer than it may be.
            DigestMismatchError: it came damaged, three times.
            StorageError: the disk is full.
        """
        return self._fetch(ref, digest, path, most, patience)

    def _fetch(self, ref: m.TaskRef, digest: Digest, path: Path, most: int, patience: Patience) -> Path:
        for _ in range(_MAX_DAMAGED):
            download = _Download(path, most)
            try:
                patience.insist(partial(download.resume, self._link, digest, ref))
                if download.digest == digest:
                    return path
            finally:
                download.close()
        raise DigestMismatchError(
            f"{digest[:12]}… came damaged {_MAX_DAMAGED} times; is the director's disk all right?"
        )


class _Download:
    """One file that arrives; written over what was there, so that its pages stay warm."""

    def __init__(self, path: Path, most: int) -> None:
        self._most, self.offset, self._sha = most, 0, hashlib.sha256()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def digest(self) -> Digest:
        """Of what is here."""
        return Digest(self._sha.hexdigest())

    def resume(self, link: Link, digest: Digest, ref: m.TaskRef) -> None:
        """Take what is missing.

        Raises:
            UnreachableError: the line broke, or the director has no room; call again.
            LengthMismatchError: longer than it may be.
        """
        parts = _parts(link, m.DownloadRequest(digest, self.offset, ref))
        opening = next(parts, None)
        if not isinstance(opening, m.Opening) or opening.offset != self.offset:
            raise MalformedMessageError(f"a download of {digest[:12]}… does not open at {self.offset}")
        if opening.length > self._most:
            raise LengthMismatchError(f"{digest[:12]}… has {opening.length} bytes, expected {self._most} at most")
        if not self.offset:
            self._make_room(opening.length)
        for part in parts:
            if not isinstance(part, m.Data) or self.offset + len(part.content) > opening.length:
                raise MalformedMessageError(f"the download of {digest[:12]}… is not {opening.length} bytes of data")
            self._write(part.content)
        if self.offset != opening.length:
            raise LengthMismatchError(f"the download of {digest[:12]}… ended at {self.offset} bytes")

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def _write(self, content: memoryview | bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                written = os.pwrite(self._file, rest, self.offset)
                self._sha.update(rest[:written])
                self.offset, rest = self.offset + written, rest[written:]
        except OSError as error:
            raise StorageError(f"a download cannot be kept at this site: {error.strerror}") from error

    def _make_room(self, length: int) -> None:
        try:
            if os.fstat(self._file).st_size != length:
                os.ftruncate(self._file, length)
                if length:
                    os.posix_fallocate(self._file, 0, length)
        except OSError as error:
            raise StorageError(f"no room for {length} bytes at this site: {error.strerror}") from error


def _parts(link: Link, request: m.DownloadRequest) -> Iterator[m.Part]:
    with asking_the_director():
        yield from link.download(request)


def _most_codec_bytes(layout: Layout) -> int:
    """Of a codec's file: as many parameters as the model; small updates may be coded whole, a row for each number."""
    if layout.size > DENSE:
        return model_num_bytes(layout) + _MAX_CODEC_HEADER
    return min(layout.size * layout.num_bytes, _MAX_DENSE_BYTES) + _MAX_CODEC_HEADER
