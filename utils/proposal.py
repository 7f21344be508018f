"""What a researcher proposes and a site's data manager approves, and what may be changed of it later; both signed.

A *proposal* names everything that a site is asked for: the plan by the digest of its manifest, the codec, whether sums
alone leave, what protection is asked for, how many rounds, which sites, and why. Its digest is what approvals, tasks
and audit logs speak of, so that any byte of it that changes asks for a new approval. A *patch* changes a run between
rounds (learning rate, epochs, sites, stop rule; pause, resume, roll back); it is numbered, so that none is left out or
comes twice. Who may sign: an operator of the federation, by its identity certificate. Pure: no clock, no disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import ConfigError, FederationError, IdentityError, MalformedMessageError, NotAuthorizedError
from .identity import PeerId, Role, check_chain, check_name, is_for_signing, parse_spiffe, read_chain
from .messages import AskedProtection, EnvoyName, RunId
from .signed_document import MAX_DOCUMENT_BYTES, SignedDocument
from .tensors import Digest, canonical_json, digest_of

PROPOSAL_SCHEMA, PATCH_SCHEMA = "fedveil.proposal/1", "fedveil.patch/1"
MAX_ROUNDS = 100_000
MAX_PATCHES = 200
MAX_LINE = 500
LATEST = 250_000_000_000.0  # of any time that is named; in the year 9892: a calendar can show it
_MAX_SITES = 10_000
_HEX = frozenset("0123456789abcdef")
_CONTEXTS = {PROPOSAL_SCHEMA: b"fedveil-proposal/1\0", PATCH_SCHEMA: b"fedveil-patch/1\0"}


class Output(Enum):
    """What a study gives to whoever proposed it."""

    MODEL = "model"  # the federated model
    METRICS = "metrics"  # federated metrics, never one site's


@dataclass(frozen=True, slots=True)
class Proposal:
    """All that a site is asked for. The same proposal always has the same bytes, and so the same digest.

    Raises:
        MalformedMessageError: a name, digest, number or line that is none.
    """

    federation: str
    study: str  # name of the experiment; runs are called STUDY-1, STUDY-2, ...
    plan: Digest
    settings: Digest  # SHA-256 of the text of experiment.toml
    purpose: str  # one line: what the result is for
    legal_basis: str  # one line: the permit, agreement or article that allows it; empty where none is named
    max_rounds: int  # training rounds, over all runs of this proposal
    is_secure: bool  # sums alone leave the sites
    aggregator: str  # who sums: "director" or "envoy:NAME"
    codec: Digest | None
    asked: AskedProtection
    sites: tuple[EnvoyName, ...]  # who is asked, by name, sorted; empty: every site that approves
    outputs: tuple[Output, ...]
    proposed_by: PeerId
    proposed_at: float  # seconds since 1970
    expires_at: float  # no task of it is done later
    sum_noise: float = 0.0  # of each secure sum, at least: all sites' noise together / its bound; 0: none
    digest: Digest = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _checked_name("federation", self.federation)
        _checked_name("study", self.study)
        for what, digest in (("plan", self.plan), ("settings", self.settings), ("codec", self.codec or self.plan)):
            _checked_digest(what, digest)
        check_line("purpose", self.purpose)
        check_line("legal basis", self.legal_basis)
        check_sites(self.sites, least=0)
        if not 1 <= self.max_rounds <= MAX_ROUNDS:
            raise MalformedMessageError(f"max_rounds is {self.max_rounds}, expected 1 to {MAX_ROUNDS}")
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise MalformedMessageError("outputs: expected at least one, each once")
        _check_aggregator(self.aggregator)
        if not 0 <= self.sum_noise < math.inf or (self.sum_noise and not self.is_secure):
            raise MalformedMessageError(f"sum_noise is {self.sum_noise:g}, expected at least 0, and 0 without sums")
        if not 0 <= self.proposed_at < self.expires_at <= LATEST:
            raise MalformedMessageError("a proposal that expires before it was made, or after the year 9000")
        object.__setattr__(self, "digest", digest_of(self.to_json()))

    def to_json(self) -> bytes:
        """Its bytes; its digest is their SHA-256."""
        return canonical_json(
            {
                "schema": PROPOSAL_SCHEMA,
                "federation": self.federation,
                "study": self.study,
                "plan": self.plan,
                "settings": self.settings,
                "purpose": self.purpose,
                "legal_basis": self.legal_basis,
                "max_rounds": self.max_rounds,
                "is_secure": self.is_secure,
                "aggregator": self.aggregator,
                "codec": self.codec,
                "asked": {"max_norm": self.asked.max_norm, "noise_multiplier": self.asked.noise_multiplier},
                "sites": list(self.sites),
                "outputs": [output.value for output in self.outputs],
                "proposed_by": str(self.proposed_by),
                "proposed_at": self.proposed_at,
                "expires_at": self.expires_at,
                "sum_noise": self.sum_noise,
            }
        )


class Step(Enum):
    """What a patch does to a run, beside the settings that it changes."""

    SET = "set"
    PAUSE = "pause"  # no further round begins
    RESUME = "resume"
    STOP = "stop"
    ROLL_BACK = "rollback"  # the next round begins with the model that an earlier one gave; numbers go on


@dataclass(frozen=True, slots=True)
class Patch:
    """One change to a run between rounds. ``settings`` are the plan's (learning_rate, local_epochs).

    Raises:
        MalformedMessageError: a name, digest or number that is none, or what does not belong to its step.
    """

    run: RunId
    proposal: Digest
    number: int  # from 1, without a gap
    step: Step
    settings: Mapping[str, float]  # of the plan, by name; only those of SETTINGS
    sites: tuple[EnvoyName, ...] | None  # who is asked from now on, sorted; None: as before
    stop: Mapping[str, float]  # of the stop rule, by name; only those of STOP_RULE
    to_round: int | None  # of ROLL_BACK alone: the round whose model is taken; 0: the plan's initial model
    reason: str
    signed_by: PeerId
    signed_at: float  # seconds since 1970

    SETTINGS: ClassVar[tuple[str, ...]] = ("batch_size", "learning_rate", "local_epochs", "proximal_mu")
    STOP_RULE: ClassVar[tuple[str, ...]] = ("max_rounds", "min_delta", "patience", "wall_clock_seconds")
    WHOLE: ClassVar[frozenset[str]] = frozenset({"batch_size", "local_epochs", "max_rounds", "patience"})

    def __post_init__(self) -> None:
        _checked_name("run", self.run)
        _checked_digest("proposal", self.proposal)
        if not 1 <= self.number <= MAX_PATCHES:
            raise MalformedMessageError(f"patch {self.number}, expected 1 to {MAX_PATCHES}")
        check_line("reason", self.reason)
        for values, known in ((self.settings, self.SETTINGS), (self.stop, self.STOP_RULE)):
            for name, value in values.items():
                _check_change(name, value, known, is_whole=name in self.WHOLE)
        if self.sites is not None:
            check_sites(self.sites, least=1)
        says_something = bool(self.settings or self.stop or self.sites is not None)
        if says_something is not (self.step is Step.SET):
            raise MalformedMessageError(
                f"a patch to {self.step.value}: settings, sites and stop rule are for set alone"
            )
        if (self.to_round is not None) is not (self.step is Step.ROLL_BACK) or (self.to_round or 0) < 0:
            raise MalformedMessageError("to_round: expected a round, from 0 on, with rollback and nowhere else")
        if not 0 <= self.signed_at <= LATEST:
            raise MalformedMessageError("signed_at: expected seconds since 1970, before the year 9000")

    def to_json(self) -> bytes:
        """Its bytes."""
        return canonical_json(
            {
                "schema": PATCH_SCHEMA,
                "run": self.run,
                "proposal": self.proposal,
                "number": self.number,
                "step": self.step.value,
                "settings": dict(self.settings),
                "sites": None if self.sites is None else list(self.sites),
                "stop": dict(self.stop),
                "to_round": self.to_round,
                "reason": self.reason,
                "signed_by": str(self.signed_by),
                "signed_at": self.signed_at,
            }
        )


def sign(text: Proposal | Patch, key: Ed25519PrivateKey, chain: bytes) -> SignedDocument:
    """Sign with the identity key whose certificate (PEM: identity, issuer) is given."""
    content = text.to_json()
    schema = PROPOSAL_SCHEMA if isinstance(text, Proposal) else PATCH_SCHEMA
    return SignedDocument(content, key.sign(_CONTEXTS[schema] + content), chain)


def read_proposal(document: SignedDocument, root: x509.Certificate, now: float) -> Proposal:
    """Read a proposal strictly, and check who signed it.

    Args:
        document: as it came.
        root: that this side pinned.
        now: seconds since 1970: the signer's certificate must be good then. Whether the proposal has expired is the
            caller's question.

    Raises:
        MalformedMessageError: no proposal, or not in canonical bytes.
        IdentityError: not signed by whom it names, or by a certificate that is not of this federation, or expired.
        NotAuthorizedError: its signer is no operator.
    """
    proposal = proposal_of(document.content)
    _check_signer(document, PROPOSAL_SCHEMA, proposal.proposed_by, proposal.federation, root, now)
    return proposal


def proposal_of(content: bytes) -> Proposal:
    """The proposal in a document whose signature was checked when it came: by ``read_proposal``, and then kept.

    Raises:
        MalformedMessageError: as ``read_proposal``.
    """
    whole = _whole(content, PROPOSAL_SCHEMA)
    try:
        asked = whole["asked"]
        proposal = Proposal(
            federation=_text(whole, "federation"),
            study=_text(whole, "study"),
            plan=Digest(_text(whole, "plan")),
            settings=Digest(_text(whole, "settings")),
            purpose=_text(whole, "purpose"),
            legal_basis=_text(whole, "legal_basis"),
            max_rounds=_int(whole["max_rounds"]),
            is_secure=_bool(whole["is_secure"]),
            aggregator=_text(whole, "aggregator"),
            codec=None if whole["codec"] is None else Digest(_text(whole, "codec")),
            asked=AskedProtection(
                None if asked["max_norm"] is None else _number(asked["max_norm"]), _number(asked["noise_multiplier"])
            ),
            sites=tuple(EnvoyName(_str(name)) for name in _list(whole["sites"])),
            outputs=tuple(Output(name) for name in _list(whole["outputs"])),
            proposed_by=parse_spiffe(_text(whole, "proposed_by")),
            proposed_at=_number(whole["proposed_at"]),
            expires_at=_number(whole["expires_at"]),
            sum_noise=_number(whole["sum_noise"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, IdentityError, ConfigError) as error:
        raise MalformedMessageError(f"not a proposal: {error}") from error
    if proposal.to_json() != content:
        raise MalformedMessageError("not a proposal: unknown fields, or its JSON is not canonical")
    return proposal


def read_patch(document: SignedDocument, root: x509.Certificate, federation: str, now: float) -> Patch:
    """Read a patch strictly, and check who signed it; whether it follows the one before is ``check_patches``'s.

    Raises:
        MalformedMessageError: no patch, or not in canonical bytes.
        IdentityError: not signed by whom it names, or by a certificate that is not of this federation, or expired.
        NotAuthorizedError: its signer is no operator.
    """
    patch = patch_of(document.content)
    _check_signer(document, PATCH_SCHEMA, patch.signed_by, federation, root, now)
    return patch


def patch_of(content: bytes) -> Patch:
    """The patch in a document whose signature was checked when it came: by ``read_patch``, and then kept.

    Raises:
        MalformedMessageError: as ``read_patch``.
    """
    whole = _whole(content, PATCH_SCHEMA)
    try:
        sites = whole["sites"]
        patch = Patch(
            run=RunId(_text(whole, "run")),
            proposal=Digest(_text(whole, "proposal")),
            number=_int(whole["number"]),
            step=Step(whole["step"]),
            settings={_str(name): _number(value) for name, value in _dict(whole["settings"]).items()},
            sites=None if sites is None else tuple(EnvoyName(_str(name)) for name in _list(sites)),
            stop={_str(name): _number(value) for name, value in _dict(whole["stop"]).items()},
            to_round=None if whole["to_round"] is None else _int(whole["to_round"]),
            reason=_text(whole, "reason"),
            signed_by=parse_spiffe(_text(whole, "signed_by")),
            signed_at=_number(whole["signed_at"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, IdentityError) as error:
        raise MalformedMessageError(f"not a patch: {error}") from error
    if patch.to_json() != content:
        raise MalformedMessageError("not a patch: unknown fields, or its JSON is not canonical")
    return patch


def check_patches(patches: tuple[Patch, ...], run: RunId, proposal: Digest) -> None:
    """Are these all patches of that run, from the first on?

    Raises:
        MalformedMessageError: one is missing, comes twice, or is of another run or proposal.
    """
    for number, patch in enumerate(patches, 1):
        if (patch.run, patch.proposal) != (run, proposal):
            raise MalformedMessageError(
                f"patch {patch.number} is for {patch.run}, expected {run}; or of another proposal"
            )
        if patch.number != number:
            raise MalformedMessageError(f"patch {patch.number} of {run} came where number {number} was expected")


def settings_after(patches: tuple[Patch, ...]) -> dict[str, float]:
    """The plan's settings that patches changed; later ones win. Whole numbers are ``int``."""
    changed: dict[str, float] = {}
    for patch in patches:
        changed |= {name: int(value) if name in Patch.WHOLE else value for name, value in patch.settings.items()}
    return changed


