"""What envoys and the director say, as bytes; it, ``wire_control`` and ``wire_sums`` alone see the generated stubs.

Whatever a peer sends wrong becomes ``MalformedMessageError`` here, so that nothing behind this module ever sees
a number out of range, a digest of the wrong length or a name that is no name.

A ``Part`` of a stream is not built by protobuf: its data field is framed by hand (tag, varint, bytes), which
saves two copies of every byte of a model and stays the same protobuf message on the wire (a test compares).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ..protos import federation_pb2 as pb
from . import messages as m
from . import wire_fields as field
from .errors import ConfigError, MalformedMessageError
from .fairness import MAX_MIN_CELL
from .metrics import AUC_BINS, MAX_METRICS, MetricKind, MetricSum
from .tensors import Digest
from .wire_fields import ref_from_wire, ref_to_wire
from .wire_sums import sum_item_from_pb, sum_item_to_pb, terms_from_pb, terms_to_pb

_MAX_LENGTH = 1 << 40
_MAX_HELD = 64
_MAX_PATCHES = 200
_HEAD_BYTES = 136
_MAX_SIGNING_REQUEST = 16 << 10  # bytes
_MAX_SECONDS = 1e8  # three years
_MAX_COHORT = 10_000
_MAX_VALUE = 1e100  # of a metric: sums over all envoys, and products of two sums, stay finite
_DATA_TAG: Final = 0x12  # field 2, length-delimited
_UPDATE_GRANT = re.compile(r"[0-9a-f]{32}")

KINDS = {m.TaskKind.TRAIN: pb.TASK_KIND_TRAIN, m.TaskKind.EVALUATE: pb.TASK_KIND_EVALUATE}
_PAYLOADS = {
    m.PayloadKind.PLAIN: pb.PAYLOAD_KIND_PLAIN,
    m.PayloadKind.CODED: pb.PAYLOAD_KIND_CODED,
    m.PayloadKind.MASKED: pb.PAYLOAD_KIND_MASKED,
}
_METRICS = {MetricKind.MEAN: pb.Metric.KIND_MEAN, MetricKind.AUC: pb.Metric.KIND_AUC}
KIND_OF: dict[int, m.TaskKind] = {code: kind for kind, code in KINDS.items()}
_PAYLOAD_OF: dict[int, m.PayloadKind] = {code: kind for kind, code in _PAYLOADS.items()}
_METRIC_OF: dict[int, MetricKind] = {code: kind for kind, code in _METRICS.items()}


# ---------------------------------------------------------------- parts of a stream


def part_to_wire(part: m.Part) -> bytes:
    """One part of a stream, as protobuf's ``Part``; data is copied once."""
    match part:
        case m.Data(content):
            return b"".join((bytes((_DATA_TAG,)), _varint(len(content)), content))
        case m.Opening():
            opening = pb.Opening(
                grant=part.grant, offset=part.offset, length=part.length, digest=field.digest_bytes(part.digest)
            )
            return pb.Part(opening=opening).SerializeToString()
        case m.Closing(digest):
            return pb.Part(closing=pb.Closing(digest=field.digest_bytes(digest))).SerializeToString()


