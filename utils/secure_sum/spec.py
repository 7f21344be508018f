"""What a secure sum is about, as both sides work it out for themselves: it is never sent, only its digest is signed.

Whoever was given another model, plan, codec, round or other terms has another digest, and its signatures fit nowhere.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import ConfigError
from ..messages import Task, TaskKind, TaskRef
from ..tensors import Digest, canonical_json, digest_of
from .terms import MAX_COHORT, SumTerms

SCHEME = "fedveil-sum/1"
"""Ring Z_2^32 with 2^30 levels, tallies in Z_2^64, AES-256-CTR masks, Shamir over 2^256 + 297, Ed25519, HPKE."""


@dataclass(frozen=True, slots=True)
class SumSpec:
    """S: everything public that a sum is bound to before its cohort is known.

    Raises:
        ConfigError: as many clip bounds as fit no tensors, or nobody asked.
    """

    federation: str
    ref: TaskRef
    kind: TaskKind
    model: Digest
    layout: Digest  # of the plan's updates, coded or not
    codec: Digest | None
    sizes: tuple[int, ...]  # elements of each tensor of what is summed; () for an evaluation
    contributors: int  # envoys asked: no more than these can be in the sum
    terms: SumTerms
    orders: str = ""  # digest of what else of a task shapes an answer: seed, kind of payload, protection asked for
    digest: bytes = field(init=False, compare=False)  # 32 bytes

    def __post_init__(self) -> None:
        if self.contributors < 1:
            raise ConfigError(f"a secure sum of {self.contributors} envoys; it needs some")
        if len(self.terms.bounds) not in {1, len(self.sizes)} and self.sizes:
            raise ConfigError(
                f"{len(self.terms.bounds)} clip bounds for {len(self.sizes)} tensors; give one each, or one for all"
            )
        object.__setattr__(self, "digest", hashlib.sha256(canonical_json(self._document())).digest())

    @property
    def bounds(self) -> tuple[float, ...]:
        """The clip bound of each tensor."""
        given = self.terms.bounds
        return given * len(self.sizes) if len(given) == 1 else given[: len(self.sizes)]

    @property
    def max_total(self) -> int:
        """Upper bound of the sum of weights, public.

        With noise it is the same whoever was asked: a vector that is summed again in another attempt must become the
        very same integers, or the difference of the two sums would be free of the noise that is in both.
        """
        return (MAX_COHORT if self.terms.noise else self.contributors) * self.terms.max_weight

    @property
    def weights(self) -> str:
        """How sites weigh, in words; empty where nothing is weighed."""
        if not self.sizes:
            return ""
        return "equal" if self.terms.equal_weights else f"examples, at most {self.terms.max_weight}"

    @property
    def cuts(self) -> str:
        """Digest of the clip bounds, and of the noise; empty where there is nothing to cut."""
        noise = [] if self.terms.noise is None else [self.terms.noise.to_json()]
        return digest_of(canonical_json([*self.bounds, *noise])) if self.sizes else ""

    def weight_of(self, num_examples: int) -> int:
        """What a site with so many examples counts for."""
        return 1 if self.terms.equal_weights else min(num_examples, self.terms.max_weight)

    def _document(self) -> dict[str, object]:
        terms = self.terms
        group = {"group": terms.group} if terms.group else {}  # and without groups the digest that it always had
        document: dict[str, object] = {
            "scheme": SCHEME,
            "federation": self.federation,
            "run": self.ref.run,
            "round": self.ref.round,
            "attempt": self.ref.attempt,
            "plan": self.ref.plan,
            "kind": self.kind.value,
            "model": self.model,
            "layout": self.layout,
            "codec": self.codec,
            "sizes": list(self.sizes),
            "contributors": self.contributors,
            "orders": self.orders,
            "suite": terms.suite.value,
            "bounds": list(terms.bounds),
            "max_weight": terms.max_weight,
            "equal_weights": terms.equal_weights,
            "aggregator": terms.aggregator,
            "histogram": terms.histogram,
            **group,
        }
        return document if terms.noise is None else document | {"noise": terms.noise.to_json()}


def spec_of(federation: str, task: Task, sizes: tuple[int, ...]) -> SumSpec:
    """The spec of one task; ``sizes`` are those of the payload's layout, () for an evaluation.

    Raises:
        ConfigError: the task asks for no secure sum.
    """
    if task.sum is None:
        raise ConfigError(f"{task.ref} asks for no secure sum")
    return SumSpec(
        federation=federation,
        ref=task.ref,
        kind=task.kind,
        model=task.model,
        layout=task.layout,
        codec=task.codec,
        sizes=sizes if task.kind is TaskKind.TRAIN else (),
        contributors=len(task.cohort),
        terms=task.sum,
        orders=_orders_of(task),
    )


def _orders_of(task: Task) -> Digest:
    """A director that asked all sites but one to cut their updates to nothing would be left with that one's."""
    said = [task.seed.hex(), task.payload.value, task.asked.max_norm, task.asked.noise_multiplier]
    noise = [] if task.sum is None or task.sum.noise is None else [task.sum.noise.to_json()]
    return digest_of(canonical_json([*said, *noise]))


def rounding_key(seed: bytes, ref: TaskRef) -> bytes:
    """The public key of a round's stochastic rounding: the same in each attempt, in a simulation, and at every site.

    Every site rounds a number by the same draw, so that what is summed is one function of each site's number. With
    draws of their own, which are public, sites could be told apart: under a bound far beyond the updates a number is
    rounded to 0 or 1, and where one site's draw alone is next to one half, the sum is a bit of that site.
    """
    run = ref.run.encode()
    info = b"fedveil-sum/1 rounding" + struct.pack("<I", len(run)) + run + struct.pack("<Q", ref.round)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(seed)


def noise_key(secret: bytes, spec: SumSpec) -> bytes:
    """The key of one site's noise, from the 32 secret bytes that were drawn for its update.

    The same in each attempt of a round. Under other terms of the noise, or over a vector of another length, it would be
    another key: no two scales of one vector ever carry the same noise.
    """
    said = canonical_json(
        {
            "run": spec.ref.run,
            "round": spec.ref.round,
            "plan": spec.ref.plan,
            "model": spec.model,
            "sizes": list(spec.sizes),
            "noise": None if spec.terms.noise is None else spec.terms.noise.to_json(),
        }
    )
    info = b"fedveil-sum/1 noise" + hashlib.sha256(said).digest()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)
