"""What is said in a secure sum, as frozen values; ``encoding`` turns them into bytes and back.

In the order in which they are said, with who says them and to whom:

| statement       | by         | to         | says                                                               |
|-----------------|------------|------------|--------------------------------------------------------------------|
| `Advert`        | envoy      | all        | trained, over this spec; my two public keys; what I gave up before |
| `CohortCall`    | aggregator | all        | these are in it, and this is the threshold                         |
| `Shares`        | envoy      | aggregator | a `Deal`, signed, and a `Piece` for each                           |
| `Delivery`      | aggregator | one        | what the others dealt to you                                       |
| `MaskedHeader`  | envoy      | aggregator | length and digest of my masked vector                              |
| `SurvivorsCall` | aggregator | all        | the vectors of these are in the sum                                |
| `Consent`       | envoy      | all        | that call, signed                                                  |
| `ConsentSet`    | aggregator | all        | the consents                                                       |
| `Unmasking`     | envoy      | aggregator | one share of each envoy that shared                                |

A site has two secrets in each sum. From its *mask secret* follow the key to which others seal pair seeds, and the
pair seeds that it deals itself; it is opened where the site drops out. Its *self secret* masks its vector alone; it is
opened where the vector is in the sum. Nobody may ever hold both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..messages import EnvoyName
from .signed import Signed
from .tallies import MetricShape


@dataclass(frozen=True, slots=True)
class Advert:
    """Body: an envoy trained, and may be in the sum."""

    spec: bytes  # digest of the spec
    share_key: bytes  # public
    mask_key: bytes  # public
    metrics: tuple[MetricShape, ...] = ()
    given_up: tuple[bytes, ...] = ()  # transcripts of other attempts of the round


@dataclass(frozen=True, slots=True)
class Deal:
    """Body: an envoy's commitments to its secrets, and to all pieces that it deals."""

    transcript: bytes
    mask_commitment: bytes  # to the mask secret
    self_commitment: bytes  # to the self secret
    pieces: tuple[bytes, ...]  # SHA-256 of each, in the cohort's order


@dataclass(frozen=True, slots=True)
class Piece:
    """What an envoy deals to one other, or to itself, and then without boxes."""

    share_box: bytes
    pair_box: bytes  # empty where the other one of the two deals the seed
    mask_share_commitment: bytes
    self_share_commitment: bytes
    pair_commitment: bytes  # empty as the box


@dataclass(frozen=True, slots=True)
class MaskedHeader:
    """Body: which vector an envoy sent."""

    transcript: bytes
    delivery: bytes  # digest of whose deals came
    words: int  # of 32 bits
    digest: bytes  # SHA-256


@dataclass(frozen=True, slots=True)
class Consent:
    """Body: the sum over these may be opened. The aggregator words it, envoys sign it as it came."""

    transcript: bytes
    delivery: bytes
    survivors: tuple[EnvoyName, ...]
    audit_head: bytes = b""  # of the director's audit log; here it is opaque


@dataclass(frozen=True, slots=True)
class Unmasking:
    """Body: one share of each envoy that shared."""

    transcript: bytes
    consent: bytes  # SHA-256 of what was consented to
    shares: tuple[bytes, ...]  # in the order of those who shared: self secret of survivors, mask secret of the others


@dataclass(frozen=True, slots=True)
class CohortCall:
    """The cohort is closed."""

    adverts: tuple[Signed, ...]  # in the order of names
    threshold: int


@dataclass(frozen=True, slots=True)
class Shares:
    """An envoy's deal with its pieces."""

    deal: Signed
    pieces: tuple[bytes, ...]  # in the cohort's order


@dataclass(frozen=True, slots=True)
class Delivered:
    """One envoy's deal, and the piece that is for the receiver."""

    deal: Signed
    piece: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came from everybody who shared."""

    dealt: tuple[Delivered, ...]  # in the cohort's order


@dataclass(frozen=True, slots=True)
class SurvivorsCall:
    """Whose vectors are in the sum."""

    body: bytes  # a Consent


@dataclass(frozen=True, slots=True)
class Voice:
    """One envoy's signature under the consent."""

    by: EnvoyName
    signature: bytes


@dataclass(frozen=True, slots=True)
class ConsentSet:
    """Everybody's consents to one body."""

    body: bytes
    voices: tuple[Voice, ...]


Content: TypeAlias = Signed | CohortCall | Shares | Delivery | SurvivorsCall | ConsentSet
"""One message; a ``Signed`` is an advert, a masked header, a consent or an unmasking."""
