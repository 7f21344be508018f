"""What is kept of an envoy's answer to a task: of an update, and of a report of metrics. Pure."""

from __future__ import annotations

from ..utils.messages import EnvoyName, MetricsReport
from ..utils.tensors import canonical_json, digest_of
from .records import Published, SubmissionRecord
from .uploads import Received


def answer_of_update(envoy: EnvoyName, received: Received, spool: str) -> SubmissionRecord:
    """Of an update that is on disk, in a file of that name."""
    header = received.header
    return SubmissionRecord(
        ref=header.ref,
        envoy=envoy,
        digest=received.digest,
        length=header.length,
        num_examples=header.num_examples,
        metrics=header.metrics,
        spool=spool,
        published=Published(header.privacy, header.leakage_score),
        fairness=header.fairness,
    )


def answer_of_report(envoy: EnvoyName, report: MetricsReport) -> SubmissionRecord:
    """Of an evaluation's metrics: they have no file, and their digest is that of what they say."""
    content = canonical_json([[one.name, one.kind.value, list(one.values), one.weight] for one in report.metrics])
    return SubmissionRecord(
        ref=report.ref,
        envoy=envoy,
        digest=digest_of(content),
        length=0,
        num_examples=0,
        metrics=report.metrics,
        spool="",
        fairness=report.fairness,
    )