def part_from_wire(raw: bytes) -> m.Part:
    """Read one part; data is a view into ``raw``, not a copy.

    Raises:
        MalformedMessageError: not a part, empty data, or more than 4 MiB of it.
    """
    if raw[:1] == bytes((_DATA_TAG,)):
        length, start = _read_varint(raw, 1)
        if length != len(raw) - start or not 0 < length <= m.MAX_PART_BYTES:
            raise MalformedMessageError(f"a part announces {length} bytes of data and holds {len(raw) - start}")
        return m.Data(memoryview(raw)[start:])
    part = field.parse(pb.Part, raw)
    match part.WhichOneof("part"):
        case "opening":
            opening = part.opening
            if opening.grant and not _UPDATE_GRANT.fullmatch(opening.grant):
                raise MalformedMessageError("an upload opens with something that is no grant")
            length = field.bounded(opening.length, _MAX_LENGTH, "the length of a stream")
            offset = field.bounded(opening.offset, length, "the offset of a stream")
            return m.Opening(length, offset, opening.grant, field.optional_digest(opening.digest, "a stream's digest"))
        case "closing":
            return m.Closing(field.digest(part.closing.digest, "a closing"))
        case _:
            raise MalformedMessageError("a part that is neither opening, data nor closing")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    number, shift = 0, 0
    for index in range(position, min(position + 5, len(raw))):
        number |= (raw[index] & 0x7F) << shift
        if raw[index] < 0x80:
            return number, index + 1
        shift += 7
    raise MalformedMessageError("a part whose length is no number")


# ---------------------------------------------------------------- rounds


def work_request_to_wire(request: m.WorkRequest) -> bytes:
    """An envoy asks for work."""
    return pb.WorkRequest(
        software=request.software,
        held=[ref_to_wire(ref) for ref in request.held],
        wait_seconds=request.wait_seconds,
        approved=[bytes.fromhex(digest) for digest in request.approved],
    ).SerializeToString()


def work_request_from_wire(raw: bytes) -> m.WorkRequest:
    """An envoy asks for work."""
    request = field.parse(pb.WorkRequest, raw)
    held = _refs(request.held)
    wait = field.number(request.wait_seconds, "wait_seconds")
    software = field.line(request.software, "software")
    return m.WorkRequest(software, held, min(max(wait, 0.0), 60.0), _approved(request.approved))


def work_item_to_wire(item: m.WorkItem) -> bytes:
    """Work to do, work to drop, or nothing for now."""
    match item:
        case m.Idle():
            return pb.WorkItem(idle=pb.Idle()).SerializeToString()
        case m.Withdrawal(ref, reason):
            return pb.WorkItem(
                withdrawal=pb.Withdrawal(ref=ref_to_wire(ref), reason=field.said(reason))
            ).SerializeToString()
        case m.SumItem():
            return pb.WorkItem(sum_item=sum_item_to_pb(item)).SerializeToString()
        case m.Offer(run, proposal):
            offer = pb.Offer(run=run, proposal=field.document_to_pb(proposal))
            return pb.WorkItem(offer=offer).SerializeToString()
        case m.Task():
            task = pb.Task(
                ref=ref_to_wire(item.ref),
                kind=KINDS[item.kind],
                model_digest=bytes.fromhex(item.model),
                model_bytes=item.model_bytes,
                layout_digest=bytes.fromhex(item.layout),
                seed=item.seed,
                seconds_left=item.seconds_left,
                min_participants=item.min_participants,
                cohort=item.cohort,
                payload=_PAYLOADS[item.payload],
                codec_digest=field.digest_bytes(item.codec),
                asked_max_norm=item.asked.max_norm or 0.0,
                asked_noise_multiplier=item.asked.noise_multiplier,
                sum=terms_to_pb(item.sum) if item.sum else None,
                proposal_digest=field.digest_bytes(item.proposal),
                patches=[field.document_to_pb(patch) for patch in item.patches],
                fairness_min_cell=item.fairness_min_cell,
            )
            return pb.WorkItem(task=task).SerializeToString()


def work_item_from_wire(raw: bytes) -> m.WorkItem:
    """Work to do, work to drop, or nothing for now."""
    item = field.parse(pb.WorkItem, raw)
    match item.WhichOneof("item"):
        case "idle":
            return m.Idle()
        case "withdrawal":
            return m.Withdrawal(ref_from_wire(item.withdrawal.ref), field.line(item.withdrawal.reason, "a reason"))
        case "task":
            return _task(item.task)
        case "sum_item":
            return sum_item_from_pb(item.sum_item)
        case "offer":
            run = m.RunId(field.name(item.offer.run, "a run"))
            return m.Offer(run, field.document_from_pb(item.offer.proposal, "a proposal"))
        case _:
            raise MalformedMessageError("a work item that is neither task, withdrawal, idle, offer nor of a secure sum")


