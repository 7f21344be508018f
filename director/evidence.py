"""``director audit export``: what a director knows of what was done, in one signed bundle. Facts, and no verdicts.

It holds what auditors ask for and the director has anyway: the audit log, members, runs and rounds, proposals and
patches as they were signed, the plans' manifests, the settings of each run, what sites chose to publish of their
privacy ledgers and leak tests. Else sums over sites alone, never a value of one site; no model, no update, no key but
public ones. What stays at the sites (approvals with their limits, ledgers, pictures) is said to stay there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from .. import __version__
from ..utils.artifacts import ArtifactStore
from ..utils.errors import StorageError
from ..utils.evidence import write_evidence
from ..utils.messages import EnvoyName
from ..utils.proposal import proposal_of
from ..utils.signed_document import SignedDocument
from ..utils.tensors import canonical_json, digest_of
from .audit import LOG_FILE, DirectorAudit, audit_key
from .config import DirectorConfig
from .database import open_database, reading
from .history import History
from .hub.evidence import hub_evidence
from .identity_store import IdentityStore
from .records import Published, RoundRecord, RunRecord
from .revocations import Revocations
from .tables import PATCHES

_ABOUT = """Evidence of a federation, as its director had it.

manifest.json names each file with its SHA-256; manifest.sig is signed by the key of the director's audit log.
Check it: fedveil audit verify THIS.zip ; hold the log against a site's: --against SITE-audit.jsonl

audit.jsonl      what the director did, in order, chained and signed
federation.json  the federation, and the director's settings that say how it keeps things
members.json     who joined, with public identity keys; who was revoked, and why
runs.json        experiments and their rounds: who was asked, who answered, digests of models, metrics over all sites,
                 what secure sums were of, and what sites published of their privacy ledgers
agreements.json  purpose and legal basis, as each proposal names them
organizations.json, permits.json, organization-agreements.json, tasks.json
                 organizations with their envoys; collaborations under their permits; agreements by the SHA-256 of what
                 was signed, and who signed when; which run is a task of which collaboration, and under which of the
                 data-processing and joint-controller agreements
remarks.json     who said something of a plan or task, by the SHA-256 of the words, and reviewers' verdicts on plans
leakage.json     scores of the sites' leak tests, of those that publish them
fairness.json    how well models do on sites' held-out examples, by subgroups, by sites that publish it: statements as
                 the sites' identity keys (members.json) signed them, behind the bytes "fedveil-fairness/1" and a zero
proposals/       what sites were asked to approve, as it was signed; patches/ what was changed later, likewise
plans/           the manifests of the plans, whose SHA-256 is their name; settings/ each run's experiment.toml
root.pem         the certificate that signatures of proposals and patches lead to

Not in it, since it stays at the sites: approvals and their limits, privacy ledgers, leak tests, what left each site.
"""


def export_evidence(folder: Path, config: DirectorConfig, root: bytes, by: str, now: float, out: Path) -> int:
    """Write the bundle; logged before. Gives how many files are in it.

    Args:
        folder: the director's; it may run meanwhile.
        config: of it.
        root: the federation's certificate, PEM.
        by: who asks.
        now: seconds since 1970.
        out: the file.

    Raises:
        IdentityError: the key of the log cannot be read.
        StorageError: the export cannot be logged, or the bundle not written.
    """
    log = DirectorAudit.open(folder, config.federation, clock=lambda: now)
    try:
        log.operator(by, "evidence exported")
        head = log.head_bytes
    finally:
        log.close()
    engine = open_database(config.database_url(folder), config.is_durable)
    try:
        artifacts = ArtifactStore(folder / "artifacts", config.is_durable, clears=False)
        members = _members(folder, config, engine, artifacts) | {"root.pem": root}
    finally:
        engine.dispose()
    about = {
        "party": "director",
        "federation": config.federation,
        "made_at": now,
        "software": f"fedveil {__version__}",
        "audit_head": head.hex(),
    }
    write_evidence(out, members, about, audit_key(folder))
    return len(members)


def _members(folder: Path, config: DirectorConfig, engine: Engine, artifacts: ArtifactStore) -> dict[str, bytes]:
    history = History(engine)
    runs = history.runs()
    found = {"about.txt": _ABOUT.encode(), LOG_FILE: _log(folder / LOG_FILE)}
    found["federation.json"] = canonical_json(_federation(config))
    found["members.json"] = canonical_json(_people(engine))
    found["runs.json"] = canonical_json([_run(one, history) for one in runs])
    found["agreements.json"] = canonical_json(_agreements(runs))
    found |= {name: canonical_json(content) for name, content in hub_evidence(engine).items()}
    found["leakage.json"] = canonical_json(_leakage(runs, history))
    found["fairness.json"] = canonical_json(_fairness(runs, history))
    for run in runs:
        found[f"settings/{run.run}.toml"] = run.settings.encode()
        if artifacts.has(run.plan):
            found[f"plans/{run.plan}.json"] = artifacts.read(run.plan)
        if run.proposal is not None:
            found |= _signed(f"proposals/{digest_of(run.proposal.content)}", run.proposal)
    for name, patch in _patches(engine):
        found |= _signed(f"patches/{name}", patch)
    return found


def _log(path: Path) -> bytes:
    """As it is now, without an entry that somebody is just writing."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    return raw[: raw.rfind(b"\n") + 1]


