"""Fetch a plan's bundle and each round's model, in pieces that survive a broken line.

A download that broke goes on where it stopped. What comes is checked against the digest that was asked for before
anything reads it, and against the announced length before anything is allocated for it.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

from ..utils import messages as m
from ..utils.errors import DigestMismatchError, LengthMismatchError, MalformedMessageError, PlanError, StorageError
from ..utils.plan_bundle import (
    MAX_MANIFEST_BYTES,
    Bundle,
    adopt_blob,
    blob_file,
    missing_blobs,
    open_bundle,
    store_manifest,
)
from ..utils.tensors import Digest, model_num_bytes
from .link import Link
from .patience import Patience

_MAX_DAMAGED = 3


class Fetcher:
    """Keeps plans by digest and one model, in folders of the envoy.

    Args:
        link: the director.
        folder: the envoy's; ``plans/`` and ``work/`` lie in it.
        max_bytes: a larger model or blob is refused before a byte of it is taken.
    """

    def __init__(self, link: Link, folder: Path, max_bytes: int) -> None:
        self._link, self._max_bytes = link, max_bytes
        self._plans, self._work = folder / "plans", folder / "work"
        self._work.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._bundles: dict[Digest, Bundle] = {}
        self._model: Digest | None = None  # what work/model.safetensors holds, as far as this process knows

    def plan(self, ref: m.TaskRef, patience: Patience) -> Bundle:
        """The plan of a task, every byte of it checked.

        Raises:
            PlanError, MalformedMessageError: what the director has under that digest is no plan.
            StorageError: the disk is full.
        """
        if ref.plan in self._bundles:
            return self._bundles[ref.plan]
        try:
            bundle = self._fetch_plan(ref, patience)
        except OSError as error:
            raise StorageError(f"a plan cannot be kept at this site: {error.strerror}") from error
        self._bundles[ref.plan] = bundle
        return bundle

    def _fetch_plan(self, ref: m.TaskRef, patience: Patience) -> Bundle:
        folder = self._plans / ref.plan
        arriving = self._work / "arriving"
        manifest_path = self._fetch(ref, ref.plan, arriving, MAX_MANIFEST_BYTES, patience)
        manifest = store_manifest(folder, manifest_path.read_bytes())
        for digest, size in missing_blobs(folder, manifest):
            if size > self._max_bytes:
                raise PlanError(
                    f"plan {manifest.name} holds a file of {size} bytes; this envoy takes {self._max_bytes}"
                )
            adopt_blob(folder, digest, self._fetch(ref, digest, arriving, size, patience))
        return open_bundle(folder, ref.plan)

    def model(self, task: m.Task, bundle: Bundle, patience: Patience) -> Path:
        """The file that holds a task's model.

        Raises:
            LengthMismatchError: the model is not as long as the plan's layout makes it.
            DigestMismatchError: it came damaged, three times.
        """
        expected = model_num_bytes(bundle.layout)
        if task.model_bytes != expected or task.layout != bundle.layout.digest:
            raise LengthMismatchError(
                f"{task.ref} announces a model of {task.model_bytes} bytes, the plan's has {expected} bytes"
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
            UnreachableError: the line broke; call again.
            LengthMismatchError: longer than it may be.
        """
        parts = link.download(m.DownloadRequest(digest, self.offset, ref))
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