def _task(task: pb.Task) -> m.Task:
    if len(task.seed) != field.DIGEST_BYTES:
        raise MalformedMessageError(f"a task's seed has {len(task.seed)} bytes, expected {field.DIGEST_BYTES}")
    if len(task.cohort) > _MAX_COHORT:
        raise MalformedMessageError(f"a cohort of {len(task.cohort)} envoys")
    if len(task.patches) > _MAX_PATCHES:
        raise MalformedMessageError(f"a task with {len(task.patches)} patches, expected at most {_MAX_PATCHES}")
    payload, codec = _payload(task.payload, task.codec_digest)
    if payload is m.PayloadKind.MASKED:
        raise MalformedMessageError("a task whose payload is masked; a task says what stands under the masks")
    return m.Task(
        ref=ref_from_wire(task.ref),
        kind=field.known(KIND_OF, task.kind, "kind of task"),
        model=field.digest(task.model_digest, "a model"),
        model_bytes=field.bounded(task.model_bytes, _MAX_LENGTH, "a model's length", least=1),
        layout=field.digest(task.layout_digest, "a layout"),
        seed=task.seed,
        seconds_left=field.seconds(task.seconds_left, "seconds_left", _MAX_SECONDS),
        min_participants=field.bounded(task.min_participants, _MAX_COHORT, "min_participants", least=1),
        cohort=tuple(m.EnvoyName(field.name(name, "an envoy of the cohort")) for name in task.cohort),
        payload=payload,
        codec=codec,
        asked=_asked(task),
        sum=terms_from_pb(task.sum) if task.HasField("sum") else None,
        proposal=field.optional_digest(task.proposal_digest, "a proposal"),
        patches=tuple(field.document_from_pb(patch, "a patch") for patch in task.patches),
        fairness_min_cell=field.bounded(task.fairness_min_cell, MAX_MIN_CELL, "fairness_min_cell"),
    )


def download_to_wire(request: m.DownloadRequest) -> bytes:
    """Asks for a model, manifest or blob."""
    ref = ref_to_wire(request.ref) if request.ref else None
    return pb.DownloadRequest(digest=bytes.fromhex(request.digest), offset=request.offset, ref=ref).SerializeToString()


def download_from_wire(raw: bytes) -> m.DownloadRequest:
    """Asks for a model, manifest or blob."""
    request = field.parse(pb.DownloadRequest, raw)
    ref = ref_from_wire(request.ref) if request.HasField("ref") else None
    return m.DownloadRequest(
        field.digest(request.digest, "a download"), field.bounded(request.offset, _MAX_LENGTH, "an offset"), ref
    )


def header_to_wire(header: m.UpdateHeader) -> bytes:
    """Announces an update."""
    return pb.UpdateHeader(
        ref=ref_to_wire(header.ref),
        layout_digest=bytes.fromhex(header.layout),
        payload=_PAYLOADS[header.payload],
        codec_digest=field.digest_bytes(header.codec),
        length=header.length,
        num_examples=header.num_examples,
        metrics=_metrics_to_wire(header.metrics),
        privacy=field.published_to_wire(header.privacy),
        leakage_score=header.leakage_score,
        fairness=field.fairness_to_pb(header.fairness),
    ).SerializeToString()


