"""The operator's side of the control door: what ``director status`` and ``director experiment`` say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import grpc

from ..utils import messages as m
from ..utils import transport, wire, wire_sums
from ..utils import wire_control as control
from ..utils.config import parse_toml
from ..utils.errors import ConfigError, DigestMismatchError, PlanError, UnreachableError
from ..utils.plan_bundle import Bundle, Manifest, open_bundle
from ..utils.proposal import Step, sign
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from .experiments import CodecSettings, ExperimentSettings
from .founding import TlsCredentials
from .operator_identity import load_operator_identity, load_operator_tls
from .proposals import next_patch, propose
from .server import ADDRESS_FILE

_TIMEOUT_SECONDS = 30.0


class OperatorClient:
    """A connection to a director, as the operator whose certificate lies in the director's folder.

    Args:
        folder: the director's.
        address: host:port; None: as the director announced it.
        now: seconds since 1970.
        tls: what is shown; without it the folder's, renewed where it is due.

    Raises:
        IdentityError: the operator's certificate is missing or expired.
        UnreachableError: no director was started here; and from each call, if none answers.
    """

    def __init__(self, folder: Path, address: str | None, now: float, tls: TlsCredentials | None = None) -> None:
        tls = tls or load_operator_tls(folder, now)
        self._folder = folder
        self._address = address or announced_address(folder)
        self._channel = transport.open_channel(self._address, tls.chain, tls.key, tls.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def hello(self, seconds: float = 10.0) -> m.HelloReply:
        """Who answers, and what its clock says."""
        request = wire.hello_request_to_wire(m.HelloRequest())
        return wire.hello_reply_from_wire(self._ask("Hello", request, transport.FEDERATION, seconds))

    def status(self) -> m.StatusReply:
        """The director, who is there, and what is under way."""
        return control.status_from_wire(self._ask("Status", b""))

    def submit(self, settings: str, bundle: Bundle, codec: Path | None = None) -> m.RunId:
        """Propose an experiment and submit it, with the blobs of its plan that the director does not have.

        Args:
            settings: the text of experiment.toml.
            bundle: its plan.
            codec: the file of the codec that it names, as ``open_codec`` gives it.

        Raises:
            ConfigError: the settings are not right, or do not say what the study is for.
        """
        proposal, manifest = self._propose(settings, bundle.manifest), bundle.manifest.to_json()
        request = control.submission_to_wire(m.Submission(settings, manifest, proposal))
        reply = control.submit_reply_from_wire(self._ask("Submit", request))
        for digest in reply.missing:
            path = next((file.path for file in bundle.manifest.files if file.sha256 == digest), None)
            source = bundle.blob_path(path) if path is not None else codec
            if source is None:
                raise PlanError(
                    f"the director misses {digest[:12]}…, which is no file of the plan, and no codec is given"
                )
            self._put(digest, source)
        if reply.run is None:
            reply = control.submit_reply_from_wire(self._ask("Submit", request))
        if reply.run is None:
            raise PlanError(f"the director still misses {len(reply.missing)} files; submit the experiment again")
        return reply.run

    def list(self) -> tuple[m.ExperimentView, ...]:
        """All experiments."""
        return control.experiments_from_wire(self._ask("List", b""))

    def show(self, run: m.RunId) -> m.ExperimentView:
        """One experiment with its rounds."""
        return control.experiment_from_wire(self._ask("Show", control.show_to_wire(run)))

    def stop(self, run: m.RunId, reason: str) -> m.ExperimentView:
        """End one experiment now."""
        return self.steer(run, Step.STOP, reason=reason)

    def steer(
        self,
        run: m.RunId,
        step: Step,
        *,
        reason: str = "",
        settings: Mapping[str, float] = MappingProxyType({}),
        sites: Iterable[str] | None = None,
        stop: Mapping[str, float] = MappingProxyType({}),
        to_round: int | None = None,
    ) -> m.ExperimentView:
        """Sign one change to an experiment, as the next after those that there are, and send it.

        Args:
            run: the experiment.
            step: what is done.
            reason: kept with the patch; of a long one, the beginning.
            settings: of the plan, by name; of ``SET`` alone, as ``sites`` and ``stop``.
            sites: who is asked from the next round on.
            stop: the stop rule's, by name.
            to_round: of ``ROLL_BACK`` alone.

        Raises:
            ProtocolError, ConfigError: the director does not take it, or another operator was first.
            MalformedMessageError: a value that it cannot have.
        """
        now, view = time.time(), self.show(run)
        operator, key, chain = load_operator_identity(self._folder, now)
        patch = next_patch(
            run,
            view.proposal,
            view.patches,
            step,
            operator,
            now,
            reason=reason,
            settings=settings,
            sites=sites,
            stop=stop,
            to_round=to_round,
        )
        signed = control.patch_to_wire(sign(patch, key, chain))
        return control.experiment_from_wire(self._ask("Steer", signed))

    def roster(self) -> m.RosterReply:
        """Who is in the federation, by the director's word."""
        request = wire_sums.roster_request_to_wire(m.RosterRequest())
        return wire_sums.roster_reply_from_wire(self._ask("FetchRoster", request))

    def fetch(self, digest: Digest) -> bytes:
        """A model or a blob.

        Raises:
            DigestMismatchError: what came is not it.
        """
        request = wire.download_to_wire(m.DownloadRequest(digest))
        call = self._channel.unary_stream(f"/{transport.CONTROL}/Fetch", None, wire.part_from_wire)
        pieces = [part.content for part in self._guard(call(request)) if isinstance(part, m.Data)]
        content = b"".join(pieces)
        if digest_of(content) != digest:
            raise DigestMismatchError(f"the download of {digest[:12]}… came damaged; try again")
        return content

    def _propose(self, text: str, manifest: Manifest) -> SignedDocument:
        now = time.time()
        operator, key, chain = load_operator_identity(self._folder, now)
        settings = parse_toml(text, ExperimentSettings, "experiment.toml")
        return sign(propose(settings, text, manifest, operator.federation, operator, now), key, chain)

    def _put(self, digest: Digest, path: Path) -> None:
        def parts() -> Iterator[bytes]:
            yield wire.part_to_wire(m.Opening(path.stat().st_size, digest=digest))
            with path.open("rb") as file:
                while content := file.read(m.PART_BYTES):
                    yield wire.part_to_wire(m.Data(content))

        call = self._channel.stream_unary(f"/{transport.CONTROL}/PutBlob")
        try:
            call(parts(), timeout=None)
        except grpc.RpcError as failure:
            raise transport.error_of(failure) from failure

    def _ask(
        self, method: str, request: bytes, service: str = transport.CONTROL, seconds: float = _TIMEOUT_SECONDS
    ) -> bytes:
        try:
            answer: bytes = self._channel.unary_unary(f"/{service}/{method}")(request, timeout=seconds)
        except grpc.RpcError as failure:
            raise transport.error_of(failure) from failure
        return answer

    @staticmethod
    def _guard(parts: Any) -> Iterator[m.Part]:
        try:
            yield from parts
        except grpc.RpcError as failure:
            raise transport.error_of(failure) from failure


def announced_address(folder: Path) -> str:
    """Where the director of a folder listens, by its own word.

    Raises:
        UnreachableError: it never said so.
    """
    file = folder / ADDRESS_FILE
    address = file.read_text("utf-8").strip() if file.exists() else ""
    if not address:
        raise UnreachableError(f"no director was started in {folder} yet: `director start`, or name its --address")
    return address


def open_submission(settings_file: Path, plan: str) -> Bundle:
    """The plan that an experiment names, relative to the experiment's file.

    Raises:
        PlanError: there is none.
    """
    return open_bundle((settings_file.parent / plan).resolve())


def open_codec(settings_file: Path, codec: CodecSettings | None) -> Path | None:
    """The file of the codec that an experiment names, relative to the experiment's file; None where it names none.

    Raises:
        ConfigError: it cannot be read, or is another codec than the settings say.
    """
    if codec is None:
        return None
    file = (settings_file.parent / codec.file).resolve()
    try:
        digest = digest_of(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{settings_file}: codec.file: {file} cannot be read: {error.strerror}") from error
    if digest != codec.digest:
        raise ConfigError(
            f"{settings_file}: codec.digest is {codec.digest}, and {file} has {digest}; name the one that you mean"
        )
    return file
