"""A closed cohort: who is in a sum, under which keys and threshold, and the transcript T that all else is bound to.

T is the SHA-256 of the spec's digest, the threshold and every advert as it came, in the order of names. Each key,
commitment and box of the sum is derived from T or opened with it: whoever was shown another cohort, model or threshold
gets masks that fit nowhere, and nothing of one attempt is of any use in another.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import MalformedMessageError, SumRefusedError
from ..messages import EnvoyName
from ..roster import Roster
from .encoding import read_advert, read_deal
from .fixed_point import FixedPoint
from .rules import HISTOGRAM_LEAST
from .sealing import PUBLIC_KEY_BYTES
from .signed import Kind, Signed, check_signed
from .spec import SCHEME, SumSpec
from .statements import Advert, CohortCall, Deal
from .tallies import MetricShape, TallyLayout, padded


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who sums what, and T."""

    spec: SumSpec
    names: tuple[EnvoyName, ...]  # in order
    adverts: tuple[Advert, ...]  # of each of them
    threshold: int
    transcript: bytes  # T, 32 bytes
    tally_layout: TallyLayout = field(repr=False)
    _places: dict[EnvoyName, int] = field(repr=False, compare=False)

    def place(self, name: EnvoyName) -> int:
        """Where in the order an envoy stands, from 0; its shares are those at x = place + 1."""
        return self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def advert(self, name: EnvoyName) -> Advert:
        """What an envoy advertised."""
        return self.adverts[self._places[name]]

    @property
    def given_up(self) -> tuple[tuple[EnvoyName, bytes], ...]:
        """Who of them gave up which transcript of another attempt."""
        return tuple((n, one) for n, advert in zip(self.names, self.adverts, strict=True) for one in advert.given_up)

    @property
    def tally_start(self) -> int:
        """The first 32-bit word of the tallies."""
        return padded(sum(self.spec.sizes))

    @property
    def words(self) -> int:
        """32-bit words of a masked vector: body, padding, tallies."""
        return self.tally_start + self.tally_layout.words

    def deals(self, dealer: EnvoyName, to: EnvoyName) -> bool:
        """Is it the first of the two who deals the seed of their mask? Each deals about half of its own."""
        one, other = self._places[dealer], self._places[to]
        return one != other and (one < other) == ((one + other) % 2 == 0)

    def derived(self, secret: bytes, label: str, *names: EnvoyName) -> bytes:
        """32 bytes that follow from a secret, in this sum alone."""
        info = framed(SCHEME.encode(), label.encode(), *(name.encode() for name in names))
        return HKDF(algorithm=SHA256(), length=32, salt=self.transcript, info=info).derive(secret)

    def self_mask(self, self_secret: bytes, name: EnvoyName) -> bytes:
        """The key of an envoy's own mask."""
        return self.derived(self_secret, "self mask", name)

    def pair_mask(self, seed: bytes, one: EnvoyName, other: EnvoyName) -> bytes:
        """The key of the mask of two, which the first of them in order adds and the second takes away."""
        return self.derived(seed, "pair mask", *sorted((one, other)))

    def commitment(self, value: bytes, label: str, *names: EnvoyName) -> bytes:
        """SHA-256 that binds an envoy to a value of 256 bits of entropy, and hides it."""
        said = (SCHEME.encode(), b"commitment", self.transcript, label.encode())
        return hashlib.sha256(framed(*said, *(name.encode() for name in names), value)).digest()

    def is_committed(self, commitment: bytes, value: bytes, label: str, *names: EnvoyName) -> bool:
        """Is the commitment one to this value?"""
        return hmac.compare_digest(commitment, self.commitment(value, label, *names))

    def box_info(self, label: str, by: EnvoyName, to: EnvoyName) -> bytes:
        """What a box is bound to."""
        return framed(SCHEME.encode(), b"box", self.transcript, label.encode(), by.encode(), to.encode())


def framed(*parts: bytes) -> bytes:
    """The parts, each with its length before it: no two lists of parts give the same bytes."""
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def mask_key_seed(spec: SumSpec, mask_secret: bytes) -> bytes:
    """The seed of the key pair to which others seal pair seeds: whoever rebuilds the mask secret can open them."""
    info = framed(SCHEME.encode(), b"mask key")
    return HKDF(algorithm=SHA256(), length=32, salt=spec.digest, info=info).derive(mask_secret)