def header_from_wire(raw: bytes) -> m.UpdateHeader:
    """Announces an update."""
    header = field.parse(pb.UpdateHeader, raw)
    payload, codec = _payload(header.payload, header.codec_digest)
    num_examples, metrics = field.bounded(header.num_examples, 1 << 40, "num_examples"), _metrics(header.metrics)
    if payload is m.PayloadKind.MASKED and (num_examples or metrics):
        raise MalformedMessageError("a masked update that says examples or metrics in clear; they belong inside")
    return m.UpdateHeader(
        ref=ref_from_wire(header.ref),
        layout=field.digest(header.layout_digest, "a layout"),
        length=field.bounded(header.length, _MAX_LENGTH, "an update's length"),
        num_examples=num_examples,
        metrics=metrics,
        payload=payload,
        codec=codec,
        privacy=field.published(header.privacy) if header.HasField("privacy") else None,
        leakage_score=field.leakage(header.leakage_score) if header.HasField("leakage_score") else None,
        fairness=field.fairness_from_pb(header.fairness) if header.HasField("fairness") else None,
    )


def grant_to_wire(grant: m.Grant) -> bytes:
    """A turn, a wait, or the receipt of what came before."""
    match grant:
        case m.Turn(ref, name, offset, part_bytes):
            turn = pb.Turn(grant=name, offset=offset, part_bytes=part_bytes)
            return pb.Grant(ref=ref_to_wire(ref), turn=turn).SerializeToString()
        case m.Wait(ref):
            return pb.Grant(ref=ref_to_wire(ref), wait=pb.Wait()).SerializeToString()
        case m.Receipt(ref):
            return pb.Grant(ref=ref_to_wire(ref), receipt=_receipt_to_pb(grant)).SerializeToString()


def grant_from_wire(raw: bytes) -> m.Grant:
    """A turn, a wait, or the receipt of what came before."""
    grant = field.parse(pb.Grant, raw)
    ref = ref_from_wire(grant.ref)
    match grant.WhichOneof("answer"):
        case "turn":
            turn = grant.turn
            if not _UPDATE_GRANT.fullmatch(turn.grant):
                raise MalformedMessageError("a turn whose grant is no grant")
            size = field.bounded(turn.part_bytes, m.MAX_PART_BYTES, "the size of a part", least=1 << 10)
            return m.Turn(ref, turn.grant, field.bounded(turn.offset, _MAX_LENGTH, "an offset"), size)
        case "wait":
            return m.Wait(ref)
        case "receipt":
            return _receipt(grant.receipt)
        case _:
            raise MalformedMessageError("a grant that is neither turn, wait nor receipt")


def receipt_to_wire(receipt: m.Receipt) -> bytes:
    """The director has it."""
    return _receipt_to_pb(receipt).SerializeToString()


def receipt_from_wire(raw: bytes) -> m.Receipt:
    """The director has it."""
    return _receipt(field.parse(pb.Receipt, raw))


def _receipt_to_pb(receipt: m.Receipt) -> pb.Receipt:
    return pb.Receipt(ref=ref_to_wire(receipt.ref), digest=bytes.fromhex(receipt.digest), length=receipt.length)


def _receipt(receipt: pb.Receipt) -> m.Receipt:
    length = field.bounded(receipt.length, _MAX_LENGTH, "a receipt's length")
    return m.Receipt(ref_from_wire(receipt.ref), field.digest(receipt.digest, "a receipt"), length)


def report_to_wire(report: m.MetricsReport) -> bytes:
    """The answer to an evaluation."""
    return pb.MetricsReport(
        ref=ref_to_wire(report.ref),
        metrics=_metrics_to_wire(report.metrics),
        fairness=field.fairness_to_pb(report.fairness),
    ).SerializeToString()


def report_from_wire(raw: bytes) -> m.MetricsReport:
    """The answer to an evaluation."""
    report = field.parse(pb.MetricsReport, raw)
    fairness = field.fairness_from_pb(report.fairness) if report.HasField("fairness") else None
    return m.MetricsReport(ref_from_wire(report.ref), _metrics(report.metrics), fairness)


def refusal_to_wire(refusal: m.Refusal) -> bytes:
    """An envoy will not, or cannot."""
    return pb.Refusal(
        ref=ref_to_wire(refusal.ref), error=field.said(refusal.error), reason=field.said(refusal.reason)
    ).SerializeToString()


