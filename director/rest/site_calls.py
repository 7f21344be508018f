"""``/api/v1/federated/sites/{name}``: what a site says over HTTPS, in the very messages of gRPC."""

from __future__ import annotations

from contextlib import ExitStack, closing

from fastapi import APIRouter, Request, Response

from ...utils import messages as m
from ...utils import wire
from .problems import documented
from .protobuf_bodies import (
    PROTOBUF,
    STREAM,
    Connection,
    IncomingParts,
    OutgoingParts,
    in_thread,
    protobuf_answer,
    protobuf_route,
    whole_body,
)
from .sites import Site, TheSite

router = APIRouter(
    prefix="/api/v1/federated/sites/{name}",
    tags=["sites"],
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
)


@router.post(
    "/work",
    response_class=Response,
    responses=protobuf_answer("A WorkItem."),
    openapi_extra=protobuf_route("A WorkRequest; it is answered as soon as there is work, or after wait_seconds."),
)
async def ask_for_work(request: Request, site: TheSite) -> Response:
    """The next task, sum item or withdrawal, waited for at most a minute; Idle where none comes."""
    raw = await whole_body(request)
    async with Connection(request) as connection:
        answer = await in_thread(request, lambda: site.answered("NextWork", raw, connection.check))
    return Response(answer, media_type=PROTOBUF)


@router.post(
    "/parts",
    response_class=Response,
    responses=protobuf_answer("The bytes from the offset on.", "application/octet-stream"),
    openapi_extra=protobuf_route("A DownloadRequest."),
)
async def send_parts(request: Request, site: TheSite) -> Response:
    """A model, manifest or blob from an offset on: its raw bytes, to its end."""
    asked = wire.download_from_wire(await whole_body(request))
    opened = ExitStack()

    def opening() -> OutgoingParts:
        check = opened.enter_context(site.admitted())
        parts = opened.enter_context(closing(site.works.calls.download(site.name, asked)))
        first = next(parts)
        if not isinstance(first, m.Opening):
            raise TypeError("a download that does not begin with its opening")
        return OutgoingParts(request, first, parts, check, opened)

    try:
        return await in_thread(request, opening, abandons=False)
    except BaseException:
        opened.close()
        raise


@router.post(
    "/turns",
    response_class=Response,
    responses=protobuf_answer("A Grant."),
    openapi_extra=protobuf_route("An UpdateHeader."),
)
async def ask_for_turn(request: Request, site: TheSite) -> Response:
    """A turn to upload and where to begin, a wait, or the receipt of what came before."""
    return await _answered(request, site, "RequestUpload")


@router.post(
    "/updates",
    response_class=Response,
    responses=protobuf_answer("A Receipt."),
    openapi_extra=protobuf_route("Parts, each with its length before it (4 bytes, big-endian).", STREAM),
)
async def take_update(request: Request, site: TheSite) -> Response:
    """The bytes of one update, from where its turn said: an Opening, Data of 4 MiB at most each, a Closing."""
    incoming = IncomingParts(request)

    def take() -> bytes:
        with site.admitted() as check:
            receipt = site.works.calls.upload(site.name, incoming.parts(check))
            incoming.finish()
            return wire.receipt_to_wire(receipt)

    return Response(await in_thread(request, take), media_type=PROTOBUF)


@router.post(
    "/reports",
    response_class=Response,
    responses=protobuf_answer("A Receipt."),
    openapi_extra=protobuf_route("A MetricsReport."),
)
async def take_report(request: Request, site: TheSite) -> Response:
    """The answer to an evaluation."""
    return await _answered(request, site, "ReportMetrics")


@router.post(
    "/statements",
    response_class=Response,
    responses=protobuf_answer("A SumReply."),
    openapi_extra=protobuf_route("A SumStatement."),
)
async def take_statement(request: Request, site: TheSite) -> Response:
    """One signed statement of a secure sum."""
    return await _answered(request, site, "TellSum")


@router.post(
    "/refusals",
    response_class=Response,
    responses=protobuf_answer("An Acknowledgement."),
    openapi_extra=protobuf_route("A Refusal."),
)
async def take_refusal(request: Request, site: TheSite) -> Response:
    """The site will not, or cannot; the round goes on without it."""
    return await _answered(request, site, "Decline")


@router.post(
    "/beats",
    response_class=Response,
    responses=protobuf_answer("An Acknowledgement."),
    openapi_extra=protobuf_route("A Heartbeat."),
)
async def take_beat(request: Request, site: TheSite) -> Response:
    """A sign of life, once a second, with what the site approved; without one for four seconds it is lost."""
    return await _answered(request, site, "Beat")


@router.get("/roster", response_class=Response, responses=protobuf_answer("A RosterReply."))
async def show_roster(request: Request, site: TheSite) -> Response:
    """Who is in the federation, by the director's word: what a site accepts is its own to say."""
    return Response(await in_thread(request, lambda: site.answered("FetchRoster", b"")), media_type=PROTOBUF)


@router.post(
    "/renewals",
    response_class=Response,
    responses=protobuf_answer("A JoinReply."),
    openapi_extra=protobuf_route("A RenewRequest, signed by the site's identity key."),
)
async def renew_site(request: Request, site: TheSite) -> Response:
    """New certificates."""
    asked = wire.renew_request_from_wire(await whole_body(request))

    def renewed() -> bytes:
        with site.admitted():
            return wire.join_reply_to_wire(site.works.calls.renew(site.peer, asked))

    return Response(await in_thread(request, renewed), media_type=PROTOBUF)


async def _answered(request: Request, site: Site, call: str) -> Response:
    raw = await whole_body(request)
    return Response(await in_thread(request, lambda: site.answered(call, raw)), media_type=PROTOBUF)