def check_advert(spec: SumSpec, roster: Roster, statement: Signed) -> Advert:
    """An advert for this very sum, by an envoy of the roster.

    Raises:
        SumRefusedError: signed by another key, over another spec, or with keys of another suite.
        MalformedMessageError: its body is no advert.
    """
    advert = read_advert(check_signed(statement, Kind.ADVERT, roster))
    if advert.spec != spec.digest:
        raise SumRefusedError(
            f"{statement.by} advertises for another sum: another model, plan, codec, round or other terms than"
            f" {spec.ref} as it came here"
        )
    length = PUBLIC_KEY_BYTES[spec.terms.suite]
    if {len(advert.share_key), len(advert.mask_key)} != {length}:
        raise SumRefusedError(f"{statement.by} advertises keys of another suite than {spec.terms.suite.value}")
    if advert.share_key == advert.mask_key:
        raise SumRefusedError(f"{statement.by} advertises one key for two purposes")
    if spec.terms.equal_weights and advert.metrics:
        raise SumRefusedError(f"{statement.by} offers metrics in a sum that has none")
    names = [shape.name for shape in advert.metrics]
    if names != sorted(set(names)):
        raise MalformedMessageError(f"{statement.by}: metrics are not in the order of their names, each once")
    return advert


def cohort_of(spec: SumSpec, roster: Roster, call: CohortCall) -> Cohort:
    """The cohort of a call whose adverts are all signed, over this spec and by envoys of the roster.

    Raises:
        SumRefusedError, MalformedMessageError: as ``check_advert``; more envoys than were asked; names out of order,
            or two envoys with one key.
    """
    adverts = tuple(check_advert(spec, roster, statement) for statement in call.adverts)
    names = tuple(statement.by for statement in call.adverts)
    if list(names) != sorted(set(names)):
        raise SumRefusedError("the cohort is not in the order of names, each once")
    if len(names) > spec.contributors:
        raise SumRefusedError(f"a cohort of {len(names)} envoys, and {spec.contributors} were asked")
    keys = [key for advert in adverts for key in (advert.share_key, advert.mask_key)]
    if len(set(keys)) != len(keys):
        raise SumRefusedError("two envoys of the cohort advertise one key")
    shared = set.intersection(*(set(advert.metrics) for advert in adverts)) if adverts else set[MetricShape]()
    layout = TallyLayout(
        tuple(sorted(shared, key=lambda shape: shape.name)),
        0 if spec.terms.noise else len(spec.sizes),  # what was cut off a vector is no part of its noised release
        spec.terms.histogram and len(names) >= HISTOGRAM_LEAST,
    )
    said = (part for one in call.adverts for part in (one.by.encode(), one.body))
    whole = framed(SCHEME.encode(), b"transcript", spec.digest, struct.pack("<Q", call.threshold), *said)
    places = {name: place for place, name in enumerate(names)}
    return Cohort(spec, names, adverts, call.threshold, hashlib.sha256(whole).digest(), layout, places)


def check_deal(cohort: Cohort, roster: Roster, statement: Signed) -> Deal:
    """A deal of this very sum, by an envoy of its cohort.

    Raises:
        SumRefusedError: of an envoy outside the cohort, signed by another key, or bound to another transcript.
        MalformedMessageError: its body is no deal, or it has not one piece for each.
    """
    if statement.by not in cohort:
        raise SumRefusedError(f"{statement.by} deals shares and is not in the cohort")
    deal = read_deal(check_signed(statement, Kind.DEAL, roster))
    if deal.transcript != cohort.transcript:
        raise SumRefusedError(f"{statement.by} deals for another cohort, threshold, model, round or attempt")
    if len(deal.pieces) != len(cohort.names):
        raise MalformedMessageError(f"{statement.by} deals {len(deal.pieces)} pieces to {len(cohort.names)} envoys")
    return deal


def delivery_digest(deals: Iterable[Signed]) -> bytes:
    """Whose deals came, and which: two envoys that were told different ones have different digests."""
    parts = (part for deal in deals for part in (deal.by.encode(), hashlib.sha256(deal.body).digest()))
    return hashlib.sha256(framed(SCHEME.encode(), b"delivery", *parts)).digest()


def fixed_point(spec: SumSpec) -> FixedPoint:
    """How the body of this sum is held in the ring."""
    return FixedPoint(spec.sizes, spec.bounds if spec.sizes else (1.0,), spec.max_total)