def refusal_from_wire(raw: bytes) -> m.Refusal:
    """An envoy will not, or cannot."""
    refusal = field.parse(pb.Refusal, raw)
    return m.Refusal(
        ref_from_wire(refusal.ref), field.line(refusal.error, "an error"), field.line(refusal.reason, "a reason")
    )


def heartbeat_to_wire(heartbeat: m.Heartbeat) -> bytes:
    """A sign of life."""
    return pb.Heartbeat(
        held=[ref_to_wire(ref) for ref in heartbeat.held],
        approved=[bytes.fromhex(digest) for digest in heartbeat.approved],
        audit_head=heartbeat.audit_head,
    ).SerializeToString()


def heartbeat_from_wire(raw: bytes) -> m.Heartbeat:
    """A sign of life."""
    beat = field.parse(pb.Heartbeat, raw)
    return m.Heartbeat(_refs(beat.held), _approved(beat.approved), _head(beat.audit_head))


def acknowledgement_to_wire(heard: m.Acknowledgement) -> bytes:
    """Heard."""
    return pb.Acknowledgement(now=heard.now, audit_head=heard.audit_head).SerializeToString()


def acknowledgement_from_wire(raw: bytes) -> m.Acknowledgement:
    """Heard."""
    heard = field.parse(pb.Acknowledgement, raw)
    return m.Acknowledgement(field.number(heard.now, "now"), _head(heard.audit_head))


def hello_request_to_wire(_: m.HelloRequest) -> bytes:
    """Asks who answers."""
    return b""


def hello_request_from_wire(raw: bytes) -> m.HelloRequest:
    """Asks who answers."""
    field.parse(pb.HelloRequest, raw)
    return m.HelloRequest()


def hello_reply_to_wire(reply: m.HelloReply) -> bytes:
    """Who answers."""
    return pb.HelloReply(federation=reply.federation, software=reply.software, now=reply.now).SerializeToString()


def hello_reply_from_wire(raw: bytes) -> m.HelloReply:
    """Who answers."""
    reply = field.parse(pb.HelloReply, raw)
    return m.HelloReply(
        field.name(reply.federation, "a federation"),
        field.line(reply.software, "software"),
        field.number(reply.now, "now"),
    )


# ---------------------------------------------------------------- joining


def join_request_to_wire(request: m.JoinRequest) -> bytes:
    """A signing request."""
    return pb.JoinRequest(
        signing_request=request.signing_request,
        identity_key=request.identity_key,
        identity_proof=request.identity_proof,
        renewal_request=request.renewal_request,
    ).SerializeToString()


def join_request_from_wire(raw: bytes) -> m.JoinRequest:
    """A signing request; its signatures are the registrar's to check."""
    request = field.parse(pb.JoinRequest, raw)
    is_short = max(len(request.signing_request), len(request.renewal_request)) <= _MAX_SIGNING_REQUEST
    if not is_short or len(request.identity_key) != 32 or len(request.identity_proof) != 64:
        raise MalformedMessageError("a join request whose keys or signatures have the wrong length")
    return m.JoinRequest(request.signing_request, request.identity_key, request.identity_proof, request.renewal_request)


def renew_request_to_wire(request: m.RenewRequest) -> bytes:
    """Signing requests of a member."""
    return pb.RenewRequest(
        signing_request=request.signing_request,
        renewal_request=request.renewal_request,
        asked_at=request.asked_at,
        identity_proof=request.identity_proof,
    ).SerializeToString()


def renew_request_from_wire(raw: bytes) -> m.RenewRequest:
    """Signing requests of a member; their signatures are the registrar's to check."""
    request = field.parse(pb.RenewRequest, raw)
    is_short = max(len(request.signing_request), len(request.renewal_request)) <= _MAX_SIGNING_REQUEST
    if not is_short or len(request.identity_proof) != 64:
        raise MalformedMessageError("a renewal whose signing requests or signature have the wrong length")
    return m.RenewRequest(
        request.signing_request,
        request.renewal_request,
        field.number(request.asked_at, "asked_at"),
        request.identity_proof,
    )


