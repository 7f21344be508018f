"""The site's half of a secure sum; ``summation`` is the aggregator's, and is read beside it.

    advertise ─[cohort]─ share ─[delivery]─ receive ─ stream, announce ─[survivors]─ consent ─[consents]─ unmask

Each step takes a state and gives the next one and what is to be said. Nothing here does I/O, reads a clock or makes
randomness: ``random`` is an argument. What cannot be done honestly raises, and the state stays as it was.

The state lives in memory alone: whoever restarts sits the attempt out. What must outlast a restart is ``promises``:
a step that binds the site takes those of its journal and gives a state with new ones, **which must be on disk before
the content leaves**. No secret is in a state's ``repr``.

Source: Bonawitz et al. 2017 (doi:10.1145/3133956.3133982), the variant for a malicious server; pair keys by KEM in
place of Diffie-Hellman, and keys advertised after the training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BadShareError, MalformedMessageError, SumRefusedError, UnsendableUpdateError
from ..messages import EnvoyName
from ..metrics import MetricSum
from ..roster import Roster
from ..tensors import Digest, Vector
from . import encoding
from .cohort import Cohort, check_deal, cohort_of, delivery_digest, fixed_point, mask_key_seed
from .masks import Masker
from .rules import (
    Promise,
    Promises,
    SumFloors,
    check_cohort,
    check_differencing,
    check_group,
    check_noise,
    check_suite,
    check_survivors,
    organizations_of,
    settle_retry,
)
from .sealing import PrivateKey, is_available, key_pair, open_box, seal
from .shamir import SHARE_BYTES, split
from .signed import Kind, Signed, Signer, check_signed, signed
from .skellam import noise_in
from .skellam_noise import SkellamNoise
from .spec import SumSpec, noise_key, rounding_key
from .statements import (
    Advert,
    CohortCall,
    Consent,
    ConsentSet,
    Content,
    Deal,
    Delivery,
    MaskedHeader,
    Piece,
    Shares,
    SurvivorsCall,
    Unmasking,
)
from .tallies import MetricShape, TallyLayout

PART_WORDS = 1 << 18
"""1 MiB."""
CUT_SHARE = 64
"""At most one of so many numbers of a tensor may be cut at its bound,"""
CUT_LEAST = 64
"""or so many, if that is more."""
SECRET_BYTES = 32
_C = TypeVar("_C", bound=Content)


@dataclass(frozen=True, slots=True)
class Site:
    """Who takes part, and by which rules."""

    name: EnvoyName
    sign: Signer = field(repr=False)  # of its Ed25519 identity
    roster: Roster = field(repr=False)  # that it accepted
    floors: SumFloors


@dataclass(frozen=True, slots=True)
class Advertised:
    """Keys are out; whether there is a cohort is not known."""

    site: Site
    spec: SumSpec
    promises: Promises
    advert: Signed = field(repr=False)
    mask_secret: bytes = field(repr=False)
    self_secret: bytes = field(repr=False)
    share_key: PrivateKey = field(repr=False)
    mask_key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Shared:
    """The secrets are dealt."""

    site: Site
    cohort: Cohort
    promises: Promises
    deal: Signed = field(repr=False)
    own_shares: tuple[bytes, bytes] = field(repr=False)  # of its mask secret, of its self secret
    mask_secret: bytes = field(repr=False)
    self_secret: bytes = field(repr=False)
    share_key: PrivateKey = field(repr=False)
    mask_key: PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """Masks are known: the vector may leave, once the promises are on disk."""

    site: Site
    cohort: Cohort
    promises: Promises
    delivery: bytes  # digest of whose deals came
    held: Mapping[EnvoyName, tuple[bytes, bytes]] = field(repr=False)  # shares of mask and self secret of each sharer
    plus: tuple[bytes, ...] = field(repr=False)
    minus: tuple[bytes, ...] = field(repr=False)

    @property
    def words(self) -> int:
        """32-bit words of the masked vector."""
        return self.cohort.words

    @property
    def tally_layout(self) -> TallyLayout:
        """The tallies behind its body; its metrics are those that every envoy of the cohort offered."""
        return self.cohort.tally_layout

    @property
    def sharers(self) -> tuple[EnvoyName, ...]:
        """Whose shares came, in order."""
        return tuple(name for name in self.cohort.names if name in self.held)


@dataclass(frozen=True, slots=True)
class Masked:
    """The vector is out, and its masks are forgotten."""

    site: Site
    cohort: Cohort
    promises: Promises
    delivery: bytes
    held: Mapping[EnvoyName, tuple[bytes, bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Consented:
    """One survivor set is agreed to, and no other will be."""

    site: Site
    cohort: Cohort
    promises: Promises
    body: bytes = field(repr=False)
    consent: Consent
    held: Mapping[EnvoyName, tuple[bytes, bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unmasked:
    """One share of each was revealed; there is nothing left to reveal."""

    site: Site
    promises: Promises


def advertise(
    site: Site,
    spec: SumSpec,
    metrics: Sequence[MetricShape],
    promises: Promises,
    random: Callable[[int], bytes],
) -> tuple[Advertised, bytes]:
    """Training is done: make keys for this sum and no other, and give earlier attempts of the round up.

    Raises:
        SumRefusedError: a suite below the site's, or an attempt that it already shared secrets in.
    """
    check_suite(site.floors, spec.terms.suite)
    if not is_available(spec.terms.suite):
        raise SumRefusedError(f"this machine's cryptography has no {spec.terms.suite.value}; `pip` has wheels that do")
    if site.name not in site.roster:
        raise SumRefusedError(f"{site.name} is not in the roster that this site accepted itself")
    if promises.of(spec.ref) is not None:
        raise SumRefusedError(f"{site.name} already shared its secrets in {spec.ref}; it waits for the next attempt")
    earlier = promises.earlier(spec.ref)
    promises = promises.put(*(replace(one, given_up=True) for one in earlier if not one.unmasked))
    mask_secret, self_secret, share_seed = random(32), random(32), random(32)
    share_key, share_public = key_pair(spec.terms.suite, share_seed)
    mask_key, mask_public = key_pair(spec.terms.suite, mask_key_seed(spec, mask_secret))
    offered = () if spec.terms.equal_weights else tuple(sorted(metrics, key=lambda shape: shape.name))
    given_up = tuple(one.transcript for one in promises.earlier(spec.ref) if one.given_up)[-encoding.MAX_GIVEN_UP :]
    body = encoding.advert_body(Advert(spec.digest, share_public, mask_public, offered, given_up))
    advert = signed(site.name, Kind.ADVERT, body, site.sign)
    state = Advertised(site, spec, promises, advert, mask_secret, self_secret, share_key, mask_key)
    return state, encoding.encode(advert)


def share(
    state: Advertised, content: bytes, promises: Promises, random: Callable[[int], bytes]
) -> tuple[Shared, bytes]:
    """The cohort is closed: check it by the site's own rules and share both secrets among it.

    Raises:
        SumRefusedError: the site will not be in this cohort, or may not sum its update once more.
        MalformedMessageError: what came is no cohort.
    """
    site, spec = state.site, state.spec
    call = _read(content, CohortCall)
    if promises.of(spec.ref) is not None:
        raise SumRefusedError(f"{site.name} already shared its secrets in {spec.ref}; once is enough")
    cohort = cohort_of(spec, site.roster, call)
    colluders = check_cohort(site.floors, site.roster, site.name, cohort.names, cohort.threshold)
    check_noise(spec.terms.noise, cohort.threshold, colluders)
    own = call.adverts[cohort.place(site.name)]
    if own != state.advert:
        raise SumRefusedError(f"the cohort has other keys for {site.name} than it advertised")
    promises = _settled(promises, cohort)
    promises = promises.put(
        *(replace(one, given_up=True) for one in promises.earlier(spec.ref) if not one.unmasked),
        Promise(
            spec.ref.round,
            spec.ref.attempt,
            cohort.transcript,
            cohort.names,
            cohort.threshold,
            colluders,
            weights=spec.weights,
            cuts=spec.cuts,
            orders=spec.orders,
            group=spec.terms.group,
        ),
    )
    count = len(cohort.names)
    mask_shares = split(state.mask_secret, cohort.threshold, count, random)
    self_shares = split(state.self_secret, cohort.threshold, count, random)
    pieces = [
        encoding.piece_bytes(_piece(cohort, site.name, to, state.mask_secret, *both))
        for to, *both in zip(cohort.names, mask_shares, self_shares, strict=True)
    ]
    deal = Deal(
        transcript=cohort.transcript,
        mask_commitment=cohort.commitment(state.mask_secret, "mask secret", site.name),
        self_commitment=cohort.commitment(state.self_secret, "self secret", site.name),
        pieces=tuple(hashlib.sha256(piece).digest() for piece in pieces),
    )
    statement = signed(site.name, Kind.DEAL, encoding.deal_body(deal), site.sign)
    place = cohort.place(site.name)
    shared = Shared(
        site=site,
        cohort=cohort,
        promises=promises,
        deal=statement,
        own_shares=(mask_shares[place], self_shares[place]),
        mask_secret=state.mask_secret,
        self_secret=state.self_secret,
        share_key=state.share_key,
        mask_key=state.mask_key,
    )
    return shared, encoding.encode(Shares(statement, tuple(pieces)))


def receive(state: Shared, content: bytes, promises: Promises) -> Ready:
    """The others' shares are here: open them, hold each against its dealer's commitment, derive the masks.

    Raises:
        SumRefusedError: too few shared, or what came is not what they signed.
        BadShareError: an envoy dealt to this site what it had not committed to; names it.
        MalformedMessageError: what came is no delivery.
    """
    site, cohort = state.site, state.cohort
    delivery = _read(content, Delivery)
    promise = _standing(promises, cohort)
    # Once more: since the site shared here, its update may have left in another attempt.
    promises = _settled(promises, cohort)
    names = [one.deal.by for one in delivery.dealt]
    if names != [name for name in cohort.names if name in set(names)]:
        raise SumRefusedError("a delivery that is not in the cohort's order, each once")
    if len(names) < cohort.threshold:
        raise SumRefusedError(f"{len(names)} envoys shared their secrets, and the threshold is {cohort.threshold}")
    organizations = len(organizations_of(site.roster, names))
    if organizations < site.floors.organizations:
        raise SumRefusedError(f"{organizations} organizations shared; this site asks for {site.floors.organizations}")
    if site.name not in names:
        raise SumRefusedError(f"{site.name} shared its secrets and is left out of the delivery")
    held: dict[EnvoyName, tuple[bytes, bytes]] = {}
    plus = [cohort.self_mask(state.self_secret, site.name)]
    minus: list[bytes] = []
    for one in delivery.dealt:
        dealer = one.deal.by
        if dealer == site.name:
            if one.deal.body != state.deal.body:
                raise SumRefusedError(f"the delivery has another deal of {site.name} than it made")
            held[dealer] = state.own_shares
            continue
        deal = check_deal(cohort, site.roster, one.deal)
        if hashlib.sha256(one.piece).digest() != deal.pieces[cohort.place(site.name)]:
            raise SumRefusedError(f"{dealer} signed another piece for {site.name} than the one that came")
        shares, seed = _opened(state, dealer, encoding.read_piece(one.piece))
        held[dealer] = shares
        is_plus = cohort.place(site.name) < cohort.place(dealer)
        (plus if is_plus else minus).append(cohort.pair_mask(seed, dealer, site.name))
    return Ready(
        site=site,
        cohort=cohort,
        promises=promises.put(replace(promise, masked=True)),
        delivery=delivery_digest(one.deal for one in delivery.dealt),
        held=held,
        plus=tuple(plus),
        minus=tuple(minus),
    )


def stream(
    state: Ready,
    payload: Vector | None,
    num_examples: int,
    metrics: Sequence[MetricSum],
    seed: bytes,
    start_word: int = 0,
    part_words: int = PART_WORDS,
    noise_secret: bytes | None = None,
) -> Iterator[NDArray[np.uint32]]:
    """The masked vector, part by part, from any word on: always the same words for the same payload.

    What comes before ``start_word`` is only counted for the tallies. Memory: one part, whatever the vector's length.

    Args:
        state: with promises that are on disk.
        payload: float32, as long as the spec says; None for an evaluation.
        num_examples: of the site; counted up to the spec's ``max_weight``.
        metrics: those of ``state.tally_layout``, and perhaps others, which stay here.
        seed: of the task, which the spec binds all sites to; the rounding follows from it.
        start_word: where to begin, in 32-bit words.
        part_words: the most words of one part.
        noise_secret: 32 bytes that were drawn for this payload and are known to nobody else; where the sum has noise.

    Yields:
        uint32; the array of one part is overwritten by the next.

    Raises:
        NonFiniteUpdateError: NaN or infinity in the payload.
        UnsendableUpdateError: a metric that was announced is missing, or does not fit; or bounds that cut so many
            numbers of a tensor that little but signs is left. Then the tallies are not made, and nothing is announced.
        ValueError: a payload of another length, a start beyond the end, or noise without a secret.
    """
    cohort, spec, numbers = state.cohort, state.cohort.spec, fixed_point(state.cohort.spec)
    vector = np.zeros(0, np.float32) if payload is None else payload
    if vector.shape != (numbers.size,) or not 0 <= start_word <= cohort.words or part_words < 1:
        raise ValueError(f"{vector.size} numbers from word {start_word} on, and the sum has {numbers.size}")
    weight = spec.weight_of(num_examples)
    noise = noise_of(spec, noise_secret)
    # Noise is for a strict sensitivity: to the nearest, and not by lot.
    key = None if spec.terms.noise else rounding_key(seed, spec.ref)
    clipped, squares = np.zeros(len(spec.sizes), np.int64), 0.0
    room = np.empty(min(part_words, max(cohort.tally_start, cohort.tally_layout.words)), np.uint32)
    masker = Masker(state.plus, state.minus, min(start_word, cohort.tally_start))
    for begin in range(0, cohort.tally_start, part_words):
        end = min(begin + part_words, cohort.tally_start)
        part, piece = room[: end - begin], vector[begin:end]
        numbers.encode(piece, begin, weight, key, part[: piece.size], clipped)
        if noise is not None:
            noise.add(part[: piece.size], begin)
        part[piece.size :] = 0
        if cohort.tally_layout.histogram:
            squares += float(np.square(piece, dtype=np.float64).sum())
        if end > start_word:
            unsent = part[max(start_word - begin, 0) :]
            masker.apply(unsent)
            yield unsent
    _check_cuts(spec, clipped)
    counted = clipped[: cohort.tally_layout.tensors]
    tallies = cohort.tally_layout.encode(weight, counted, metrics, float(np.sqrt(squares)))
    Masker(state.plus, state.minus, cohort.tally_start).apply(tallies)
    words = tallies.view(np.uint32)
    for begin in range(max(start_word - cohort.tally_start, 0), words.size, part_words):
        yield words[begin : begin + part_words]


def announce(state: Ready, digest: Digest) -> tuple[Masked, bytes]:
    """The vector is out: say which it is. ``digest`` is the SHA-256 of all its bytes."""
    header = MaskedHeader(state.cohort.transcript, state.delivery, state.words, bytes.fromhex(digest))
    statement = signed(state.site.name, Kind.MASKED, encoding.masked_body(header), state.site.sign)
    masked = Masked(state.site, state.cohort, state.promises, state.delivery, state.held)
    return masked, encoding.encode(statement)


def consent(state: Masked, content: bytes, promises: Promises) -> tuple[Consented, bytes]:
    """Agree, once, to the sum over some survivors.

    Raises:
        SumRefusedError: the site's rules forbid this set, or it agreed to another one.
        MalformedMessageError: what came is no call.
    """
    site, cohort = state.site, state.cohort
    body = _read(content, SurvivorsCall).body
    said = encoding.read_consent(body)
    promise = _standing(promises, cohort)
    if said.transcript != cohort.transcript:
        raise SumRefusedError("asked to consent in another sum: another cohort, threshold, model, round or attempt")
    if said.delivery != state.delivery:
        raise SumRefusedError("asked to consent where other envoys shared than this site was told")
    check_survivors(site.floors, site.roster, site.name, said.survivors, tuple(state.held), cohort.threshold)
    if promise.consented not in (None, said.survivors):
        raise SumRefusedError(f"{site.name} consented to another set of survivors in {cohort.spec.ref}; one is all")
    check_differencing(site.floors, site.roster, promises, cohort.spec.ref, said.survivors)
    statement = signed(site.name, Kind.CONSENT, body, site.sign)
    consented = Consented(
        site=site,
        cohort=cohort,
        promises=promises.put(replace(promise, consented=said.survivors)),
        body=body,
        consent=said,
        held=state.held,
    )
    return consented, encoding.encode(statement)


def unmask(state: Consented, content: bytes, promises: Promises) -> tuple[Unmasked, bytes]:
    """Enough consented to the same: reveal one share of each envoy that shared, of one kind, once.

    Raises:
        SumRefusedError: too few consents, to something else, or not signed by those who are in the sum; or shares were
            revealed before, or given up.
        MalformedMessageError: what came is no set of consents.
    """
    site, cohort = state.site, state.cohort
    consents = _read(content, ConsentSet)
    promise = _standing(promises, cohort)
    if consents.body != state.body:
        raise SumRefusedError(f"the consents are to another sum than the one that {site.name} consented to")
    if promise.consented != state.consent.survivors:
        raise SumRefusedError(f"{site.name} has no consent on record that fits; it reveals nothing")
    survivors = set(state.consent.survivors)
    voices = {one.by for one in consents.voices}
    if len(voices) != len(consents.voices):
        raise SumRefusedError("a consent counts once")
    if strangers := voices - survivors:
        raise SumRefusedError(f"{min(strangers)} consents to a sum that it is not in")
    if len(voices) < cohort.threshold:
        raise SumRefusedError(f"{len(voices)} consents, and the threshold is {cohort.threshold}")
    for one in consents.voices:
        check_signed(Signed(one.by, Kind.CONSENT, consents.body, one.signature), Kind.CONSENT, site.roster)
    shares = tuple(
        state.held[name][name in survivors] for name in cohort.names if name in state.held
    )  # (of the mask secret, of the self secret)
    unmasking = Unmasking(cohort.transcript, hashlib.sha256(state.body).digest(), shares)
    statement = signed(site.name, Kind.UNMASKING, encoding.unmasking_body(unmasking), site.sign)
    return Unmasked(site, promises.put(replace(promise, unmasked=True))), encoding.encode(statement)


def noise_of(spec: SumSpec, secret: bytes | None) -> SkellamNoise | None:
    """The noise that a site adds to its numbers; None where the sum has none, or no numbers.

    Raises:
        ValueError: there is no secret to draw it from.
    """
    if spec.terms.noise is None or not spec.sizes:
        return None
    if secret is None or len(secret) != SECRET_BYTES:
        raise ValueError(f"{spec.ref} is summed with noise, and there is no secret to draw it from")
    return SkellamNoise(noise_in(spec.terms.noise, sum(spec.sizes)).site_variance, noise_key(secret, spec))


def _piece(
    cohort: Cohort, me: EnvoyName, to: EnvoyName, mask_secret: bytes, mask_share: bytes, self_share: bytes
) -> Piece:
    """What one envoy gets; the dealer keeps its own shares, and commits to them all the same."""
    suite = cohort.spec.terms.suite
    share_box = pair_box = pair_commitment = b""
    try:
        if to != me:
            info = cohort.box_info("shares", me, to)
            share_box = seal(suite, cohort.advert(to).share_key, mask_share + self_share, info)
        if cohort.deals(me, to):
            seed = cohort.derived(mask_secret, "pair seed", me, to)
            pair_box = seal(suite, cohort.advert(to).mask_key, seed, cohort.box_info("pair seed", me, to))
            pair_commitment = cohort.commitment(seed, "pair seed", me, to)
    except MalformedMessageError as error:
        raise BadShareError(f"{to} advertised {error}", to) from error
    return Piece(
        share_box=share_box,
        pair_box=pair_box,
        mask_share_commitment=cohort.commitment(mask_share, "mask share", me, to),
        self_share_commitment=cohort.commitment(self_share, "self share", me, to),
        pair_commitment=pair_commitment,
    )


def _opened(state: Shared, dealer: EnvoyName, piece: Piece) -> tuple[tuple[bytes, bytes], bytes]:
    """The two shares of a piece, and the seed of the pair's mask, whoever of the two dealt it."""
    cohort, me = state.cohort, state.site.name
    suite = cohort.spec.terms.suite
    is_dealt = cohort.deals(dealer, me)
    if is_dealt != bool(piece.pair_box):
        raise BadShareError(f"{dealer} dealt {me} a pair seed where it should not, or none where it should", dealer)
    try:
        both = open_box(suite, state.share_key, piece.share_box, cohort.box_info("shares", dealer, me))
        seed = (
            open_box(suite, state.mask_key, piece.pair_box, cohort.box_info("pair seed", dealer, me))
            if is_dealt
            else cohort.derived(state.mask_secret, "pair seed", me, dealer)
        )
    except MalformedMessageError as error:
        raise BadShareError(f"{dealer} dealt {me} {error}", dealer) from error
    shares = both[:SHARE_BYTES], both[SHARE_BYTES:]
    is_right = cohort.is_committed(piece.mask_share_commitment, shares[0], "mask share", dealer, me)
    is_right &= cohort.is_committed(piece.self_share_commitment, shares[1], "self share", dealer, me)
    if is_dealt:
        is_right &= cohort.is_committed(piece.pair_commitment, seed, "pair seed", dealer, me)
    if not is_right:
        raise BadShareError(f"{dealer} dealt {me} other shares or another pair seed than it committed to", dealer)
    return shares, seed


