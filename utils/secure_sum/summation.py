"""The aggregator's half of a secure sum; ``participant`` is the site's, and is read beside it.

    begin ─ take adverts ─ close_cohort ─ take shares ─ deliver ─ take headers ─ call_survivors ─ take consents
          ─ reveal ─ take unmaskings ─ open_sum

States are values: ``take`` gives a new one for whatever an envoy says, and the same one where it says it twice. Each
step forward gives the bytes for each envoy. Nothing here does I/O, reads a clock or makes randomness, so that what was
said, taken once more in the same order, leads to the same state and the same bytes.

The aggregator protects nobody: each site checks everything itself. What is checked here is what would spoil the sum,
and who spoils it. What is done with the opened sum is ``opened``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from ..errors import (
    BadShareError,
    DuplicateUpdateError,
    MalformedMessageError,
    NotInvitedError,
    ProtocolError,
    SumAbortedError,
    SumRefusedError,
)
from ..messages import EnvoyName
from ..roster import Roster
from ..tensors import Digest
from . import encoding
from .cohort import Cohort, check_advert, check_deal, cohort_of, delivery_digest, fixed_point
from .opened import Opened, add_vector, decode, masker, opened, tallies, tally_start, unmask_total
from .rules import LEAST_ORGANIZATIONS, colluders_of, organizations_of, threshold_of
from .sealing import seal
from .signed import Kind, Signed, check_signed
from .spec import SumSpec
from .statements import (
    CohortCall,
    Consent,
    ConsentSet,
    Content,
    Delivered,
    Delivery,
    MaskedHeader,
    Shares,
    SurvivorsCall,
    Voice,
)
from .statements import Unmasking as UnmaskingBody
from .tallies import TallyLayout
from .terms import MAX_COHORT

__all__ = [
    "Consenting",
    "Gathering",
    "Items",
    "Masking",
    "Opened",
    "Sharing",
    "Stage",
    "SumRules",
    "Unmasking",
    "add_vector",
    "begin",
    "call_survivors",
    "close_cohort",
    "decode",
    "deliver",
    "fixed_point",
    "masker",
    "open_sum",
    "reveal",
    "take",
    "tallies",
    "tally_start",
    "unmask_total",
]

Items: TypeAlias = Mapping[EnvoyName, bytes]
"""What each envoy is told."""


@dataclass(frozen=True, slots=True)
class SumRules:
    """What the aggregator reckons the sites will ask for; each of them decides by its own floors."""

    colluding: int = 1
    honest: int = 2
    min_organizations: int = LEAST_ORGANIZATIONS


@dataclass(frozen=True, slots=True)
class Gathering:
    """Who trained advertises. A site that restarted advertises once more, and its last advert counts."""

    spec: SumSpec
    roster: Roster = field(repr=False)
    rules: SumRules
    heard: Mapping[EnvoyName, Signed] = field(default_factory=dict, repr=False)  # adverts
    taken: frozenset[bytes] = field(default=frozenset(), repr=False)  # digests of all that was said


@dataclass(frozen=True, slots=True)
class _Closed:
    """What is known from the moment on that the cohort is closed."""

    cohort: Cohort
    roster: Roster = field(repr=False)
    rules: SumRules
    taken: frozenset[bytes] = field(repr=False)

    @property
    def words(self) -> int:
        """32-bit words of each masked vector."""
        return self.cohort.words

    @property
    def tally_layout(self) -> TallyLayout:
        """The tallies behind its body."""
        return self.cohort.tally_layout

    @property
    def threshold(self) -> int:
        """From so many answers on, a stage may end."""
        return self.cohort.threshold


@dataclass(frozen=True, slots=True)
class Sharing(_Closed):
    """The cohort shares its secrets."""

    heard: Mapping[EnvoyName, Shares] = field(default_factory=dict, repr=False)

    @property
    def awaited(self) -> frozenset[EnvoyName]:
        """Whose shares are missing."""
        return frozenset(self.cohort.names) - self.heard.keys()

    @property
    def is_enough(self) -> bool:
        """May the sum go on without those who are awaited?"""
        return len(self.heard) >= self.threshold


@dataclass(frozen=True, slots=True)
class Masking(_Closed):
    """Masked vectors come, and their headers."""

    shares: Mapping[EnvoyName, Shares] = field(repr=False)  # in the cohort's order
    delivery: bytes  # digest of whose deals were delivered
    heard: Mapping[EnvoyName, MaskedHeader] = field(default_factory=dict, repr=False)

    @property
    def awaited(self) -> frozenset[EnvoyName]:
        """Who has not announced its vector."""
        return frozenset(self.shares) - self.heard.keys()

    @property
    def is_enough(self) -> bool:
        """May the sum go on without those who are awaited?"""
        return len(self.heard) >= self.threshold

    @property
    def announced(self) -> Mapping[EnvoyName, Digest]:
        """The SHA-256 that each vector must have."""
        return {name: Digest(header.digest.hex()) for name, header in self.heard.items()}


@dataclass(frozen=True, slots=True)
class Consenting(_Closed):
    """The survivors are called, and sign."""

    shares: Mapping[EnvoyName, Shares] = field(repr=False)
    body: bytes = field(repr=False)  # of the consent
    survivors: tuple[EnvoyName, ...]
    heard: Mapping[EnvoyName, Signed] = field(default_factory=dict, repr=False)

    @property
    def awaited(self) -> frozenset[EnvoyName]:
        """Who has not consented."""
        return frozenset(self.survivors) - self.heard.keys()

    @property
    def is_enough(self) -> bool:
        """May the sum go on without those who are awaited?"""
        return len(self.heard) >= self.threshold


@dataclass(frozen=True, slots=True)
class Unmasking(_Closed):
    """Consents are out, and shares come."""

    shares: Mapping[EnvoyName, Shares] = field(repr=False)
    consents: ConsentSet = field(repr=False)
    survivors: tuple[EnvoyName, ...]
    heard: Mapping[EnvoyName, tuple[bytes, ...]] = field(default_factory=dict, repr=False)  # by the order of sharers

    @property
    def awaited(self) -> frozenset[EnvoyName]:
        """Who has revealed nothing; those who dropped out may, if they are back."""
        return frozenset(self.survivors) - self.heard.keys()

    @property
    def is_enough(self) -> bool:
        """May the sum be opened without those who are awaited?"""
        return len(self.heard) >= self.threshold


Stage: TypeAlias = Gathering | Sharing | Masking | Consenting | Unmasking
_S = TypeVar("_S", Gathering, Sharing, Masking, Consenting, Unmasking)
_C = TypeVar("_C", bound=Content)


def begin(
    spec: SumSpec,
    roster: Roster,
    colluding: int = 1,
    honest: int = 2,
    min_organizations: int = LEAST_ORGANIZATIONS,
) -> Gathering:
    """A sum that nobody is in yet."""
    return Gathering(spec, roster, SumRules(colluding, honest, min_organizations))


def take(state: _S, by: EnvoyName, content: bytes) -> _S:
    """Something an envoy said. ``by`` is who its certificate names.

    Raises:
        ProtocolError: not what is to be said now; in particular ``DuplicateUpdateError``, another statement of this
            stage than the one before, and ``NotInvitedError``, an envoy that is not in this stage.
        SumRefusedError: signed by another key, or about another sum.
        BadShareError: an envoy revealed another share than was dealt to it; names it. The sum goes on without.
        MalformedMessageError: no statement.
    """
    mark = hashlib.sha256(by.encode() + b"\0" + content).digest()
    if mark in state.taken:
        return state
    said = encoding.decode(content)
    speaker = said.deal.by if isinstance(said, Shares) else said.by if isinstance(said, Signed) else by
    if speaker != by:
        raise ProtocolError(f"{by} gave a statement of {speaker}")
    taken = state.taken | {mark}
    match state:
        case Gathering():
            return replace(state, heard=_advertised(state, by, _of(said, Signed)), taken=taken)
        case Sharing():
            return replace(state, heard=_shared(state, by, _of(said, Shares)), taken=taken)
        case Masking():
            return replace(state, heard=_announced(state, by, _of(said, Signed)), taken=taken)
        case Consenting():
            return replace(state, heard=_consented(state, by, _of(said, Signed)), taken=taken)
        case Unmasking():
            return replace(state, heard=_revealed(state, by, _of(said, Signed)), taken=taken)


def close_cohort(state: Gathering, names: Collection[EnvoyName] | None = None) -> tuple[Sharing, Items]:
    """Whoever advertised is in it, or those of them who are still there: ``names``.

    Raises:
        SumAbortedError: too few, or too many of one organization.
    """
    members = sorted(set(state.heard) if names is None else set(state.heard) & set(names))
    rules = state.rules
    organizations = organizations_of(state.roster, members)
    least = max(rules.min_organizations, rules.colluding + rules.honest)
    if len(organizations) < least:
        raise SumAbortedError(f"{len(organizations)} organizations are ready for the sum, expected {least} at least")
    if len(members) > MAX_COHORT:
        raise SumAbortedError(f"{len(members)} envoys are ready for the sum, expected {MAX_COHORT} at most")
    threshold = threshold_of(organizations.values(), rules.colluding, rules.honest)
    if threshold is None:
        raise SumAbortedError(
            f"{len(members)} envoys of {len(organizations)} organizations: no threshold keeps {rules.colluding}"
            f" colluding and {rules.honest} honest ones apart; more envoys, or fewer of one organization"
        )
    if (noise := state.spec.terms.noise) is not None:
        colluders = colluders_of(organizations.values(), rules.colluding)
        threshold = max(threshold, noise.parts + colluders)
        if threshold > len(members):
            raise SumAbortedError(
                f"{len(members)} envoys are ready for the sum, and its noise needs {noise.parts} honest ones beside"
                f" {colluders} that may collude"
            )
    call = CohortCall(tuple(state.heard[name] for name in members), threshold)
    cohort = cohort_of(state.spec, state.roster, call)
    return Sharing(cohort, state.roster, rules, state.taken), _to_all(members, call)


def deliver(state: Sharing) -> tuple[Masking, Items]:
    """To each who shared, what all of them dealt to it.

    Raises:
        SumAbortedError: fewer shared than the threshold, or too few organizations.
    """
    _require(state.heard, "shared their secrets", state)
    shares = {name: state.heard[name] for name in state.cohort.names if name in state.heard}
    items = {
        to: encoding.encode(
            Delivery(tuple(Delivered(one.deal, one.pieces[state.cohort.place(to)]) for one in shares.values()))
        )
        for to in shares
    }
    delivery = delivery_digest(one.deal for one in shares.values())
    return Masking(state.cohort, state.roster, state.rules, state.taken, shares, delivery), items


def call_survivors(state: Masking, names: Collection[EnvoyName], audit_head: bytes = b"") -> tuple[Consenting, Items]:
    """Those whose vectors are whole are in the sum; the others' masks are going to be removed.

    Raises:
        SumAbortedError: fewer than the threshold, or too few organizations.
        ValueError: somebody who announced no vector.
    """
    if strangers := set(names) - state.heard.keys():
        raise ValueError(f"{min(strangers)} announced no vector")
    _require(names, "sent their vectors", state)
    survivors = tuple(sorted(names))
    consent = Consent(state.cohort.transcript, state.delivery, survivors, audit_head)
    body = encoding.consent_body(consent)
    calling = Consenting(state.cohort, state.roster, state.rules, state.taken, state.shares, body, survivors)
    return calling, _to_all(survivors, SurvivorsCall(body))


def reveal(state: Consenting) -> tuple[Unmasking, Items]:
    """Show all who are in the sum that enough consented.

    Raises:
        SumAbortedError: too few did.
    """
    _require(state.heard, "consented", state)
    voices = tuple(Voice(name, state.heard[name].signature) for name in state.survivors if name in state.heard)
    consents = ConsentSet(state.body, voices)
    revealing = Unmasking(state.cohort, state.roster, state.rules, state.taken, state.shares, consents, state.survivors)
    return revealing, _to_all(state.survivors, consents)


def open_sum(state: Unmasking) -> Opened:
    """Rebuild what removes the masks that are left in the sum of the survivors' vectors.

    Raises:
        SumAbortedError: fewer revealed than the threshold.
        BadShareError: an envoy dealt shares of something else than it had committed to, or another pair seed; names it.
    """
    _require(state.heard, "revealed their shares", state)
    evidence = encoding.encode(state.consents)
    return opened(state.cohort, state.shares, state.survivors, state.heard, evidence)


def _advertised(state: Gathering, by: EnvoyName, said: Signed) -> dict[EnvoyName, Signed]:
    advert = check_advert(state.spec, state.roster, said)
    for key in (advert.share_key, advert.mask_key):
        try:
            seal(state.spec.terms.suite, key, b"", b"")  # whoever has a key that is none would stop everybody else
        except MalformedMessageError as error:
            raise MalformedMessageError(f"{by} advertises {error}") from error
    return {**state.heard, by: said}


def _shared(state: Sharing, by: EnvoyName, said: Shares) -> dict[EnvoyName, Shares]:
    cohort = state.cohort
    _once(state, by, cohort.names)
    deal = check_deal(cohort, state.roster, said.deal)
    if tuple(hashlib.sha256(piece).digest() for piece in said.pieces) != deal.pieces:
        raise MalformedMessageError(f"{by}: the pieces are not those that its deal is signed over")
    for to, raw in zip(cohort.names, said.pieces, strict=True):
        piece = encoding.read_piece(raw)
        if bool(piece.share_box) != (to != by) or bool(piece.pair_box) != cohort.deals(by, to):
            raise MalformedMessageError(f"{by}: its piece for {to} has a box too many, or one too few")
    return {**state.heard, by: said}


def _announced(state: Masking, by: EnvoyName, said: Signed) -> dict[EnvoyName, MaskedHeader]:
    _once(state, by, state.shares)
    header = encoding.read_masked(check_signed(said, Kind.MASKED, state.roster))
    if (header.transcript, header.delivery) != (state.cohort.transcript, state.delivery):
        raise SumRefusedError(f"{by} masked a vector for another sum")
    if header.words != state.words:
        raise MalformedMessageError(f"{by} announces {header.words} words, expected {state.words}")
    return {**state.heard, by: header}


def _consented(state: Consenting, by: EnvoyName, said: Signed) -> dict[EnvoyName, Signed]:
    _once(state, by, state.survivors)
    if check_signed(said, Kind.CONSENT, state.roster) != state.body:
        raise SumRefusedError(f"{by} consents to another sum than it was asked to")
    return {**state.heard, by: said}


def _revealed(state: Unmasking, by: EnvoyName, said: Signed) -> dict[EnvoyName, tuple[bytes, ...]]:
    cohort, sharers = state.cohort, tuple(state.shares)
    _once(state, by, state.survivors)
    unmasking: UnmaskingBody = encoding.read_unmasking(check_signed(said, Kind.UNMASKING, state.roster))
    if (unmasking.transcript, unmasking.consent) != (cohort.transcript, hashlib.sha256(state.consents.body).digest()):
        raise SumRefusedError(f"{by} reveals shares of another sum")
    if len(unmasking.shares) != len(sharers):
        raise MalformedMessageError(f"{by} reveals {len(unmasking.shares)} shares, expected {len(sharers)}")
    for dealer, share in zip(sharers, unmasking.shares, strict=True):
        piece = encoding.read_piece(state.shares[dealer].pieces[cohort.place(by)])
        label = "self share" if dealer in state.survivors else "mask share"
        commitment = piece.self_share_commitment if dealer in state.survivors else piece.mask_share_commitment
        if not cohort.is_committed(commitment, share, label, dealer, by):
            raise BadShareError(f"{by} reveals another share of {dealer}'s secret than {dealer} committed to", by)
    return {**state.heard, by: unmasking.shares}


def _once(state: Sharing | Masking | Consenting | Unmasking, by: EnvoyName, expected: Collection[EnvoyName]) -> None:
    if by not in expected:
        raise NotInvitedError(f"{by} is not among the {len(expected)} envoys of this step of {state.cohort.spec.ref}")
    if by in state.heard:
        raise DuplicateUpdateError(f"{by} already said something else in this step of {state.cohort.spec.ref}")


def _require(names: Collection[EnvoyName], did: str, state: _Closed) -> None:
    if len(names) < state.threshold:
        raise SumAbortedError(
            f"{len(names)} of {len(state.cohort.names)} envoys {did}, and the threshold is {state.threshold}"
        )
    least = max(state.rules.min_organizations, state.rules.colluding + state.rules.honest)
    organizations = len(organizations_of(state.roster, names))
    if organizations < least:
        raise SumAbortedError(f"{organizations} organizations {did}, expected {least} at least")


def _to_all(names: Collection[EnvoyName], content: Content) -> Items:
    return dict.fromkeys(names, encoding.encode(content))


def _of(said: Content, kind: type[_C]) -> _C:
    if not isinstance(said, kind):
        raise ProtocolError(f"a {type(said).__name__} came where a {kind.__name__} was to come")
    return said
