"""The director's gRPC door for operators: decode, ask the desk, encode."""

from __future__ import annotations

from collections.abc import Callable, Generator

import grpc

from ..utils import messages as m
from ..utils import transport, wire, wire_sums
from ..utils import wire_control as control
from ..utils.artifacts import ArtifactStore
from ..utils.identity import PeerId, Role
from ..utils.roster import Roster
from .doors import Door, OpenCall
from .downloads import download
from .experiment_desk import ExperimentDesk
from .membership import roster_reply
from .standing import Standing


class ControlService:
    """All that an operator may call."""

    def __init__(
        self,
        federation: str,
        desk: ExperimentDesk,
        artifacts: ArtifactStore,
        roster: Callable[[], Roster],
        standing: Standing,
    ) -> None:
        self._federation, self._desk, self._artifacts, self._roster = federation, desk, artifacts, roster
        self._standing = standing

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls by name, as in ``federation.proto``."""
        door, desk = Door(self._federation, (Role.OPERATOR,), self._standing), self._desk
        nothing = wire.acknowledgement_from_wire
        return grpc.method_handlers_generic_handler(
            transport.CONTROL,
            {
                "Status": door.unary(lambda _, __: desk.status(), nothing, control.status_to_wire),
                "Submit": door.unary(desk.submit, control.submission_from_wire, control.submit_reply_to_wire),
                "PutBlob": door.upload(lambda _, parts: desk.put_blob(parts), wire.acknowledgement_to_wire),
                "List": door.unary(lambda _, __: desk.list(), nothing, control.experiments_to_wire),
                "Show": door.unary(lambda _, run: desk.show(run), control.show_from_wire, control.experiment_to_wire),
                "Steer": door.unary(desk.steer, control.patch_from_wire, control.experiment_to_wire),
                "FetchRoster": door.unary(
                    lambda _, __: roster_reply(self._roster()),
                    wire_sums.roster_request_from_wire,
                    wire_sums.roster_reply_to_wire,
                ),
                "Fetch": door.stream(self._fetch, wire.download_from_wire, wire.part_to_wire),
            },
        )

    def _fetch(self, _: PeerId, request: m.DownloadRequest, __: OpenCall) -> Generator[m.Part, None, None]:
        return download(self._artifacts, request)
