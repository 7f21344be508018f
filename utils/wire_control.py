"""What operators say to the director and back, as bytes; ``wire`` has what envoys say."""

from __future__ import annotations

from ..protos import federation_pb2 as pb
from . import messages as m
from . import wire_fields as field
from .signed_document import SignedDocument
from .wire import KIND_OF, KINDS
from .wire_sums import sum_view_from_pb, sum_view_to_pb


def submission_to_wire(submission: m.Submission) -> bytes:
    """An experiment."""
    proposal = field.document_to_pb(submission.proposal) if submission.proposal else None
    return pb.SubmitRequest(
        settings=submission.settings, manifest=submission.manifest, proposal=proposal
    ).SerializeToString()


def submission_from_wire(raw: bytes) -> m.Submission:
    """An experiment; its settings and manifest are parsed by those who own them."""
    request = field.parse(pb.SubmitRequest, raw)
    proposal = field.document_from_pb(request.proposal, "a proposal") if request.HasField("proposal") else None
    return m.Submission(request.settings, request.manifest, proposal)


def submit_reply_to_wire(reply: m.SubmitReply) -> bytes:
    """What is missing, or the run."""
    missing = [bytes.fromhex(digest) for digest in reply.missing]
    return pb.SubmitReply(missing=missing, run=reply.run or "").SerializeToString()


def submit_reply_from_wire(raw: bytes) -> m.SubmitReply:
    """What is missing, or the run."""
    reply = field.parse(pb.SubmitReply, raw)
    missing = tuple(field.digest(digest, "a missing blob") for digest in reply.missing)
    return m.SubmitReply(missing, m.RunId(field.name(reply.run, "a run")) if reply.run else None)


def show_to_wire(run: m.RunId) -> bytes:
    """Asks for one run."""
    return pb.ShowRequest(run=run).SerializeToString()


def show_from_wire(raw: bytes) -> m.RunId:
    """Asks for one run."""
    return m.RunId(field.name(field.parse(pb.ShowRequest, raw).run, "a run"))


def patch_to_wire(patch: SignedDocument) -> bytes:
    """A change to a run, signed by an operator."""
    return field.document_to_pb(patch).SerializeToString()


def patch_from_wire(raw: bytes) -> SignedDocument:
    """A change to a run, signed by an operator; who acts upon it checks by whom."""
    return field.document_from_pb(field.parse(pb.SignedDocument, raw), "a patch")


def experiment_to_wire(view: m.ExperimentView) -> bytes:
    """One experiment, as an operator sees it."""
    return _experiment_to_pb(view).SerializeToString()


def experiment_from_wire(raw: bytes) -> m.ExperimentView:
    """One experiment, as an operator sees it."""
    return _experiment(field.parse(pb.ExperimentView, raw))


def experiments_to_wire(views: tuple[m.ExperimentView, ...]) -> bytes:
    """All experiments."""
    return pb.ListReply(experiments=[_experiment_to_pb(view) for view in views]).SerializeToString()


def experiments_from_wire(raw: bytes) -> tuple[m.ExperimentView, ...]:
    """All experiments."""
    return tuple(_experiment(view) for view in field.parse(pb.ListReply, raw).experiments)


def status_to_wire(status: m.StatusReply) -> bytes:
    """The director and who is there."""
    envoys = [
        pb.EnvoyView(
            name=e.name,
            organization=e.organization,
            connected=e.connected,
            silent_seconds=e.silent_seconds,
            suspicion=e.suspicion,
        )
        for e in status.envoys
    ]
    experiments = [_experiment_to_pb(view) for view in status.experiments]
    return pb.StatusReply(
        federation=status.federation,
        software=status.software,
        up_seconds=status.up_seconds,
        envoys=envoys,
        experiments=experiments,
    ).SerializeToString()


