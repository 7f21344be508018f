"""A secure sum whose aggregator is an envoy: the director goes through the same stages, and opens nothing.

Masked vectors and the shares that unmask come sealed to the aggregator; the director counts them. When enough are here
it hands everything over (``Case``), and what comes back, part by part, is the unmasked total with the aggregator's
signature. ``Handover`` is that exchange; the coordinator carries what it says. Both are used under its lock.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from ..utils.artifacts import ArtifactStore
from ..utils.errors import (
    DigestMismatchError,
    DuplicateUpdateError,
    LengthMismatchError,
    MalformedMessageError,
    NotInvitedError,
    ProtocolError,
    StorageError,
    SumAbortedError,
    UnsendableUpdateError,
)
from ..utils.messages import EnvoyName, SumItem
from ..utils.secure_sum import encoding, handover, relayed, summation
from ..utils.secure_sum.case import Case
from ..utils.secure_sum.cohort import Cohort
from ..utils.secure_sum.opened import Opened
from ..utils.tensors import Digest, digest_of
from .spool import HEADER_BYTES
from .sum_log import Event, Way
from .sum_progress import STAGES, SecureSum
from .uploads import Uploads

_MAX_SEALED_BYTES = 1 << 20


class RelayedSum(SecureSum):
    """The secure sum of one attempt that an envoy opens."""

    _sealed: dict[EnvoyName, bytes]  # what was revealed, for the aggregator alone
    is_aggregator_there = True  # as the coordinator last saw it

    @property
    def aggregator(self) -> EnvoyName:
        """Who opens it."""
        return EnvoyName(self.spec.terms.aggregator)

    def take(self, envoy: EnvoyName, content: bytes, arrived: Mapping[EnvoyName, Digest], now: float) -> None:
        """One statement of an envoy; shares come sealed.

        Raises:
            FederationError: as ``SecureSum.take``.
        """
        state = self._state
        if not isinstance(state, summation.Unmasking) or not relayed.is_sealed(content):
            super().take(envoy, content, arrived, now)
            return
        if envoy not in state.survivors:
            raise NotInvitedError(f"{envoy} is not in the sum of {self.spec.ref}, and reveals shares")
        if len(content) > _MAX_SEALED_BYTES:
            raise MalformedMessageError(f"{envoy} reveals {len(content)} bytes, expected {_MAX_SEALED_BYTES} at most")
        before = self._held.get(envoy)
        if before is not None and before != content:
            raise DuplicateUpdateError(f"{envoy} already revealed other shares in {self.spec.ref}")
        if before is None:
            self._log.append(Event(Way.UP, STAGES[summation.Unmasking], envoy, content), now)
            self._held[envoy] = content
            self._refused.discard(envoy)

    def open(self) -> summation.Opened:
        """The sum without its masks, which the aggregator takes away.

        Raises:
            ProtocolError: it is not ready.
        """
        state = self._state
        if not isinstance(state, summation.Unmasking):
            raise ProtocolError(f"{self.spec.ref}: the secure sum is at the {self.stage}s and cannot be opened")
        return Opened(state.cohort, state.survivors, encoding.encode(state.consents), (), ())

    def keep_vectors(self, uploads: Uploads) -> None:
        """Sealed vectors tell an auditor nothing: they are not kept."""

    def case(self, vectors: Mapping[EnvoyName, Digest]) -> Case:
        """All that was said, from the log.

        Raises:
            StorageError: the log cannot be read.
            ProtocolError: it is not ready.
        """
        state = self._state
        if not isinstance(state, summation.Unmasking):
            raise ProtocolError(f"{self.spec.ref}: the secure sum is at the {self.stage}s and cannot be handed over")
        said: dict[str, dict[EnvoyName, bytes]] = {stage: {} for stage in STAGES.values()}
        head = b""
        for event in self._log.replay():
            if event.way is Way.UP:
                said[event.stage].setdefault(EnvoyName(event.envoy), event.content)
            elif event.way is Way.HERE and event.stage == STAGES[summation.Masking]:
                head = event.content
        return Case(
            spec=self.spec,
            rules=state.rules,
            adverts=said[STAGES[summation.Gathering]],
            cohort=state.cohort.names,
            shares=said[STAGES[summation.Sharing]],
            headers=said[STAGES[summation.Masking]],
            survivors=state.survivors,
            audit_head=head,
            consents=said[STAGES[summation.Consenting]],
            unmaskings=said[STAGES[summation.Unmasking]],
            vectors=vectors,
        )

    def check_total(self, total: Digest, signature: bytes) -> None:
        """Did the aggregator sign this total, for this sum?

        Raises:
            SumRefusedError: no.
        """
        relayed.check_total(self.open(), total, signature, self._state.roster)

    @property
    def _held(self) -> dict[EnvoyName, bytes]:
        """Made at the first use: the log is replayed while the sum is made."""
        if not hasattr(self, "_sealed"):
            self._sealed = {}
        return self._sealed

    def _is_whole(self, state: summation.Masking, envoy: EnvoyName, arrived: Mapping[EnvoyName, Digest]) -> bool:
        return envoy in state.announced and envoy in arrived  # which vector it is, the aggregator sees

    def _vector_bytes(self, cohort: Cohort, envoy: EnvoyName) -> int:
        return relayed.vector_binding(cohort, envoy).sealed_length

    def _revealed(self, state: summation.Unmasking) -> Collection[EnvoyName]:
        del state
        return self._held

    def _go_on(self, names: tuple[EnvoyName, ...], now: float) -> Mapping[EnvoyName, SumItem]:
        """Not to consents or shares while the aggregator is away: sites give both once, and the sum would be lost.

        Raises:
            SumAbortedError: it was away for too long; nothing was revealed, and the next attempt may sum the same.
        """
        binds = isinstance(self._state, summation.Masking | summation.Consenting)
        if binds and not self.is_aggregator_there:
            if now - self._since < self._limit:
                return {}
            raise SumAbortedError(f"{self.aggregator}, the aggregator, is not connected; nothing was revealed")
        return super()._go_on(names, now)

    def _repeat(self, event: Event) -> None:
        if event.way is Way.UP and event.stage == STAGES[summation.Unmasking]:
            self._held[EnvoyName(event.envoy)] = event.content
        else:
            super()._repeat(event)


class Handover:
    """One sum on its way to its aggregator, and the total on its way back.

    Args:
        secure_sum: enough was revealed in it.
        artifacts: where the case and the sealed vectors lie until the aggregator has them.
        uploads: holds the sealed vectors.

    Raises:
        StorageError: no room.
        UnsendableUpdateError: a sealed vector is no longer on disk.
    """

    def __init__(self, secure_sum: RelayedSum, artifacts: ArtifactStore, uploads: Uploads) -> None:
        self._sum, self._artifacts = secure_sum, artifacts
        self._kept: list[Digest] = []
        opened = secure_sum.open()
        vectors = {name: self._keep(uploads, name, opened) for name in opened.survivors}
        case = artifacts.put([secure_sum.case(vectors).to_bytes()])
        self._kept.append(case)
        self.order = SumItem(secure_sum.spec.ref, handover.to_bytes(handover.Order(case)))
        self._total = np.zeros(opened.words, np.uint32)
        self._received, self._is_finished, self._declined = 0, False, ""

    @property
    def aggregator(self) -> EnvoyName:
        """Who is asked."""
        return self._sum.aggregator

    @property
    def is_over(self) -> bool:
        """The total is here, or will not come."""
        return self._is_finished or bool(self._declined)

    def hands(self, envoy: EnvoyName, digest: Digest) -> bool:
        """Is this artifact the case, or a sealed vector, for this envoy to fetch?"""
        return envoy == self.aggregator and digest in self._kept

    def is_for(self, envoy: EnvoyName, content: bytes) -> bool:
        """Is this the aggregator's word about the total?"""
        return envoy == self.aggregator and handover.is_handover(content)

    def take(self, content: bytes) -> None:
        """Something that the aggregator said; what came before may come again.

        Raises:
            ProtocolError: a part that does not follow.
            LengthMismatchError: more than the total has, or fewer.
            DigestMismatchError: the total is not the one that was signed.
            SumRefusedError: the signature is not the aggregator's.
            MalformedMessageError: it is none of what is to be said.
        """
        raw = self._total.data.cast("B")
        match handover.from_bytes(content):
            case handover.Part(offset, part) if offset == self._received:
                if offset + len(part) > len(raw):
                    raise LengthMismatchError(
                        f"a total of {len(raw)} bytes is expected, at least {offset + len(part)} came"
                    )
                raw[offset : offset + len(part)] = part
                self._received += len(part)
            case handover.Part(offset, part) if offset + len(part) <= self._received:
                pass
            case handover.Part(offset, _):
                raise ProtocolError(
                    f"{self.aggregator} tells the total from byte {offset} on, not from {self._received}"
                )
            case handover.Finished(total, signature):
                if self._received != len(raw):
                    raise LengthMismatchError(f"a total of {len(raw)} bytes is expected, {self._received} came")
                if digest_of(raw) != total:
                    self._received = 0
                    raise DigestMismatchError(f"the total of {self.aggregator} is not the one that it signed")
                self._sum.check_total(total, signature)
                self._is_finished = True
            case handover.Declined(reason):
                self._declined = reason or "no reason given"
            case handover.Order():
                raise MalformedMessageError(f"{self.aggregator} gives an order to the director")

    def total(self) -> NDArray[np.uint32]:
        """The unmasked sum.

        Raises:
            SumAbortedError: the aggregator did not give it.
        """
        if self._declined:
            raise SumAbortedError(f"{self.aggregator}, the aggregator, does not open the sum: {self._declined}")
        if not self._is_finished:
            raise SumAbortedError(f"{self.aggregator}, the aggregator, did not give the sum in time")
        return self._total

    def close(self) -> None:
        """Nothing of it stays on disk."""
        for digest in self._kept:
            with contextlib.suppress(StorageError):
                self._artifacts.discard(digest)

    def _keep(self, uploads: Uploads, name: EnvoyName, opened: Opened) -> Digest:
        length = relayed.vector_binding(opened.cohort, name).sealed_length
        try:
            with (
                uploads.path(name).open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as whole,
                whole[HEADER_BYTES : HEADER_BYTES + length] as stream,
            ):
                if len(stream) != length:
                    raise UnsendableUpdateError(f"what {name} had sent is gone from the director's disk")
                digest = self._artifacts.put([stream])
        except (OSError, ValueError) as error:
            raise UnsendableUpdateError(f"what {name} had sent is damaged or gone from the director's disk") from error
        self._kept.append(digest)
        return digest
