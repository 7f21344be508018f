"""An opened sum: the masks that are left in it, rebuilt from shares, and taken away.

The sum of the survivors' vectors still holds the self mask of each of them, and of each envoy that shared and then
dropped out the masks of its pairs with the survivors. The first follow from self secrets, the second from mask secrets;
of each envoy one of the two is rebuilt here, and what does not fit its owner's commitments is laid at its door.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import BadShareError, MalformedMessageError
from ..messages import EnvoyName
from ..tensors import Vector
from .cohort import Cohort, fixed_point, mask_key_seed
from .encoding import read_deal, read_piece
from .masks import Masker
from .sealing import PrivateKey, key_pair, open_box
from .shamir import combine
from .spec import SumSpec
from .statements import Piece, Shares
from .tallies import Tallies


@dataclass(frozen=True, slots=True)
class Opened:
    """What unmasks one sum, and what shows that it might be."""

    cohort: Cohort
    survivors: tuple[EnvoyName, ...]
    evidence: bytes = field(repr=False)  # the consents and their signatures, as they were sent
    plus: tuple[bytes, ...] = field(repr=False)  # masks that are in the sum
    minus: tuple[bytes, ...] = field(repr=False)  # masks that were taken from it

    @property
    def transcript(self) -> bytes:
        """T."""
        return self.cohort.transcript

    @property
    def spec(self) -> SumSpec:
        """S."""
        return self.cohort.spec

    @property
    def words(self) -> int:
        """32-bit words of a vector."""
        return self.cohort.words

    @property
    def body_words(self) -> int:
        """Those of the body, without padding and tallies."""
        return sum(self.cohort.spec.sizes)


def tally_start(opened_sum: Opened) -> int:
    """The first 32-bit word of the tallies."""
    return opened_sum.cohort.tally_start


def masker(opened_sum: Opened, start_word: int = 0) -> Masker:
    """Takes the masks away, from any word on. From ``cohort.tally_start`` on, words are of 64 bits."""
    return Masker(opened_sum.minus, opened_sum.plus, start_word)


def unmask_total(opened_sum: Opened, total: NDArray[np.uint32]) -> None:
    """Take the masks from the whole sum, in place."""
    if total.shape != (opened_sum.words,) or total.dtype != np.uint32:
        raise ValueError(f"{total.dtype} {total.shape}, expected uint32 ({opened_sum.words},)")
    start = opened_sum.cohort.tally_start
    masker(opened_sum).apply(total[:start])
    masker(opened_sum, start).apply(total[start:].view(np.uint64))


def add_vector(cohort: Cohort, total: NDArray[np.uint32], vector: NDArray[np.uint32]) -> None:
    """Add one masked vector: words of 32 bits in the body, of 64 bits in the tallies."""
    start = cohort.tally_start
    np.add(total[:start], vector[:start], out=total[:start])
    tail = total[start:].view(np.uint64)
    np.add(tail, vector[start:].view(np.uint64), out=tail)


def tallies(opened_sum: Opened, total: NDArray[np.uint32]) -> Tallies:
    """What the unmasked sum says beside the vector; ``total`` whole, or from ``cohort.tally_start`` on.

    Raises:
        MalformedMessageError: it is no sum, or not one of so many sites; some site spoiled it.
    """
    layout = opened_sum.cohort.tally_layout
    said = layout.decode(total[-layout.words :].view(np.uint64))
    if said.contributions != len(opened_sum.survivors):
        raise MalformedMessageError(
            f"the sum says that {said.contributions} sites are in it, and {len(opened_sum.survivors)} are"
        )
    return said


def decode(opened_sum: Opened, total: NDArray[np.uint32], total_weight: int, out: Vector) -> None:
    """The weighted mean of the survivors' payloads, from the unmasked sum, whole or its body alone."""
    numbers = fixed_point(opened_sum.cohort.spec)
    numbers.decode(total[: numbers.size], total_weight, out)


