"""One task, as the researcher who started it sees it: what happens, how it is steered, what came of it."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...utils.errors import FederationError, MalformedMessageError, UnreachableError
from ...utils.messages import RunId
from ...utils.proposal import Step, sign
from ...utils.rest_calls import RestCalls
from ...utils.rest_downloads import download
from ...utils.signed_document import SignedDocument
from ...utils.tensors import Digest
from ..proposals import next_patch
from .own_key import Signer

_OVER = frozenset({"finished", "failed", "stopped"})
_LOOKS_AFTER_SECONDS = 1.0  # a line that broke is opened again after so long
_MOST_BREAKS = 30  # one after the other, without an event between them
_SILENCE_SECONDS = 60.0  # the director says something every few seconds, if only that it is there


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task."""

    id: str  # what to go on after; how far an open round is has the id of what came before it
    kind: str  # "state", "round" or "metrics"
    data: Mapping[str, Any]


class Run:
    """A task of the federation. Made by ``Federation.submit`` and ``Federation.run``.

    Args:
        calls: as its researcher.
        task_id: the task.
        signer: gives the researcher's certified key.
    """

    def __init__(self, calls: RestCalls, task_id: str, signer: Callable[[], Signer]) -> None:
        self._calls, self.id, self._signer = calls, task_id, signer
        self._path = f"/api/v1/tasks/{task_id}"

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def show(self) -> dict[str, Any]:
        """The task as it is: its state, rounds and subtasks."""
        return dict(self._calls.json("GET", self._path))

    @property
    def is_over(self) -> bool:
        """Has it ended?"""
        return self.show()["state"] in _OVER

    def stream(self, after: str = "") -> Iterator[Event]:
        """What happens, as it happens, until the task is over; a line that breaks is opened again where it broke.

        Args:
            after: the id of the last event that is known; "": from the first on.

        Raises:
            UnreachableError: the director did not come back for half a minute.
            FederationError: as the director refuses it.
        """
        breaks = 0
        while True:
            try:
                for event in self._events(after):
                    after, breaks = event.id or after, 0
                    yield event
                if self.is_over:
                    return
            except UnreachableError:
                breaks += 1
                if breaks > _MOST_BREAKS:
                    raise
            time.sleep(_LOOKS_AFTER_SECONDS)

    def wait(self) -> dict[str, Any]:
        """Until the task is over; then as it is.

        Raises:
            FederationError: as ``stream``.
        """
        for _ in self.stream():
            pass
        return self.show()

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Of the rounds that closed: each metric's (round, value), pooled over the sites."""
        found: dict[str, list[tuple[int, float]]] = {}
        for one in self.show()["rounds"]:
            for name, value in one["metrics"].items():
                found.setdefault(name, []).append((one["round"], value))
        return found

    # ------------------------------------------------------------ steering

    def pause(self, reason: str = "") -> dict[str, Any]:
        """No further round begins."""
        return self._patch(Step.PAUSE, reason=reason)

    def resume(self, reason: str = "") -> dict[str, Any]:
        """Go on."""
        return self._patch(Step.RESUME, reason=reason)

    def stop(self, reason: str = "") -> dict[str, Any]:
        """End it now; the model of its last closed round stays."""
        return self._patch(Step.STOP, reason=reason)

    def roll_back(self, to_round: int, reason: str = "") -> dict[str, Any]:
        """The next round begins with the model that an earlier one gave."""
        return self._patch(Step.ROLL_BACK, to_round=to_round, reason=reason)

    def steer(
        self,
        *,
        sites: Iterable[str] | None = None,
        stop: Mapping[str, float] = MappingProxyType({}),
        reason: str = "",
        **settings: float,
    ) -> dict[str, Any]:
        """Change settings from the next round on, by a patch that one signs and every site checks.

        Args:
            sites: who is asked.
            stop: the stop rule's settings.
            reason: kept with the patch.
            settings: the plan's: ``learning_rate``, ``local_epochs``, ``batch_size``, ``proximal_mu``.

        Raises:
            ProtocolError, ConfigError: the director does not take it, or another was first.
            MalformedMessageError: a value that it cannot have.
        """
        return self._patch(Step.SET, settings=settings, sites=sites, stop=stop, reason=reason)

    # ------------------------------------------------------------ what came of it

    def model(self, target: str | Path | None = None) -> dict[str, NDArray[Any]]:
        """The task's present model, by tensor; its SHA-256 is checked.

        Args:
            target: where its file (safetensors) is to lie; None: it is read, and not kept.

        Raises:
            DigestMismatchError, MalformedMessageError: what came is not it, or no model.
            FederationError: as the director refuses it.
        """
        digest = self.show()["model_digest"]
        if digest is None:
            raise FederationError(f"{self.id} has no model yet")
        if target is not None:
            return self._fetched(Path(target), digest)
        with tempfile.TemporaryDirectory(prefix="fedveil-") as folder:
            return self._fetched(Path(folder, "model.safetensors"), digest)

    def privacy_report(self) -> dict[str, Any]:
        """What the task cost in privacy, as far as sites publish it."""
        return dict(self._calls.json("GET", f"{self._path}/privacy-report"))

    def remarks(self) -> Iterator[dict[str, Any]]:
        """What was said of the task, in order."""
        return self._calls.items(f"{self._path}/remarks")

    def remark(self, text: str, *, answers: int | None = None) -> dict[str, Any]:
        """Say something of the task, for all of its collaboration; ``answers`` is the number of an earlier remark.

        Raises:
            FederationError: as the director refuses it.
        """
        return dict(self._calls.json("POST", f"{self._path}/remarks", {"text": text, "answers": answers}))

    # ------------------------------------------------------------ pieces

    def _fetched(self, path: Path, digest: str) -> dict[str, NDArray[Any]]:
        download(self._calls, f"{self._path}/model", path, Digest(digest))
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise MalformedMessageError(f"{path.name} is no model: {error}") from error

    def _events(self, after: str) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        path = f"{self._path}/events"
        with self._calls.open("GET", path, headers=headers, read_seconds=_SILENCE_SECONDS) as answer:
            try:
                for one in EventSource(answer).iter_sse():
                    yield Event(one.id, one.event, _object(one.data))
            except (SSEError, httpx.DecodingError) as error:
                raise UnreachableError(f"{self._calls.url} answers with no stream of events") from error

    def _patch(self, step: Step, **more: Any) -> dict[str, Any]:
        signer, task = self._signer(), self.show()
        proposal = None if task["proposal_digest"] is None else Digest(task["proposal_digest"])
        patch = next_patch(RunId(self.id), proposal, task["patches"], step, signer.peer, time.time(), **more)
        body = as_body(sign(patch, signer.key, signer.chain))
        return dict(self._calls.json("POST", f"{self._path}/patches", body))


def as_body(document: SignedDocument) -> dict[str, str]:
    """A signed document as it goes over HTTP."""
    return {
        "content": base64.b64encode(document.content).decode("ascii"),
        "signature": base64.b64encode(document.signature).decode("ascii"),
        "chain": document.chain.decode("ascii"),
    }


def _object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise UnreachableError("an event that is no JSON object") from error
