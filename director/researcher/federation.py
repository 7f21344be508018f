"""``fedveil.connect``: a federation as a researcher sees it, over its REST API."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ...utils.config import parse_toml
from ...utils.errors import ConfigError, PlanError, UnknownEntityError
from ...utils.plan_bundle import Bundle
from ...utils.proposal import sign
from ...utils.proxies import Proxy
from ...utils.rest_calls import RestCalls
from ...utils.rest_downloads import download
from ...utils.tensors import Digest
from ..experiments import ExperimentSettings
from ..operator_client import open_codec, open_submission
from ..proposals import propose
from .own_key import Signer, signer_of
from .run import Run, as_body

URL, KEY, ROOT, FOLDER = "FEDVEIL_URL", "FEDVEIL_API_KEY", "FEDVEIL_ROOT", "FEDVEIL_RESEARCHER"
_PIECE_BYTES = 1 << 20


def connect(
    url: str | None = None,
    api_key: str | None = None,
    *,
    name: str | None = None,
    password: str | None = None,
    code: str = "",
    root: str | Path | None = None,
    folder: str | Path | None = None,
    proxy: Proxy | None = None,
) -> Federation:
    """Connect to a federation, by an API key or by name and password.

    Args:
        url: of the REST API, ``https://host:port``; None: what ``FEDVEIL_URL`` says.
        api_key: None: what ``FEDVEIL_API_KEY`` says, if no name is given.
        name: of a user, to sign in with a password instead.
        password: the user's.
        code: of the user's authenticator app.
        root: file with the federation's root certificate (PEM); None: what ``FEDVEIL_ROOT`` says. Nothing else is
            believed: get it from the director's operator, and compare its fingerprint.
        folder: where the researcher's signing key lies; None: what ``FEDVEIL_RESEARCHER`` says, or a folder of the
            federation's address in ``~/.fedveil``. Made where there is none.
        proxy: the way out; None: directly.

    Raises:
        ConfigError: something is said nowhere, or a file cannot be read.
        IdentityError: key, name, password or code is not right.
        UnreachableError: no director of that root answers.
    """
    url = _said(url, URL, "the REST API's address, https://host:port")
    path = Path(_said(None if root is None else str(root), ROOT, "the file with the federation's root certificate"))
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"root {path}: cannot be read: {error.strerror}") from error
    bearer = "" if name is not None else _said(api_key, KEY, "an API key (or name and password)")
    calls = RestCalls(url, bearer, pem, proxy)
    try:
        if name is not None:
            asked = {"name": name, "password": password or "", "code": code}
            calls.bearer = calls.json("POST", "/api/v1/sessions", asked)["token"]
        return Federation(calls, pem, _folder(folder, url))
    except BaseException:
        calls.close()
        raise


class Federation:
    """A federation, as one user sees it. Made by ``connect``; a context manager.

    Args:
        calls: to its director.
        root: its root certificate, PEM.
        folder: of the researcher's key.
    """

    def __init__(self, calls: RestCalls, root: bytes, folder: Path) -> None:
        self._calls, self._root, self._folder = calls, root, folder
        self.me: dict[str, Any] = calls.json("GET", "/api/v1/me")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is open."""
        self._calls.close()

    def organizations(self) -> Iterator[dict[str, Any]]:
        """Who takes part."""
        return self._calls.items("/api/v1/organizations")

    def collaborations(self) -> Iterator[dict[str, Any]]:
        """Those of one's organization, each with its permit."""
        return self._calls.items("/api/v1/collaborations")

    def datasets(self) -> Iterator[dict[str, Any]]:
        """What the sites say that they have."""
        return self._calls.items("/api/v1/datasets")

    def tasks(self) -> Iterator[dict[str, Any]]:
        """All that one may see, without their rounds."""
        return self._calls.items("/api/v1/tasks")

    def models(self) -> Iterator[dict[str, Any]]:
        """What is in the registry."""
        return self._calls.items("/api/v1/models")

    def run(self, task_id: str) -> Run:
        """A task that was submitted before.

        Raises:
            UnknownEntityError: there is none, or it may not be seen.
        """
        run = Run(self._calls, task_id, self.signer)
        run.show()
        return run

    def submit(self, experiment: str | Path, *, collaboration: str, plan: Bundle | None = None) -> Run:
        """Propose an experiment to the sites of a collaboration; it runs once enough of them approved.

        Args:
            experiment: experiment.toml, beside the plan and the codec that it names.
            collaboration: its id or its name.
            plan: instead of the one that the file names.

        Raises:
            ConfigError, PlanError: the experiment or its plan is not right, or cannot be read.
            AgreementError: no permit or agreement lets one start it.
            FederationError: as the director refuses it.
        """
        file = Path(experiment)
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read") from error
        settings = parse_toml(text, ExperimentSettings, str(file))
        bundle, codec = plan or open_submission(file, settings.plan), open_codec(file, settings.codec)
        id_ = self._collaboration(collaboration)
        self._bring(bundle, codec, settings.codec.digest if settings.codec else None)
        signer, manifest = self.signer(), bundle.manifest
        proposal = propose(settings, text, manifest, signer.peer.federation, signer.peer, time.time())
        asked = {
            "collaboration_id": id_,
            "experiment": text,
            "plan_digest": manifest.digest,
            "proposal": as_body(sign(proposal, signer.key, signer.chain)),
        }
        made = self._calls.json("POST", "/api/v1/tasks", asked)
        return Run(self._calls, made["task_id"], self.signer)

    def show_plan(self, plan: Bundle, *, collaboration: str) -> None:
        """Let a collaboration see and review a plan before an experiment of it is submitted.

        Args:
            plan: as it was built.
            collaboration: its id or its name.

        Raises:
            FederationError: as the director refuses it.
        """
        id_ = self._collaboration(collaboration)
        self._bring(plan, None, None)
        self._calls.json("PUT", f"/api/v1/plans/{plan.manifest.digest}/collaborations/{id_}")

    def remarks(self, plan: Bundle) -> Iterator[dict[str, Any]]:
        """What was said of a plan, reviewers' verdicts too, in order."""
        return self._calls.items(f"/api/v1/plans/{plan.manifest.digest}/remarks")

    def remark(
        self, plan: Bundle, text: str, *, verdict: str | None = None, answers: int | None = None
    ) -> dict[str, Any]:
        """Say something of a plan; a reviewer's ``verdict``, by name and password, is ``approved`` or ``rejected``.

        Raises:
            FederationError: as the director refuses it.
        """
        body = {"text": text, "verdict": verdict, "answers": answers}
        return dict(self._calls.json("POST", f"/api/v1/plans/{plan.manifest.digest}/remarks", body))

    def model(self, name: str, version: str = "latest") -> dict[str, Any]:
        """A model of the registry, by name and version: its card and lineage.

        Raises:
            UnknownEntityError: there is none.
        """
        found = [one for one in self.models() if one["name"] == name]
        if version == "latest":
            found.sort(key=lambda one: tuple(map(int, re.findall(r"\d+", one["semver"])[:3])))
        else:
            found = [one for one in found if one["semver"] == version]
        if not found:
            raise UnknownEntityError(f"there is no model {name} {version}, or none that you may see")
        return dict(self._calls.json("GET", f"/api/v1/models/{found[-1]['model_id']}"))

    def download_model(self, name: str, target: str | Path, version: str = "latest") -> Path:
        """A model's file; what is there of an earlier attempt is gone on with. Its SHA-256 is checked.

        Raises:
            UnknownEntityError: there is none.
            DigestMismatchError: what came is not it.
        """
        model = self.model(name, version)
        path = Path(target)
        download(self._calls, f"/api/v1/models/{model['model_id']}/file", path, Digest(model["sha256"]))
        return path

    def signer(self) -> Signer:
        """The researcher's key, certified.

        Raises:
            FederationError: as ``signer_of``.
        """
        return signer_of(self._calls, self._folder, self.me["federation"], self.me["name"], self._root)

    def _bring(self, bundle: Bundle, codec: Path | None, codec_digest: Digest | None) -> None:
        manifest = bundle.manifest
        path = f"/api/v1/plans/{manifest.digest}"
        raw = self._calls.send("PUT", path, manifest.to_json(), "application/octet-stream")
        missing = json.loads(raw)["missing"]
        for digest in [*missing, *([codec_digest] if codec_digest else [])]:
            named = next((file.path for file in manifest.files if file.sha256 == digest), None)
            source = bundle.blob_path(named) if named is not None else codec
            if source is None:
                raise PlanError(f"the director misses {digest[:12]}…, which is no file of the plan")
            length = {"Content-Length": str(source.stat().st_size)}
            self._calls.send("PUT", f"{path}/blobs/{digest}", _pieces(source), "application/octet-stream", length)

    def _collaboration(self, named: str) -> str:
        for one in self.collaborations():
            if named in (one["collaboration_id"], one["name"]):
                return str(one["collaboration_id"])
        raise UnknownEntityError(f"there is no collaboration {named!r} of your organization")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _said(value: str | None, variable: str, what: str) -> str:
    found = value if value is not None else os.environ.get(variable, "")
    if not found:
        raise ConfigError(f"{what}: give it to connect(), or set {variable}")
    return found


def _folder(said: str | Path | None, url: str) -> Path:
    named = str(said) if said is not None else os.environ.get(FOLDER, "")
    if named:
        return Path(named)
    return Path.home() / ".fedveil" / re.sub(r"[^A-Za-z0-9.-]+", "_", url.removeprefix("https://"))