def status_from_wire(raw: bytes) -> m.StatusReply:
    """The director and who is there."""
    status = field.parse(pb.StatusReply, raw)
    envoys = tuple(
        m.EnvoyView(
            m.EnvoyName(field.name(e.name, "an envoy")),
            field.line(e.organization, "an organization"),
            e.connected,
            field.number(e.silent_seconds, "silent_seconds"),
            field.line(e.suspicion, "a suspicion"),
        )
        for e in status.envoys
    )
    experiments = tuple(_experiment(view) for view in status.experiments)
    software = field.line(status.software, "software")
    return m.StatusReply(
        field.name(status.federation, "a federation"),
        software,
        field.number(status.up_seconds, "up_seconds"),
        envoys,
        experiments,
    )


def _experiment_to_pb(view: m.ExperimentView) -> pb.ExperimentView:
    return pb.ExperimentView(
        run=view.run,
        name=field.said(view.name),
        state=view.state,
        reason=field.said(view.reason),
        plan_digest=bytes.fromhex(view.plan),
        model_digest=field.digest_bytes(view.model),
        model_bytes=view.model_bytes,
        max_rounds=view.max_rounds,
        rounds=[_round_to_pb(one) for one in view.rounds],
        submitted_at=view.submitted_at,
        bytes_up=view.bytes_up,
        bytes_down=view.bytes_down,
        proposal_digest=field.digest_bytes(view.proposal),
        approved_by=view.approved_by,
        patches=view.patches,
    )


def _round_to_pb(view: m.RoundView) -> pb.RoundView:
    return pb.RoundView(
        round=view.round,
        attempt=view.attempt,
        kind=KINDS[view.kind],
        state=view.state,
        invited=view.invited,
        received=view.received,
        seconds=view.seconds,
        metrics=[pb.MetricValue(name=name, value=value) for name, value in view.metrics.items()],
        model_digest=field.digest_bytes(view.model),
        reason=field.said(view.reason),
        sum=sum_view_to_pb(view.sum) if view.sum else None,
        privacy=[
            pb.SitePrivacy(envoy=name, privacy=field.published_to_wire(one)) for name, one in view.privacy.items()
        ],
        leakage=[pb.SiteLeakage(envoy=name, score=score) for name, score in view.leakage.items()],
        fairness=[
            pb.SiteFairness(envoy=name, document=field.document_to_pb(one)) for name, one in view.fairness.items()
        ],
    )


def _experiment(view: pb.ExperimentView) -> m.ExperimentView:
    return m.ExperimentView(
        run=m.RunId(field.name(view.run, "a run")),
        name=field.line(view.name, "an experiment"),
        state=field.line(view.state, "a state"),
        reason=field.line(view.reason, "a reason"),
        plan=field.digest(view.plan_digest, "a plan"),
        model=field.optional_digest(view.model_digest, "a model"),
        model_bytes=view.model_bytes,
        max_rounds=view.max_rounds,
        submitted_at=field.number(view.submitted_at, "submitted_at"),
        rounds=tuple(_round(one) for one in view.rounds),
        bytes_up=view.bytes_up,
        bytes_down=view.bytes_down,
        proposal=field.optional_digest(view.proposal_digest, "a proposal"),
        approved_by=tuple(m.EnvoyName(field.name(name, "an envoy that approved")) for name in view.approved_by),
        patches=view.patches,
    )


def _round(view: pb.RoundView) -> m.RoundView:
    return m.RoundView(
        round=view.round,
        attempt=view.attempt,
        kind=field.known(KIND_OF, view.kind, "kind of task"),
        state=field.line(view.state, "a state"),
        invited=view.invited,
        received=view.received,
        seconds=field.number(view.seconds, "seconds"),
        metrics={
            field.line(metric.name, "a metric"): field.number(metric.value, "a metric") for metric in view.metrics
        },
        model=field.optional_digest(view.model_digest, "a model"),
        reason=field.line(view.reason, "a reason"),
        sum=sum_view_from_pb(view.sum) if view.HasField("sum") else None,
        privacy={m.EnvoyName(field.name(one.envoy, "an envoy")): field.published(one.privacy) for one in view.privacy},
        leakage={m.EnvoyName(field.name(one.envoy, "an envoy")): field.leakage(one.score) for one in view.leakage},
        fairness={
            m.EnvoyName(field.name(one.envoy, "an envoy")): field.fairness_from_pb(one.document)
            for one in view.fairness
        },
    )
