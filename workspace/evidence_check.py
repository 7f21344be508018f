"""A bundle of evidence, checked from its file alone: the whole of it, then what its members say of each other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cryptography import x509

from ..utils import fairness
from ..utils.audit_chain import SignedHead, check_heads, read_entries
from ..utils.errors import FederationError, MalformedMessageError, SuspectLogError
from ..utils.evidence import Evidence, read_evidence
from ..utils.identity import fingerprint, when
from ..utils.messages import RunId
from ..utils.proposal import Patch, check_patches, patch_of, proposal_of, read_patch, read_proposal
from ..utils.signed_document import SignedDocument
from ..utils.tensors import Digest, digest_of
from ..utils.wire_fields import said
from .audit_check import Log, read_log

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = "audit.jsonl"


@dataclass(frozen=True, slots=True)
class CheckedEvidence:
    """A bundle whose parts agree."""

    log: Log  # good while the bundle is open
    lines: tuple[str, ...]  # what was found, for people


@contextmanager
def checked_evidence(path: Path, heads: Iterable[SignedHead] = (), key: str = "") -> Iterator[CheckedEvidence]:
    """Check a bundle; its log can be held against others as long as this is open.

    Args:
        path: the zip.
        heads: of its log, that others kept.
        key: that it must be signed with, as ``read_log`` takes it.

    Raises:
        MalformedMessageError: it is none.
        SuspectLogError: it was changed after it was signed; or its parts contradict each other.
        StorageError: it cannot be read.
    """
    evidence = read_evidence(path)
    if _LOG not in evidence.members:
        raise MalformedMessageError(f"{path}: holds no {_LOG}")
    with TemporaryDirectory(prefix="fedveil-evidence-") as folder:
        file = Path(folder) / _LOG
        file.write_bytes(evidence.members[_LOG])
        try:
            log = read_log(file, heads, key)
            lines = _check(evidence, log)
            made_at = when(float(str(evidence.about["made_at"])))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise MalformedMessageError(f"{path}: a member does not say what it should: {error!r}") from error
        except FederationError as error:
            raise type(error)(str(error).replace(str(file), f"{path}: {_LOG}")) from error
        first = (
            f"{path}: evidence of {log.whose}, {len(evidence.members)} files, made on {made_at} with"
            f" {evidence.about.get('software')}; all as it was signed"
        )
        yield CheckedEvidence(log, tuple(said(line) for line in (first, *lines)))


def _check(evidence: Evidence, log: Log) -> list[str]:
    members = evidence.members
    if log.found.key != evidence.key:
        raise SuspectLogError("the bundle is signed by another key than the log in it")
    head = SignedHead.from_bytes(bytes.fromhex(str(evidence.about["audit_head"])))
    check_heads(log.path, log.found.key, [head])
    lines = []
    if "root.pem" in members:
        root = x509.load_pem_x509_certificate(members["root.pem"])
        lines.append(f"root {fingerprint(members['root.pem'])}: compare it with the federation's")
        proposals = _check_proposals(members, root)
        patches = _check_patches(members, root, log.federation)
        lines.append(
            f"{proposals} proposals and {patches} patches, each signed by an operator whom that root certified"
        )
    if "fairness.json" in members:
        said = _check_fairness(members, log.federation)
        lines.append(f"{said} fairness reports, each signed by the site whose it is")
    plans = 0
    for name, content in members.items():
        if name.startswith("plans/"):
            _same(name, name[len("plans/") : -len(".json")], digest_of(content))
            plans += 1
    if "runs.json" in members:
        runs = _check_runs(members, log)
        lines.append(f"{runs} runs, each in the log as it was submitted; {plans} plans' manifests")
    return lines


def _check_proposals(members: Any, root: x509.Certificate) -> int:
    count = 0
    for name, document in _documents(members, "proposals/"):
        _same(name, name[len("proposals/") :], digest_of(document.content))
        read_proposal(document, root, proposal_of(document.content).proposed_at)
        count += 1
    return count


def _check_patches(members: Any, root: x509.Certificate, federation: str) -> int:
    by_run: dict[str, list[Patch]] = {}
    for name, document in _documents(members, "patches/"):
        patch = read_patch(document, root, federation, patch_of(document.content).signed_at)
        by_run.setdefault(name.split("/")[1], []).append(patch)
    for run, patches in by_run.items():
        check_patches(tuple(sorted(patches, key=lambda one: one.number)), RunId(run), patches[0].proposal)
    return sum(map(len, by_run.values()))


def _check_fairness(members: Any, federation: str) -> int:
    keys = {one["name"]: bytes.fromhex(one["identity_key"]) for one in json.loads(members["members.json"])["members"]}
    statements = json.loads(members["fairness.json"])
    for one in statements:
        document = SignedDocument(one["statement"].encode(), bytes.fromhex(one["signature"]), b"")
        ref = fairness.read(document.content).ref
        fairness.check(document, one["site"], ref, federation, keys[one["site"]], fairness.LEAST_MIN_CELL)
    return len(statements)


def _check_runs(members: Any, log: Log) -> int:
    submitted = {
        str(entry.event.get("run")): (entry.event.get("plan"), entry.event.get("settings"))
        for entry in read_entries(log.path)
        if entry.event.get("what") == "run submitted"
    }
    runs = json.loads(members["runs.json"])
    for run in runs:
        if submitted.get(run["run"]) != (run["plan"], run["settings_sha256"]):
            raise SuspectLogError(
                f"runs.json says {run['run']}, and the log another plan or settings, or nothing of it"
            )
        _same(run["run"], run["settings_sha256"], digest_of(members[f"settings/{run['run']}.toml"]))
        if run["proposal"] is not None and f"proposals/{run['proposal']}.json" not in members:
            raise SuspectLogError(f"the proposal of {run['run']} is missing")
    return len(runs)


def _documents(members: Any, folder: str) -> list[tuple[str, SignedDocument]]:
    found = []
    for name, content in members.items():
        if name.startswith(folder) and not name.endswith(".signature.json"):
            stem = name[: -len(".json")]
            signed = json.loads(members[f"{stem}.signature.json"])
            signature, chain = bytes.fromhex(signed["signature"]), signed["chain"].encode()
            found.append((stem, SignedDocument(content, signature, chain)))
    return found


def _same(what: str, expected: str, found: Digest) -> None:
    if expected != found:
        raise SuspectLogError(f"{what}: its SHA-256 is {found}, expected {expected}")
