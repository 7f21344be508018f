"""The dataset of the plan at work, as the envoy hands it to the child: read once by a process of its own, and kept.

Reading is apart from the envoy because it may take long and take much memory: a veto ends it, and the memory is given
back. Whether the file that is here fits an order follows from dataset and declaration alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..utils import errors
from ..utils.data_spec import DataKind
from ..utils.errors import DatasetError, StorageError, TrainingError
from ..utils.plan_bundle import Manifest
from ..utils.tensors import Digest, canonical_json, digest_of
from .exposed_data import new_file
from .orders import WorkOrder
from .suppression import Scheme

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05  # how often a withdrawal is looked for


@dataclass(frozen=True, slots=True)
class Exposed:
    """What a plan may see of a dataset, as an open file."""

    key: Digest  # of dataset and declaration: the same key means the same content
    file: int  # its descriptor
    scheme: Scheme | None = None  # what may be told by subgroups; None where nothing is


class Exposures:
    """Keeps one exposed dataset, of the plan at work.

    ``of`` and ``forget`` may be called by one thread at a time, ``kill`` by any.
    """

    def __init__(self) -> None:
        self._kept: Exposed | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def of(self, order: WorkOrder, manifest: Manifest, deadline: float, cancelled: threading.Event) -> Exposed | None:
        """What an order's plan may see; the file stays ours. None where the plan reads no data.

        Raises:
            DatasetError: as ``expose``.
            TrainingError: withdrawn, or not read before the deadline (``time.monotonic``).
            StorageError: no room.
        """
        if manifest.data.kind is DataKind.NONE:
            return None
        request = _request(order, manifest)
        key = digest_of(canonical_json(request))
        if self._kept is None or self._kept.key != key:
            self.forget()
            file = new_file()
            try:
                answer = self._read(request, order, file, deadline, cancelled)
            except BaseException:
                os.close(file)
                raise
            scheme = Scheme.from_json(answer["scheme"]) if "scheme" in answer else None
            if answer.get("left_out"):
                _LOG.warning("subgroups that cannot be told of this data set: %s", ", ".join(answer["left_out"]))
            self._kept = Exposed(key, file, scheme)
        return self._kept

    def forget(self) -> None:
        """Let the file go."""
        if self._kept is not None:
            os.close(self._kept.file)
        self._kept = None

    def kill(self) -> None:
        """End a reading that runs, from any thread."""
        child = self._child
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()

    def _read(
        self, request: dict[str, Any], order: WorkOrder, file: int, deadline: float, cancelled: threading.Event
    ) -> dict[str, Any]:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedveil.envoy.exposing", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(file,),
            )
        except OSError as error:
            raise StorageError(f"the process that reads datasets cannot be started: {error.strerror}") from error
        self._child = child
        threading.Thread(target=_watch, args=(child, deadline, cancelled), daemon=True).start()
        try:
            answer, _ = child.communicate(json.dumps(request).encode())
        finally:
            self._child = None
        if cancelled.is_set():
            raise TrainingError(f"{order.ref}: withdrawn while the dataset was read")
        if time.monotonic() >= deadline:
            raise TrainingError(f"{order.ref}: the dataset was not read in time")
        return _successful(answer, child.returncode)


def _watch(child: subprocess.Popen[bytes], deadline: float, cancelled: threading.Event) -> None:
    while child.poll() is None:
        if time.monotonic() >= deadline or cancelled.wait(_LOOK_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            return


def _successful(answer: bytes, code: int) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise StorageError(
            f"the process that reads datasets ended with code {code}; is there enough memory for the dataset?"
        ) from error
    if "error" in document:
        name = document["error"]
        kind = getattr(errors, name) if name in errors.__all__ else DatasetError
        raise kind(document["message"])
    return document


def _request(order: WorkOrder, manifest: Manifest) -> dict[str, Any]:
    privacy = manifest.privacy
    return {
        "record": order.dataset.to_json().decode() if order.dataset else None,
        "index_path": str(order.index_path) if order.index_path else None,
        "data": manifest.data.to_document(),
        "privacy": None if privacy is None else privacy.to_document(),
        "fairness": None if order.fairness is None or privacy is not None else order.fairness.to_json(),
    }