def join_reply_to_wire(reply: m.JoinReply) -> bytes:
    """The certificates of a new envoy."""
    return pb.JoinReply(
        federation=reply.federation,
        name=reply.name,
        organization=reply.organization,
        chain=reply.chain,
        identity_certificate=reply.identity_certificate,
        renewal_certificate=reply.renewal_certificate,
    ).SerializeToString()


def join_reply_from_wire(raw: bytes) -> m.JoinReply:
    """The certificates of a new envoy."""
    reply = field.parse(pb.JoinReply, raw)
    return m.JoinReply(
        federation=field.name(reply.federation, "a federation"),
        name=m.EnvoyName(field.name(reply.name, "an envoy")),
        organization=field.line(reply.organization, "an organization"),
        chain=reply.chain,
        identity_certificate=reply.identity_certificate,
        renewal_certificate=reply.renewal_certificate,
    )


# ---------------------------------------------------------------- pieces


def _payload(code: int, codec_digest: bytes) -> tuple[m.PayloadKind, Digest | None]:
    payload, codec = field.known(_PAYLOAD_OF, code, "kind of payload"), field.optional_digest(codec_digest, "a codec")
    if payload is not m.PayloadKind.MASKED and (payload is m.PayloadKind.CODED) != (codec is not None):
        raise MalformedMessageError(f"a {payload.value} payload {'with' if codec else 'without'} a codec")
    return payload, codec


def _asked(task: pb.Task) -> m.AskedProtection:
    try:
        return m.AskedProtection(task.asked_max_norm or None, task.asked_noise_multiplier)
    except ConfigError as error:
        raise MalformedMessageError(f"the protection that a task asks for: {error}") from error


def _refs(refs: Iterable[pb.TaskRef]) -> tuple[m.TaskRef, ...]:
    held = tuple(ref_from_wire(ref) for ref in refs)
    if len(held) > _MAX_HELD:
        raise MalformedMessageError(f"{len(held)} tasks held at once")
    return held


def _approved(digests: Sequence[bytes]) -> tuple[Digest, ...]:
    if len(digests) > m.MAX_APPROVED:
        raise MalformedMessageError(f"{len(digests)} proposals approved at once, expected at most {m.MAX_APPROVED}")
    return tuple(field.digest(digest, "an approved proposal") for digest in digests)


def _head(raw: bytes) -> bytes:
    if raw and len(raw) != _HEAD_BYTES:
        raise MalformedMessageError(f"a head of an audit log of {len(raw)} bytes, expected {_HEAD_BYTES}")
    return raw


def _metrics_to_wire(metrics: Iterable[MetricSum]) -> list[pb.Metric]:
    return [pb.Metric(name=x.name, kind=_METRICS[x.kind], values=x.values, weight=x.weight) for x in metrics]


def _metrics(metrics: Iterable[pb.Metric]) -> tuple[MetricSum, ...]:
    read: list[MetricSum] = []
    for metric in metrics:
        if len(read) == MAX_METRICS or len(metric.values) > 2 * AUC_BINS:
            raise MalformedMessageError(f"more than {MAX_METRICS} metrics, or too many values in one")
        if not all(abs(value) <= _MAX_VALUE for value in (*metric.values, metric.weight)):
            raise MalformedMessageError(f"a metric's values and weight lie within {_MAX_VALUE:g}")
        kind = field.known(_METRIC_OF, metric.kind, "kind of metric")
        try:
            read.append(MetricSum(metric.name, kind, tuple(metric.values), metric.weight))
        except ValueError as error:
            raise MalformedMessageError(str(error)) from error
    if len({metric.name for metric in read}) != len(read):
        raise MalformedMessageError("a metric is named twice")
    return tuple(read)