def _federation(config: DirectorConfig) -> dict[str, Any]:
    return {
        "federation": config.federation,
        "durability": config.durability.value,
        "keep_models": config.keep_models,
        "keep_sums": config.keep_sums,
        "leaf_days": config.leaf_days,
    }


def _people(engine: Engine) -> dict[str, Any]:
    members = [asdict(one) | {"identity_key": one.identity_key.hex()} for one in IdentityStore(engine).all_identities()]
    return {"members": members, "revocations": [asdict(one) for one in Revocations(engine).all()]}


def _agreements(runs: Iterable[RunRecord]) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        if run.proposal is not None:
            said = proposal_of(run.proposal.content)
            found.append(
                {
                    "run": run.run,
                    "proposal": said.digest,
                    "study": said.study,
                    "purpose": said.purpose,
                    "legal_basis": said.legal_basis or None,
                    "sites": list(said.sites) or None,
                    "outputs": [one.value for one in said.outputs],
                    "max_rounds": said.max_rounds,
                    "proposed_by": str(said.proposed_by),
                    "proposed_at": said.proposed_at,
                    "expires_at": said.expires_at,
                }
            )
    return found


def _leakage(runs: Iterable[RunRecord], history: History) -> dict[str, Any]:
    """Each score that came with an update. A site that is not there publishes none; that says nothing about it."""
    return {
        "what": "mean SSIM gain of the worst attack of the site's leak test over chance, on public canaries behind the"
        " site's own protection, as the site says; 0: no better than chance",
        "scores": [
            {"run": run.run, "round": number, "attempt": attempt, "site": site, "score": said.leakage_score}
            for run in runs
            for (number, attempt), told in history.published(run.run).items()
            for site, said in told.items()
            if said.leakage_score is not None
        ],
    }


def _fairness(runs: Iterable[RunRecord], history: History) -> list[dict[str, Any]]:
    """Each statement, as text, since it is that which was signed. A site that is not there publishes none."""
    return [
        {"site": site, "statement": document.content.decode(), "signature": document.signature.hex()}
        for run in runs
        for told in history.fairness(run.run).values()
        for site, document in told.items()
    ]


def _run(run: RunRecord, history: History) -> dict[str, Any]:
    told = history.published(run.run)
    return {
        "run": run.run,
        "name": run.name,
        "state": run.state.value,
        "reason": run.reason,
        "plan": run.plan,
        "proposal": run.proposal_digest,
        "settings_sha256": digest_of(run.settings.encode()),
        "model": run.model,
        "submitted_at": run.submitted_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "expelled": dict(run.expelled),
        "groups": [list(group) for group in run.groups],
        "rounds": [
            _round(one, told.get((one.round.ref.round, one.round.ref.attempt), {})) for one in history.rounds(run.run)
        ],
    }


def _round(record: RoundRecord, told: Mapping[EnvoyName, Published]) -> dict[str, Any]:
    this, summed = record.round, record.sum
    return {
        "round": this.ref.round,
        "attempt": this.ref.attempt,
        "kind": this.kind.value,
        "state": this.state.value,
        "reason": this.reason,
        "asked": sorted(this.cohort),
        "answered": sorted(this.received),
        "declined": sorted(this.declined),
        "lost": sorted(this.lost),
        "patches": this.patches,
        "opened_at": record.opened_at,
        "closed_at": record.closed_at,
        "model_in": record.model_in,
        "model_out": record.model_out,
        "metrics": {one.name: one.value for one in record.metrics},
        "published_epsilons": {name: one.privacy.to_json() for name, one in told.items() if one.privacy is not None},
        "secure_sum": None
        if summed is None
        else {
            "survivors": list(summed.survivors),
            "exchanged_keys": summed.cohort,
            "threshold": summed.threshold,
            "total_weight": summed.total_weight,
            "transcript": summed.transcript,
        },
    }


def _patches(engine: Engine) -> list[tuple[str, SignedDocument]]:
    with reading(engine) as connection:
        rows = connection.execute(select(PATCHES).order_by(PATCHES.c.run, PATCHES.c.number)).all()
    return [(f"{row.run}/{row.number:04}", SignedDocument(row.content, row.signature, row.chain)) for row in rows]


def _signed(name: str, document: SignedDocument) -> dict[str, bytes]:
    """The text as it was signed, and beside it by whom."""
    signature = {"signature": document.signature.hex(), "chain": document.chain.decode("ascii", "replace")}
    return {f"{name}.json": document.content, f"{name}.signature.json": canonical_json(signature)}