def opened(
    cohort: Cohort,
    shares: Mapping[EnvoyName, Shares],
    survivors: tuple[EnvoyName, ...],
    revealed: Mapping[EnvoyName, tuple[bytes, ...]],
    evidence: bytes,
) -> Opened:
    """Rebuild one secret of each envoy that shared.

    Args:
        cohort: with its threshold.
        shares: of those who shared, in the cohort's order.
        survivors: whose vectors are in the sum.
        revealed: by whom, one share of each of ``shares``; each is the committed one.
        evidence: of the consents.

    Raises:
        BadShareError: names whoever dealt something else than it had committed to.
    """
    chosen = [name for name in cohort.names if name in revealed][: cohort.threshold]
    plus: list[bytes] = []
    minus: list[bytes] = []
    for index, (dealer, dealt) in enumerate(shares.items()):
        points = {cohort.place(name) + 1: revealed[name][index] for name in chosen}
        is_survivor = dealer in survivors
        secret = _rebuilt(cohort, dealer, dealt, points, is_survivor)
        if is_survivor:
            plus.append(cohort.self_mask(secret, dealer))
            continue
        mask_key = _mask_key(cohort, dealer, secret)
        for survivor in survivors:
            seed = _pair_seed(cohort, shares, dealer, survivor, secret, mask_key)
            is_plus = cohort.place(survivor) < cohort.place(dealer)
            (plus if is_plus else minus).append(cohort.pair_mask(seed, dealer, survivor))
    return Opened(cohort, survivors, evidence, tuple(plus), tuple(minus))


def _rebuilt(cohort: Cohort, dealer: EnvoyName, dealt: Shares, points: Mapping[int, bytes], is_survivor: bool) -> bytes:
    deal = read_deal(dealt.deal.body)
    what = "self secret" if is_survivor else "mask secret"
    commitment = deal.self_commitment if is_survivor else deal.mask_commitment
    try:
        secret = combine(points, cohort.threshold)
    except (ValueError, MalformedMessageError) as error:
        raise BadShareError(f"{dealer} dealt shares of its {what} that belong to no secret", dealer) from error
    if not cohort.is_committed(commitment, secret, what, dealer):
        raise BadShareError(f"{dealer} dealt shares of another {what} than it had committed to", dealer)
    return secret


def _mask_key(cohort: Cohort, dropped: EnvoyName, secret: bytes) -> PrivateKey:
    private, public = key_pair(cohort.spec.terms.suite, mask_key_seed(cohort.spec, secret))
    if public != cohort.advert(dropped).mask_key:
        raise BadShareError(f"{dropped} advertised a key that does not follow from its mask secret", dropped)
    return private


def _pair_seed(
    cohort: Cohort,
    shares: Mapping[EnvoyName, Shares],
    dropped: EnvoyName,
    survivor: EnvoyName,
    secret: bytes,
    mask_key: PrivateKey,
) -> bytes:
    """The seed of a mask between a dropped envoy and a survivor, by whichever of the two dealt it."""
    if cohort.deals(dropped, survivor):
        piece = read_piece(shares[dropped].pieces[cohort.place(survivor)])
        seed = cohort.derived(secret, "pair seed", dropped, survivor)
        _require_seed(cohort, piece, seed, dropped, survivor)
        return seed
    piece = read_piece(shares[survivor].pieces[cohort.place(dropped)])
    info = cohort.box_info("pair seed", survivor, dropped)
    try:
        seed = open_box(cohort.spec.terms.suite, mask_key, piece.pair_box, info)
    except MalformedMessageError as error:
        raise BadShareError(f"{survivor} sealed no pair seed for {dropped} that opens", survivor) from error
    _require_seed(cohort, piece, seed, survivor, dropped)
    return seed


def _require_seed(cohort: Cohort, piece: Piece, seed: bytes, dealer: EnvoyName, to: EnvoyName) -> None:
    if not cohort.is_committed(piece.pair_commitment, seed, "pair seed", dealer, to):
        raise BadShareError(f"{dealer} dealt {to} another pair seed than the one it had committed to", dealer)