def _settled(promises: Promises, cohort: Cohort) -> Promises:
    spec = cohort.spec
    check_group(promises, spec.terms.group)
    said = cohort.names, cohort.threshold, cohort.given_up, spec.weights, spec.cuts, spec.orders
    return settle_retry(promises, spec.ref, *said)


def _check_cuts(spec: SumSpec, clipped: NDArray[np.int64]) -> None:
    """Where all sites' numbers are cut, the sum is their weights with signs, and weights that differ tell whose.

    Raises:
        UnsendableUpdateError: too much of a tensor is cut. With equal weights signs are of nobody, and all may be.
    """
    if spec.terms.equal_weights:
        return
    for place, (size, count) in enumerate(zip(spec.sizes, clipped.tolist(), strict=True)):
        if count > max(CUT_LEAST, size // CUT_SHARE):
            raise UnsendableUpdateError(
                f"the clip bound of tensor {place}, {spec.bounds[place]:g}, cuts more than 1/{CUT_SHARE} of this site's"
                " numbers; a sum of what is left would show signs of single sites. Give [secure_sum] a larger clip"
            )


def _read(content: bytes, kind: type[_C]) -> _C:
    said = encoding.decode(content)
    if not isinstance(said, kind):
        raise SumRefusedError(f"a {type(said).__name__} came where a {kind.__name__} was to come")
    return said


def _standing(promises: Promises, cohort: Cohort) -> Promise:
    """The promise of this very sum, where nothing of it was revealed or given up."""
    ref = cohort.spec.ref
    promise = promises.of(ref)
    if promise is None or promise.transcript != cohort.transcript:
        raise SumRefusedError(f"this site's journal does not know this sum of {ref}; it goes no further")
    if promise.unmasked:
        raise SumRefusedError(f"this site already revealed its shares in {ref}; once is all")
    if promise.given_up:
        raise SumRefusedError(f"this site gave {ref} up, and others rely on it")
    return promise