def _check_signer(
    document: SignedDocument, schema: str, named: PeerId, federation: str, root: x509.Certificate, now: float
) -> None:
    chain = read_chain(document.chain, "the signer's certificates")
    if len(chain) != 2:
        raise IdentityError(f"{len(chain)} certificates of a signer, expected its own and the issuer's")
    peer = check_chain(chain[0], chain[1], root, now)
    if not is_for_signing(chain[0]):
        raise IdentityError(f"the certificate of {peer} signs no documents")
    if peer != named or peer.federation != federation:
        raise IdentityError(f"signed by {peer}; the text names {named} of {federation}")
    if peer.role is not Role.OPERATOR:
        raise NotAuthorizedError(f"{peer} may not sign this; it is for operators")
    key = chain[0].public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(f"the identity key of {peer} is not Ed25519")
    try:
        key.verify(document.signature, _CONTEXTS[schema] + document.content)
    except InvalidSignature as error:
        raise IdentityError(f"the signature of {peer} does not fit the text; it was changed") from error


def _whole(content: bytes, schema: str) -> dict[str, Any]:
    if len(content) > MAX_DOCUMENT_BYTES:
        raise MalformedMessageError(f"a text of {len(content)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError("a signed text that is no JSON") from error
    if not isinstance(whole, dict) or whole.get("schema") != schema:
        raise MalformedMessageError(f"a signed text of another schema than {schema}")
    return whole


def _check_change(name: str, value: float, known: tuple[str, ...], *, is_whole: bool) -> None:
    if name not in known:
        raise MalformedMessageError(f"a patch changes {name[:80]!r}, expected one of {', '.join(known)}")
    least = 0.0 if name in {"min_delta", "proximal_mu"} else 1.0 if is_whole else math.ulp(0.0)
    if not least <= value < 1e9 or (is_whole and value != int(value)):
        raise MalformedMessageError(f"a patch sets {name} to {value:g}, which it cannot be")


def check_line(what: str, line: str) -> None:
    """Is it one printable line, and not too long?

    Raises:
        MalformedMessageError: it is not.
    """
    if len(line) > MAX_LINE or not line.isprintable():
        raise MalformedMessageError(f"{what}: expected one printable line of at most {MAX_LINE} characters")


def check_sites(sites: tuple[EnvoyName, ...], least: int) -> None:
    """Are these names of sites, in their order, each once?

    Raises:
        MalformedMessageError: they are not.
    """
    if not least <= len(sites) <= _MAX_SITES or list(sites) != sorted(set(sites)):
        raise MalformedMessageError(f"sites: expected {least} to {_MAX_SITES} names in their order, each once")
    for name in sites:
        _checked_name("site", name)


def _check_aggregator(aggregator: str) -> None:
    prefix, _, name = aggregator.partition(":")
    if aggregator != "director" and prefix != "envoy":
        raise MalformedMessageError(f"aggregator is {aggregator[:80]!r}, expected director or envoy:NAME")
    if aggregator != "director":
        _checked_name("aggregator", name)


def _checked_name(what: str, name: str) -> None:
    try:
        check_name(what, name)
    except FederationError as error:
        raise MalformedMessageError(str(error)) from error


def _checked_digest(what: str, digest: str) -> None:
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise MalformedMessageError(f"{what}: {digest[:80]!r} is no SHA-256")


def _text(whole: Mapping[str, Any], name: str) -> str:
    return _str(whole[name])


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, got {type(value).__name__}")
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {type(value).__name__}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError("expected a finite number")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value
